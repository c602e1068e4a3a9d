//! What the monitor reports: processes that ended, and its own end.

use std::sync::Arc;

use monitor_api::{Event, ExitRecord};
use types::{ContainerId, Timestamp};

use super::super::phase::{ContainerPhase, SandboxPhase};
use super::super::record::{Exit, ExitReason};
use super::super::recover;
use super::super::steps::Steps;
use super::super::teardown::{self, Failures};
use super::{Actor, ExecExit};

/// What the end of a container's process is called in logs.
const VERB: &str = "end container";
/// And that of a monitor.
const LOST: &str = "lose monitor";

impl Actor {
    pub(super) async fn on_event(&mut self, event: Event) {
        match event {
            Event::ExecExited { exec, exit_code, signal } => {
                let watcher = self.execs.remove(&exec);
                if watcher.is_some_and(|watcher| watcher.send(ExecExit { code: exit_code, signal }).is_err())
                {
                    tracing::debug!(exec.id = %exec, "a command ended after its caller had left");
                }
            }
            // Of one that is gone already everything was counted.
            Event::LogLinesDropped { container, lines } => {
                if self.containers.contains_key(&container) {
                    self.shared.figures.losses.note(&container, lines);
                }
            }
            Event::Exited(exit) if exit.container.as_str() == self.id.as_str() => {
                self.on_pause_exit(&exit).await
            }
            Event::Exited(exit) => self.on_exit(&exit).await,
        }
    }

    async fn on_exit(&mut self, exit: &ExitRecord) {
        let Some(cell) = self.containers.get_mut(&exit.container) else { return };
        match cell.record.phase {
            // Kept until the start has been reported.
            ContainerPhase::Starting => cell.record.exit = Some(exit_of(exit)),
            ContainerPhase::Running => {
                self.record_exit(&exit.container, exit_of(exit)).await;
                self.publish();
            }
            ContainerPhase::Creating
            | ContainerPhase::Created
            | ContainerPhase::Exited
            | ContainerPhase::Removing => {}
        }
    }

    /// Makes the exit durable, then shows it, then frees what the OCI runtime still holds of the container.
    pub(super) async fn record_exit(&mut self, id: &ContainerId, exit: Exit) {
        let Some(cell) = self.containers.get_mut(id) else { return };
        tracing::info!(pod.id = %self.id, container.id = %id, exit_code = exit.code, "container has exited");
        cell.record.exit = Some(exit);
        cell.record.phase = ContainerPhase::Exited;
        cell.record.pid = None;
        let steps = Steps::new(&self.shared, VERB, cell.record.display(), id.as_str());
        // Where it cannot be written, the monitor's own exit record, on the volatile file system, still holds it.
        steps.attempt("record", cell.record.save(self.shared.layout())).await;
        let Some(cell) = self.containers.get(id) else { return };
        let (shared, record, sandbox, monitor) = (
            Arc::clone(&self.shared),
            cell.record.clone(),
            self.sandbox.record.clone(),
            self.monitor.clone(),
        );
        self.shared.tasks.spawn(async move {
            let steps = Steps::new(&shared, VERB, record.display(), record.id.as_str());
            let freed = teardown::free_container(&shared, &sandbox.handler, &record, monitor.as_ref());
            steps.attempt("processes", freed).await;
        });
    }

    async fn on_pause_exit(&mut self, exit: &ExitRecord) {
        if self.sandbox.record.phase == SandboxPhase::Ready {
            tracing::warn!(pod.id = %self.id, exit_code = exit.exit_code, "the pause container ended by itself");
            self.sandbox.record.pause_pid = None;
            self.set_phase("end pause", "publish", SandboxPhase::NotReady).await;
        }
    }

    /// The monitor is gone, and with it the parent of all processes: they are ended and shown as ended.
    pub(super) async fn on_monitor_lost(&mut self) {
        self.monitor = None;
        self.execs.clear();
        let expected = matches!(
            self.sandbox.record.phase,
            SandboxPhase::Stopping | SandboxPhase::NotReady | SandboxPhase::Removing
        );
        let lives = |phase| matches!(phase, ContainerPhase::Starting | ContainerPhase::Running);
        if expected && !self.containers.values().any(|cell| lives(cell.record.phase)) {
            return;
        }
        match self.shared.drivers.monitors.connect(&self.id).await {
            Ok(Some(connection)) => {
                self.shared.figures.monitors.reconnected();
                tracing::warn!(pod.id = %self.id, "connection to the monitor was lost and is made again");
                let seen = recover::ask(&self.id, Some(&connection)).await;
                self.adopt(connection);
                // What happened between the two connections was told to nobody.
                for state in seen.values() {
                    self.shared.figures.losses.note(&state.container, state.dropped_log_lines);
                }
                for exit in seen.into_values().filter_map(|state| state.exit) {
                    self.on_event(Event::Exited(exit)).await;
                }
            }
            Ok(None) | Err(_) => self.on_monitor_dead().await,
        }
    }

    async fn on_monitor_dead(&mut self) {
        tracing::error!(pod.id = %self.id, "the monitor has died: ending what is left of its pod");
        self.shared.figures.monitors.lost();
        let target = self.target();
        let shared = Arc::clone(&self.shared);
        // What cannot be ended now is logged, and tried again when the pod is stopped.
        teardown::end_processes(&shared, &target, &mut Failures::new(&shared, LOST, &target)).await;
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for id in ids {
            self.container_lost(&id).await;
        }
        self.sandbox.record.pause_pid = None;
        if self.sandbox.record.phase == SandboxPhase::Ready {
            self.set_phase(LOST, "publish", SandboxPhase::NotReady).await;
        }
        self.publish();
    }

    /// The container, if it ran, has ended with its monitor.
    async fn container_lost(&mut self, id: &ContainerId) {
        let Some(phase) = self.containers.get(id).map(|cell| cell.record.phase) else { return };
        if !matches!(phase, ContainerPhase::Starting | ContainerPhase::Running) {
            return;
        }
        let exit = teardown::read_exit(self.shared.layout(), id).await;
        let exit = exit.map_or_else(|| lost_exit(self.shared.now()), |exit| exit_of(&exit));
        match self.containers.get_mut(id) {
            // The start may have succeeded before, and is yet to be reported.
            Some(cell) if phase == ContainerPhase::Starting => {
                cell.record.exit.get_or_insert(exit);
            }
            _ => self.record_exit(id, exit).await,
        }
    }
}

/// The record of an exit as the monitor wrote it.
pub(in super::super) fn exit_of(exit: &ExitRecord) -> Exit {
    let reason = match (exit.oom_killed, exit.exit_code) {
        (true, code) if code != 0 => ExitReason::OomKilled,
        (_, 0) => ExitReason::Completed,
        _ => ExitReason::Error,
    };
    Exit { code: exit.exit_code, reason, message: String::new(), finished_at: exit.finished_at }
}

/// The record of an exit that nobody saw; 255 is what kubelet's users know for it.
pub(in super::super) fn lost_exit(now: Timestamp) -> Exit {
    Exit {
        code: 255,
        reason: ExitReason::Unknown,
        message: "the exit status was lost".to_owned(),
        finished_at: now,
    }
}
