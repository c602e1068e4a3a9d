//! One container as the monitor holds it.
//!
//! ```text
//! Creating ──runtime create──▶ Created ──runtime start──▶ Running
//!     │                           │ init ended               │ init ended
//!     ▼ failed: forgotten         └────────▶ Draining ◀──────┘
//!                                               │ streams at their end or 1 s later; cgroup empty
//!                                               ▼
//!                                            Exited ──delete──▶ forgotten
//! ```

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Instant;

use monitor_api::{ContainerState, ExitRecord, Phase};
use runtime::RuntimeCommand;
use std::os::unix::process::ExitStatusExt;
use types::{ContainerId, Timestamp};

use crate::cgroup::Cgroup;
use crate::connections::Asker;
use crate::stdio::Streams;

/// How far a container is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The runtime is making it.
    Creating,
    /// Its init waits for start.
    Created,
    /// Its program runs.
    Running,
    /// Its init has ended; what it left is being collected.
    Draining(Draining),
    /// Its exit record is on disk.
    Exited(ExitRecord),
}

/// The time between the end of the init and the exit record.
#[derive(Debug)]
pub(crate) struct Draining {
    pub(crate) end: End,
    /// When the streams are given up.
    pub(crate) until: Instant,
    /// When processes of the container are given up that SIGKILL does not end.
    pub(crate) alive_until: Instant,
    /// When to look again.
    pub(crate) look: Instant,
    /// The record, once only writing it is left, and until when that is tried.
    pub(crate) unwritten: Option<(ExitRecord, Instant)>,
}

/// A process's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) at: Timestamp,
}

impl End {
    /// The exit code as shells and CRI tell it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Names it in the poller.
    pub(crate) key: u32,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: RuntimeCommand,
    pub(crate) exit_file: PathBuf,
    pub(crate) streams: Streams,
    /// How many lost lines of its log a daemon knows of.
    pub(crate) drops_told: u64,
    /// Its stdin is closed with the first client's.
    pub(crate) stdin_once: bool,
    /// Who outside the pod's user namespace is its process's user and group, if the pod has such a namespace.
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) stage: Stage,
    /// The init, from create to its end.
    pub(crate) pid: Option<i32>,
    pub(crate) cgroup: Cgroup,
    pub(crate) started_at: Timestamp,
    /// The runtime's `start` is under way; an end that is seen meanwhile waits in `early_end`.
    pub(crate) starting: bool,
    pub(crate) early_end: Option<End>,
    pub(crate) deletion: Option<Deletion>,
}

/// A container that is to be deleted.
#[derive(Debug)]
pub(crate) struct Deletion {
    pub(crate) askers: Vec<Asker>,
    /// When the runtime is asked even though the init has not ended.
    pub(crate) force_at: Instant,
    /// The runtime is at it.
    pub(crate) under_way: bool,
}

impl Container {
    /// The file that a runtime command writes its log to.
    pub(crate) fn log_file(&self, command: &str) -> PathBuf {
        self.bundle.join(format!("{command}.log"))
    }

    /// Whether its init is being made or has not ended.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.stage, Stage::Draining(_) | Stage::Exited(_))
    }

    /// As the daemon is told; nothing while it is being created.
    pub(crate) fn state(&self) -> Option<ContainerState> {
        let phase = match &self.stage {
            Stage::Creating => return None,
            Stage::Created => Phase::Created,
            Stage::Running | Stage::Draining(_) => Phase::Running,
            Stage::Exited(_) => Phase::Exited,
        };
        let exit = match &self.stage {
            Stage::Exited(record) => Some(record.clone()),
            _ => None,
        };
        Some(ContainerState {
            container: self.id.clone(),
            pid: self.pid,
            phase,
            exit,
            dropped_log_lines: self.streams.dropped_lines(),
            dropped_log_lines_told: Some(self.drops_told),
            started_at: self.started_at,
        })
    }

    /// The record of this end.
    pub(crate) fn exit_record(&self, end: End) -> ExitRecord {
        ExitRecord {
            version: ExitRecord::VERSION,
            container: self.id.clone(),
            exit_code: end.code(),
            signal: end.signal(),
            finished_at: end.at,
            started_at: self.started_at,
            oom_killed: self.cgroup.oom_killed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_as_128_more() {
        let end = |raw| End { status: ExitStatus::from_raw(raw), at: Timestamp(1) };
        assert_eq!((end(7 << 8).code(), end(7 << 8).signal()), (7, None));
        assert_eq!((end(9).code(), end(9).signal()), (137, Some(9)));
    }
}
