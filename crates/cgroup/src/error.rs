//! What can go wrong with control groups.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// A limit cannot be read.
    #[error("{text:?} is no value of {what}: {reason}")]
    Value {
        /// What it was given for.
        what: String,
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
    /// The limit would have to be kept by killing.
    #[error("a memory limit of {limit} bytes is below the {used} bytes in use")]
    MemoryInUse {
        /// The limit asked for.
        limit: u64,
        /// What cannot be given back.
        used: u64,
    },
    /// systemd could not be asked over D-Bus, or would not.
    #[error("{fault}, asked over D-Bus to {action} {unit}")]
    Bus {
        /// Whose fault it is.
        fault: BusFault,
        /// What was asked.
        action: &'static str,
        /// Of which unit.
        unit: String,
        /// What D-Bus or systemd said.
        #[source]
        source: Box<zbus::Error>,
    },
    /// systemd did not answer in time.
    #[error(
        "systemd did not {action} {unit} within {limit:?} over D-Bus: see whether `systemctl is-system-running` answers"
    )]
    NoAnswer {
        /// What was asked.
        action: &'static str,
        /// Of which unit.
        unit: String,
        /// How long was waited.
        limit: Duration,
    },
    /// systemd tried, in vain.
    #[error("systemd's job to {action} {unit} ended as {result:?}")]
    Job {
        /// What was asked.
        action: &'static str,
        /// Of which unit.
        unit: String,
        /// systemd's word for it.
        result: String,
    },
    /// Pods exist that were made with the other driver.
    #[error(
        "the cgroup driver cannot change from {persisted} to {wanted} while pods exist: start crimson with \
         --cgroup-driver {persisted} (cgroup.driver in the configuration), or remove all pods first ({} records it)",
        file.display()
    )]
    DriverInForce {
        /// The driver of the pods.
        persisted: DriverKind,
        /// The driver asked for.
        wanted: DriverKind,
        /// Where the driver of the pods is written down.
        file: PathBuf,
    },
    /// The file with the driver in force cannot be used.
    #[error("{action} the cgroup driver in force, {}", path.display())]
    Persisted {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why systemd did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusFault {
    /// Nothing answers, or it went away meanwhile.
    Unreachable,
    /// It has no such unit.
    NoUnit,
    /// It will not.
    Refused,
}

impl fmt::Display for BusFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "systemd cannot be reached",
            Self::NoUnit => "systemd does not know the unit",
            Self::Refused => "systemd refused",
        })
    }
}

impl CgroupError {
    pub(crate) fn step(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Step { action, path: path.to_owned(), source: source.into() }
    }

    /// The time is up; `last` is what went wrong before.
    pub(crate) fn no_answer(
        action: &'static str,
        unit: &str,
        limit: Duration,
        last: Option<Box<zbus::Error>>,
    ) -> Self {
        let unit = unit.to_owned();
        match last {
            Some(source) => Self::Bus { fault: BusFault::Unreachable, action, unit, source },
            None => Self::NoAnswer { action, unit, limit },
        }
    }

    pub(crate) fn value(what: &str, text: &str, reason: &'static str) -> Self {
        Self::Value { what: what.to_owned(), text: text.to_owned(), reason }
    }

    pub(crate) fn name(text: &str, reason: &'static str) -> Self {
        Self::Name { text: text.to_owned(), reason }
    }
}

impl Kind for CgroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherDriver { .. } | Self::Name { .. } | Self::Value { .. } => ErrorKind::InvalidArgument,
            Self::NotMounted { .. } | Self::DriverInForce { .. } | Self::MemoryInUse { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Bus { fault: BusFault::Unreachable, .. } | Self::NoAnswer { .. } => ErrorKind::Unavailable,
            Self::Bus { fault: BusFault::NoUnit, .. } => ErrorKind::NotFound,
            Self::Bus { fault: BusFault::Refused, .. } | Self::Job { .. } | Self::Persisted { .. } => {
                ErrorKind::Internal
            }
            Self::Mounts(error) => error.kind(),
            Self::Step { source, .. } => ErrorKind::of_io(source),
            Self::StillRunning { .. } => ErrorKind::DeadlineExceeded,
        }
    }
}
