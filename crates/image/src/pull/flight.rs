//! Pulls under way, and joining them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use types::ImageId;

use super::{Pull, PullRequest};
use crate::error::ImageError;
use crate::images::Shared;
use crate::reference::Reference;

type Outcome = Result<ImageId, Arc<ImageError>>;
type Waiting = watch::Receiver<Option<Outcome>>;

/// Pulls under way by what they were asked for; credentials are part of it, so that nobody profits of another's.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<Key, Waiting>>);

/// A request with its reference normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    rest: PullRequest,
}

/// Takes the pull from the list when its task ends, however it ends.
struct Landing {
    shared: Arc<Shared>,
    key: Key,
}

impl Shared {
    pub(crate) async fn pull(self: &Arc<Self>, request: PullRequest) -> Result<ImageId, ImageError> {
        let pull = Pull::new(&request)?;
        if self.closing.is_cancelled() {
            return Err(ImageError::Closed);
        }
        let mut waiting = self.join_or_start(pull, request);
        let outcome = waiting.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(Arc::new(ImageError::Closed))).map_err(ImageError::Shared)
    }

    fn join_or_start(self: &Arc<Self>, pull: Pull, request: PullRequest) -> Waiting {
        let rest = PullRequest { reference: String::new(), ..request };
        let key = Key { reference: pull.reference.clone(), rest };
        let mut flights = self.in_flight.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = flights.get(&key) {
            return waiting.clone();
        }
        let (sender, waiting) = watch::channel(None);
        flights.insert(key.clone(), waiting.clone());
        let landing = Landing { shared: Arc::clone(self), key };
        self.tasks.spawn(async move {
            let outcome = landing.shared.watched_pull(pull).await;
            drop(landing);
            sender.send_replace(Some(outcome.map_err(Arc::new)));
        });
        waiting
    }

    async fn watched_pull(self: &Arc<Self>, pull: Pull) -> Result<ImageId, ImageError> {
        let name = pull.reference.to_string();
        let begun = std::time::Instant::now();
        tracing::info!(op = "pull", "image.ref" = name, "pulling image");
        let closing = self.closing.clone();
        let outcome =
            closing.run_until_cancelled(self.run_pull(pull)).await.unwrap_or(Err(ImageError::Closed));
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

impl Drop for Landing {
    fn drop(&mut self) {
        self.shared.in_flight.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
