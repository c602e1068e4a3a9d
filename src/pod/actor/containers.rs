//! The containers' verbs in the pod's task: create, start, stop, remove, and the right to use a running one.

use std::sync::Arc;
use std::time::Duration;

use monitor_api::Monitor;
use spec::{ContainerRequest, PidMode};
use tracing::Span;
use types::ContainerId;

use super::super::error::{PodError, SharedError};
use super::super::phase::{ContainerPhase, ContainerVerb, Decision, SandboxVerb};
use super::super::record::ContainerRecord;
use super::super::{create, remove, start, stop};
use super::{Actor, ContainerCell, Course, Done, Message, Reply, answer, settle};

impl Actor {
    pub(super) fn on_create(&mut self, request: Box<ContainerRequest>, reply: Reply<ContainerId>) {
        match self.sandbox.record.phase.decide(SandboxVerb::CreateContainer) {
            Decision::Defer => return self.deferred.push(Message::Create(request, reply)),
            Decision::Begin => {}
            Decision::Join | Decision::Done | Decision::Refuse => {
                let refusal = self.refuse_sandbox("create a container in");
                return drop(reply.send(Err(Arc::new(refusal))));
            }
        }
        let twin = self.containers.values_mut().find(|cell| {
            cell.record.request.name() == request.name() && cell.record.request.attempt() == request.attempt()
        });
        if let Some(cell) = twin {
            let phase = cell.record.phase;
            let (id, object) = (cell.record.id.clone(), cell.record.display());
            let refusal = || PodError::Exists { object, state: phase.word() };
            let again = |reply| Message::Create(request, reply);
            let decision = phase.decide(ContainerVerb::Create);
            settle(decision, reply, &mut cell.creating, &mut self.deferred, || id, again, refusal);
            return;
        }
        self.begin_create(*request, reply);
    }

    fn begin_create(&mut self, request: ContainerRequest, reply: Reply<ContainerId>) {
        let record = match create::intend(&self.shared, &self.sandbox.record, request) {
            Ok(record) => record,
            Err(error) => return drop(reply.send(Err(Arc::new(error)))),
        };
        let target_pid = match self.target_pid(&record) {
            Ok(pid) => pid,
            Err(error) => return drop(reply.send(Err(Arc::new(error)))),
        };
        let id = record.id.clone();
        let mut cell = ContainerCell::new(record.clone());
        cell.creating.push(reply);
        self.containers.insert(id.clone(), cell);
        self.shared.directory().containers.insert(id.clone(), self.id.clone());
        let (shared, sandbox) = (Arc::clone(&self.shared), self.sandbox.record.clone());
        self.begin(async move {
            Done::Create(id, create::run(&shared, &sandbox, record, target_pid).await.map(Box::new))
        });
    }

    /// The process whose pid namespace the container is to share: that of a running container of the same pod.
    fn target_pid(&self, record: &ContainerRecord) -> Result<Option<i32>, PodError> {
        let PidMode::Target(target) = record.request.pid_mode() else { return Ok(None) };
        let cell = self.containers.values().find(|cell| cell.record.id.as_str() == target);
        match cell.map(|cell| (cell.record.phase, cell.record.pid)) {
            Some((ContainerPhase::Running, Some(pid))) => Ok(Some(pid)),
            _ => Err(PodError::Invalid(format!(
                "{}: target container {target:?} is not running in this pod",
                record.display()
            ))),
        }
    }

    pub(super) fn create_done(&mut self, id: &ContainerId, result: Result<Box<ContainerRecord>, PodError>) {
        let Some(cell) = self.containers.get_mut(id) else { return };
        let mut waiters = std::mem::take(&mut cell.creating);
        let outcome = match result {
            Ok(record) => {
                cell.record = *record;
                tracing::info!(pod.id = %self.id, container.id = %id, "container is created");
                Ok(id.clone())
            }
            Err(error) => {
                self.forget(id);
                Err(Arc::new(error))
            }
        };
        self.publish();
        answer(&mut waiters, &outcome);
    }

    pub(super) async fn on_start(&mut self, id: ContainerId, reply: Reply<()>) {
        if self.sandbox.record.phase.decide(SandboxVerb::StartContainer) != Decision::Begin {
            let refusal = self.refuse_sandbox("start a container in");
            return drop(reply.send(Err(Arc::new(refusal))));
        }
        let Some(monitor) = self.monitor.clone() else {
            return drop(reply.send(Err(Arc::new(self.refuse_sandbox("reach the monitor of")))));
        };
        let Some(cell) = self.containers.get_mut(&id) else { return unknown(&id, reply) };
        if cell.updating.is_some() {
            return self.deferred.push(Message::Start(id, reply));
        }
        if let Some(outcome) = cell.unheard.take() {
            let started = outcome.is_ok();
            cell.unheard = reply.send(outcome).err();
            if started && cell.unheard.is_none() {
                start::note_heard(&self.shared, &cell.record).await;
            }
            return;
        }
        let phase = cell.record.phase;
        let object = cell.record.display();
        let refusal = || PodError::WrongState { object, state: phase.word(), verb: "start" };
        let again = |reply| Message::Start(id.clone(), reply);
        let decision = phase.decide(ContainerVerb::Start);
        let course = settle(decision, reply, &mut cell.starting, &mut self.deferred, || (), again, refusal);
        let Course::Begin(reply) = course else { return };
        cell.starting.push(reply);
        cell.record.phase = ContainerPhase::Starting;
        let (shared, sandbox, record) =
            (Arc::clone(&self.shared), self.sandbox.record.clone(), cell.record.clone());
        self.begin(async move { Done::Start(id, start::run(&shared, &sandbox, record, monitor).await) });
    }

    pub(super) async fn start_done(
        &mut self,
        id: &ContainerId,
        result: Result<Box<ContainerRecord>, (Box<ContainerRecord>, PodError)>,
    ) {
        let Some(cell) = self.containers.get_mut(id) else { return };
        let ended = cell.record.exit.take();
        let outcome: Result<(), SharedError> = match result {
            Ok(record) => {
                cell.record = *record;
                tracing::info!(pod.id = %self.id, container.id = %id, pid = cell.record.pid, "container is started");
                Ok(())
            }
            Err((record, error)) => {
                cell.record = *record;
                Err(Arc::new(error))
            }
        };
        let mut waiters = std::mem::take(&mut cell.starting);
        // It may have ended before its start was reported.
        if let (Some(exit), ContainerPhase::Running) = (ended, cell.record.phase) {
            self.publish();
            self.record_exit(id, exit).await;
        }
        self.publish();
        let heard = answer(&mut waiters, &outcome);
        let Some(cell) = self.containers.get_mut(id) else { return };
        match outcome {
            outcome if !heard => cell.unheard = Some(outcome),
            Ok(()) => start::note_heard(&self.shared, &cell.record).await,
            Err(_) => {}
        }
    }

    pub(super) fn on_stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
        let Some(cell) = self.containers.get_mut(&id) else { return drop(reply.send(Ok(()))) };
        if let Some(deadline) = &cell.stop {
            deadline.shorten(grace);
            return reply.join(&mut cell.stopping);
        }
        let decision = cell.record.phase.decide(ContainerVerb::Stop);
        let object = cell.record.display();
        let state = cell.record.phase.word();
        let again = |reply| Message::Stop(id.clone(), grace, reply);
        let refusal = || PodError::WrongState { object, state, verb: "stop" };
        let course = settle(decision, reply, &mut cell.stopping, &mut self.deferred, || (), again, refusal);
        let Course::Begin(reply) = course else { return };
        cell.stopping.push(reply);
        let deadline = Arc::new(stop::Deadline::new(grace));
        cell.stop = Some(Arc::clone(&deadline));
        let work = stop::Stop {
            shared: Arc::clone(&self.shared),
            record: cell.record.clone(),
            monitor: self.monitor.clone(),
            view: self.view.subscribe(),
            deadline,
        };
        self.begin(async move { Done::Stop(id, work.run().await) });
    }

    pub(super) fn stop_done(&mut self, id: &ContainerId, result: Result<(), PodError>) {
        let Some(cell) = self.containers.get_mut(id) else { return };
        cell.stop = None;
        answer(&mut cell.stopping, &result.map_err(Arc::new));
    }

    pub(super) fn on_remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(cell) = self.containers.get_mut(&id) else { return drop(reply.send(Ok(()))) };
        let decision = cell.record.phase.decide(ContainerVerb::Remove);
        let object = cell.record.display();
        let state = cell.record.phase.word();
        let again = |reply| Message::Remove(id.clone(), reply);
        let refusal = || PodError::WrongState { object, state, verb: "remove" };
        let course = settle(decision, reply, &mut cell.removing, &mut self.deferred, || (), again, refusal);
        let Course::Begin(reply) = course else { return };
        if cell.record.phase == ContainerPhase::Running {
            return self.kill_then_remove(id, reply);
        }
        if cell.updating.is_some() {
            // It still writes into the bundle, for a bounded time.
            return self.deferred.push(Message::Remove(id, reply));
        }
        cell.removing.push(reply);
        cell.record.phase = ContainerPhase::Removing;
        let (shared, sandbox, record, monitor) = (
            Arc::clone(&self.shared),
            self.sandbox.record.clone(),
            cell.record.clone(),
            self.monitor.clone(),
        );
        self.begin(async move {
            Done::Remove(id, remove::run(&shared, &sandbox, record, monitor.as_ref()).await)
        });
    }

    /// Removal of a running container: looked at again once it is dead, refused when it cannot be killed.
    fn kill_then_remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let (stopped, outcome) = Reply::channel();
        let (outbox, asker) = (self.outbox.clone(), Span::current());
        let removal = id.clone();
        self.shared.tasks.spawn(async move {
            match outcome.await {
                Ok(Err(error)) => drop(reply.send(Err(error))),
                Ok(Ok(())) | Err(_) => {
                    drop(outbox.send(Message::Remove(removal, reply).asked_by(asker)).await);
                }
            }
        });
        self.on_stop(id, Duration::ZERO, stopped);
    }

    pub(super) fn remove_done(&mut self, id: &ContainerId, result: Result<(), PodError>) {
        let Some(cell) = self.containers.get_mut(id) else { return };
        let mut waiters = std::mem::take(&mut cell.removing);
        match &result {
            Ok(()) => {
                tracing::info!(pod.id = %self.id, container.id = %id, "container is removed");
                self.forget(id);
            }
            Err(_) => cell.record.phase = ContainerPhase::Exited,
        }
        self.publish();
        answer(&mut waiters, &result.map_err(Arc::new));
    }

    pub(super) fn on_use(&mut self, id: ContainerId, verb: &'static str, reply: Reply<Arc<dyn Monitor>>) {
        let Some(cell) = self.containers.get(&id) else { return unknown(&id, reply) };
        let phase = cell.record.phase;
        match (phase.decide(ContainerVerb::Use), &self.monitor) {
            (Decision::Defer, _) => self.deferred.push(Message::Use(id, verb, reply)),
            (Decision::Begin, Some(monitor)) => drop(reply.send(Ok(Arc::clone(monitor)))),
            _ => {
                let object = cell.record.display();
                drop(reply.send(Err(Arc::new(PodError::WrongState { object, state: phase.word(), verb }))));
            }
        }
    }

    fn forget(&mut self, id: &ContainerId) {
        self.containers.remove(id);
        self.shared.figures.losses.forget(id);
        self.shared.directory().containers.remove(id);
    }
}

pub(super) fn unknown<T>(id: &ContainerId, reply: Reply<T>) {
    drop(reply.send(Err(Arc::new(PodError::ContainerNotFound(id.to_string())))));
}
