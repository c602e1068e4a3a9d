//! Manifests and indexes, OCI's and Docker's, read from their JSON into what a pull needs.
//!
//! The kind of a document is decided by its structure, and a document that could be read as two kinds is refused:
//! clients that disagree about it could be shown different images under one digest.

use serde::Deserialize;
use types::Digest;

use crate::platform::Platform;

/// What manifests may be asked for, most wanted first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Largest manifest or index that is read.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest config that is read.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Overlay takes 500 lower directories.
const MAX_LAYERS: usize = 500;

const IMAGE_CONFIGS: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];
/// Layers, and what is behind their names when they are compressed.
const IMAGE_LAYERS: [(&str, [&str; 3]); 4] = [
    ("application/vnd.oci.image.layer.v1.tar", ["", "+gzip", "+zstd"]),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", ["", "+gzip", "+zstd"]),
    ("application/vnd.docker.image.rootfs.diff.tar", ["", ".gzip", ".zstd"]),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", ["", ".gzip", ".zstd"]),
];
const ENCRYPTED: &str = "+encrypted";

/// A blob as a manifest refers to it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Where else the blob is to be had.
    #[serde(default)]
    pub(crate) urls: Vec<String>,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Descriptor {
    fn is_image_config(&self) -> bool {
        IMAGE_CONFIGS.contains(&self.media_type.as_str())
    }

    fn is_image_layer(&self) -> bool {
        IMAGE_LAYERS.iter().any(|(kind, suffixes)| {
            self.media_type.strip_prefix(kind).is_some_and(|suffix| suffixes.contains(&suffix))
        })
    }
}

/// One platform's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest's URL may answer with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Vec<Descriptor>),
}

/// Why a document is not an image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("its manifest is not valid: {0}")]
    Malformed(String),
    #[error("its manifest is of Docker's schema 1, which was replaced in 2016; push the image again")]
    SchemaOne,
    #[error("its manifest can be read as two kinds of document")]
    Ambiguous,
    #[error("it is an artifact, not a container image (its {what} is {media_type:?})")]
    Artifact { what: &'static str, media_type: String },
    #[error("its layer {0} is encrypted, which is not supported")]
    Encrypted(Digest),
    #[error("it has {0} layers, more than the {MAX_LAYERS} that overlay takes")]
    TooManyLayers(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(ManifestError::SchemaOne);
        }
        let says_index = raw.media_type.contains(".index.") || raw.media_type.contains(".list.");
        let says_image = !raw.media_type.is_empty() && !says_index;
        let is_image = raw.config.as_ref().is_some_and(Descriptor::is_image_config);
        if !raw.artifact_type.is_empty() && !is_image && raw.manifests.is_none() {
            return Err(ManifestError::Artifact { what: "artifact type", media_type: raw.artifact_type });
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if !says_image => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) if !says_index => {
                Manifest::check(config, layers).map(Self::Image)
            }
            (None, _, _) if !says_index => {
                Err(ManifestError::Malformed("it has no config or no layers".to_owned()))
            }
            _ => Err(ManifestError::Ambiguous),
        }
    }
}

impl Manifest {
    fn check(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, ManifestError> {
        if !config.is_image_config() {
            return Err(ManifestError::Artifact { what: "config", media_type: config.media_type });
        }
        if layers.len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(layers.len()));
        }
        if let Some(layer) = layers.iter().find(|layer| layer.media_type.ends_with(ENCRYPTED)) {
            return Err(ManifestError::Encrypted(layer.digest.clone()));
        }
        if let Some(layer) = layers.iter().find(|layer| !layer.is_image_layer()) {
            return Err(ManifestError::Artifact { what: "layer", media_type: layer.media_type.clone() });
        }
        Ok(Self { config, layers })
    }

    /// Bytes of the image's blobs in the registry.
    pub(crate) fn size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// The media type that a document gives itself.
pub(crate) fn media_type(bytes: &[u8]) -> Option<String> {
    let raw: Option<Raw> = serde_json::from_slice(bytes).ok();
    raw.map(|raw| raw.media_type).filter(|media_type| !media_type.is_empty())
}

/// The entry of an index that fits `platform` best; of equals the first.
pub(crate) fn choose<'a>(index: &'a [Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let fitting = index.iter().filter_map(|entry| {
        // Without a platform an entry may be anything; it is the last resort.
        let distance =
            entry.platform.as_ref().map_or(Some(usize::MAX), |offered| platform.distance(offered))?;
        Some((distance, entry))
    });
    fitting.min_by_key(|(distance, _)| *distance).map(|(_, entry)| entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn parse(value: &serde_json::Value) -> Result<Document, ManifestError> {
        Document::parse(value.to_string().as_bytes())
    }

    fn image(config: &str, layer: &str) -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": config, "digest": digest(1), "size": 10},
            "layers": [{"mediaType": layer, "digest": digest(2), "size": 20}],
        })
    }

    #[test]
    fn both_families_of_manifests_are_read() {
        let (oci, docker) =
            ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json");
        for (config, layer) in [
            (oci, "application/vnd.oci.image.layer.v1.tar"),
            (oci, "application/vnd.oci.image.layer.v1.tar+gzip"),
            (oci, "application/vnd.oci.image.layer.v1.tar+zstd"),
            (oci, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            (oci, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
            (docker, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
            (docker, "application/vnd.docker.image.rootfs.diff.tar"),
            (docker, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
            (docker, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            ("application/octet-stream", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ] {
            let Ok(Document::Image(manifest)) = parse(&image(config, layer)) else {
                panic!("{config} must be read")
            };
            assert_eq!(manifest.size(), 30);
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        let oci = "application/vnd.oci.image.config.v1+json";
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let mut both = image(oci, layer);
        both["manifests"] = json!([]);
        let mut lying = image(oci, layer);
        lying["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        assert_eq!(parse(&both), Err(ManifestError::Ambiguous));
        assert_eq!(parse(&lying), Err(ManifestError::Ambiguous));
        assert_eq!(parse(&json!({"schemaVersion": 1, "fsLayers": []})), Err(ManifestError::SchemaOne));
        let helm = parse(&image("application/vnd.cncf.helm.config.v1+json", layer));
        assert!(matches!(helm, Err(ManifestError::Artifact { what: "config", .. })));
        assert!(matches!(
            parse(&image(oci, "text/plain")),
            Err(ManifestError::Artifact { what: "layer", .. })
        ));
        let many: Vec<_> =
            (0..501).map(|_| json!({"mediaType": layer, "digest": digest(2), "size": 1})).collect();
        let mut wide = image(oci, layer);
        wide["layers"] = json!(many);
        assert_eq!(parse(&wide), Err(ManifestError::TooManyLayers(501)));
        for bad in [json!({}), json!([]), json!({"schemaVersion": 2, "layers": []}), json!("x")] {
            assert!(matches!(parse(&bad), Err(ManifestError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn artifacts_are_named_by_what_gives_them_away() {
        let oci = "application/vnd.oci.image.config.v1+json";
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let mut model = image("application/vnd.oci.empty.v1+json", "application/octet-stream");
        model["artifactType"] = json!("application/vnd.example.model");
        let mut old =
            json!({"schemaVersion": 2, "artifactType": "application/vnd.example.sbom", "blobs": []});
        old["mediaType"] = json!("application/vnd.oci.artifact.manifest.v1+json");
        let mut labelled = image(oci, layer);
        labelled["artifactType"] = json!("application/vnd.example.app");
        assert!(parse(&labelled).is_ok(), "what has an image's config is an image");
        for (value, word) in [
            (model, "application/vnd.example.model"),
            (old, "application/vnd.example.sbom"),
            (image("application/vnd.cncf.helm.config.v1+json", layer), "helm.config"),
            (image(oci, "application/vnd.in-toto+json"), "in-toto"),
            (image(oci, "application/vnd.oci.image.layer.v1.tar+lz4"), "tar+lz4"),
            (image(oci, ""), "\"\""),
        ] {
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.starts_with("it is an artifact, not a container image"), "{error}");
            assert!(error.contains(word), "{error}");
        }
        let locked = parse(&image(oci, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
        assert!(matches!(locked, Err(ManifestError::Encrypted(_))));
    }

    #[test]
    fn the_best_fitting_entry_of_an_index_is_chosen() {
        let entry = |n, os: &str, arch: &str, variant: &str| json!({"digest": digest(n), "size": 1, "platform": {"os": os, "architecture": arch, "variant": variant}});
        let index = json!({"schemaVersion": 2, "manifests": [
            entry(1, "unknown", "unknown", ""), {"digest": digest(9), "size": 1},
            entry(2, "linux", "arm", "v6"), entry(3, "linux", "arm", "v7"), entry(4, "linux", "amd64", ""),
        ]});
        let Ok(Document::Index(entries)) = parse(&index) else { panic!("an index must be read") };
        let choice = |architecture: &str, variant: &str| {
            let platform =
                Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() };
            choose(&entries, &platform).map(|entry| entry.digest.to_string())
        };
        assert_eq!(choice("amd64", ""), Some(digest(4)));
        assert_eq!(choice("arm", "v7"), Some(digest(3)));
        assert_eq!(choice("arm", "v6"), Some(digest(2)));
        assert_eq!(choice("s390x", ""), Some(digest(9)));
    }
}
