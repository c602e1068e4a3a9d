//! One task per pod: the only writer of the pod's state.
//!
//! Verbs arrive as messages in a bounded queue. The task decides by the tables of [`super::phase`], starts the work in
//! a tracked task of its own, and goes on receiving; the work's end comes back as a message. Every change is published
//! as a [`PodView`], which is all that readers ever see. The task itself awaits nothing slower than one small file.

pub(super) mod asker;
mod containers;
pub(super) mod exits;
mod sandbox;
mod updates;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use monitor_api::{Connection, Event, Monitor};
use spec::resources::SandboxResources;
use spec::{ContainerRequest, ResourcesUpdate};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument as _, Span};
use types::{ContainerId, ExecId, SandboxId};

use self::asker::Deferred;
pub(super) use self::asker::Reply;
use super::error::{PodError, SharedError, StepError};
use super::figures::Place;
use super::phase::Decision;
use super::record::{ContainerRecord, SandboxRecord};
use super::run_sandbox::Running;
use super::shared::Shared;
use super::stop::Deadline;
use super::update::Update;
use super::view::PodView;
use crate::tasks::Tasks;

/// Messages waiting for one pod at most; senders wait beyond that.
const QUEUE: usize = 64;

/// How an exec'd process ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExecExit {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
}

/// What a pod's task is told.
#[derive(Debug)]
pub(super) enum Message {
    Run(Reply<SandboxId>),
    StopSandbox(Reply<()>),
    RemoveSandbox(Reply<()>),
    Create(Box<ContainerRequest>, Reply<ContainerId>),
    Start(ContainerId, Reply<()>),
    Stop(ContainerId, Duration, Reply<()>),
    Remove(ContainerId, Reply<()>),
    Update(ContainerId, Box<ResourcesUpdate>, Reply<()>),
    /// An update that an earlier server has begun.
    ResumeUpdate(ContainerId),
    UpdateSandbox(Box<SandboxResources>, Reply<()>),
    Use(ContainerId, &'static str, Reply<Arc<dyn Monitor>>),
    /// Tells the end of a command. The sender is dropped when the monitor is lost, which is all that attached clients wait for.
    Watch(ExecId, oneshot::Sender<ExecExit>),
    Forget(ExecId),
    Done(Done),
    Event(Event),
    MonitorLost,
    /// One of the others, and the span of whoever asks.
    Traced(Box<Message>, Span),
}

impl Message {
    /// What a caller asks for, and the container that it is asked of: by its id, or in words while it has none.
    fn subject(&self) -> (&'static str, String) {
        match self {
            Self::Run(_) => ("run sandbox", String::new()),
            Self::StopSandbox(_) => ("stop sandbox", String::new()),
            Self::RemoveSandbox(_) => ("remove sandbox", String::new()),
            Self::UpdateSandbox(..) => ("update sandbox", String::new()),
            Self::Create(request, _) => ("create container", format!("container {:?}", request.name())),
            Self::Start(id, _) => ("start container", id.to_string()),
            Self::Stop(id, ..) => ("stop container", id.to_string()),
            Self::Remove(id, _) => ("remove container", id.to_string()),
            Self::Update(id, ..) | Self::ResumeUpdate(id) => ("update container", id.to_string()),
            Self::Use(id, verb, _) => (verb, id.to_string()),
            Self::Watch(..) | Self::Forget(_) | Self::Done(_) | Self::Event(_) | Self::MonitorLost => {
                ("note an event of", String::new())
            }
            Self::Traced(message, _) => message.subject(),
        }
    }
}

/// The end of an operation.
#[derive(Debug)]
pub(super) enum Done {
    Run(Result<Box<Running>, PodError>),
    StopSandbox(Result<(), PodError>),
    RemoveSandbox(Result<(), PodError>),
    Create(ContainerId, Result<Box<ContainerRecord>, PodError>),
    Start(ContainerId, Result<Box<ContainerRecord>, (Box<ContainerRecord>, PodError)>),
    Stop(ContainerId, Result<(), PodError>),
    Remove(ContainerId, Result<(), PodError>),
    Update(Box<Update>, Result<(), PodError>),
    /// An update that could not be recorded has been undone.
    UndoneUpdate(ContainerId, PodError),
}

/// The way to a pod's task, and its latest view.
#[derive(Debug, Clone)]
pub(super) struct PodHandle {
    outbox: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<PodView>>,
    desk: Arc<Desk>,
}

/// Where callers are entered who wait for something of this pod.
#[derive(Debug)]
struct Desk {
    in_flight: Tasks,
    id: SandboxId,
}

impl PodHandle {
    /// Sends a verb and waits for its outcome. `None`: the pod is gone.
    pub(super) async fn call<T>(
        &self,
        make: impl FnOnce(Reply<T>) -> Message,
    ) -> Option<Result<T, SharedError>> {
        let (reply, outcome) = Reply::channel();
        let message = make(reply);
        let (verb, container) = message.subject();
        let _waiting = self.desk.in_flight.wait(verb, self.desk.id.to_string(), container);
        self.outbox.send(message.asked_by(Span::current())).await.ok()?;
        outcome.await.ok()
    }

    /// Sends a message that has no outcome; a pod that is gone needs none.
    pub(super) async fn tell(&self, message: Message) {
        if self.outbox.send(message).await.is_err() {
            tracing::debug!("message to a pod that is gone");
        }
    }

    /// The latest view.
    pub(super) fn view(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }

    /// Views as they change.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<PodView>> {
        self.view.clone()
    }
}

/// The sandbox and those who wait for its operations.
#[derive(Debug)]
pub(super) struct SandboxCell {
    pub(super) record: SandboxRecord,
    pub(super) running: Vec<Reply<SandboxId>>,
    pub(super) stopping: Vec<Reply<()>>,
    pub(super) removing: Vec<Reply<()>>,
    /// Its stop or removal failed, and waits for the caller's next attempt.
    pub(super) unfinished: Option<Place>,
}

/// A container and those who wait for its operations.
#[derive(Debug)]
pub(super) struct ContainerCell {
    pub(super) record: ContainerRecord,
    /// Being stopped: the latest moment at which it will be killed.
    pub(super) stop: Option<Arc<Deadline>>,
    pub(super) creating: Vec<Reply<ContainerId>>,
    pub(super) starting: Vec<Reply<()>>,
    pub(super) stopping: Vec<Reply<()>>,
    pub(super) removing: Vec<Reply<()>>,
    /// How its start ended, when nobody was there any more to hear it: the answer to the next who asks.
    pub(super) unheard: Option<Result<(), SharedError>>,
    /// Its limits are being changed: for whom.
    pub(super) updating: Option<Reply<()>>,
}

impl ContainerCell {
    pub(super) fn new(record: ContainerRecord) -> Self {
        Self {
            record,
            stop: None,
            creating: Vec::new(),
            starting: Vec::new(),
            stopping: Vec::new(),
            removing: Vec::new(),
            unheard: None,
            updating: None,
        }
    }
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Actor {
    shared: Arc<Shared>,
    id: SandboxId,
    inbox: mpsc::Receiver<Message>,
    outbox: mpsc::Sender<Message>,
    sandbox: SandboxCell,
    containers: BTreeMap<ContainerId, ContainerCell>,
    monitor: Option<Arc<dyn Monitor>>,
    execs: HashMap<ExecId, oneshot::Sender<ExecExit>>,
    deferred: Deferred,
    view: watch::Sender<Arc<PodView>>,
    gone: bool,
}

/// What recovery found of a pod that goes on living.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) record: SandboxRecord,
    pub(super) containers: Vec<ContainerRecord>,
    /// Those of the containers whose start the earlier server has told nobody of.
    pub(super) unheard: BTreeSet<ContainerId>,
    pub(super) connection: Option<Connection>,
}

impl Recovered {
    fn cells(&mut self) -> BTreeMap<ContainerId, ContainerCell> {
        let unheard = &self.unheard;
        let cell = |record: ContainerRecord| {
            let id = record.id.clone();
            let outcome = unheard.contains(&id).then_some(Ok(()));
            (id, ContainerCell { unheard: outcome, ..ContainerCell::new(record) })
        };
        std::mem::take(&mut self.containers).into_iter().map(cell).collect()
    }
}

impl Actor {
    /// Starts the task of a sandbox about to be made.
    pub(super) fn spawn_new(shared: &Arc<Shared>, record: SandboxRecord) -> PodHandle {
        let (containers, unheard) = (Vec::new(), BTreeSet::new());
        Self::spawn(shared, Recovered { record, containers, unheard, connection: None })
    }

    /// Starts the task of a sandbox that has been found on disk.
    pub(super) fn spawn(shared: &Arc<Shared>, mut found: Recovered) -> PodHandle {
        let (outbox, inbox) = mpsc::channel(QUEUE);
        let (view, watcher) = watch::channel(Arc::new(PodView { sandbox: None, containers: Vec::new() }));
        let id = found.record.id.clone();
        let containers = found.cells();
        let mut actor = Self {
            shared: Arc::clone(shared),
            id,
            inbox,
            outbox: outbox.clone(),
            sandbox: SandboxCell {
                record: found.record,
                running: Vec::new(),
                stopping: Vec::new(),
                removing: Vec::new(),
                unfinished: None,
            },
            containers,
            monitor: None,
            execs: HashMap::new(),
            deferred: Deferred::default(),
            view,
            gone: false,
        };
        if let Some(connection) = found.connection {
            actor.adopt(connection);
        }
        actor.publish();
        actor.resume_updates();
        let desk = Desk { in_flight: shared.in_flight.clone(), id: actor.id.clone() };
        shared.tasks.spawn(actor.run());
        PodHandle { outbox, view: watcher, desk: Arc::new(desk) }
    }

    async fn run(mut self) {
        while !self.gone {
            // Cancel-safe: recv loses nothing when dropped, and nothing else is awaited here.
            let Some(message) = self.inbox.recv().await else { break };
            self.handle(message).await;
        }
        self.inbox.close();
        // Whoever asked in the meantime sees its reply channel closed, which reads as "the pod is gone".
        while self.inbox.recv().await.is_some() {}
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Traced(message, asker) => Box::pin(self.handle(*message)).instrument(asker).await,
            Message::Run(reply) => self.on_run(reply),
            Message::StopSandbox(reply) => self.on_stop_sandbox(reply).await,
            Message::RemoveSandbox(reply) => self.on_remove_sandbox(reply).await,
            Message::Create(request, reply) => self.on_create(request, reply),
            Message::Start(id, reply) => self.on_start(id, reply).await,
            Message::Stop(id, grace, reply) => self.on_stop(id, grace, reply),
            Message::Remove(id, reply) => self.on_remove(id, reply),
            Message::Update(id, update, reply) => self.on_update(id, update, reply).await,
            Message::ResumeUpdate(id) => self.on_resume_update(id).await,
            Message::UpdateSandbox(resources, reply) => self.on_update_sandbox(resources, reply).await,
            Message::Use(id, verb, reply) => self.on_use(id, verb, reply),
            Message::Watch(id, watcher) => {
                self.execs.insert(id, watcher);
            }
            Message::Forget(id) => {
                self.execs.remove(&id);
            }
            Message::Event(event) => self.on_event(event).await,
            Message::MonitorLost => self.on_monitor_lost().await,
            Message::Done(done) => {
                self.on_done(done).await;
                self.replay_deferred();
            }
        }
    }

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::Run(result) => self.run_done(result),
            Done::StopSandbox(result) => self.stop_sandbox_done(result).await,
            Done::RemoveSandbox(result) => self.remove_sandbox_done(result),
            Done::Create(id, result) => self.create_done(&id, result),
            Done::Start(id, result) => self.start_done(&id, result).await,
            Done::Stop(id, result) => self.stop_done(&id, result),
            Done::Remove(id, result) => self.remove_done(&id, result),
            Done::Update(update, result) => self.update_done(update, result).await,
            Done::UndoneUpdate(id, error) => self.update_failed(&id, error).await,
        }
    }

    /// Puts the messages that waited for an operation's end back into the queue.
    fn replay_deferred(&mut self) {
        for message in self.deferred.take() {
            let outbox = self.outbox.clone();
            // Sent from a task: the queue may be full and only this task empties it.
            self.shared.tasks.spawn(async move {
                if outbox.send(message).await.is_err() {
                    tracing::debug!("deferred message to a pod that is gone");
                }
            });
        }
    }

    /// Starts an operation whose end is reported to this task.
    fn begin(&self, work: impl Future<Output = Done> + Send + 'static) {
        let (outbox, asker) = (self.outbox.clone(), Span::current());
        self.shared.operations.spawn(async move {
            let done = Message::Done(work.instrument(asker.clone()).await);
            if outbox.send(done.asked_by(asker)).await.is_err() {
                tracing::debug!("operation ended after its pod");
            }
        });
    }

    /// Takes over a monitor connection: its events become messages.
    fn adopt(&mut self, connection: Connection) {
        let Connection { monitor, mut events, pid } = connection;
        let connected = self.shared.figures.monitors.enter(&self.id, pid);
        self.monitor = Some(monitor);
        let outbox = self.outbox.clone();
        self.shared.tasks.spawn(async move {
            while let Some(event) = events.recv().await {
                if outbox.send(Message::Event(event)).await.is_err() {
                    return;
                }
            }
            drop(connected);
            if outbox.send(Message::MonitorLost).await.is_err() {
                tracing::debug!("monitor connection ended after its pod");
            }
        });
    }

    /// Publishes the present state to readers, and what has changed to subscribers of events.
    fn publish(&self) {
        let records = self.containers.values().map(|cell| &cell.record);
        let view = Arc::new(PodView::of(&self.sandbox.record, records, self.shared.layout()));
        let show = |view| drop(self.view.send_replace(view));
        match self.gone {
            false => self.shared.events.publish(view, show),
            true => self.shared.events.remove(view, show),
        }
    }

    /// The sandbox's name for people.
    fn display(&self) -> String {
        super::display(&self.sandbox.record.request)
    }

    fn refuse_sandbox(&self, verb: &'static str) -> PodError {
        PodError::WrongState { object: self.display(), state: self.sandbox.record.phase.word(), verb }
    }
}

/// Gives one outcome to all who wait for it; says whether anybody did.
pub(super) fn answer<T: Clone>(waiters: &mut Vec<Reply<T>>, outcome: &Result<T, SharedError>) -> bool {
    let mut heard = false;
    for waiter in waiters.drain(..) {
        heard |= waiter.send(outcome.clone()).is_ok();
    }
    heard
}

/// What a driver said, when no step is at hand.
pub(super) fn log_dropped(what: &'static str, error: &StepError) {
    tracing::warn!(error = types::error::chain(error), "{what}");
}

/// The part of a decision that is the same everywhere.
pub(super) enum Course<T> {
    /// The operation is to be begun; the caller keeps its reply.
    Begin(Reply<T>),
    /// Handled.
    Settled,
}

/// Settles a request as decided, or gives the reply back for the operation to be begun.
pub(super) fn settle<T: Clone>(
    decision: Decision,
    reply: Reply<T>,
    waiters: &mut Vec<Reply<T>>,
    deferred: &mut Deferred,
    goal: impl FnOnce() -> T,
    again: impl FnOnce(Reply<T>) -> Message,
    refusal: impl FnOnce() -> PodError,
) -> Course<T> {
    match decision {
        Decision::Begin => return Course::Begin(reply),
        Decision::Join => reply.join(waiters),
        Decision::Defer => deferred.push(again(reply)),
        Decision::Done => drop(reply.send(Ok(goal()))),
        Decision::Refuse => drop(reply.send(Err(Arc::new(refusal())))),
    }
    Course::Settled
}
