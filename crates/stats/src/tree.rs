//! How much disk a directory tree takes.
//!
//! A container owns what is walked here and may change it meanwhile: nothing is followed by name but from a descriptor, no symlink
//! at all, and a tree that is deeper than there are descriptors for is taken in pieces.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use crate::error::StatsError;

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeUsage {
    /// Bytes of disk, in whole blocks, each file once however many names it has.
    pub bytes: u64,
    /// Files, directories and all other kinds, the tree's root among them.
    pub inodes: u64,
}

/// Directories that are held open at once on the way down.
const DEEPEST: usize = 128;
/// Directories at that depth that are kept for later; what lies in more of them is not counted.
const WAITING: usize = 128;

/// Walks the tree at `root` without leaving its file system. Names that vanish meanwhile are not counted.
///
/// # Errors
/// [`StatsError`] when the root cannot be opened.
pub fn tree(root: &Path) -> Result<TreeUsage, StatsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed = |error| StatsError::new(root.to_owned(), error);
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&top).map_err(failed)?;
    let mut walk = Walk { device: stat.st_dev, ..Walk::default() };
    walk.count(&stat);
    walk.waiting.push(top);
    while let Some(directory) = walk.waiting.pop() {
        walk.descend(directory);
    }
    Ok(walk.usage)
}

#[derive(Default)]
struct Walk {
    device: u64,
    usage: TreeUsage,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
    waiting: Vec<OwnedFd>,
}

impl Walk {
    fn descend(&mut self, top: OwnedFd) {
        let mut open: Vec<Dir> = Dir::new(top).into_iter().collect();
        while let Some(directory) = open.last_mut() {
            let Some(Ok(entry)) = directory.read() else {
                open.pop();
                continue;
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(fd) = directory.fd() else { continue };
            let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != self.device || !self.count(&stat) {
                continue;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let Ok(found) = openat(fd, name, flags, Mode::empty()) else { continue };
            if open.len() < DEEPEST {
                open.extend(Dir::new(found));
            } else if self.waiting.len() < WAITING {
                self.waiting.push(found);
            }
        }
    }

    /// Returns whether it was not counted before.
    fn count(&mut self, stat: &rustix::fs::Stat) -> bool {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return false;
        }
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn blocks_are_counted_and_names_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("a/b/file"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/root")).unwrap();
        let usage = tree(dir.path()).unwrap();
        assert_eq!(usage.inodes, 5, "three directories, a file, a link");
        let blocks = |name: &str| dir.path().join(name).symlink_metadata().unwrap().blocks() * 512;
        let expected: u64 = ["", "a", "a/b", "a/b/file", "a/root"].into_iter().map(blocks).sum();
        assert_eq!(usage.bytes, expected);
    }

    #[test]
    fn a_tree_deeper_than_there_are_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..3 * DEEPEST {
            path.push("d");
        }
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("deep"), b"x").unwrap();
        assert_eq!(tree(dir.path()).unwrap().inodes, 3 * DEEPEST as u64 + 2);
    }

    #[test]
    fn what_is_no_directory_or_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(tree(&dir.path().join("never")), Err(StatsError::Gone { .. })));
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        assert!(matches!(tree(&dir.path().join("link")), Err(StatsError::Read { .. })));
    }
}
