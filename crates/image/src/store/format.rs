//! The store's files: JSON, each with the version of its form.

use std::collections::BTreeSet;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use types::{Digest, ImageId, Timestamp};

use super::NewImage;
use crate::error::ImageError;
use crate::record::Layer;
use crate::reference::Reference;
use crate::unpack::Unpacked;

const VERSION: u32 = 1;

/// `records/<id>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordFile {
    pub(super) version: u32,
    pub(super) id: ImageId,
    pub(super) tags: BTreeSet<String>,
    pub(super) digests: BTreeSet<String>,
    pub(super) manifest: Digest,
    /// Every blob the image keeps, its config included.
    pub(super) blobs: BTreeSet<Digest>,
    pub(super) layers: Vec<Layer>,
    pub(super) size: u64,
    pub(super) pulled_at: Timestamp,
}

/// `layers/<name>/layer.json`
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LayerFile {
    version: u32,
    pub(super) diff_id: Digest,
    bytes: u64,
    inodes: u64,
    opaque_root: bool,
}

/// `leases/<owner>`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseFile {
    version: u32,
    pub(super) image: ImageId,
    /// Lowest first.
    pub(super) layers: Vec<Digest>,
}

/// `aside/<name>/aside.json`
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AsideFile {
    version: u32,
    pub(super) owners: BTreeSet<String>,
    bytes: u64,
    inodes: u64,
}

impl RecordFile {
    /// The record of a pulled image, with what was known of it before.
    pub(super) fn of(image: &NewImage, known: Option<Self>) -> Self {
        let mut file = known.unwrap_or_else(|| Self {
            version: VERSION,
            id: ImageId(image.config.clone()),
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            manifest: image.manifest.clone(),
            blobs: BTreeSet::new(),
            layers: image.layers.clone(),
            size: image.size,
            pulled_at: Timestamp::now(),
        });
        file.blobs.extend(image.blobs.iter().map(|(digest, _)| digest.clone()));
        file.add_name(&image.reference, &image.target);
        file
    }

    /// Whether anything changed.
    pub(super) fn add_name(&mut self, reference: &Reference, target: &Digest) -> bool {
        let new_digest = self.digests.insert(reference.repo_digest(target));
        let new_tag = reference.repo_tag().is_some_and(|tag| self.tags.insert(tag));
        new_digest || new_tag
    }
}

impl LayerFile {
    pub(super) fn new(diff_id: &Digest, unpacked: Unpacked) -> Self {
        let Unpacked { bytes, inodes, opaque_root } = unpacked;
        Self { version: VERSION, diff_id: diff_id.clone(), bytes, inodes, opaque_root }
    }

    pub(super) fn unpacked(&self) -> Unpacked {
        Unpacked { bytes: self.bytes, inodes: self.inodes, opaque_root: self.opaque_root }
    }
}

impl LeaseFile {
    pub(super) fn new(image: &RecordFile) -> Self {
        let layers = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Self { version: VERSION, image: image.id.clone(), layers }
    }
}

impl AsideFile {
    /// The file itself is part of what the directory takes.
    pub(super) fn new(owners: BTreeSet<String>, unpacked: Unpacked) -> Self {
        let bytes = unpacked.bytes + super::layout::SMALL_FILE_BYTES;
        Self { version: VERSION, owners, bytes, inodes: unpacked.inodes + 1 }
    }

    pub(super) fn unpacked(&self) -> Unpacked {
        Unpacked { bytes: self.bytes, inodes: self.inodes, ..Unpacked::default() }
    }
}

pub(super) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|error| ImageError::store("encoding a record", error.into()))
}

/// Reads a file of the store. Files of a newer version are not understood.
pub(super) fn from_json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        return Err(serde::de::Error::custom(format!("version {version} is not known")));
    }
    serde_json::from_slice(bytes)
}

/// Reads an image's config. What older or odd builders leave out gets its default.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration, serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
    if let Some(config) = value.as_object_mut() {
        for (key, default) in [("architecture", ""), ("os", "linux")] {
            let known = config.entry(key).or_insert_with(|| default.into());
            if known.is_null() {
                *known = default.into();
            }
        }
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_configs_are_read() {
        let config = br#"{"rootfs": {"type": "layers", "diff_ids": []}, "os": null, "container": "x",
            "config": {"Env": null, "Volumes": null, "ExposedPorts": {"80/tcp": {}}, "Labels": null, "User": ""}}"#;
        let parsed = parse_config(config).unwrap();
        assert_eq!(parsed.os().to_string(), "linux");
        assert!(parse_config(b"{}").is_err());
        assert!(parse_config(b"[]").is_err());
    }

    #[test]
    fn a_newer_version_is_not_guessed_at() {
        let lease = br#"{"version": 2, "image": "x", "layers": []}"#;
        assert!(from_json::<LeaseFile>(lease).unwrap_err().to_string().contains("version 2"));
    }
}
