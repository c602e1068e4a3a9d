//! Why figures are not to be had.

use std::io;
use std::path::PathBuf;

/// Why a group or an interface list was not read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The group or process does not exist any more.
    #[error("{} is gone", path.display())]
    Gone {
        /// What was to be read.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("reading {}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl StatsError {
    pub(crate) fn new(path: PathBuf, error: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        // ENODEV is what an open file of a removed group answers, ESRCH one of an ended process.
        if matches!(error, Errno::NOENT | Errno::NODEV | Errno::SRCH) {
            Self::Gone { path }
        } else {
            Self::Read { path, source: error.into() }
        }
    }
}
