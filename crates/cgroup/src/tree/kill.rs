//! Ending every process of a group.
//!
//! `cgroup.kill` does it in one step where the kernel has it. Elsewhere each process listed is opened, and only signalled
//! when it is still listed afterwards: then the descriptor cannot be that of a stranger who got the pid in between. Groups
//! that give birth while they are killed are frozen for it; frozen ones of v1 are thawed, since they cannot die before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sys::pidfd::PidFd;

use super::{Tree, groups};
use crate::error::CgroupError;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long one round waits for those it killed, before it looks for new ones.
const ROUND: Duration = Duration::from_millis(200);
/// From this round on a v1 group is frozen while its processes are killed.
const FREEZE_FROM: u32 = 2;

impl Tree {
    /// Kills the processes of the group and the groups in it, and waits until they are gone.
    pub(crate) fn kill_all(&self, path: &Path) -> Result<(), CgroupError> {
        let deadline = Instant::now() + KILL_LIMIT;
        let mut round = 0;
        loop {
            let pids = self.processes(path)?;
            let Some(first) = pids.first().copied() else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(CgroupError::StillRunning {
                    path: format!("/{}", path.display()),
                    count: pids.len(),
                    first,
                });
            }
            self.kill_round(path, &pids, round >= FREEZE_FROM)?;
            round += 1;
        }
    }

    fn kill_round(&self, path: &Path, pids: &[i32], freeze: bool) -> Result<(), CgroupError> {
        if freeze {
            self.set_v1_freezer(path, "FROZEN")?;
        }
        self.kill_by_kernel(path);
        let opened: Vec<(i32, PidFd)> =
            pids.iter().filter_map(|pid| PidFd::open(*pid).ok().map(|process| (*pid, process))).collect();
        let still: BTreeSet<i32> = self.processes(path)?.into_iter().collect();
        let ours: Vec<PidFd> =
            opened.into_iter().filter(|(pid, _)| still.contains(pid)).map(|(_, process)| process).collect();
        for process in &ours {
            // A process that has ended meanwhile is what was wanted; any other refusal shows by the process staying.
            process.signal(sys::signals::KILL).ok();
        }
        self.set_v1_freezer(path, "THAWED")?;
        await_all(&ours);
        Ok(())
    }

    /// A missing file or an old kernel leaves the work to the signals.
    fn kill_by_kernel(&self, path: &Path) {
        if let Some(unified) = self.mounts.unified() {
            std::fs::write(unified.path.join(path).join("cgroup.kill"), "1").ok();
        }
    }

    fn set_v1_freezer(&self, path: &Path, state: &str) -> Result<(), CgroupError> {
        let Some(freezer) = self.mounts.of_controller("freezer") else { return Ok(()) };
        let top = freezer.path.join(path);
        let files = |group: &PathBuf| group.join("freezer.state");
        for file in groups(&top)?.iter().map(files).filter(|file| file.is_file()) {
            match std::fs::write(&file, state) {
                Err(error) if !super::is_gone(&error) => {
                    return Err(CgroupError::step("write", &file, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn await_all(processes: &[PidFd]) {
    let until = Instant::now() + ROUND;
    for process in processes {
        let left = until.saturating_duration_since(Instant::now());
        // Whether it has ended is seen by the group's list of processes in the next round.
        process.wait_ended(Some(left)).ok();
    }
}
