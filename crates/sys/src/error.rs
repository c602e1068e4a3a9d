//! The errors of this crate: what was attempted, on which path, and the kernel's answer as the source.

use std::io;
use std::path::{Path, PathBuf};

use types::{ErrorKind, Kind};

/// A file or directory could not be written, made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct FileError {
    /// What was attempted, as a phrase that takes the path: "create", "sync".
    pub action: &'static str,
    /// The file or directory concerned.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.to_owned(), source: source.into() }
    }
}

/// A mount could not be made, changed, listed or undone.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel refused a step.
    #[error("{action} {}", path.display())]
    Step {
        /// What was attempted, as a phrase that takes the path: "bind", "mount overlay at".
        action: &'static str,
        /// The mount point or layer concerned.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An overlay was described that cannot exist.
    #[error("overlay cannot be mounted: {0}")]
    Overlay(&'static str),
    /// A line of the mount table does not have the documented form.
    #[error("mount table has an unreadable line: {0:?}")]
    Table(String),
}

impl MountError {
    pub(crate) fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Step { action, path: path.to_owned(), source: source.into() }
    }
}

/// A network namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The kernel refused a step.
    #[error("{action} network namespace {}", path.display())]
    Step {
        /// What was attempted: "enter", "bring up loopback in".
        action: &'static str,
        /// Where the namespace is, or should have been, kept.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file that keeps the namespace could not be handled.
    #[error("keep network namespace")]
    File(#[from] FileError),
    /// The directory that holds namespaces could not be shared.
    #[error("share the directory of network namespaces")]
    Directory(#[from] MountError),
    /// The code that was to run in the namespace panicked.
    #[error("work in network namespace {} panicked", path.display())]
    Panicked {
        /// The namespace concerned.
        path: PathBuf,
    },
}

impl NetnsError {
    pub(crate) fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Step { action, path: path.to_owned(), source: source.into() }
    }
}

/// A path beneath a root could not be resolved, or is not what the caller may use.
#[derive(Debug, thiserror::Error)]
pub enum BeneathError {
    /// The kernel refused a step.
    #[error("{action} {} in {}", path.display(), root.display())]
    Step {
        /// What was attempted: "open", "read".
        action: &'static str,
        /// The path as given, relative to the root.
        path: PathBuf,
        /// The root, as far as its name is known.
        root: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file is larger than the caller's limit.
    #[error("{} in {} is larger than {limit} bytes", path.display(), root.display())]
    TooLarge {
        /// The path as given, relative to the root.
        path: PathBuf,
        /// The root, as far as its name is known.
        root: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The path leads to a device, socket or pipe, which this crate never opens.
    #[error("{} in {} is neither a regular file nor a directory", path.display(), root.display())]
    Special {
        /// The path as given, relative to the root.
        path: PathBuf,
        /// The root, as far as its name is known.
        root: PathBuf,
    },
}

impl Kind for FileError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::of_io(&self.source)
    }
}

impl Kind for MountError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Step { source, .. } => ErrorKind::of_io(source),
            Self::Overlay(_) => ErrorKind::InvalidArgument,
            Self::Table(_) => ErrorKind::Internal,
        }
    }
}

impl Kind for NetnsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Step { source, .. } => ErrorKind::of_io(source),
            Self::File(error) => error.kind(),
            Self::Directory(error) => error.kind(),
            Self::Panicked { .. } => ErrorKind::Internal,
        }
    }
}

impl Kind for BeneathError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Step { source, .. } => ErrorKind::of_io(source),
            Self::TooLarge { .. } => ErrorKind::ResourceExhausted,
            Self::Special { .. } => ErrorKind::FailedPrecondition,
        }
    }
}
