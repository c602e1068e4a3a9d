//! A directory to unpack into, with things beside it that must stay as they are.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::recipe;
use crate::unpack::{Target, Unpacked, unpack_within};

/// The longest archive that is unpacked: enough for sparse files and devices of zeros, and soon done.
const LIMIT: u64 = 1 << 20;
const ROOT: &str = "fs";

/// A directory of its own for one input.
pub(super) struct Sandbox {
    path: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl Sandbox {
    /// A new directory for inputs of that kind.
    pub(super) fn directory(kind: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("crimson-fuzz-{kind}-{}-{number}", std::process::id()))
    }

    pub(super) fn new(kind: &str) -> Self {
        let path = Self::directory(kind);
        let made = furnish(&path);
        assert!(made.is_ok(), "{}: {made:?}", path.display());
        let before = look(&path);
        Self { path, before }
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unpacks an archive. What is refused may leave anything beneath the root; what is not is counted right, and can be
    /// made again from the tree.
    pub(super) fn unpack(&self, archive: &[u8]) {
        let target = self.target();
        assert!(target.is_ok(), "{}: {target:?}", self.path.display());
        let unpacked = target.ok().and_then(|target| unpack_within(LIMIT, archive, target).ok());
        self.check();
        if let Some((unpacked, _)) = unpacked {
            self.check_count(&unpacked);
            self.check_recipe(archive);
        }
    }

    fn target(&self) -> io::Result<Target> {
        let recipe =
            File::options().read(true).write(true).create_new(true).open(self.path.join(recipe::FILE))?;
        Ok(Target { root: self.root()?, recipe: Some(recipe) })
    }

    fn root(&self) -> io::Result<OwnedFd> {
        File::open(self.path.join(ROOT)).map(OwnedFd::from)
    }

    /// Nothing beside the root is made, changed, linked to or gone.
    pub(super) fn check(&self) {
        assert_eq!(self.before, look(&self.path));
    }

    fn check_count(&self, unpacked: &Unpacked) {
        let mut inodes = HashSet::new();
        let walked = walk(&self.path.join(ROOT), &mut |_, metadata| {
            inodes.insert(metadata.ino());
        });
        assert!(walked.is_ok(), "{walked:?}");
        assert_eq!(unpacked.inodes, inodes.len() as u64, "inodes");
    }

    fn check_recipe(&self, archive: &[u8]) {
        let mut again = Vec::new();
        let reader = self.root().map(|root| recipe::read(&self.path, root).map_err(io::Error::other));
        let read = reader.flatten().and_then(|mut reader| reader.read_to_end(&mut again));
        assert!(read.is_ok(), "{read:?}");
        let differs = again.iter().zip(archive).position(|(one, other)| one != other);
        assert_eq!((again.len(), differs), (archive.len(), None), "the archive made again");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}

fn furnish(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.join(ROOT))?;
    fs::create_dir_all(path.join("outside/d"))?;
    fs::write(path.join("outside/file"), "untouched")?;
    fs::write(path.join("outside/d/a"), "")?;
    symlink("../outside", path.join("outside/b"))
}

/// Everything in a directory but the root and the recipe, and all that would show a touch.
fn look(path: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let own = [path.join(ROOT), path.join(recipe::FILE)];
    for entry in fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if own.contains(&entry) {
            continue;
        }
        let walked = walk(&entry, &mut |path, metadata| {
            let content = if metadata.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() };
            found.insert(path.to_owned(), describe(metadata, &content));
        });
        assert!(walked.is_ok(), "{walked:?}");
    }
    found
}

fn describe(metadata: &Metadata, content: &[u8]) -> String {
    let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
    let owner = (metadata.uid(), metadata.gid(), metadata.mode());
    format!("{} {} {owner:?} {times:?} {content:?}", metadata.ino(), metadata.nlink())
}

fn walk(path: &Path, seen: &mut dyn FnMut(&Path, &Metadata)) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    seen(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(&entry?.path(), seen)?;
        }
    }
    Ok(())
}
