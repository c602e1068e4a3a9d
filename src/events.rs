//! What happens to sandboxes and containers, for those who do not want to ask again and again.
//!
//! [`Hub`] knows the last view of every pod. A pod's task hands it the next one, and the hub tells the difference as
//! [`Event`]s ([`changes`]): no verb can forget one. Under one lock the view becomes visible, the events get their times
//! and go into the queue of each subscriber ([`queue`]), so that a view that is seen at a time of [`Hub::at`] holds all
//! that was told before it and nothing that is told after it.
//!
//! Promises:
//! * Each event bears the whole pod as it was with the change, which is what List and Status show. Who keeps the last event's
//!   pod knows what a list would say.
//! * Times ([`clock`]) go forward from event to event, also over a restart of the server and when the wall clock steps back.
//! * The end of an object is told when it is not listed any more, and nothing about it is told later.
//! * Nobody waits for a subscriber. One who lets [`QUEUE`] events lie is cut off with an error; the others do not notice.
//! * Nothing is told twice. Who comes late lists first. Only the first after a start of the server hears what has happened since
//!   then, what ended while there was none included, if it comes within [`HELD_FOR`]: it has lost the stream of the
//!   earlier server, and its list may lie before the new subscription.
//!
//! An event about a sandbox that has been superseded by another attempt bears the newest sandbox of the pod, and beside its
//! containers those of the event's own. kubelet keeps one status per pod and takes an event's for the whole of it: the old
//! sandbox's would have it make the pod anew, and the removal of the old one would have it forget the pod.

mod changes;
mod clock;
#[cfg(test)]
pub(crate) mod fold;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::{ContainerId, ErrorKind, Kind, SandboxId, Timestamp};

use self::clock::Clock;
use self::queue::Queue;
pub use self::queue::Subscription;
use crate::pod::view::{PodView, SandboxView};

/// Events that wait for one subscriber at most.
pub const QUEUE: usize = 1024;
/// For how long after the start of the server events are kept for the first who subscribes.
pub const HELD_FOR: Duration = Duration::from_secs(300);

/// What has happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// It has been made.
    Created,
    /// Its process runs; of a sandbox, its network is up as well.
    Started,
    /// Its process has ended; of a sandbox, it is not in service any more.
    Stopped,
    /// It is not listed any more.
    Deleted,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Object {
    /// A sandbox.
    Sandbox(SandboxId),
    /// A container.
    Container(ContainerId),
}

impl Object {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Sandbox(id) => id.as_str(),
            Self::Container(id) => id.as_str(),
        }
    }
}

/// Something that has happened.
#[derive(Debug)]
pub struct Event {
    /// To whom.
    pub object: Object,
    /// What.
    pub change: Change,
    /// When: later than every event before.
    pub created_at: Timestamp,
    /// The pod with this change.
    pub pod: Arc<PodView>,
}

/// Why a subscription has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// The subscriber did not take its events.
    #[error(
        "this stream was cut off, for {QUEUE} events were waiting to be read and another one came: \
         list pods and containers again after the next subscription"
    )]
    Stalled,
    /// The server ends.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl Kind for SubscriptionError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Stalled => ErrorKind::ResourceExhausted,
            Self::ShuttingDown => ErrorKind::Unavailable,
        }
    }
}

/// Where views become events, and events reach subscribers. Its lock is taken under that of the pods' directory, never the other way.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    /// One more for each subscription that has not been dropped.
    readers: Arc<()>,
}

#[derive(Debug)]
struct State {
    clock: Clock,
    /// The visible sandboxes by the uid of their pod.
    pods: HashMap<String, Vec<Arc<PodView>>>,
    subscribers: Vec<Arc<Queue>>,
    held: Option<Held>,
    closed: bool,
}

/// What the first subscriber after a start is to hear.
#[derive(Debug)]
struct Held {
    until: Instant,
    events: Vec<Arc<Event>>,
}

impl Hub {
    /// Nothing has happened yet. The times of an earlier server are remembered at `clock`, which is read when the first time
    /// is asked for.
    #[must_use]
    pub fn new(clock: PathBuf) -> Self {
        let held = Held { until: Instant::now() + HELD_FOR, events: Vec::new() };
        let (pods, subscribers) = (HashMap::new(), Vec::new());
        let state = State { clock: Clock::new(clock), pods, subscribers, held: Some(held), closed: false };
        Self { state: Mutex::new(state), readers: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves complete values behind: at worst an event is missing in some queues.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present, later than every time given out before.
    pub fn now(&self) -> Timestamp {
        self.state().clock.next()
    }

    /// Makes sure that times given out are later than this one.
    pub fn advance(&self, seen: Timestamp) {
        self.state().clock.advance(seen);
    }

    /// Looks at a view, with the time at which it was what there was.
    pub fn at<T>(&self, look: impl FnOnce() -> T) -> (Timestamp, T) {
        let mut state = self.state();
        let seen = look();
        (state.clock.next(), seen)
    }

    /// Remembers what an earlier server has shown; what differs from it later is told, with times later than all in it.
    pub fn remember(&self, view: Arc<PodView>) {
        let Some(sandbox) = view.sandbox.clone() else { return };
        let of_containers =
            view.containers.iter().flat_map(|it| [it.created_at, it.started_at, it.finished_at]);
        let latest = of_containers.fold(sandbox.created_at, Timestamp::max);
        let mut state = self.state();
        state.clock.advance(latest);
        state.replace(&sandbox, Some(view));
    }

    /// Shows readers the next view of a pod and tells subscribers what has changed.
    pub fn publish(&self, view: Arc<PodView>, show: impl FnOnce(Arc<PodView>)) {
        let mut state = self.state();
        show(Arc::clone(&view));
        let Some(sandbox) = view.sandbox.clone() else { return };
        let before = state.replace(&sandbox, Some(Arc::clone(&view)));
        let changes = changes::between(before.as_deref(), &view);
        state.tell(&view, changes);
    }

    /// Shows readers that a pod is gone and tells subscribers. `view` is how it was in the end, which is told of it.
    pub fn remove(&self, view: Arc<PodView>, show: impl FnOnce(Arc<PodView>)) {
        let mut state = self.state();
        show(Arc::new(PodView { sandbox: None, containers: Vec::new() }));
        let Some(sandbox) = view.sandbox.clone() else { return };
        let Some(before) = state.replace(&sandbox, None) else { return };
        let changes = changes::at_the_end(&before);
        state.tell(&Arc::new(PodView { sandbox: Some(sandbox), containers: Vec::new() }), changes);
    }

    /// Whatever happens from now on; the first subscriber gets what has happened since the start.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        let mut state = self.state();
        let held = state.held.take().filter(|held| Instant::now() < held.until);
        let queue = Arc::new(Queue::new(held.map(|held| held.events).unwrap_or_default()));
        if state.closed {
            queue.end(SubscriptionError::ShuttingDown);
        } else {
            state.forget_who_left();
            state.subscribers.push(Arc::clone(&queue));
        }
        Subscription::new(queue, Arc::clone(&self.readers))
    }

    /// How many subscriptions there are, those included that have ended without their subscriber's knowing.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        Arc::strong_count(&self.readers) - 1
    }

    /// Ends all subscriptions, those to come included.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for queue in state.subscribers.drain(..) {
            queue.end(SubscriptionError::ShuttingDown);
        }
    }
}

impl State {
    /// Puts a view in the place of the sandbox's last one, which is given back.
    fn replace(&mut self, sandbox: &SandboxView, next: Option<Arc<PodView>>) -> Option<Arc<PodView>> {
        let uid = sandbox.request.uid();
        if !self.pods.contains_key(uid) {
            self.pods.insert(uid.to_owned(), Vec::with_capacity(1));
        }
        let siblings = self.pods.get_mut(uid)?;
        let place = siblings.iter().position(|view| is_of(view, &sandbox.id));
        let before = match (place, next) {
            (Some(place), Some(next)) => siblings.get_mut(place).map(|view| std::mem::replace(view, next)),
            (Some(place), None) => Some(siblings.swap_remove(place)),
            (None, Some(next)) => {
                siblings.push(next);
                None
            }
            (None, None) => None,
        };
        if siblings.is_empty() {
            self.pods.remove(uid);
        }
        before
    }

    /// Gives the changes their times and everybody their events.
    fn tell(&mut self, view: &Arc<PodView>, changes: Vec<(Object, Change)>) {
        self.forget_who_left();
        self.held.take_if(|held| held.until <= Instant::now() || held.events.len() + changes.len() > QUEUE);
        if changes.is_empty() || (self.subscribers.is_empty() && self.held.is_none()) {
            return;
        }
        let pod = self.whole(view);
        for (object, change) in changes {
            let created_at = self.clock.next();
            let event = Arc::new(Event { object, change, created_at, pod: Arc::clone(&pod) });
            if let Some(held) = &mut self.held {
                held.events.push(Arc::clone(&event));
            }
            self.subscribers.retain(|queue| queue.push(&event));
        }
    }

    /// The pod that a change in one of its sandboxes is told with.
    fn whole(&self, view: &Arc<PodView>) -> Arc<PodView> {
        let Some(newest) = self.newest_beside(view) else { return Arc::clone(view) };
        let containers = newest.containers.iter().chain(&view.containers).cloned().collect();
        Arc::new(PodView { sandbox: newest.sandbox.clone(), containers })
    }

    /// The newest sandbox of the pod, when it is another one.
    fn newest_beside(&self, view: &PodView) -> Option<&Arc<PodView>> {
        let own = view.sandbox.as_deref()?;
        let is_later = |other: &SandboxView| {
            other.id != own.id
                && other.request.name() == own.request.name()
                && other.request.namespace() == own.request.namespace()
                && other.created_at > own.created_at
        };
        let siblings = self.pods.get(own.request.uid())?.iter();
        let later = siblings.filter(|other| other.sandbox.as_deref().is_some_and(is_later));
        later.max_by_key(|other| other.sandbox.as_ref().map(|sandbox| sandbox.created_at))
    }

    fn forget_who_left(&mut self) {
        self.subscribers.retain(|queue| Arc::strong_count(queue) > 1);
    }
}

fn is_of(view: &PodView, id: &SandboxId) -> bool {
    view.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == *id)
}
