//! What the monitor reports: processes that ended, and its own end.

use std::sync::Arc;

use monitor_api::{Event, ExitRecord};
use types::{ContainerId, Timestamp};

use super::super::phase::{ContainerPhase, SandboxPhase};
use super::super::record::{Exit, ExitReason};
use super::super::teardown;
use super::{Actor, ExecExit};

impl Actor {
    pub(super) async fn on_event(&mut self, event: Event) {
        match event {
            Event::ExecExited { exec, exit_code, .. } => {
                let watcher = self.execs.remove(&exec);
                if watcher.is_some_and(|watcher| watcher.send(ExecExit { code: exit_code }).is_err()) {
                    tracing::debug!(exec.id = %exec, "a command ended after its caller had left");
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
        if let Err(error) = cell.record.save(self.shared.layout()).await {
            // The monitor's own exit record, on the volatile file system, still holds it.
            super::log_dropped("the container's exit could not be recorded", &error);
        }
        let Some(cell) = self.containers.get(id) else { return };
        let (shared, record, sandbox, monitor) = (
            Arc::clone(&self.shared),
            cell.record.clone(),
            self.sandbox.record.clone(),
            self.monitor.clone(),
        );
        self.shared.tasks.spawn(async move {
            teardown::free_container(&shared, &sandbox.handler, &record, monitor.as_ref()).await;
        });
    }

    async fn on_pause_exit(&mut self, exit: &ExitRecord) {
        if self.sandbox.record.phase == SandboxPhase::Ready {
            tracing::warn!(pod.id = %self.id, exit_code = exit.exit_code, "the pause container ended by itself");
            self.sandbox.record.pause_pid = None;
            self.set_phase(SandboxPhase::NotReady).await;
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
        if expected && self.containers.values().all(|cell| cell.record.phase != ContainerPhase::Running) {
            return;
        }
        match self.shared.drivers.monitors.connect(&self.id).await {
            Ok(Some(connection)) => {
                tracing::warn!(pod.id = %self.id, "connection to the monitor was lost and is made again");
                self.adopt(connection);
            }
            Ok(None) | Err(_) => self.on_monitor_dead().await,
        }
    }

    async fn on_monitor_dead(&mut self) {
        tracing::error!(pod.id = %self.id, "the monitor has died: ending what is left of its pod");
        let target = self.target();
        teardown::end_processes(&self.shared, &target).await;
        let running: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, cell)| cell.record.phase == ContainerPhase::Running)
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            let exit = teardown::read_exit(self.shared.layout(), &id).await;
            let exit = exit.map_or_else(|| lost_exit(self.shared.now()), |exit| exit_of(&exit));
            self.record_exit(&id, exit).await;
        }
        self.sandbox.record.pause_pid = None;
        if self.sandbox.record.phase == SandboxPhase::Ready {
            self.set_phase(SandboxPhase::NotReady).await;
        }
        self.publish();
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
