//! Plugins that an earlier life of this process started for a sandbox and that still run.
//!
//! When the daemon dies in the middle of ADD, the plugin goes on. Undoing the ADD beside it would lose: what the plugin
//! does last would stay for ever. So before the first operation on a sandbox that was on record at start, whatever still
//! runs for it is waited for, and killed only when it does not end. It is known by its stdin, a file in memory whose
//! name holds the sandbox's id; `/proc` shows the name and no other program has one like it.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process_group};
use sys::pidfd::PidFd;
use tokio::time::Instant;
use types::SandboxId;

use crate::error::CniError;
use crate::plugin::Deadline;

/// Name of the file in memory that a plugin for this sandbox reads its configuration from.
pub(crate) fn stdin_name(sandbox: &SandboxId) -> String {
    format!("cni-config-{sandbox}")
}

/// Waits until no plugin runs for `sandbox`; at the deadline those that do are killed.
pub(crate) async fn wait_for_end(sandbox: &SandboxId, deadline: Deadline) -> Result<(), CniError> {
    let sandbox = sandbox.clone();
    let waited = tokio::task::spawn_blocking(move || {
        for orphan in find(&sandbox) {
            orphan.end(&sandbox, deadline);
        }
    });
    waited.await.map_err(|_| CniError::Interrupted)
}

/// A plugin whose parent is gone.
#[derive(Debug)]
struct Orphan {
    pid: Pid,
    fd: PidFd,
}

fn find(sandbox: &SandboxId) -> Vec<Orphan> {
    let stdin = format!("/memfd:{} (deleted)", stdin_name(sandbox));
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Orphan::look(pid, Path::new(&stdin))).collect()
}

impl Orphan {
    /// The process, if it reads `stdin`; looked at again once it is held, so that the number cannot have passed on.
    fn look(pid: i32, stdin: &Path) -> Option<Self> {
        let link = format!("/proc/{pid}/fd/0");
        if fs::read_link(&link).ok()? != stdin {
            return None;
        }
        let orphan = Self { pid: Pid::from_raw(pid)?, fd: PidFd::open(pid).ok()? };
        (fs::read_link(&link).ok()? == stdin).then_some(orphan)
    }

    fn end(&self, sandbox: &SandboxId, deadline: Deadline) {
        tracing::info!(pod.id = %sandbox, pid = self.pid.as_raw_nonzero(), "waiting for a cni plugin of an earlier life");
        if self.ends_before(deadline.at) {
            return;
        }
        tracing::warn!(pod.id = %sandbox, pid = self.pid.as_raw_nonzero(), "killing a cni plugin of an earlier life");
        // It leads its group, and holding it keeps the number from being used again as long as it lives.
        if let Err(error) = kill_process_group(self.pid, Signal::KILL).or_else(|_| self.kill_alone()) {
            tracing::debug!(error = %error, "cni plugin was gone when it was to be killed");
        }
        self.ends_before(Instant::now() + crate::plugin::REAP);
    }

    /// For a process that a plugin started and that has the same stdin but leads no group.
    fn kill_alone(&self) -> std::io::Result<()> {
        self.fd.signal(Signal::KILL.as_raw())
    }

    /// Waits for the process's end; whether it came in time.
    fn ends_before(&self, at: Instant) -> bool {
        self.fd.wait_ended(Some(at.saturating_duration_since(Instant::now()))).unwrap_or(false)
    }
}
