//! What can go wrong with control groups.

use std::io;
use std::path::{Path, PathBuf};

use types::{ErrorKind, Kind};

use crate::driver::DriverKind;

/// A control group could not be named, looked at, killed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The parent is written the way the other driver writes it.
    #[error(
        "cgroup parent {parent:?} is written for the {} driver but this server uses the {ours} driver: \
         set kubelet's cgroupDriver to {ours} or start crimson with --cgroup-driver {}",
        ours.other(), ours.other()
    )]
    OtherDriver {
        /// The parent as requested.
        parent: String,
        /// The driver in use.
        ours: DriverKind,
    },
    /// The text cannot name a group.
    #[error("{text:?} is no cgroup name: {reason}")]
    Name {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host has no cgroup filesystem where it was looked for.
    #[error("no cgroup filesystem is mounted at or below {}", root.display())]
    NotMounted {
        /// Where it was looked for.
        root: PathBuf,
    },
    /// The mount table could not be read.
    #[error("find cgroup mounts")]
    Mounts(#[source] sys::MountError),
    /// The kernel refused a step.
    #[error("{action} {}", path.display())]
    Step {
        /// What was attempted.
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Processes were killed but are not gone in time: they hang in the kernel, or are born faster than they die.
    #[error("{} processes of cgroup {path} are still there after they were killed, first {first}", .count)]
    StillRunning {
        /// The group's path as the OCI runtime knows it.
        path: String,
        /// How many.
        count: usize,
        /// The lowest pid among them.
        first: i32,
    },
}

impl CgroupError {
    pub(crate) fn step(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Step { action, path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn name(text: &str, reason: &'static str) -> Self {
        Self::Name { text: text.to_owned(), reason }
    }
}

impl Kind for CgroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherDriver { .. } | Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::NotMounted { .. } => ErrorKind::FailedPrecondition,
            Self::Mounts(error) => error.kind(),
            Self::Step { source, .. } => ErrorKind::of_io(source),
            Self::StillRunning { .. } => ErrorKind::DeadlineExceeded,
        }
    }
}
