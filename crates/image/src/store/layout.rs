//! Where things are, and the file operations that name them in their errors.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use types::{Digest, ImageId};

use super::format;
use crate::error::ImageError;

/// Directory of the leases.
pub(super) const LEASES: &str = "leases";
pub(super) const LAYER_NAME_LEN: usize = 12;
pub(super) const LAYER_ROOT: &str = "fs";
pub(super) const LAYER_FILE: &str = "layer.json";
pub(super) const ASIDE_FILE: &str = "aside.json";
/// What a file of some hundred bytes takes on common file systems.
pub(super) const SMALL_FILE_BYTES: u64 = 4096;

/// The store's directories.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) records: PathBuf,
    pub(super) blobs: PathBuf,
    pub(super) layers: PathBuf,
    pub(super) leases: PathBuf,
    pub(super) empty: PathBuf,
    pub(super) aside: PathBuf,
    pub(super) ingest: PathBuf,
}

impl Layout {
    /// The directories of a store that may not exist.
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            records: root.join("records"),
            blobs: root.join("blobs/sha256"),
            layers: root.join("layers"),
            leases: root.join(LEASES),
            empty: root.join("empty"),
            aside: root.join("aside"),
            ingest: root.join("ingest"),
        }
    }

    /// Makes what is missing.
    pub(super) fn create(root: &Path) -> Result<Self, ImageError> {
        let layout = Self::at(root);
        for directory in layout.directories() {
            sys::atomic::create_dir_all(directory, 0o700)
                .map_err(|error| ImageError::file("making the store's directories", error))?;
        }
        set_mode(&layout.empty, 0o755)?;
        Ok(layout)
    }

    fn directories(&self) -> [&Path; 8] {
        let Self { root, records, blobs, layers, leases, empty, aside, ingest } = self;
        [root, records, blobs, layers, leases, empty, aside, ingest]
    }

    /// Bytes and inodes of the directories themselves.
    pub(super) fn own_usage(&self) -> (u64, u64) {
        let parent_of_blobs = self.blobs.parent().map_or(0, bytes_of);
        let bytes = self.directories().into_iter().map(bytes_of).sum::<u64>();
        (bytes + parent_of_blobs, 9)
    }

    pub(super) fn record(&self, id: &ImageId) -> PathBuf {
        self.records.join(format!("{}.json", id.0.hex()))
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    pub(super) fn layer_root(&self, directory: &str) -> PathBuf {
        self.layers.join(directory).join(LAYER_ROOT)
    }

    /// Whether both parts of a layer are there.
    pub(super) fn has_layer(&self, directory: &str) -> bool {
        let file = self.layers.join(directory).join(LAYER_FILE);
        let is = |path: &Path, test: fn(&fs::FileType) -> bool| {
            fs::symlink_metadata(path).is_ok_and(|metadata| test(&metadata.file_type()))
        };
        is(&self.layer_root(directory), fs::FileType::is_dir) && is(&file, fs::FileType::is_file)
    }

    /// Reads a stored blob and makes sure that it is the one asked for.
    pub(super) fn load_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let bytes = fs::read(self.blob(digest))
            .map_err(|e| ImageError::store(format!("reading blob {digest}"), e))?;
        if crate::hash::digest_of(&bytes) == *digest {
            return Ok(bytes);
        }
        let damage = std::io::Error::new(std::io::ErrorKind::InvalidData, "its digest is another one");
        Err(ImageError::store(format!("reading blob {digest}"), damage))
    }

    pub(super) fn load_config(&self, id: &ImageId) -> Result<Arc<ImageConfiguration>, ImageError> {
        let config = format::parse_config(&self.load_blob(&id.0)?);
        let damage = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        config
            .map(Arc::new)
            .map_err(|error| ImageError::store(format!("reading the config of {id}"), damage(error)))
    }

    /// Everything written so far reaches the disk.
    pub(super) fn sync_filesystem(&self) -> Result<(), ImageError> {
        let root = open_directory(&self.root)?;
        rustix::fs::syncfs(root).map_err(|error| ImageError::store("syncing the file system", error.into()))
    }

    pub(super) fn sync_blobs(&self) -> Result<(), ImageError> {
        sys::atomic::sync_directory(&self.blobs).map_err(|error| ImageError::file("syncing the blobs", error))
    }
}

pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), ImageError> {
    fs::create_dir(path).map_err(|error| ImageError::store("making a directory", error))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ImageError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| ImageError::store("making a directory", error))
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, ImageError> {
    let opened = fs::File::open(path).map(OwnedFd::from);
    opened.map_err(|error| ImageError::store("opening a directory", error))
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).map_err(|error| ImageError::store("writing a file", error))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::rename(from, to).map_err(|error| ImageError::store("moving a file into place", error))
}

/// Removes a file or tree that nothing refers to. What stays is removed when the store opens next.
pub(super) fn delete(path: &Path) {
    if let Err(error) = sys::atomic::remove_tree(path) {
        let error = types::error::chain(&error);
        tracing::warn!(op = "collect", error, "an unused part of the image store stays for now");
    }
}

/// What a file or directory itself takes; 0 when it cannot be told.
pub(super) fn bytes_of(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// The names in a directory.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| ImageError::store("listing the store", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
