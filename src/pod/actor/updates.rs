//! Changes of limits in the pod's task: one at a time for each container, the intent on record before the first effect.

use std::sync::Arc;

use spec::ResourcesUpdate;
use spec::resources::SandboxResources;
use types::ContainerId;

use super::super::error::PodError;
use super::super::phase::{ContainerVerb, Decision, SandboxVerb};
use super::super::steps::Steps;
use super::super::update::{self, UNDO, Update, VERB};
use super::containers::unknown;
use super::{Actor, Done, Message, Reply};

impl Actor {
    pub(super) async fn on_update(
        &mut self,
        id: ContainerId,
        change: Box<ResourcesUpdate>,
        reply: Reply<()>,
    ) {
        let Some(cell) = self.containers.get_mut(&id) else { return unknown(&id, reply) };
        let decision = cell.record.phase.decide(ContainerVerb::Update);
        if cell.updating.is_some() || decision == Decision::Defer {
            return self.deferred.push(Message::Update(id, change, reply));
        }
        if decision != Decision::Begin {
            let (object, state) = (cell.record.display(), cell.record.phase.word());
            let refusal = PodError::WrongState { object, state, verb: "update the limits of" };
            return drop(reply.send(Err(Arc::new(refusal))));
        }
        match update::target(&self.shared, &self.sandbox.record.handler, &cell.record, &change) {
            Ok(target) => cell.record.updating = Some(target),
            Err(error) => return drop(reply.send(Err(Arc::new(error)))),
        }
        let steps = Steps::new(&self.shared, VERB, cell.record.display(), id.as_str());
        if let Err(error) = steps.run("intent", cell.record.save(self.shared.layout())).await {
            cell.record.updating = None;
            return drop(reply.send(Err(Arc::new(error))));
        }
        self.begin_update(&id, reply, false);
    }

    fn begin_update(&mut self, id: &ContainerId, reply: Reply<()>, resumed: bool) {
        let Some(cell) = self.containers.get_mut(id) else { return unknown(id, reply) };
        let Some(mut update) = Update::of(&self.shared, &self.sandbox.record, &cell.record, resumed) else {
            return;
        };
        cell.updating = Some(reply);
        self.begin(async move {
            let result = update.run().await;
            Done::Update(Box::new(update), result)
        });
    }

    pub(super) async fn update_done(&mut self, update: Box<Update>, result: Result<(), PodError>) {
        let id = update.id().clone();
        let Some(cell) = self.containers.get_mut(&id) else { return };
        if let Err(error) = result {
            return self.update_failed(&id, error).await;
        }
        cell.record.updating = None;
        let before = std::mem::replace(&mut cell.record.request, Arc::clone(update.target()));
        let steps = Steps::new(&self.shared, VERB, cell.record.display(), id.as_str());
        if let Err(error) = steps.run("publish", cell.record.save(self.shared.layout())).await {
            cell.record.request = before;
            cell.record.updating = Some(Arc::clone(update.target()));
            return self.begin(async move {
                update.undo().await;
                Done::UndoneUpdate(update.id().clone(), error)
            });
        }
        tracing::info!(pod.id = %self.id, container.id = %id, "limits of a container are changed");
        let waiter = cell.updating.take();
        self.publish();
        if let Some(waiter) = waiter {
            drop(waiter.send(Ok(())));
        }
    }

    /// The old limits are in force; the intent is taken back.
    pub(super) async fn update_failed(&mut self, id: &ContainerId, error: PodError) {
        let Some(cell) = self.containers.get_mut(id) else { return };
        cell.record.updating = None;
        let steps = Steps::new(&self.shared, UNDO, cell.record.display(), id.as_str());
        // Where it cannot be taken back, the next start of the server tries the change once more.
        steps.attempt("record", cell.record.save(self.shared.layout())).await;
        if let Some(waiter) = cell.updating.take() {
            drop(waiter.send(Err(Arc::new(error))));
        }
    }

    /// Has this task take up what an earlier server has left unfinished.
    pub(super) fn resume_updates(&self) {
        for (id, _) in self.containers.iter().filter(|(_, cell)| cell.record.updating.is_some()) {
            let (outbox, message) = (self.outbox.clone(), Message::ResumeUpdate(id.clone()));
            self.shared.tasks.spawn(async move {
                if outbox.send(message).await.is_err() {
                    tracing::debug!("an update to be resumed belongs to a pod that is gone");
                }
            });
        }
    }

    pub(super) async fn on_resume_update(&mut self, id: ContainerId) {
        let Some(cell) = self.containers.get_mut(&id) else { return };
        if cell.updating.is_some() || cell.record.updating.is_none() {
            return;
        }
        let (nobody, _) = Reply::channel();
        match cell.record.phase.decide(ContainerVerb::Update) {
            Decision::Begin => self.begin_update(&id, nobody, true),
            _ => {
                cell.record.updating = None;
                let steps = Steps::new(&self.shared, UNDO, cell.record.display(), id.as_str());
                steps.attempt("record", cell.record.save(self.shared.layout())).await;
            }
        }
    }

    /// kubelet sets the limits of the pod's group itself; the sandbox remembers what it is told.
    pub(super) async fn on_update_sandbox(&mut self, resources: Box<SandboxResources>, reply: Reply<()>) {
        match self.sandbox.record.phase.decide(SandboxVerb::Update) {
            Decision::Begin => {}
            Decision::Defer => return self.deferred.push(Message::UpdateSandbox(resources, reply)),
            _ => return drop(reply.send(Err(Arc::new(self.refuse_sandbox("update the resources of"))))),
        }
        let outcome = self.remember_resources(&resources).await;
        self.publish();
        drop(reply.send(outcome.map_err(Arc::new)));
    }

    async fn remember_resources(&mut self, resources: &SandboxResources) -> Result<(), PodError> {
        let request = Arc::new(resources.applied_to(&self.sandbox.record.request)?);
        let steps = Steps::new(&self.shared, "update sandbox", self.display(), self.id.as_str());
        let before = std::mem::replace(&mut self.sandbox.record.request, request);
        let saved = steps.run("record", self.sandbox.record.save(self.shared.layout())).await;
        if saved.is_err() {
            self.sandbox.record.request = before;
        }
        saved
    }
}
