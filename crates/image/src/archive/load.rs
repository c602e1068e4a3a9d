//! From an archive's files to images of the store.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use types::Digest;

use super::contents::Document;
use super::source::{Source, unusable};
use super::spool::Spool;
use super::{LoadedImage, docker, layout};
use crate::error::ImageError;
use crate::images::Shared;
use crate::layer::{Expected, unpack_blob};
use crate::pull::Chunks;
use crate::record::Layer;
use crate::reference::Reference;
use crate::store::{Ingest, NewImage, Pin};

/// The repository of images whose archive does not name them.
const NAMELESS: &str = "localhost/loaded";
const CHUNK: usize = 128 << 10;

/// An image of an archive whose documents make sense. Its layers were not looked at.
pub(super) struct Planned {
    pub(super) names: Vec<Reference>,
    /// What the names resolve to: the digest of an index, or of the manifest.
    pub(super) target: Digest,
    /// From the target to the manifest, which is last.
    pub(super) documents: Vec<Document>,
    pub(super) config: Document,
    /// Lowest first.
    pub(super) layers: Vec<Blob>,
    pub(super) size: u64,
}

/// A layer and its file in the archive.
pub(super) struct Blob {
    pub(super) layer: Layer,
    pub(super) file: String,
}

pub(super) fn from_path(shared: &Shared, path: &Path) -> Result<Vec<LoadedImage>, ImageError> {
    let failed = |error| ImageError::store(format!("opening {}", path.display()), error);
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        let ingest = shared.store.ingest()?;
        return load(shared, &Source::directory(path)?, ingest);
    }
    from_stream(shared, File::open(path).map_err(failed)?)
}

pub(super) fn from_stream(shared: &Shared, archive: impl Read) -> Result<Vec<LoadedImage>, ImageError> {
    let ingest = shared.store.ingest()?;
    let spool = Spool::take(archive, &ingest, &shared.closing)?;
    load(shared, &Source::Spool(spool), ingest)
}

fn load(shared: &Shared, source: &Source, ingest: Ingest) -> Result<Vec<LoadedImage>, ImageError> {
    let loading = Loading { shared, source, ingest };
    let loaded = loading.run();
    drop(loading);
    if loaded.is_err() {
        shared.store.collect_garbage();
    }
    loaded
}

struct Loading<'a> {
    shared: &'a Shared,
    source: &'a Source,
    ingest: Ingest,
}

impl Loading<'_> {
    /// No image appears before all of them are whole.
    fn run(&self) -> Result<Vec<LoadedImage>, ImageError> {
        let images = self.plan()?;
        let mut pins = Vec::new();
        for image in &images {
            for blob in &image.layers {
                pins.push(self.layer(image, blob, pins.len())?);
            }
        }
        images.into_iter().map(|image| self.commit(image)).collect()
    }

    fn plan(&self) -> Result<Vec<Planned>, ImageError> {
        let images = if layout::is_layout(self.source)? {
            Some(layout::plan(self.source)?)
        } else {
            docker::plan(self.source)?
        };
        let images = images.ok_or_else(|| unusable("it has neither an index.json nor a manifest.json"))?;
        if images.is_empty() { Err(unusable("there is no image in it")) } else { Ok(images) }
    }

    fn layer(&self, image: &Planned, blob: &Blob, position: usize) -> Result<Pin, ImageError> {
        let Layer { diff_id, digest, size, .. } = blob.layer.clone();
        if let Some(pin) = self.shared.store.pin_layer(&diff_id) {
            return Ok(pin);
        }
        let missing = || unusable(format!("layer {} is missing", blob.file));
        let (file, _) = self.source.open(&blob.file)?.ok_or_else(missing)?;
        let chunks = FileChunks { file, closing: self.shared.closing.clone() };
        let expected = Expected { digest, size, diff_id };
        let target = self.ingest.layer(position)?;
        let unpacked = unpack_blob(chunks, &expected, target.target()?)
            .map_err(|error| error.of(&expected.digest, image.label()))?;
        self.shared.store.commit_layer(target, &expected.diff_id, unpacked)
    }

    fn commit(&self, image: Planned) -> Result<LoadedImage, ImageError> {
        let wanted = || if self.shared.closing.is_cancelled() { Err(ImageError::Closed) } else { Ok(()) };
        let target = image.target.clone();
        let mut names = image.names.clone().into_iter();
        let first = match names.next() {
            Some(name) => name,
            None => super::parse(&format!("{NAMELESS}@{target}"))?,
        };
        let mut given = vec![first.to_string()];
        let id = self.shared.store.commit_image(image.into_new(first), &self.ingest, &wanted)?;
        for name in names {
            self.shared.store.add_name(&id, &name, &target, &wanted)?;
            given.push(name.to_string());
        }
        Ok(LoadedImage { id, names: given })
    }
}

impl Planned {
    /// What errors call it.
    fn label(&self) -> String {
        let name = self.names.first().map(ToString::to_string);
        name.unwrap_or_else(|| format!("the archive's image {}", self.config.digest))
    }

    fn into_new(self, reference: Reference) -> NewImage {
        let manifest = self.documents.last().map_or(&self.target, |document| &document.digest).clone();
        let config = self.config.digest.clone();
        let documents = self.documents.into_iter().chain([self.config]);
        NewImage {
            reference,
            target: self.target,
            blobs: documents.map(|document| (document.digest, document.bytes)).collect(),
            manifest,
            config,
            layers: self.layers.into_iter().map(|blob| blob.layer).collect(),
            size: self.size,
        }
    }
}

/// The diff ids of a config, of which there must be as many as layers.
pub(super) fn diff_ids(config: &[u8], layers: usize) -> Result<Vec<Digest>, ImageError> {
    let config = crate::store::parse_config(config)
        .map_err(|error| unusable(format!("a config in it cannot be read: {error}")))?;
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        return Err(unusable(format!("an image in it has {layers} layers and {} diff ids", ids.len())));
    }
    let parse = |id: &String| id.parse().map_err(|error: types::DigestError| unusable(error.to_string()));
    ids.iter().map(parse).collect()
}

/// A file in pieces; none when the store is closed.
struct FileChunks {
    file: File,
    closing: CancellationToken,
}

impl Chunks for FileChunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.closing.is_cancelled() {
            return Ok(None);
        }
        let mut chunk = vec![0; CHUNK];
        let count = self.file.read(&mut chunk)?;
        chunk.truncate(count);
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()).map(Bytes::from))
    }
}
