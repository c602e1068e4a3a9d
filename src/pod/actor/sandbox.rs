//! The sandbox's own verbs in the pod's task: run, stop, remove.

use std::sync::Arc;

use types::SandboxId;

use super::super::error::PodError;
use super::super::phase::{ContainerPhase, SandboxPhase, SandboxVerb};
use super::super::run_sandbox::{self, Running};
use super::super::teardown::{self, Target};
use super::{Actor, Course, Done, Message, Reply, answer, settle};

/// What a failed stop or removal is at.
const RETRY: &str = "the caller's next attempt";

impl Actor {
    /// The first Run begins the work, which `spawn_new` has recorded as phase Creating with nobody waiting.
    pub(super) fn on_run(&mut self, reply: Reply<SandboxId>) {
        let first = self.sandbox.record.phase == SandboxPhase::Creating && self.sandbox.running.is_empty();
        if first {
            self.sandbox.running.push(reply);
            let (shared, record) = (Arc::clone(&self.shared), self.sandbox.record.clone());
            self.begin(async move { Done::Run(run_sandbox::run(&shared, record).await.map(Box::new)) });
            return;
        }
        let decision = self.sandbox.record.phase.decide(SandboxVerb::Run);
        let exists = PodError::Exists { object: self.display(), state: self.sandbox.record.phase.word() };
        let id = self.id.clone();
        let (waiters, deferred) = (&mut self.sandbox.running, &mut self.deferred);
        settle(decision, reply, waiters, deferred, || id, Message::Run, || exists);
    }

    pub(super) fn run_done(&mut self, result: Result<Box<Running>, PodError>) {
        let outcome = match result {
            Ok(running) => {
                let Running { record, connection } = *running;
                self.sandbox.record = record;
                self.adopt(connection);
                self.publish();
                tracing::info!(pod.id = %self.id, pod.ns = self.sandbox.record.request.namespace(),
                    pod.name = self.sandbox.record.request.name(), "sandbox is ready");
                Ok(self.id.clone())
            }
            Err(error) => {
                self.leave();
                Err(Arc::new(error))
            }
        };
        answer(&mut self.sandbox.running, &outcome);
    }

    pub(super) async fn on_stop_sandbox(&mut self, reply: Reply<()>) {
        let decision = self.sandbox.record.phase.decide(SandboxVerb::Stop);
        let refusal = self.refuse_sandbox("stop");
        let (waiters, deferred) = (&mut self.sandbox.stopping, &mut self.deferred);
        let course = settle(decision, reply, waiters, deferred, || (), Message::StopSandbox, || refusal);
        let Course::Begin(reply) = course else { return };
        if self.containers.values().any(|cell| is_busy(cell.record.phase)) {
            self.deferred.push(Message::StopSandbox(reply));
            return;
        }
        self.sandbox.stopping.push(reply);
        self.set_phase("stop sandbox", "intent", SandboxPhase::Stopping).await;
        let (shared, target) = (Arc::clone(&self.shared), self.target());
        self.begin(async move { Done::StopSandbox(teardown::stop(&shared, &target).await) });
    }

    pub(super) async fn stop_sandbox_done(&mut self, result: Result<(), PodError>) {
        let removing = self.sandbox.record.phase == SandboxPhase::Removing;
        if result.is_ok() {
            self.sandbox.record.pause_pid = None;
            // Its monitor has nothing to do any more and has been sent away.
            self.monitor = None;
        }
        if !removing {
            self.set_phase("stop sandbox", "publish", SandboxPhase::NotReady).await;
        }
        if result.is_ok() {
            tracing::info!(pod.id = %self.id, "sandbox is stopped");
        }
        self.note_teardown("stop sandbox", &result);
        answer(&mut self.sandbox.stopping, &result.map_err(Arc::new));
    }

    /// Shows a stop or removal that failed until one succeeds.
    fn note_teardown(&mut self, verb: &'static str, result: &Result<(), PodError>) {
        let Err(error) = result else { return self.sandbox.unfinished = None };
        let (shared, object, id) = (&self.shared, self.display(), &self.id);
        let place = &mut self.sandbox.unfinished;
        let place =
            place.get_or_insert_with(|| shared.figures.pending.enter(verb, object, id.as_str(), RETRY));
        place.failed(error);
    }

    pub(super) async fn on_remove_sandbox(&mut self, reply: Reply<()>) {
        let decision = self.sandbox.record.phase.decide(SandboxVerb::Remove);
        let refusal = self.refuse_sandbox("remove");
        let (waiters, deferred) = (&mut self.sandbox.removing, &mut self.deferred);
        let course = settle(decision, reply, waiters, deferred, || (), Message::RemoveSandbox, || refusal);
        let Course::Begin(reply) = course else { return };
        if self.containers.values().any(|cell| is_busy(cell.record.phase) || cell.updating.is_some()) {
            self.deferred.push(Message::RemoveSandbox(reply));
            return;
        }
        self.sandbox.removing.push(reply);
        self.set_phase("remove sandbox", "intent", SandboxPhase::Removing).await;
        let (shared, target) = (Arc::clone(&self.shared), self.target());
        self.begin(
            async move { Done::RemoveSandbox(teardown::remove(&shared, teardown::REMOVE, &target).await) },
        );
    }

    pub(super) fn remove_sandbox_done(&mut self, result: Result<(), PodError>) {
        self.note_teardown(teardown::REMOVE, &result);
        match &result {
            Ok(()) => {
                tracing::info!(pod.id = %self.id, "sandbox is removed");
                self.leave();
            }
            // Still recorded as being removed; the next call, or the next start of the server, tries again.
            Err(_) => self.sandbox.record.phase = SandboxPhase::NotReady,
        }
        self.publish();
        let outcome = result.map_err(Arc::new);
        answer(&mut self.sandbox.removing, &outcome);
        answer(&mut self.sandbox.stopping, &outcome);
    }

    /// Everything that tearing this pod down needs to know.
    pub(super) fn target(&self) -> Target {
        let containers = self.containers.values().map(|cell| cell.record.clone()).collect();
        Target {
            record: self.sandbox.record.clone(),
            containers,
            monitor: self.monitor.clone(),
            view: Some(self.view.subscribe()),
        }
    }

    /// Records and publishes a change of phase, as a step of a verb. A full disk must not keep a pod from being stopped, so a
    /// record that cannot be written is logged: recovery then finds the older phase and repeats idempotent work.
    pub(super) async fn set_phase(&mut self, verb: &'static str, step: &'static str, phase: SandboxPhase) {
        self.sandbox.record.phase = phase;
        let record = &self.sandbox.record;
        let steps = teardown::steps_of(&self.shared, verb, record);
        steps.attempt(step, record.save(self.shared.layout())).await;
        self.publish();
    }

    /// Takes the pod out of the directory; the task ends after this message.
    fn leave(&mut self) {
        let mut directory = self.shared.directory();
        directory.sandboxes.remove(&self.id);
        directory.keys.remove(self.sandbox.record.request.key());
        for id in self.containers.keys() {
            directory.containers.remove(id);
        }
        drop(directory);
        self.containers.keys().for_each(|id| self.shared.figures.losses.forget(id));
        self.shared.levels.forget(&self.id);
        self.containers.clear();
        self.gone = true;
    }
}

/// Whether an operation on the container is under way that removal must not overtake.
fn is_busy(phase: ContainerPhase) -> bool {
    matches!(phase, ContainerPhase::Creating | ContainerPhase::Starting | ContainerPhase::Removing)
}
