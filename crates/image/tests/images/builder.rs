//! Builds images: layers from entries, config, manifest, index.

use std::io::Write;

use serde_json::{Value, json};

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("sha256:{}", types::id::hex(hash.as_ref()))
}

/// Which family of media types an image uses.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    Oci,
    Docker,
}

impl Family {
    pub(crate) fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    pub(crate) fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// One layer's archive.
pub(crate) struct LayerBuilder(tar::Builder<Vec<u8>>);

impl LayerBuilder {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn entry(mut self, name: &str, change: impl FnOnce(&mut tar::Header), data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        header.set_uid(0);
        header.set_gid(0);
        change(&mut header);
        // The crate refuses names that tests need; written by hand they pass.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(name, |_| {}, data.as_bytes())
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        let change = |header: &mut tar::Header| {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        };
        self.entry(name, change, b"")
    }

    pub(crate) fn link(self, kind: tar::EntryType, name: &str, target: &str) -> Self {
        let change = |header: &mut tar::Header| {
            header.set_entry_type(kind);
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        };
        self.entry(name, change, b"")
    }

    pub(crate) fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image ready to be pushed or served.
pub(crate) struct Built {
    pub(crate) family: Family,
    pub(crate) manifest: Vec<u8>,
    /// Config and layers.
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Built {
    pub(crate) fn new(family: Family, layers: &[Vec<u8>]) -> Self {
        Self::with_config(family, layers, json!({"Env": ["A=b"], "User": "1000:1000"}))
    }

    pub(crate) fn with_config(family: Family, layers: &[Vec<u8>], config: Value) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self::of_blobs(
            family,
            config.to_string().into_bytes(),
            layers.iter().map(|layer| gzip(layer)).collect(),
        )
    }

    pub(crate) fn of_blobs(family: Family, config: Vec<u8>, layers: Vec<Vec<u8>>) -> Self {
        let layer = |bytes: &Vec<u8>| descriptor(family.layer(), bytes);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": family.manifest(),
            "config": descriptor(family.config(), &config),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let mut blobs = vec![config];
        blobs.extend(layers);
        Self { family, manifest: manifest.to_string().into_bytes(), blobs }
    }

    /// A small image of one file.
    pub(crate) fn small(content: &str) -> Self {
        Self::new(Family::Oci, &[LayerBuilder::new().file("file", content).build()])
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.blobs[0])
    }

    /// The layers' blobs.
    pub(crate) fn layers(&self) -> &[Vec<u8>] {
        &self.blobs[1..]
    }
}

/// An index with an entry for each `(architecture, variant, image)`.
pub(crate) fn index(family: Family, images: &[(&str, &str, &Built)]) -> Vec<u8> {
    let entry = |(architecture, variant, image): &(&str, &str, &Built)| {
        let mut entry = descriptor(image.family.manifest(), &image.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        entry
    };
    let manifests: Vec<Value> = images.iter().map(entry).collect();
    json!({"schemaVersion": 2, "mediaType": family.index(), "manifests": manifests}).to_string().into_bytes()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(step).take(len).collect()
}
