//! Layers, layouts and Docker archives, also such as no honest program writes.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::EntryType;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use image::{ImageError, ImageId, Images, StoreConfig};

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer's archive.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn entry(mut self, name: &[u8], change: impl FnOnce(&mut tar::Header), data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000);
        header.set_entry_type(EntryType::Regular);
        header.set_uid(0);
        header.set_gid(0);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name.as_bytes(), |_| {}, data)
    }

    pub(crate) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let target = target.as_bytes();
        self.entry(
            name.as_bytes(),
            |header| {
                header.set_entry_type(kind);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
            },
            b"",
        )
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.get_mut().write_all(bytes).unwrap();
        self
    }

    pub(crate) fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn config(layers: &[&[u8]], comment: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": image::Platform::host().architecture, "os": "linux", "author": comment,
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// An OCI layout being made.
pub(crate) struct Layout {
    pub(crate) directory: TempDir,
    pub(crate) manifests: Vec<Value>,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { directory, manifests: Vec::new() }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        std::fs::write(self.directory.path().join("blobs/sha256").join(hex(&digest)), bytes).unwrap();
        digest
    }

    fn descriptor(&self, media_type: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": self.blob(bytes), "size": bytes.len()})
    }

    /// Puts an image whose layers are compressed by `pack`; gives the manifest's descriptor.
    pub(crate) fn image(&self, layers: &[&[u8]], pack: impl Fn(&[u8]) -> Vec<u8>) -> Value {
        let blobs: Vec<Value> = layers
            .iter()
            .map(|layer| self.descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &pack(layer)))
            .collect();
        let config = self.descriptor("application/vnd.oci.image.config.v1+json", &config(layers, "a test"));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": blobs,
        });
        self.descriptor("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
    }

    pub(crate) fn index(&self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.descriptor("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes())
    }

    pub(crate) fn add(&mut self, mut descriptor: Value, name: Option<(&str, &str)>) -> &mut Self {
        if let Some((key, name)) = name {
            descriptor["annotations"] = json!({key: name});
        }
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        std::fs::write(self.directory.path().join("index.json"), index.to_string()).unwrap();
        self
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", self.directory.path()).unwrap();
        builder.into_inner().unwrap()
    }
}

/// A store with nothing in it.
pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) images: Images,
    pub(crate) runtime: Runtime,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let config = StoreConfig { root: directory.path().join("store"), ..StoreConfig::default() };
        let images = runtime.block_on(Images::open(config)).unwrap();
        Self { directory, images, runtime }
    }

    pub(crate) fn load(&self, archive: Vec<u8>) -> Result<Vec<(ImageId, Vec<String>)>, ImageError> {
        let loaded = self.runtime.block_on(self.images.load(std::io::Cursor::new(archive)))?;
        Ok(loaded.into_iter().map(|image| (image.id, image.names)).collect())
    }

    pub(crate) fn load_path(&self, path: &Path) -> Result<Vec<(ImageId, Vec<String>)>, ImageError> {
        let loaded = self.runtime.block_on(self.images.load_path(path))?;
        Ok(loaded.into_iter().map(|image| (image.id, image.names)).collect())
    }

    pub(crate) fn save(&self, names: &[&str], format: image::ArchiveFormat) -> Result<Vec<u8>, ImageError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let path = self.directory.path().join("saved");
        let file = std::fs::File::create(&path).unwrap();
        self.runtime.block_on(self.images.save(&names, format, file))?;
        Ok(std::fs::read(path).unwrap())
    }

    /// Every file of the store.
    pub(crate) fn tree(&self) -> Vec<PathBuf> {
        let mut left = vec![self.directory.path().join("store")];
        let mut found = Vec::new();
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found.sort();
        found
    }
}
