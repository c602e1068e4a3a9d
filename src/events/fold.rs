//! A client that knows pods by events alone, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use types::Timestamp;

use super::{Change, Event, Hub, Object, Subscription, SubscriptionError};
use crate::pod::view::{ContainerState, PodView, SandboxState};

/// What lists say: sandboxes with their states, containers with state, exit code and reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) sandboxes: BTreeMap<String, bool>,
    pub(crate) containers: BTreeMap<String, (u8, i32, &'static str)>,
}

impl Listing {
    pub(crate) fn of<'a>(pods: impl IntoIterator<Item = &'a Arc<PodView>>) -> Self {
        let mut listing = Self::default();
        for pod in pods {
            listing.note(pod);
        }
        listing
    }

    fn note(&mut self, pod: &PodView) {
        if let Some(sandbox) = &pod.sandbox {
            self.sandboxes.insert(sandbox.id.to_string(), sandbox.state == SandboxState::Ready);
        }
        for container in &pod.containers {
            let state = match container.state {
                ContainerState::Created => 0,
                ContainerState::Running => 1,
                ContainerState::Exited => 2,
            };
            let told = (state, container.exit_code, container.reason);
            self.containers.insert(container.id.to_string(), told);
        }
    }
}

/// The client. What no stream may do makes it panic.
#[derive(Debug)]
pub(crate) struct Client {
    subscription: Subscription,
    pub(crate) known: Listing,
    /// The latest time that was seen.
    pub(crate) latest: Timestamp,
    gone: BTreeSet<String>,
    /// Every event so far, by the id of its object.
    pub(crate) lives: BTreeMap<String, Vec<Change>>,
}

impl Client {
    /// Subscribes, knowing what is listed at that moment.
    pub(crate) fn new(hub: &Hub, listed: Listing) -> Self {
        Self {
            subscription: hub.subscribe(),
            known: listed,
            latest: Timestamp::UNSET,
            gone: BTreeSet::new(),
            lives: BTreeMap::new(),
        }
    }

    /// Subscribes again; what is known stays.
    pub(crate) fn resubscribe(&mut self, hub: &Hub) {
        self.subscription = hub.subscribe();
    }

    /// The next event, if one waits.
    pub(crate) async fn take(&mut self) -> Option<Result<Arc<Event>, SubscriptionError>> {
        let next = poll_fn(|context| match self.subscription.poll_next(context) {
            Poll::Ready(next) => Poll::Ready(Some(next)),
            Poll::Pending => Poll::Ready(None),
        });
        let next = next.await;
        if let Some(Ok(event)) = &next {
            self.note(event);
        }
        next
    }

    /// Waits for the next event.
    pub(crate) async fn hear(&mut self) -> Result<Arc<Event>, SubscriptionError> {
        let event = self.subscription.next().await?;
        self.note(&event);
        Ok(event)
    }

    /// Takes all that waits.
    pub(crate) async fn catch_up(&mut self) -> Result<usize, SubscriptionError> {
        let mut taken = 0;
        while let Some(next) = self.take().await {
            next?;
            taken += 1;
        }
        Ok(taken)
    }

    fn note(&mut self, event: &Event) {
        let id = event.object.id();
        assert!(event.created_at > self.latest, "{event:?} after {:?}", self.latest);
        self.latest = event.created_at;
        assert!(!self.gone.contains(id), "told after its end: {event:?}");
        self.lives.entry(id.to_owned()).or_default().push(event.change);
        self.known.note(&event.pod);
        match (&event.object, event.change) {
            (Object::Container(id), Change::Deleted) => {
                assert!(event.pod.container(id).is_none(), "{event:?}");
                self.known.containers.remove(id.as_str());
                self.gone.insert(id.to_string());
            }
            (Object::Container(id), _) => {
                let is_there = event.pod.container(id).is_some();
                assert!(is_there || event.change == Change::Stopped, "{event:?}");
            }
            (Object::Sandbox(id), Change::Deleted) => {
                self.known.sandboxes.remove(id.as_str());
                self.gone.insert(id.to_string());
            }
            // The event bears another sandbox where this one has been superseded.
            (Object::Sandbox(id), change) => {
                self.known.sandboxes.insert(id.to_string(), change != Change::Stopped);
            }
        }
        let mut shown = event.pod.containers.iter().map(|it| it.id.as_str());
        assert!(shown.all(|id| !self.gone.contains(id)), "shown after its end: {event:?}");
        assert!(self.known.sandboxes.keys().all(|id| !self.gone.contains(id)), "{event:?}");
    }
}

/// What can be said of a life from its beginning.
pub(crate) fn assert_in_order(life: &[Change]) {
    use Change::{Created, Deleted, Started, Stopped};
    let lives: [&[Change]; 3] =
        [&[Created, Started, Stopped, Deleted], &[Created, Stopped, Deleted], &[Created, Deleted]];
    assert!(lives.iter().any(|whole| whole.starts_with(life)), "{life:?}");
}
