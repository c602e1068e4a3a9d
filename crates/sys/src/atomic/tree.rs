//! Removal of directory trees whose content nobody vouches for.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::parent_of;
use crate::error::FileError;

/// How many levels are descended into before a directory is moved up to the top, so that the number of open descriptors
/// and the stack stay bounded.
const MAX_DEPTH: usize = 48;

/// Removes `path` and everything below. A missing path is a success.
///
/// Symbolic links are removed, not followed. A mount below, or `path` being one itself, is an error and the mounted content
/// stays untouched; the rest is removed all the same. Unlike [`super::remove`] it does not wait for the disk: a tree that
/// comes back after a power failure is removed again.
///
/// # Errors
/// [`FileError`] for the first thing that could not be removed.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    let Some(name) = path.file_name() else {
        return Err(FileError::new("remove tree", path, Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent_of(path), flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(FileError::new("open", parent_of(path), error)),
    };
    let name = CString::new(name.as_encoded_bytes()).map_err(|e| FileError::new("remove tree", path, e))?;
    let mut removal = Removal { top: None, progress: 0, first_error: None };
    removal.entry(parent.as_fd(), &name, FileType::Unknown, 0, path);
    removal.first_error.map_or(Ok(()), Err)
}

struct Removal {
    /// The directory at the given path itself, once it is open.
    top: Option<OwnedFd>,
    /// How many entries were removed or moved up so far.
    progress: u64,
    first_error: Option<FileError>,
}

impl Removal {
    fn failed(&mut self, action: &'static str, path: &Path, error: Errno) {
        if error != Errno::NOENT && self.first_error.is_none() {
            self.first_error = Some(FileError::new(action, path, error));
        }
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, kind: FileType, depth: usize, path: &Path) {
        if !matches!(kind, FileType::Directory) {
            match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) => return self.progress += 1,
                Err(Errno::ISDIR) => {}
                Err(error) => return self.failed("remove", path, error),
            }
        }
        if depth < MAX_DEPTH || !self.move_up(parent, name) {
            self.directory(parent, name, depth, path);
        }
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize, path: &Path) {
        let directory = match open_without_crossing(parent, name) {
            Ok(directory) => directory,
            Err(Errno::XDEV) => return self.failed("remove mount point", path, Errno::BUSY),
            Err(error) => return self.failed("open", path, error),
        };
        if depth == 0 {
            self.top = rustix::io::fcntl_dupfd_cloexec(&directory, 3).ok();
        }
        loop {
            let before = self.progress;
            self.content(&directory, depth, path);
            match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) => return self.progress += 1,
                // A reader may miss entries while others vanish beneath it, and directories from the depths arrive at the
                // top during a pass. When a pass changed nothing, its own errors say why.
                Err(Errno::NOTEMPTY) if self.progress > before => {}
                Err(error) => return self.failed("remove directory", path, error),
            }
        }
    }

    fn content(&mut self, directory: &OwnedFd, depth: usize, path: &Path) {
        match entries(directory) {
            Ok(names) => names.iter().for_each(|(name, kind)| {
                self.entry(directory.as_fd(), name, *kind, depth + 1, &child_path(path, name));
            }),
            Err(error) => self.failed("read directory", path, error),
        }
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> bool {
        let Some(top) = &self.top else { return false };
        let target = format!(".deep-{:016x}", u64::from_ne_bytes(crate::random::bytes()));
        let moved = rustix::fs::renameat_with(parent, name, top, target, RenameFlags::NOREPLACE).is_ok();
        self.progress += u64::from(moved);
        moved
    }
}

/// A path for messages only; it stays short however deep the tree.
fn child_path(path: &Path, name: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn open_without_crossing(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS)
}

fn entries(directory: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = vec![MaybeUninit::uninit(); 16 * 1024];
    let mut reader = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn removes_everything_but_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        (0..500).for_each(|n| std::fs::write(tree.join(format!("a/b/file-{n}")), "x").unwrap());
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree.join("below/what/is/missing")).unwrap();
        assert!(!tree.try_exists().unwrap() && outside.join("kept").try_exists().unwrap());
    }

    #[test]
    fn a_link_or_file_at_the_path_itself_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::fs::write(&file, "x").unwrap();
        symlink(dir.path(), &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(file.try_exists().unwrap());
        remove_tree(&file).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn depth_beyond_the_limits_of_paths_and_descriptors_is_no_obstacle() {
        // In memory, where removing thousands of directories takes no time.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut at = std::fs::File::open(&tree).map(OwnedFd::from).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, "beside", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deeper", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.try_exists().unwrap());
    }

    #[test]
    fn mounts_below_and_at_the_path_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        std::fs::create_dir_all(tree.join("mounted")).unwrap();
        std::fs::write(tree.join("plain"), "x").unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        crate::mount::on_private_thread(|| {
            // The same filesystem, so that only the mount itself gives the border away.
            crate::mount::bind(&kept, &tree.join("mounted")).unwrap();
            let error = remove_tree(&tree).unwrap_err();
            assert!(error.to_string().ends_with("tree/mounted"), "{error}");
            assert!(remove_tree(&tree.join("mounted")).is_err());
            assert!(!tree.join("plain").try_exists().unwrap());
        })
        .unwrap();
        assert!(kept.join("file").try_exists().unwrap());
        remove_tree(&tree).unwrap();
    }
}
