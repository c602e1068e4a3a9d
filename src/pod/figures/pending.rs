//! Teardowns that nobody waits for any more, or whose caller was told that they failed, until they succeed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::error::StepError;
use super::super::steps::Steps;

/// Something of a pod, a container or a network that is not gone yet and will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTeardown {
    /// The sandbox's or container's id; empty where it is about none of them.
    pub id: String,
    /// What is torn down, for people.
    pub object: String,
    /// By which verb.
    pub verb: &'static str,
    /// The step that it is at, or that it waits to repeat.
    pub stage: &'static str,
    /// How often it failed.
    pub failures: u32,
    /// Why it failed the last time.
    pub last_error: Option<String>,
    /// How long ago it began.
    pub age: Duration,
}

/// All of them.
#[derive(Debug, Default)]
pub(in super::super) struct Pending {
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    id: String,
    object: String,
    verb: &'static str,
    stage: &'static str,
    failures: u32,
    last_error: Option<String>,
    begun: Instant,
}

/// A place on the list, which goes when this is dropped.
#[derive(Debug)]
pub(in super::super) struct Place {
    pending: Arc<Pending>,
    number: u64,
}

impl Pending {
    /// Enters one that is about to begin with `stage`.
    pub(in super::super) fn enter(
        self: &Arc<Self>,
        verb: &'static str,
        object: String,
        id: &str,
        stage: &'static str,
    ) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (id, begun) = (id.to_owned(), Instant::now());
        let entry = Entry { id, object, verb, stage, failures: 0, last_error: None, begun };
        self.entries().insert(number, entry);
        Place { pending: Arc::clone(self), number }
    }

    pub(super) fn read(&self) -> Vec<PendingTeardown> {
        self.entries().values().map(Entry::read).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        // A panic while the lock is held cannot leave an entry half changed that anybody relies on.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn read(&self) -> PendingTeardown {
        PendingTeardown {
            id: self.id.clone(),
            object: self.object.clone(),
            verb: self.verb,
            stage: self.stage,
            failures: self.failures,
            last_error: self.last_error.clone(),
            age: self.begun.elapsed(),
        }
    }
}

impl Place {
    /// It is at this step now.
    pub(in super::super) fn at(&self, stage: &'static str) {
        self.change(|entry| entry.stage = stage);
    }

    /// It failed, and will be tried again.
    pub(in super::super) fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        let text = types::error::chain(error);
        self.change(|entry| {
            entry.failures = entry.failures.saturating_add(1);
            entry.last_error = Some(text);
        });
    }

    /// Performs a step as [`Steps::attempt`] does, and shows it.
    pub(in super::super) async fn attempt<E: Into<StepError>>(
        &self,
        steps: &Steps<'_>,
        step: &'static str,
        work: impl Future<Output = Result<(), E>>,
    ) -> bool {
        self.at(step);
        let result = steps.run(step, work).await;
        if let Err(error) = &result {
            self.failed(error);
        }
        result.is_ok()
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.pending.entries().get_mut(&self.number) {
            change(entry);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.entries().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_shows_the_last_failure_and_goes_with_its_owner() {
        let pending = Arc::new(Pending::default());
        let first = pending.enter("remove sandbox", "sandbox a/b".to_owned(), "id", "network");
        let second = pending.enter("stop sandbox", "sandbox c/d".to_owned(), "", "network");
        first.failed(&std::io::Error::other("one"));
        first.at("netns");
        first.failed(&std::io::Error::other("two"));
        let read = pending.read();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].id.as_str(), read[0].stage, read[0].failures), ("id", "netns", 2));
        assert_eq!(read[0].last_error.as_deref(), Some("two"));
        assert_eq!((read[1].verb, read[1].failures, &read[1].last_error), ("stop sandbox", 0, &None));
        drop(first);
        assert_eq!(pending.read().len(), 1);
        drop(second);
        assert!(pending.read().is_empty());
    }
}
