//! Reading an OCI image layout.

use std::collections::BTreeMap;

use serde::Deserialize;
use types::Digest;

use super::contents::Document;
use super::load::{Blob, Planned};
use super::source::{Source, unusable};
use crate::error::ImageError;
use crate::hash::digest_of;
use crate::manifest::{self, Descriptor, Document as Parsed, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::platform::Platform;
use crate::record::Layer;
use crate::reference::Reference;

/// Annotations with an image's name: containerd's, which is always whole, and that of the specification, which is
/// whatever its writer wanted: a whole name, or a tag without one.
pub(super) const NAME_KEYS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
const MAX_INDEX_DEPTH: usize = 3;
const MAX_IMAGES: usize = 1000;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

/// Whether this is a layout at all.
pub(super) fn is_layout(source: &Source) -> Result<bool, ImageError> {
    Ok(source.open("index.json")?.is_some())
}

/// The images of the layout for this machine, each once.
pub(super) fn plan(source: &Source) -> Result<Vec<Planned>, ImageError> {
    let bytes = source.read("index.json", MAX_MANIFEST)?.unwrap_or_default();
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| unusable(format!("its index.json cannot be read: {error}")))?;
    if index.manifests.len() > MAX_IMAGES {
        return Err(unusable("it has too many images"));
    }
    let mut images: Vec<Planned> = Vec::new();
    let mut offered = None;
    for entry in &index.manifests {
        let name = name_of(entry)?;
        if let Some(known) = images.iter_mut().find(|image| image.target == entry.descriptor.digest) {
            known.names.extend(name);
        } else if is_for_us(entry) {
            images.extend(image(source, entry, name)?);
        } else {
            offered = entry.platform.as_ref();
        }
    }
    match offered.filter(|_| images.is_empty()) {
        Some(_) => Err(no_platform()),
        None => Ok(images),
    }
}

fn no_platform() -> ImageError {
    ImageError::NoPlatform { reference: "the archive".to_owned(), platform: Platform::host().to_string() }
}

/// An entry that does not say what it is for is for everybody.
fn is_for_us(entry: &Entry) -> bool {
    entry.platform.as_ref().is_none_or(|platform| Platform::host().distance(platform).is_some())
}

fn name_of(entry: &Entry) -> Result<Option<Reference>, ImageError> {
    let text = NAME_KEYS.iter().find_map(|key| entry.annotations.as_ref()?.get(*key));
    match text {
        // A tag without a name says nothing of whose tag it is.
        Some(text) if text.contains(['/', ':', '@']) => super::parse(text).map(Some),
        _ => Ok(None),
    }
}

fn image(source: &Source, entry: &Entry, name: Option<Reference>) -> Result<Option<Planned>, ImageError> {
    let target = entry.descriptor.digest.clone();
    let mut descriptor = entry.descriptor.clone();
    let mut documents = Vec::new();
    for _ in 0..=MAX_INDEX_DEPTH {
        let bytes = blob(source, &descriptor.digest, MAX_MANIFEST)?;
        let document = Document { digest: descriptor.digest.clone(), bytes };
        let parsed = Parsed::parse(&document.bytes).map_err(|error| unusable(error.to_string()))?;
        documents.push(document);
        match parsed {
            Parsed::Image(manifest) => {
                let names = name.into_iter().collect();
                return planned(source, Found { names, target, documents, manifest }).map(Some);
            }
            Parsed::Index(entries) => {
                let chosen = manifest::choose(&entries, &Platform::host());
                descriptor = chosen.ok_or_else(no_platform)?.clone();
            }
        }
    }
    Err(unusable("indexes are nested too deeply"))
}

struct Found {
    names: Vec<Reference>,
    target: Digest,
    documents: Vec<Document>,
    manifest: Manifest,
}

fn planned(source: &Source, found: Found) -> Result<Planned, ImageError> {
    let Found { names, target, documents, manifest } = found;
    let config = Document {
        bytes: blob(source, &manifest.config.digest, MAX_CONFIG)?,
        digest: manifest.config.digest.clone(),
    };
    let diff_ids = super::load::diff_ids(&config.bytes, manifest.layers.len())?;
    let pair = |(descriptor, diff_id): (&Descriptor, Digest)| Blob {
        layer: Layer {
            diff_id,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            media_type: descriptor.media_type.clone(),
        },
        file: path(&descriptor.digest),
    };
    let layers = manifest.layers.iter().zip(diff_ids).map(pair).collect();
    Ok(Planned { names, target, size: manifest.size(), documents, config, layers })
}

/// A small blob, verified.
fn blob(source: &Source, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
    let corrupt = |detail| ImageError::Corrupt {
        reference: "the archive".to_owned(),
        what: format!("blob {digest}"),
        detail,
    };
    let bytes = source.read(&path(digest), limit)?.ok_or_else(|| corrupt("it is missing".to_owned()))?;
    let actual = digest_of(&bytes);
    if actual == *digest { Ok(bytes) } else { Err(corrupt(format!("it has the digest {actual}"))) }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
