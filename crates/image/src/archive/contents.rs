//! What an archive or a registry gets of a stored image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use types::{Digest, ImageId};

use super::parse;
use crate::error::ImageError;
use crate::hash::digest_of;
use crate::manifest;
use crate::recipe::{self, RecipeError, Tar};
use crate::record::{ImageRecord, Layer};
use crate::reference::Reference;
use crate::store::{Pin, Store};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A document with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

impl Document {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest_of(&bytes), bytes }
    }
}

/// An image whose layers stay while this value lives.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) id: ImageId,
    pub(crate) names: Vec<Reference>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Document,
    /// Lowest first.
    pub(crate) layers: Vec<LayerFile>,
}

/// One layer's archive, as it will be made.
#[derive(Debug)]
pub(crate) struct LayerFile {
    pub(crate) layer: Layer,
    /// Bytes of the uncompressed archive.
    pub(crate) size: u64,
    directory: PathBuf,
    _pin: Pin,
}

impl LayerFile {
    pub(crate) fn diff_id(&self) -> &Digest {
        &self.layer.diff_id
    }

    /// The error of an archive that turned out to be another one.
    pub(crate) fn changed(&self, actual: &Digest) -> ImageError {
        ImageError::Corrupt {
            reference: "the stored image".to_owned(),
            what: format!("layer {}", self.diff_id()),
            detail: format!("its files are not those that were pulled: they have the digest {actual}"),
        }
    }

    /// The uncompressed archive.
    pub(crate) fn open(&self) -> Result<Tar<BufReader<File>>, ImageError> {
        self.try_open().map_err(|error| unreadable(self.diff_id(), &error))
    }

    fn try_open(&self) -> Result<Tar<BufReader<File>>, RecipeError> {
        recipe::open(&self.directory)
    }
}

fn unreadable(diff_id: &Digest, error: &RecipeError) -> ImageError {
    ImageError::Corrupt {
        reference: "the stored image".to_owned(),
        what: format!("layer {diff_id}"),
        detail: types::error::chain(error),
    }
}

impl Contents {
    /// The image that `text` means.
    pub(crate) fn of(store: &Arc<Store>, text: &str) -> Result<Self, ImageError> {
        let record = store.index().resolve(text).ok_or_else(|| ImageError::Unknown(text.to_owned()))?;
        let layer = |layer: &Layer| layer_file(store, layer);
        let layers: Vec<LayerFile> = record.layers.iter().map(layer).collect::<Result<_, _>>()?;
        let config = store.blob(&record.id.0)?;
        let manifest = match stored_manifest(store, &record) {
            Some(manifest) => manifest,
            None => made_manifest(&record.id, &config, &layers)?,
        };
        Ok(Self { id: record.id.clone(), names: names_of(&record, text)?, config, manifest, layers })
    }
}

fn layer_file(store: &Arc<Store>, layer: &Layer) -> Result<LayerFile, ImageError> {
    let diff_id = &layer.diff_id;
    let found = store.pin_layer(diff_id).zip(store.layer_directory(diff_id));
    let (pin, directory) = found.ok_or_else(|| ImageError::Unknown(diff_id.to_string()))?;
    let size = recipe::length(&directory).map_err(|error| unreadable(diff_id, &error))?;
    Ok(LayerFile { layer: layer.clone(), size, directory, _pin: pin })
}

/// A tag stands for itself, everything else for all tags of the image.
fn names_of(record: &ImageRecord, text: &str) -> Result<Vec<Reference>, ImageError> {
    let asked = Reference::parse(text).ok().and_then(|reference| reference.repo_tag());
    match asked.filter(|tag| record.repo_tags.contains(tag)) {
        Some(tag) => Ok(vec![parse(&tag)?]),
        None => record.repo_tags.iter().map(|tag| parse(tag)).collect(),
    }
}

/// The stored manifest, if what it refers to can be made again: OCI's, with uncompressed layers.
fn stored_manifest(store: &Store, record: &ImageRecord) -> Option<Document> {
    if record.layers.iter().any(|layer| layer.digest != layer.diff_id) {
        return None;
    }
    let bytes = store.blob(&record.manifest).ok()?;
    let is_oci = manifest::media_type(&bytes).is_none_or(|media_type| media_type == OCI_MANIFEST);
    is_oci.then(|| Document { digest: record.manifest.clone(), bytes })
}

fn made_manifest(id: &ImageId, config: &[u8], layers: &[LayerFile]) -> Result<Document, ImageError> {
    let layers = layers.iter().map(|file| (OCI_LAYER, file.diff_id(), file.size));
    oci_manifest(&id.0, config.len() as u64, layers)
}

/// A manifest as nobody else need have written it: always the same for the same layers.
pub(crate) fn oci_manifest<'a>(
    config: &'a Digest,
    config_size: u64,
    layers: impl Iterator<Item = (&'a str, &'a Digest, u64)>,
) -> Result<Document, ImageError> {
    let manifest = ManifestFile {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: DescriptorFile::new(OCI_CONFIG, config, config_size),
        layers: layers
            .map(|(media_type, digest, size)| DescriptorFile::new(media_type, digest, size))
            .collect(),
    };
    to_json(&manifest).map(Document::new)
}

/// `index.json`: each name of each image is an entry of its own.
pub(super) fn oci_index(images: &[Contents]) -> Result<Vec<u8>, ImageError> {
    let entries = images.iter().flat_map(|image| {
        let entry = |name: Option<&Reference>| {
            let Document { digest, bytes } = &image.manifest;
            let mut entry = DescriptorFile::new(OCI_MANIFEST, digest, bytes.len() as u64);
            if let Some(name) = name {
                entry.annotations = super::layout::NAME_KEYS.map(|key| (key, name.to_string())).into();
            }
            entry
        };
        let named: Vec<_> = image.names.iter().map(|name| entry(Some(name))).collect();
        if named.is_empty() { vec![entry(None)] } else { named }
    });
    let index =
        IndexFile { schema_version: 2, media_type: OCI_INDEX, manifests: entries.collect::<Vec<_>>() };
    to_json(&index)
}

/// What a name of this image resolves to: the digest of its index where it was pulled by one.
pub(super) fn target_of(record: &ImageRecord) -> Digest {
    let digest = record.repo_digests.first().and_then(|name| Reference::parse(name).ok());
    digest.and_then(|name| name.digest().cloned()).unwrap_or_else(|| record.manifest.clone())
}

pub(super) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|error| ImageError::store("encoding a manifest", error.into()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestFile<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: DescriptorFile<'a>,
    layers: Vec<DescriptorFile<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexFile<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<DescriptorFile<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorFile<'a> {
    media_type: &'a str,
    digest: &'a Digest,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

impl<'a> DescriptorFile<'a> {
    fn new(media_type: &'a str, digest: &'a Digest, size: u64) -> Self {
        Self { media_type, digest, size, annotations: BTreeMap::new() }
    }
}
