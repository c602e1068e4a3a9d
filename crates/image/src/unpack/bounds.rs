//! How much a layer may make of its bytes.
//!
//! The size that a manifest announces bounds what is downloaded, not what comes out of it: a few hundred bytes of zstd
//! hold a terabyte of zeros. What a layer unpacks to is therefore bounded three times:
//!
//! * by [`limit`]: [`RATIO`] times the blob, or [`FLOOR`] where the blob is small. Layers of programs and libraries
//!   unpack to three or four times their blob, of text to ten times; only long runs of zeros exceed the limit.
//! * by the free space, looked at before a large file is begun, so that such a file is refused before it fills the disk;
//! * by [`MAX_ENTRIES`] and [`MAX_DIRECTORY_NAMES`], since a name takes an inode and memory, but hardly any bytes.
//!
//! Holes of sparse files take nothing and count nothing.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use super::EntryError;

/// What one byte of a blob may become.
const RATIO: u64 = 200;
/// What every layer may become.
const FLOOR: u64 = 1 << 30;
/// Some times more than the largest images in use have.
const MAX_ENTRIES: u64 = 2 << 20;
/// Directories are remembered by their names until the end.
const MAX_DIRECTORY_NAMES: usize = 64 << 20;
/// Files from this size on are compared with the free space.
const LARGE: u64 = 64 << 20;

/// The longest archive that a blob of this size may hold.
pub(crate) fn limit(blob: u64) -> u64 {
    blob.saturating_mul(RATIO).max(FLOOR)
}

/// What an archive has used of its bounds.
pub(super) struct Bounds {
    left: u64,
    entries: u64,
    names: usize,
}

impl Bounds {
    pub(super) fn new(limit: u64) -> Self {
        Self { left: limit, entries: 0, names: 0 }
    }

    pub(super) fn count_entry(&mut self) -> Result<(), EntryError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(EntryError::Bounds("has more entries than any real one (2 Mi)"));
        }
        Ok(())
    }

    pub(super) fn count_directory(&mut self, name: &[u8]) -> Result<(), EntryError> {
        self.names += name.len();
        if self.names > MAX_DIRECTORY_NAMES {
            return Err(EntryError::Bounds("has more directories than can be remembered (64 MiB of names)"));
        }
        Ok(())
    }

    /// Takes an entry's stored bytes off the limit before they are written.
    pub(super) fn count_data(&mut self, len: u64, root: BorrowedFd<'_>) -> Result<(), EntryError> {
        self.left = self.left.checked_sub(len).ok_or(EntryError::Bounds(TOO_LARGE))?;
        if len < LARGE {
            return Ok(());
        }
        let free = rustix::fs::fstatvfs(root).map_err(super::io_error("looking at the free space"))?;
        if free.f_bavail.saturating_mul(free.f_frsize) < len {
            return Err(super::io_error("making room for the file")(rustix::io::Errno::NOSPC));
        }
        Ok(())
    }
}

const TOO_LARGE: &str = "unpacks to more than 200 times its blob and more than 1 GiB";

/// Ends an archive that goes on behind its bounds with headers or padding.
pub(super) struct Bounded<R> {
    input: R,
    left: u64,
}

impl<R> Bounded<R> {
    pub(super) fn new(input: R, limit: u64) -> Self {
        Self { input, left: limit }
    }

    pub(super) fn into_inner(self) -> R {
        self.input
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let left = self.left.checked_sub(count as u64);
        let error = || io::Error::new(io::ErrorKind::InvalidData, format!("the layer {TOO_LARGE}"));
        self.left = left.ok_or_else(error)?;
        Ok(count)
    }
}
