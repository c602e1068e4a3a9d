//! How full a filesystem is.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

/// Size and fill of the filesystem that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Size in bytes.
    pub total_bytes: u64,
    /// Bytes nobody uses, including those reserved for root.
    pub free_bytes: u64,
    /// Bytes an ordinary user may still take.
    pub available_bytes: u64,
    /// Number of inodes, 0 where the filesystem makes them as needed.
    pub total_inodes: u64,
    /// Inodes nobody uses.
    pub free_inodes: u64,
}

impl Usage {
    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.free_bytes)
    }

    /// Inodes in use.
    #[must_use]
    pub fn used_inodes(&self) -> u64 {
        self.total_inodes.saturating_sub(self.free_inodes)
    }
}

/// Asks the filesystem that holds `path`.
///
/// # Errors
/// The kernel's answer when `path` does not exist or cannot be reached.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let stat = statvfs(path)?;
    let block = if stat.f_frsize == 0 { stat.f_bsize } else { stat.f_frsize };
    Ok(Usage {
        total_bytes: stat.f_blocks.saturating_mul(block),
        free_bytes: stat.f_bfree.saturating_mul(block),
        available_bytes: stat.f_bavail.saturating_mul(block),
        total_inodes: stat.f_files,
        free_inodes: stat.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_consistent() {
        let usage = usage(Path::new("/")).unwrap();
        assert!(usage.total_bytes > 0);
        assert!(usage.available_bytes <= usage.free_bytes && usage.free_bytes <= usage.total_bytes);
        assert_eq!(usage.used_bytes() + usage.free_bytes, usage.total_bytes);
    }

    #[test]
    fn a_missing_path_is_an_error() {
        assert_eq!(super::usage(Path::new("/no/such/place")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
