//! Reading the archives of `docker save`, older ones with their links between layers included.

use std::io::{Read, Seek};

use serde::Deserialize;
use types::Digest;

use super::contents::{Document, OCI_LAYER, oci_manifest};
use super::load::{Blob, Planned};
use super::source::{Source, unusable};
use crate::error::ImageError;
use crate::hash::Hasher;
use crate::manifest::{MAX_CONFIG, MAX_MANIFEST};
use crate::record::Layer;
use crate::reference::Reference;

const MAX_IMAGES: usize = 1000;
/// Overlay takes no more.
const MAX_LAYERS: usize = 500;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The images of the archive; `None` when it is none of Docker's.
pub(super) fn plan(source: &Source) -> Result<Option<Vec<Planned>>, ImageError> {
    let Some(bytes) = source.read("manifest.json", MAX_MANIFEST)? else { return Ok(None) };
    let entries: Vec<Entry> = serde_json::from_slice(&bytes)
        .map_err(|error| unusable(format!("its manifest.json cannot be read: {error}")))?;
    if entries.len() > MAX_IMAGES {
        return Err(unusable("it has too many images"));
    }
    entries.iter().map(|entry| image(source, entry)).collect::<Result<Vec<_>, _>>().map(Some)
}

/// The archive has no manifest of the kind that registries have, so that one is made.
fn image(source: &Source, entry: &Entry) -> Result<Planned, ImageError> {
    let files = entry.layers.as_deref().unwrap_or_default();
    if files.len() > MAX_LAYERS {
        return Err(unusable(format!(
            "{} has more than the {MAX_LAYERS} layers that overlay takes",
            entry.config
        )));
    }
    let config = source.read(&entry.config, MAX_CONFIG)?;
    let config = Document::new(config.ok_or_else(|| unusable(format!("{} is missing", entry.config)))?);
    let diff_ids = super::load::diff_ids(&config.bytes, files.len())?;
    let layers = files.iter().zip(diff_ids).map(|(file, diff_id)| layer(source, file, diff_id));
    let layers: Vec<Blob> = layers.collect::<Result<_, _>>()?;
    let descriptors =
        layers.iter().map(|Blob { layer, .. }| (layer.media_type.as_str(), &layer.digest, layer.size));
    let manifest = oci_manifest(&config.digest, config.bytes.len() as u64, descriptors)?;
    let names = entry.repo_tags.iter().flatten().map(|name| tag(name)).collect::<Result<_, _>>()?;
    let size = layers.iter().fold(config.bytes.len() as u64, |sum, blob| sum.saturating_add(blob.layer.size));
    Ok(Planned { names, target: manifest.digest.clone(), documents: vec![manifest], config, layers, size })
}

fn tag(name: &str) -> Result<Reference, ImageError> {
    let reference = super::parse(name)?;
    if reference.tag().is_some() { Ok(reference) } else { Err(unusable(format!("{name} is not a tag"))) }
}

/// What is not compressed is verified by its diff id. What is (few programs write that) has no digest in the archive.
fn layer(source: &Source, name: &str, diff_id: Digest) -> Result<Blob, ImageError> {
    let (mut file, size) = source.open(name)?.ok_or_else(|| unusable(format!("layer {name} is missing")))?;
    let failed = |error| ImageError::store(format!("reading {name}"), error);
    let mut start = Vec::new();
    (&mut file).take(4).read_to_end(&mut start).map_err(failed)?;
    let suffix = match start.as_slice() {
        start if start.starts_with(GZIP) => "+gzip",
        start if start.starts_with(ZSTD) => "+zstd",
        _ => "",
    };
    let digest = if suffix.is_empty() {
        diff_id.clone()
    } else {
        file.rewind().and_then(|()| digest_of_file(file)).map_err(failed)?
    };
    let media_type = format!("{OCI_LAYER}{suffix}");
    Ok(Blob { layer: Layer { diff_id, digest, size, media_type }, file: name.to_owned() })
}

fn digest_of_file(mut file: std::fs::File) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
}
