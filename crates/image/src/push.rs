//! Pushing: a stored image goes to a registry.
//!
//! What the registry has is not sent: each layer is asked for under the digest it was pulled by, then taken over from the
//! repositories of that registry that the image was pulled from. What is left is made from its recipe and compressed,
//! always to the same bytes. When every layer is there as it was pulled, so is the image's own manifest, and the digest
//! stays; else the image gets a manifest of its own, under which its id and its diff ids are the same.
//!
//! A dropped push stops where it is. The registry has then perhaps some layers that nothing refers to, and no new image.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use types::Digest;

use crate::archive::{Contents, Document, LayerFile, oci_manifest};
use crate::auth::Auth;
use crate::error::ImageError;
use crate::hash::Hasher;
use crate::images::{Images, Shared, blocking};
use crate::manifest;
use crate::record::ImageRecord;
use crate::reference::Reference;
use crate::registry::{Payload, Session};
use crate::store::Ingest;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const BUFFER: usize = 128 << 10;

/// What to push, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushRequest {
    /// The stored image, by any of its names or its id.
    pub image: String,
    /// The name it gets in the registry; the same as `image` when empty.
    pub target: String,
    /// Credentials for the registry.
    pub auth: Option<Auth>,
}

/// A layer as the registry has it.
struct Pushed {
    media_type: String,
    digest: Digest,
    size: u64,
    /// It is the blob that was pulled.
    is_original: bool,
}

impl Images {
    /// Pushes an image, and gives the digest of its manifest in the registry.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] when it is not stored, [`ImageError::Reference`] for a target that is no name,
    /// [`ImageError::Unauthenticated`], [`ImageError::Denied`], [`ImageError::Unavailable`] or [`ImageError::Protocol`]
    /// when the registry does not take it, [`ImageError::Corrupt`] when a layer is not what it was.
    pub async fn push(&self, request: PushRequest) -> Result<Digest, ImageError> {
        let target = if request.target.is_empty() { &request.image } else { &request.target };
        let reference = Reference::parse(target)
            .map_err(|source| ImageError::Reference { text: target.clone(), source })?;
        let session = self.shared.session_for(&reference, request.auth).await?;
        let (store, name) = (Arc::clone(&self.shared.store), request.image.clone());
        let (contents, ingest) =
            blocking(&self.shared.tasks, move || Ok((Contents::of(&store, &name)?, store.ingest()?))).await?;
        let record = self.resolve(contents.id.0.as_str());
        let record = record.ok_or_else(|| ImageError::Unknown(request.image.clone()))?;
        let shared = &self.shared;
        Push { shared, session, reference, record, contents: Arc::new(contents), ingest: Arc::new(ingest) }
            .run()
            .await
    }
}

struct Push<'a> {
    shared: &'a Shared,
    session: Session,
    reference: Reference,
    record: Arc<ImageRecord>,
    contents: Arc<Contents>,
    ingest: Arc<Ingest>,
}

impl Push<'_> {
    /// The manifest goes last: an image is there with all it needs or not at all.
    async fn run(&self) -> Result<Digest, ImageError> {
        let mut layers = Vec::new();
        for position in 0..self.contents.layers.len() {
            layers.push(self.layer(position).await?);
        }
        self.config().await?;
        let manifest = self.manifest(&layers).await?;
        let media_type = manifest::media_type(&manifest.bytes);
        let media_type = media_type.as_deref().unwrap_or(OCI_MANIFEST);
        self.session.put_manifest(media_type, &manifest.digest, &manifest.bytes).await?;
        let (name, digest) = (self.reference.to_string(), manifest.digest);
        tracing::info!(op = "push", "image.ref" = name, "image pushed");
        Ok(digest)
    }

    async fn layer(&self, position: usize) -> Result<Pushed, ImageError> {
        let Some(file) = self.contents.layers.get(position) else {
            return Err(ImageError::Unknown(format!("layer {position}")));
        };
        let crate::record::Layer { media_type, digest, size, .. } = file.layer.clone();
        if self.is_there(&digest).await? {
            return Ok(Pushed { media_type, digest, size, is_original: true });
        }
        let (digest, size, packed) = self.pack(position).await?;
        if !self.session.has_blob(&digest).await? {
            self.session.upload(&digest, &Payload::File(Arc::new(packed), size)).await?;
        }
        let is_original = digest == file.layer.digest;
        Ok(Pushed { media_type: GZIP_LAYER.to_owned(), digest, size, is_original })
    }

    /// Whether the repository has the blob, if need be from another one.
    async fn is_there(&self, digest: &Digest) -> Result<bool, ImageError> {
        if self.session.has_blob(digest).await? {
            return Ok(true);
        }
        for repository in self.other_repositories() {
            if self.session.mount(digest, &repository).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where in this registry the image came from.
    fn other_repositories(&self) -> BTreeSet<String> {
        let names = self.record.repo_digests.iter().filter_map(|name| Reference::parse(name).ok());
        let here = names.filter(|name| name.registry() == self.reference.registry());
        let other = here.map(|name| name.repository().to_owned());
        other.filter(|name| name != self.reference.repository()).collect()
    }

    /// Compresses a layer into a file of its own.
    async fn pack(&self, position: usize) -> Result<(Digest, u64, File), ImageError> {
        let (contents, ingest) = (Arc::clone(&self.contents), Arc::clone(&self.ingest));
        blocking(&self.shared.tasks, move || match contents.layers.get(position) {
            Some(layer) => pack(layer, &ingest, position),
            None => Err(ImageError::Unknown(format!("layer {position}"))),
        })
        .await
    }

    async fn config(&self) -> Result<(), ImageError> {
        let digest = &self.contents.id.0;
        if self.session.has_blob(digest).await? {
            return Ok(());
        }
        let payload = Payload::Bytes(Bytes::copy_from_slice(&self.contents.config));
        self.session.upload(digest, &payload).await
    }

    async fn manifest(&self, layers: &[Pushed]) -> Result<Document, ImageError> {
        if layers.iter().all(|layer| layer.is_original) {
            let (store, digest) = (Arc::clone(&self.shared.store), self.record.manifest.clone());
            let stored = move || store.blob(&digest).map(|bytes| Document { digest, bytes });
            return blocking(&self.shared.tasks, stored).await;
        }
        let layers = layers.iter().map(|layer| (layer.media_type.as_str(), &layer.digest, layer.size));
        oci_manifest(&self.contents.id.0, self.contents.config.len() as u64, layers)
    }
}

/// The layer's archive in gzip, without a name or a time in it; verified on the way.
fn pack(layer: &LayerFile, ingest: &Ingest, position: usize) -> Result<(Digest, u64, File), ImageError> {
    let failed = |error| ImageError::store(format!("compressing layer {}", layer.diff_id()), error);
    let path = ingest.path().join(format!("packed-{position}"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)?;
    let mut packed = Packed { file, hasher: Hasher::new(), len: 0 };
    let actual = {
        let mut encoder = GzBuilder::new().mtime(0).write(&mut packed, Compression::default());
        let digest = copy(&mut layer.open()?, &mut encoder).map_err(failed)?;
        encoder.finish().map_err(failed)?;
        digest
    };
    if actual != *layer.diff_id() {
        return Err(layer.changed(&actual));
    }
    Ok((packed.hasher.finish(), packed.len, packed.file))
}

/// The digest of what was copied.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        hasher.update(bytes);
        to.write_all(bytes)?;
    }
}

struct Packed {
    file: File,
    hasher: Hasher,
    len: u64,
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
