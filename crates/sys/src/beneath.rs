//! Paths inside a root that belongs to somebody else: an image, a container, a layer.
//!
//! Every path is resolved by the kernel with the root as its `/`: symbolic links and `..` cannot leave it, whoever changes
//! the tree meanwhile. What is neither file nor directory is never opened, since opening a device or a pipe can act or
//! block.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::BeneathError;

/// How often a lookup that raced with a change of the tree is tried again.
const MAX_RACES: u32 = 64;

/// A directory that paths are resolved beneath.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    name: PathBuf,
}

impl Root {
    /// Takes the directory at `dir`, a path of the host.
    ///
    /// # Errors
    /// [`BeneathError`] when it cannot be opened.
    pub fn open(dir: &Path) -> Result<Self, BeneathError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| BeneathError::Step {
            action: "open root",
            path: PathBuf::from("/"),
            root: dir.to_owned(),
            source: e.into(),
        })?;
        Ok(Self { fd, name: dir.to_owned() })
    }

    /// Takes an open directory.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        let name = std::fs::read_link(fd_path(&fd)).unwrap_or_else(|_| PathBuf::from("directory"));
        Self { fd, name }
    }

    /// Opens the file or directory at `path` for reading.
    ///
    /// # Errors
    /// [`BeneathError`] when it is missing or special.
    pub fn open_read(&self, path: &Path) -> Result<File, BeneathError> {
        let found = self.lookup(path, OFlags::empty()).map_err(|e| self.step("open", path, e))?;
        self.reopen(&found, path)
    }

    /// Like [`Root::open_read`], as a bare descriptor.
    ///
    /// # Errors
    /// [`BeneathError`] when it is missing or special.
    pub fn open_fd(&self, path: &Path) -> Result<OwnedFd, BeneathError> {
        self.open_read(path).map(OwnedFd::from)
    }

    /// Finds whatever is at `path` without opening it: an `O_PATH` descriptor, good for metadata and as a mount source or
    /// target by its `/proc/self/fd` name.
    ///
    /// # Errors
    /// [`BeneathError`] when it is missing.
    pub fn find(&self, path: &Path) -> Result<OwnedFd, BeneathError> {
        self.lookup(path, OFlags::empty()).map_err(|e| self.step("find", path, e))
    }

    /// The content of the regular file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// [`BeneathError`] when it is longer than `limit` bytes, not a regular file, or cannot be read.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, BeneathError> {
        let found = match self.lookup(path, OFlags::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(self.step("read", path, error)),
        };
        let mut content = Vec::new();
        let file = self.reopen(&found, path)?;
        let length = file.take(limit.saturating_add(1)).read_to_end(&mut content);
        match length.map_err(|e| self.step("read", path, e))? as u64 > limit {
            true => Err(BeneathError::TooLarge { path: path.to_owned(), root: self.name.clone(), limit }),
            false => Ok(Some(content)),
        }
    }

    /// What is at `path`, symbolic links followed; `None` when there is nothing.
    ///
    /// # Errors
    /// [`BeneathError`] when the path cannot be resolved for another reason.
    pub fn metadata(&self, path: &Path) -> Result<Option<Metadata>, BeneathError> {
        self.examine(path, OFlags::empty())
    }

    /// What is at `path` itself, also a symbolic link; `None` when there is nothing.
    ///
    /// # Errors
    /// [`BeneathError`] when the path cannot be resolved for another reason.
    pub fn symlink_metadata(&self, path: &Path) -> Result<Option<Metadata>, BeneathError> {
        self.examine(path, OFlags::NOFOLLOW)
    }

    /// Makes the directory at `path` with every missing parent, following links beneath the root, and returns it.
    ///
    /// # Errors
    /// [`BeneathError`] when a component is no directory or cannot be made.
    pub fn create_dir_all(&self, path: &Path, mode: u32) -> Result<OwnedFd, BeneathError> {
        let mut reached = PathBuf::from(".");
        let mut last = self.find(&reached)?;
        for component in
            path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        {
            let parent = reached.clone();
            reached.push(component);
            last = match self.lookup(&reached, OFlags::DIRECTORY) {
                Err(Errno::NOENT) => self.create_dir(&parent, component, &reached, mode)?,
                found => found.map_err(|e| self.step("create directory", &reached, e))?,
            };
        }
        Ok(last)
    }

    /// The descriptor of the root itself.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn create_dir(
        &self,
        parent: &Path,
        name: Component<'_>,
        path: &Path,
        mode: u32,
    ) -> Result<OwnedFd, BeneathError> {
        let parent = self.find(parent)?;
        match rustix::fs::mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.step("create directory", path, error)),
        }
        self.lookup(path, OFlags::DIRECTORY).map_err(|e| self.step("create directory", path, e))
    }

    fn examine(&self, path: &Path, flags: OFlags) -> Result<Option<Metadata>, BeneathError> {
        match self.lookup(path, flags) {
            Ok(found) => File::from(found).metadata().map(Some).map_err(|e| self.step("examine", path, e)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(self.step("examine", path, error)),
        }
    }

    fn lookup(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut races = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if races < MAX_RACES => races += 1,
                answer => return answer,
            }
        }
    }

    /// Only what was found to be harmless is opened, and by its descriptor, so that it is still the same thing.
    fn reopen(&self, found: &OwnedFd, path: &Path) -> Result<File, BeneathError> {
        let stat = rustix::fs::fstat(found).map_err(|e| self.step("open", path, e))?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if !kind.is_file() && !kind.is_dir() {
            return Err(BeneathError::Special { path: path.to_owned(), root: self.name.clone() });
        }
        File::open(fd_path(found)).map_err(|e| self.step("open", path, e))
    }

    fn step(&self, action: &'static str, path: &Path, source: impl Into<io::Error>) -> BeneathError {
        BeneathError::Step { action, path: path.to_owned(), root: self.name.clone(), source: source.into() }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root_with(make: impl FnOnce(&Path)) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("secret"), "of the host").unwrap();
        make(&dir.path().join("root"));
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn links_and_dots_lead_nowhere_but_into_the_root() {
        let (_dir, root) = root_with(|root| {
            std::fs::create_dir(root.join("etc")).unwrap();
            std::fs::write(root.join("etc/passwd"), "of the image").unwrap();
            symlink("/etc/passwd", root.join("absolute")).unwrap();
            symlink("../../../../etc/passwd", root.join("climbing")).unwrap();
            symlink("../secret", root.join("escape")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
        });
        for path in
            ["etc/passwd", "/etc/passwd", "absolute", "climbing", "../../etc/passwd", "etc/../../etc/passwd"]
        {
            assert_eq!(
                root.read(Path::new(path), 64).unwrap().as_deref(),
                Some(&b"of the image"[..]),
                "{path}"
            );
        }
        for path in ["escape", "../secret", "missing", "etc/passwd/below", "etc/missing/x"] {
            assert_eq!(root.read(Path::new(path), 64).unwrap(), None, "{path}");
        }
        assert!(root.read(Path::new("loop"), 64).is_err());
    }

    #[test]
    fn limits_and_kinds_are_kept() {
        let (_dir, root) = root_with(|root| {
            std::fs::write(root.join("five"), "12345").unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                root.join("pipe"),
                rustix::fs::FileType::Fifo,
                Mode::RWXU,
                0,
            )
            .unwrap();
        });
        assert_eq!(root.read(Path::new("five"), 5).unwrap().map(|bytes| bytes.len()), Some(5));
        assert!(matches!(root.read(Path::new("five"), 4), Err(BeneathError::TooLarge { limit: 4, .. })));
        assert!(matches!(root.read(Path::new("pipe"), 9), Err(BeneathError::Special { .. })));
        assert!(root.read(Path::new("/"), 9).is_err(), "a directory has no content");
        assert!(matches!(root.open_fd(Path::new("pipe")), Err(BeneathError::Special { .. })));
        assert!(root.open_fd(Path::new("missing")).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn metadata_tells_links_from_what_they_point_to() {
        let (_dir, root) = root_with(|root| {
            std::fs::create_dir(root.join("dir")).unwrap();
            symlink("/dir", root.join("link")).unwrap();
        });
        assert!(root.metadata(Path::new("link")).unwrap().unwrap().is_dir());
        assert!(root.symlink_metadata(Path::new("link")).unwrap().unwrap().is_symlink());
        assert!(root.metadata(Path::new("missing")).unwrap().is_none());
        assert!(root.metadata(Path::new("")).unwrap().unwrap().is_dir());
    }

    #[test]
    fn directories_are_made_beneath_even_through_links() {
        let (dir, root) = root_with(|root| {
            std::fs::create_dir(root.join("real")).unwrap();
            symlink("/real", root.join("link")).unwrap();
            symlink("../../outside", root.join("dangling")).unwrap();
        });
        root.create_dir_all(Path::new("/link/a/b"), 0o755).unwrap();
        root.create_dir_all(Path::new("/link/a/b"), 0o755).unwrap();
        assert!(dir.path().join("root/real/a/b").is_dir());
        assert!(root.create_dir_all(Path::new("dangling/x"), 0o755).is_err());
        assert!(!dir.path().join("outside").try_exists().unwrap());
    }
}
