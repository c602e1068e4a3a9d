//! What the domain counts for operators: pods and containers by state, monitors, teardowns that are not finished, log lines that
//! were lost. All of it is read from published views and from small tables of its own: a reader never waits for a pod's
//! task, a runtime or a disk.

mod losses;
mod monitors;
mod pending;

use std::sync::Arc;

use types::ContainerId;

pub(super) use self::losses::Losses;
pub use self::losses::LostLogLines;
pub(super) use self::monitors::Roster;
pub use self::monitors::{MonitorFigures, RunningMonitor};
pub use self::pending::PendingTeardown;
pub(super) use self::pending::{Pending, Place};
use super::Pods;
use super::view::{ContainerState, PodView, SandboxState};

/// The tables, shared by all pods' tasks.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) pending: Arc<Pending>,
    pub(super) monitors: Arc<Roster>,
    pub(super) losses: Losses,
}

/// How many pods and containers there are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Sandboxes that are being made for the first time and not listed yet.
    pub sandboxes_starting: usize,
    /// Sandboxes that are ready.
    pub sandboxes_ready: usize,
    /// Sandboxes that are stopped, stopping, or lost what they need.
    pub sandboxes_not_ready: usize,
    /// Containers that were made and not started.
    pub containers_created: usize,
    /// Containers that run.
    pub containers_running: usize,
    /// Containers that have ended.
    pub containers_exited: usize,
}

impl StateCounts {
    fn add(&mut self, pod: &PodView) {
        let sandboxes = match pod.sandbox.as_ref().map(|sandbox| sandbox.state) {
            None => &mut self.sandboxes_starting,
            Some(SandboxState::Ready) => &mut self.sandboxes_ready,
            Some(SandboxState::NotReady) => &mut self.sandboxes_not_ready,
        };
        *sandboxes += 1;
        for container in &pod.containers {
            let containers = match container.state {
                ContainerState::Created => &mut self.containers_created,
                ContainerState::Running => &mut self.containers_running,
                ContainerState::Exited => &mut self.containers_exited,
            };
            *containers += 1;
        }
    }
}

impl Pods {
    /// How many pods and containers there are in which state.
    #[must_use]
    pub fn state_counts(&self) -> StateCounts {
        let mut counts = StateCounts::default();
        self.list().iter().for_each(|pod| counts.add(pod));
        counts
    }

    /// The monitors that this server is connected to, and how often that went wrong.
    #[must_use]
    pub fn monitors(&self) -> MonitorFigures {
        self.shared.figures.monitors.read()
    }

    /// Teardowns that go on behind, or that failed and are waiting for the next attempt; the oldest first.
    #[must_use]
    pub fn pending_teardowns(&self) -> Vec<PendingTeardown> {
        self.shared.figures.pending.read()
    }

    /// Lines of containers' logs that could not be written since this server started. The total only grows, also when containers
    /// and their monitors go. A server that starts counts from zero again: what monitors lost while nobody listened is in it, what
    /// they told an earlier server is not.
    #[must_use]
    pub fn lost_log_lines(&self) -> LostLogLines {
        self.shared.figures.losses.read()
    }

    /// The same for one container, since it was made.
    #[must_use]
    pub fn lost_log_lines_of(&self, container: &ContainerId) -> u64 {
        self.shared.figures.losses.of(container)
    }
}
