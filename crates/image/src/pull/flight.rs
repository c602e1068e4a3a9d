//! Pulls under way: joining them, leaving them, and stopping those that nobody waits for.
//!
//! A pull runs for its waiters. When the last of them leaves it is stopped: the client's cancellation or deadline means
//! that the image is not wanted. Removing an image by its name stops that name's pulls as well, whoever waits. Whether a
//! stopped pull still publishes is decided once, under the store's lock: see [`Stop`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};
use types::ImageId;

use super::{Progress, Pull, PullRequest};
use crate::counts::Entry;
use crate::error::ImageError;
use crate::images::Shared;
use crate::reference::Reference;
use crate::trace;

type Outcome = Result<ImageId, Arc<ImageError>>;

/// Pulls under way by what they were asked for; credentials are part of it, so that nobody profits of another's.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<Key, Flight>>);

/// A request with its reference normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    rest: PullRequest,
}

#[derive(Debug)]
struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    stop: Arc<Stop>,
    waiters: usize,
    progress: Arc<Progress>,
    /// For whom it was begun; the spans of others who wait for it refer to it.
    asker: Span,
}

/// Tells a pull to stop, and why. The store asks under its lock before it makes an image or a tag exist, so that of a
/// pull that was stopped nothing appears after a removal that came later.
#[derive(Debug)]
pub(crate) struct Stop {
    token: CancellationToken,
    reason: OnceLock<Reason>,
}

#[derive(Debug, Clone, Copy)]
enum Reason {
    Abandoned,
    Removed,
}

/// One caller's interest in a pull, which ends when this is dropped.
struct Waiter {
    shared: Arc<Shared>,
    key: Key,
    stop: Arc<Stop>,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Takes the pull from the list when its task ends, however it ends.
struct Landing {
    shared: Arc<Shared>,
    key: Key,
    stop: Arc<Stop>,
    entry: Entry,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the pulls of a reference. Their callers get [`ImageError::Removed`].
    pub(crate) fn stop_pulls_of(&self, reference: &Reference) {
        self.lock().retain(|key, flight| {
            let is_other = key.reference != *reference;
            if !is_other {
                flight.stop.now(Reason::Removed);
            }
            is_other
        });
    }
}

impl Stop {
    pub(crate) fn new(closing: &CancellationToken) -> Self {
        Self { token: closing.child_token(), reason: OnceLock::new() }
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Fails once the pull is to stop.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.token.is_cancelled() { Err(ImageError::Closed) } else { Ok(()) }
    }

    fn now(&self, reason: Reason) {
        self.reason.get_or_init(|| reason);
        self.token.cancel();
    }

    /// What callers are told in place of the failure that stopping caused.
    fn explain(&self, error: ImageError, reference: &Reference) -> ImageError {
        if !self.token.is_cancelled() {
            return error;
        }
        let reference = reference.to_string();
        match self.reason.get() {
            None => ImageError::Closed,
            Some(Reason::Abandoned) => ImageError::Abandoned { reference },
            Some(Reason::Removed) => ImageError::Removed { reference },
        }
    }
}

impl Shared {
    pub(crate) async fn pull(self: &Arc<Self>, request: PullRequest) -> Result<ImageId, ImageError> {
        let pull = Pull::new(&request)?;
        if self.closing.is_cancelled() {
            return Err(ImageError::Closed);
        }
        let mut waiter = self.join_or_start(pull, request);
        let outcome = waiter.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(Arc::new(ImageError::Closed))).map_err(ImageError::Shared)
    }

    fn join_or_start(self: &Arc<Self>, pull: Pull, request: PullRequest) -> Waiter {
        let rest = PullRequest { reference: String::new(), ..request };
        let key = Key { reference: pull.reference.clone(), rest };
        let mut flights = self.in_flight.lock();
        let flight = flights.entry(key.clone()).or_insert_with(|| self.start(pull, key.clone()));
        if flight.waiters > 0 {
            self.counts.joined();
            Span::current().follows_from(&flight.asker);
        }
        flight.waiters += 1;
        flight.progress.set_waiters(flight.waiters);
        let (stop, outcome) = (Arc::clone(&flight.stop), flight.outcome.clone());
        Waiter { shared: Arc::clone(self), key, stop, outcome }
    }

    fn start(self: &Arc<Self>, pull: Pull, key: Key) -> Flight {
        let (sender, outcome) = watch::channel(None);
        let stop = Arc::new(Stop::new(&self.closing));
        let progress = Arc::clone(&pull.progress);
        let entry = self.counts.enter(&progress);
        let mut landing = Landing { shared: Arc::clone(self), key, stop: Arc::clone(&stop), entry };
        let work = async move {
            let result = landing.shared.watched_pull(pull, &landing.stop).await;
            landing.entry.ended(&result);
            drop(landing);
            sender.send_replace(Some(result.map_err(Arc::new)));
        };
        self.tasks.spawn(work.in_current_span());
        Flight { outcome, stop, waiters: 0, progress, asker: Span::current() }
    }

    async fn watched_pull(self: &Arc<Self>, pull: Pull, stop: &Arc<Stop>) -> Result<ImageId, ImageError> {
        let reference = pull.reference.clone();
        let name = reference.to_string();
        let begun = std::time::Instant::now();
        tracing::info!(op = "pull", "image.ref" = name, "pulling image");
        let outcome = trace::within(trace::pull(&name), self.run_pull(pull, stop))
            .await
            .map_err(|error| stop.explain(error.of_image(&reference), &reference));
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &outcome {
            Ok(_) => {
                tracing::info!(op = "pull", "image.ref" = name, elapsed_ms, "image pulled");
            }
            Err(error) => {
                let error = types::error::chain(error);
                tracing::warn!(op = "pull", "image.ref" = name, elapsed_ms, error, "image not pulled");
            }
        }
        outcome
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut flights = self.shared.in_flight.lock();
        // Landed, or stopped before; another pull may have the same key by now.
        let Some(flight) = flights.get_mut(&self.key).filter(|flight| Arc::ptr_eq(&flight.stop, &self.stop))
        else {
            return;
        };
        flight.waiters -= 1;
        flight.progress.set_waiters(flight.waiters);
        if flight.waiters == 0 {
            // Gone from the list as well: who asks from now on wants a pull that runs.
            flight.stop.now(Reason::Abandoned);
            flights.remove(&self.key);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.shared.in_flight.lock();
        if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(&flight.stop, &self.stop)) {
            flights.remove(&self.key);
        }
    }
}
