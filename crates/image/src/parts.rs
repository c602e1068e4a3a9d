//! Beginnings of layers, from which a pull goes on after the daemon was killed.
//!
//! ```text
//! parts/<boot id>/<64 hex>        what came so far of the blob with this digest
//! parts/<boot id>/<64 hex>.layer  empty: a pull that is not done yet has unpacked the layer with this diff id
//! ```
//!
//! Promises:
//! * Nothing here is synced. What was written survives the daemon, not the kernel: the parts of another boot go unread.
//! * A part is in one pull's hands at a time, by a lock that ends with the process.
//! * A part is a convenience: one that cannot be made, read or written costs a download and fails no pull.
//! * What is read from a part goes the way of what comes from the network, through the digests.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use rustix::fs::FlockOperation;
use types::Digest;

const DIRECTORY: &str = "parts";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const LAYER_SUFFIX: &str = ".layer";
/// Most that one read brings to the unpacker.
const READ: u64 = 256 << 10;

/// The directory of this boot's parts, if it could be made.
#[derive(Debug)]
pub(crate) struct Parts {
    directory: Option<PathBuf>,
    bytes: Arc<AtomicU64>,
}

/// What came so far of one blob.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    /// Bytes that an earlier process left.
    found: u64,
    len: AtomicU64,
    bytes: Arc<AtomicU64>,
}

impl Parts {
    /// Takes up what an earlier process of this boot left in the store at `root`, and removes what is older.
    pub(crate) fn open(root: &Path) -> Self {
        let directory = prepare(&root.join(DIRECTORY)).inspect_err(|error| {
            tracing::warn!(op = "open", %error, "pulls will not go on after a restart of the daemon");
        });
        let directory = directory.ok();
        let sizes = directory.iter().flat_map(|directory| entries(directory)).map(|path| size(&path));
        let bytes = Arc::new(AtomicU64::new(sizes.sum()));
        Self { directory, bytes }
    }

    /// Bytes that all parts hold.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The part of this blob, unless somebody else has it or the file system has less than `room` bytes left.
    pub(crate) fn take(&self, digest: &Digest, size: u64, room: u64) -> Option<Part> {
        let directory = self.directory.as_ref()?;
        let free = sys::disk::usage(directory).ok()?.available_bytes;
        if free < room {
            tracing::debug!(op = "pull", free, room, "a layer is not kept for a restart");
            return None;
        }
        let part = Part::open(directory.join(digest.hex()), size, &self.bytes);
        part.inspect_err(|error| tracing::debug!(op = "pull", %error, "a part cannot be had")).ok().flatten()
    }

    /// Remembers that a pull has unpacked this layer.
    pub(crate) fn mark(&self, diff_id: &Digest) {
        let Some(path) = self.mark_of(diff_id) else { return };
        if let Err(error) = File::create(path) {
            tracing::debug!(op = "pull", %error, "a layer cannot be marked as unpacked");
        }
    }

    /// Ends what [`Parts::mark`] began.
    pub(crate) fn unmark(&self, diff_id: &Digest) {
        if let Some(path) = self.mark_of(diff_id) {
            remove(&path);
        }
    }

    fn mark_of(&self, diff_id: &Digest) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{}{LAYER_SUFFIX}", diff_id.hex())))
    }

    /// Whether an earlier process left anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.directory.iter().all(|directory| entries(directory).is_empty())
    }

    /// Removes the parts that nobody has.
    pub(crate) fn sweep(&self) {
        let paths = self.directory.iter().flat_map(|directory| entries(directory));
        for path in paths.filter(|path| path.extension().is_none()) {
            if let Ok(Some(part)) = Part::open(path, u64::MAX, &self.bytes) {
                part.remove();
            }
        }
    }
}

/// The layers that pulls of this boot had unpacked in the store at `root` when their process ended.
pub(crate) fn unpacked_layers(root: &Path) -> HashSet<Digest> {
    let Ok(boot) = boot_id() else { return HashSet::new() };
    let paths = entries(&root.join(DIRECTORY).join(boot)).into_iter();
    let digest = |path: PathBuf| {
        let hex = path.file_name()?.to_str()?.strip_suffix(LAYER_SUFFIX)?;
        format!("sha256:{hex}").parse().ok()
    };
    paths.filter_map(digest).collect()
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// Makes this boot's directory and removes those of others.
fn prepare(parent: &Path) -> io::Result<PathBuf> {
    let directory = parent.join(boot_id()?);
    for other in entries(parent).iter().filter(|path| **path != directory) {
        if let Err(error) = sys::atomic::remove_tree(other) {
            let error = types::error::chain(&error);
            tracing::warn!(op = "open", error, "parts of an earlier boot stay for now");
        }
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    Ok(directory)
}

/// The paths in a directory; none when it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(directory).into_iter().flatten();
    found.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

fn size(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(op = "pull", %error, path = %path.display(), "what a pull left stays for now");
        }
        _ => {}
    }
}

impl Part {
    /// Opens or makes the file; `None` when another pull has it. More than `size` bytes cannot be a beginning.
    fn open(path: PathBuf, size: u64, bytes: &Arc<AtomicU64>) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()).open(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            result => result?,
        }
        // Whoever had it may have removed it between the opening and the lock.
        let metadata = file.metadata()?;
        if metadata.nlink() == 0 {
            return Ok(None);
        }
        let mut found = metadata.len();
        if found > size {
            file.set_len(0)?;
            bytes.fetch_sub(found, Ordering::Relaxed);
            found = 0;
        }
        Ok(Some(Self { path, file, found, len: AtomicU64::new(found), bytes: Arc::clone(bytes) }))
    }

    /// Bytes that an earlier process left.
    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Adds to the end. One at a time may do so.
    pub(crate) fn append(&self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all_at(chunk, self.len())?;
        self.len.fetch_add(chunk.len() as u64, Ordering::Release);
        self.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Some of what is behind `offset`; empty at the end.
    pub(crate) fn read(&self, offset: u64) -> io::Result<Bytes> {
        let wanted = self.len().saturating_sub(offset).min(READ);
        let mut buffer = BytesMut::zeroed(usize::try_from(wanted).unwrap_or_default());
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.freeze())
    }

    /// Removes the file, whose content is of no more use. What is being read from it can be read on.
    pub(crate) fn remove(&self) {
        remove(&self.path);
        self.bytes.fetch_sub(self.len.swap(0, Ordering::AcqRel), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
