//! The file system that something lies on.

use std::path::Path;

use crate::disk;
use crate::error::StatsError;

/// What a file system has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// The device it is on, as `/dev/sda1`, or its numbers.
    pub device: String,
    /// All its bytes.
    pub capacity: u64,
    /// All its inodes, and those that are free; `None` where it makes them as it needs them.
    pub inodes: Option<(u64, u64)>,
}

impl Filesystem {
    /// That of `path`.
    ///
    /// # Errors
    /// [`StatsError`] when there is no such path or it cannot be asked.
    pub fn of(path: &Path) -> Result<Self, StatsError> {
        let failed = |error| StatsError::new(path.to_owned(), error);
        let device = rustix::fs::stat(path).map_err(failed)?.st_dev;
        let stat = rustix::fs::statvfs(path).map_err(failed)?;
        Ok(Self {
            device: disk::name(rustix::fs::major(device), rustix::fs::minor(device)),
            capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
            inodes: Some((stat.f_files, stat.f_ffree)).filter(|(all, _)| *all > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_room_and_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let found = Filesystem::of(dir.path()).unwrap();
        assert!(found.capacity > 0, "{found:?}");
        assert!(found.inodes.is_none_or(|(all, free)| free < all), "{found:?}");
        assert!(!found.device.is_empty());
        assert!(matches!(Filesystem::of(&dir.path().join("never")), Err(StatsError::Gone { .. })));
    }
}
