//! Images made by hand around Debian's static busybox, in both manifest formats.

use std::io::Write;

use anyhow::Context;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::Result;
use crate::http::Push;

/// The names under which the busybox of the test image can be called.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "true", "false", "sleep", "httpd", "wget", "id", "env", "pwd", "hostname",
    "ip", "touch", "mkdir", "rm", "kill", "ps", "stat", "mount", "umount", "dd", "grep", "head", "tail",
    "seq", "test", "sync", "readlink", "nc", "printf", "date", "sed", "wc", "cut", "mknod", "chmod", "chown",
    "df",
];

/// Which of the two manifest formats to push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/vnd.oci.image.*`
    Oci,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    Docker,
}

/// How layers are packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// gzip, as little as it can: tests are in a hurry.
    #[default]
    Fast,
    /// gzip as builders of images use it.
    Gzip,
    /// zstd as builders of images use it.
    Zstd,
}

/// One layer under construction: an uncompressed tar stream.
#[derive(Debug, Default)]
pub struct Layer {
    tar: Vec<u8>,
}

impl Layer {
    /// A layer without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The static busybox with its applets, `/etc/passwd` with root, `web` (1000:1000) and `nobody`, a page in `/www`, `/tmp`.
    pub fn busybox() -> Result<Self> {
        let program =
            std::fs::read("/bin/busybox").context("reading /bin/busybox (package busybox-static)")?;
        let mut layer = Self::new()
            .dir("bin", 0o755)
            .file("bin/busybox", 0o755, &program)
            .dir("etc", 0o755)
            .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/www:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
            .file("etc/group", 0o644, b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\nnogroup:x:65534:\n")
            .dir("root", 0o700)
            .dir("tmp", 0o1777)
            .dir("www", 0o755)
            .file("www/index.html", 0o644, b"hello from crimson\n");
        for applet in APPLETS {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
        Ok(layer)
    }

    /// A layer of an archive made elsewhere.
    #[must_use]
    pub fn of_archive(tar: Vec<u8>) -> Self {
        Self { tar }
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, (0, 0), None, b"")
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, mode, (0, 0), None, content)
    }

    /// Adds a regular file that belongs to somebody.
    #[must_use]
    pub fn owned_file(self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, mode, owner, None, content)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, 0o777, (0, 0), Some(target), b"")
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, 0o644, (0, 0), Some(target), b"")
    }

    /// Marks a path of the layers below as deleted.
    #[must_use]
    pub fn whiteout(self, dir: &str, name: &str) -> Self {
        self.file(&format!("{dir}/.wh.{name}"), 0o644, b"")
    }

    /// Marks everything that the layers below have in a directory as deleted.
    #[must_use]
    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), 0o644, b"")
    }

    /// Appends one entry. Names go in as they are given, also those that no honest tar would write.
    fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        owner: (u64, u64),
        link: Option<&str>,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        put(&mut header.as_old_mut().name, path);
        if let Some(target) = link {
            put(&mut header.as_old_mut().linkname, target);
        }
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}

/// An image under construction.
#[derive(Debug)]
pub struct ImageBuilder {
    media: Media,
    layers: Vec<Layer>,
    config: Value,
    index: bool,
    packing: Packing,
}

/// What was pushed.
#[derive(Debug, Clone)]
pub struct PushedImage {
    /// The reference to pull: `host:port/name:tag`.
    pub reference: String,
    /// `host:port/name`.
    pub repository: String,
    /// Digest of what the tag names (the index when there is one).
    pub digest: String,
    /// Digest of the config: by custom the image's id.
    pub config_digest: String,
    /// Digests of the compressed layers, lowest first.
    pub layer_digests: Vec<String>,
}

impl PushedImage {
    /// `host:port/name@sha256:…`
    #[must_use]
    pub fn by_digest(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }
}

impl ImageBuilder {
    /// An image of the given format without layers.
    #[must_use]
    pub fn new(media: Media) -> Self {
        Self {
            media,
            layers: Vec::new(),
            config: json!({ "Env": ["PATH=/bin"] }),
            index: false,
            packing: Packing::default(),
        }
    }

    /// The usual image: one busybox layer.
    pub fn busybox(media: Media) -> Result<Self> {
        Ok(Self::new(media).layer(Layer::busybox()?))
    }

    /// Puts a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets one field of the image's `config`, such as `User` or `Cmd`.
    #[must_use]
    pub fn config(mut self, key: &str, value: Value) -> Self {
        if let Some(map) = self.config.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
        self
    }

    /// Packs the layers in this way.
    #[must_use]
    pub fn packed(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// Pushes an index (manifest list) in which this image is one of several platforms.
    #[must_use]
    pub fn indexed(mut self) -> Self {
        self.index = true;
        self
    }

    /// Pushes the image as `name:tag` to the registry at `host`.
    pub fn push(self, host: &str, name: &str, tag: &str) -> Result<PushedImage> {
        let push = Push::new(format!("http://{host}/v2/{name}"));
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        let mut layer_digests = Vec::new();
        for layer in self.layers {
            let tar = layer.finish();
            diff_ids.push(sha256(&tar));
            let blob = self.packing.pack(&tar)?;
            let digest = sha256(&blob);
            push.blob(&digest, &blob)?;
            let media_type = self.media.layer(self.packing);
            layers.push(json!({ "mediaType": media_type, "size": blob.len(), "digest": digest }));
            layer_digests.push(digest);
        }
        let config = json!({
            "created": "2024-01-01T00:00:00Z", "architecture": architecture(), "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config)?;
        let config_digest = sha256(&config);
        push.blob(&config_digest, &config)?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": self.media.manifest(),
            "config": { "mediaType": self.media.config(), "size": config.len(), "digest": config_digest },
            "layers": layers,
        }))?;
        let mut digest = sha256(&manifest);
        if self.index {
            push.manifest(&digest, self.media.manifest(), &manifest)?;
            let index = serde_json::to_vec(&self.media.index_of(&digest, manifest.len()))?;
            digest = sha256(&index);
            push.manifest(tag, self.media.index(), &index)?;
        } else {
            push.manifest(tag, self.media.manifest(), &manifest)?;
        }
        let repository = format!("{host}/{name}");
        Ok(PushedImage {
            reference: format!("{repository}:{tag}"),
            repository,
            digest,
            config_digest,
            layer_digests,
        })
    }
}

impl Packing {
    fn pack(self, archive: &[u8]) -> Result<Vec<u8>> {
        let level = match self {
            Self::Fast => Compression::fast(),
            Self::Gzip => Compression::default(),
            Self::Zstd => return Ok(zstd::encode_all(archive, 3)?),
        };
        let mut gzip = GzEncoder::new(Vec::new(), level);
        gzip.write_all(archive)?;
        Ok(gzip.finish()?)
    }
}

impl Media {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, packing: Packing) -> &'static str {
        match (self, packing) {
            (Self::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Oci, _) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (Self::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// An index whose entry for this machine comes after one for a machine nobody has. Both point at the same manifest,
    /// since a registry refuses an index whose manifests it does not hold.
    fn index_of(self, digest: &str, size: usize) -> Value {
        let entry = |architecture: &str| {
            json!({
                "mediaType": self.manifest(), "size": size, "digest": digest,
                "platform": { "architecture": architecture, "os": "linux" },
            })
        };
        json!({ "schemaVersion": 2, "mediaType": self.index(), "manifests": [entry("s390x"), entry(architecture())] })
    }
}

/// This machine's processor in the words of image configs.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn put(field: &mut [u8], text: &str) {
    assert!(text.len() <= field.len(), "{text} is too long for a tar header");
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}
