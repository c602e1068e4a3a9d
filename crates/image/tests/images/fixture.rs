//! A store in a temporary directory, and what tests ask of it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use image::{Auth, ImageError, ImageId, Images, PullRequest, Rootfs, StoreConfig};
use tempfile::TempDir;

pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) images: Images,
    empty: Vec<PathBuf>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A store that is configured in another way.
    pub(crate) async fn with(change: impl FnOnce(&mut StoreConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        change(&mut config);
        let images = Images::open(config).await.unwrap();
        let empty = tree(&directory.path().join("images"));
        Self { directory, images, empty }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("images")
    }

    /// Writes `hosts.toml` for a registry; the store reads it at the next pull.
    pub(crate) fn write_hosts(&self, registry: &str, text: &str) {
        let directory = self.directory.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<ImageId, ImageError> {
        self.pull_as(reference, None).await
    }

    pub(crate) async fn pull_as(&self, reference: &str, auth: Option<Auth>) -> Result<ImageId, ImageError> {
        self.images.pull(PullRequest { reference: reference.to_owned(), auth, platform: None }).await
    }

    /// The error of a pull that must fail, and must leave nothing.
    pub(crate) async fn pull_fails(&self, reference: &str) -> ImageError {
        let before = tree(&self.store());
        let error = self.pull(reference).await.expect_err(reference);
        assert_eq!(tree(&self.store()), before, "{reference} left something: {}", text(&error));
        error
    }

    /// Nothing is in the store but what was there when it was made.
    pub(crate) fn is_empty(&self) -> bool {
        tree(&self.store()) == self.empty
    }

    /// The same, asserted.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(tree(&self.store()), self.empty);
    }
}

pub(crate) fn config(directory: &Path) -> StoreConfig {
    StoreConfig {
        root: directory.join("images"),
        registry_config_dir: Some(directory.join("certs.d")),
        ..StoreConfig::default()
    }
}

/// The failure itself, where several callers may have waited for it.
pub(crate) fn cause(error: &ImageError) -> &ImageError {
    match error {
        ImageError::Shared(inner) => cause(inner),
        other => other,
    }
}

pub(crate) fn text(error: &ImageError) -> String {
    types::error::chain(error)
}

/// Every path beneath `root`.
pub(crate) fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        // What a running pull deletes meanwhile is not there any more.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// The root file system as a container would see it, mounted where nobody else can.
pub(crate) struct View {
    fd: OwnedFd,
}

impl View {
    pub(crate) fn of(rootfs: &Rootfs) -> Self {
        let overlay = sys::mount::Overlay {
            lowers: rootfs.layers.clone(),
            readonly: true,
            ..sys::mount::Overlay::default()
        };
        Self { fd: sys::overlay_view::open(&overlay).unwrap() }
    }

    /// A path through which the view can be read.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
