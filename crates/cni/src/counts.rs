//! How CNI operations have ended and how long they took, and how many are under way.
//!
//! An operation is one verb over a whole list of plugins, so that its time is what a pod waits for. One that nobody waits for any
//! more (a STATUS during a reload) is not counted. Numbers are atomic and only grow, but for those under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use types::{DurationCounts, Durations};

use crate::driver::Cni;
use crate::error::CniError;
use crate::plugin::Verb;

/// Seconds: a chain of good plugins takes some tens of milliseconds, the longest one may take minutes.
const BOUNDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// One of CNI's verbs and what became of it, since the driver was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationFigures {
    /// `ADD`, `DEL`, `CHECK`, `GC` or `STATUS`.
    pub verb: &'static str,
    /// Ended well.
    pub ok: u64,
    /// A plugin failed, or there was no network or no program to begin with.
    pub failed: u64,
    /// Ended by the deadline, at which the plugin was killed.
    pub timed_out: u64,
    /// Under way.
    pub in_flight: usize,
    /// How long those took that began to run plugins, however they ended.
    pub durations: DurationCounts,
}

impl Cni {
    /// What became of operations, one entry for each verb in a fixed order. Never waits.
    #[must_use]
    pub fn operations(&self) -> Vec<OperationFigures> {
        self.counts().read()
    }
}

/// Counts for all verbs.
#[derive(Debug, Default)]
pub(crate) struct Counts([OfVerb; Verb::ALL.len()]);

#[derive(Debug)]
struct OfVerb {
    ok: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    in_flight: AtomicUsize,
    durations: Durations,
}

impl Default for OfVerb {
    fn default() -> Self {
        Self {
            ok: AtomicU64::default(),
            failed: AtomicU64::default(),
            timed_out: AtomicU64::default(),
            in_flight: AtomicUsize::default(),
            durations: Durations::new(BOUNDS),
        }
    }
}

/// An operation under way; it is no longer when this is dropped.
#[derive(Debug)]
struct UnderWay<'a>(Option<&'a OfVerb>);

impl Counts {
    /// Counts an operation that is `work`.
    pub(crate) async fn around<T>(
        self: &Arc<Self>,
        verb: Verb,
        work: impl Future<Output = Result<T, CniError>>,
    ) -> Result<T, CniError> {
        let _under_way = UnderWay::new(self.of(verb));
        let begun = Instant::now();
        let result = work.await;
        if let Some(counts) = self.of(verb) {
            counts.durations.add(begun.elapsed());
            counts.end(result.as_ref().err());
        }
        result
    }

    /// An operation failed before any plugin ran.
    pub(crate) fn refused(&self, verb: Verb, error: &CniError) {
        if let Some(counts) = self.of(verb) {
            counts.end(Some(error));
        }
    }

    fn of(&self, verb: Verb) -> Option<&OfVerb> {
        let mut all = Verb::ALL.iter().zip(&self.0);
        all.find(|(known, _)| **known == verb).map(|(_, counts)| counts)
    }

    fn read(&self) -> Vec<OperationFigures> {
        Verb::ALL.iter().zip(&self.0).map(|(verb, counts)| counts.read(verb.as_str())).collect()
    }
}

impl OfVerb {
    fn end(&self, error: Option<&CniError>) {
        let count = match error {
            None => &self.ok,
            Some(error) if is_timeout(error) => &self.timed_out,
            Some(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self, verb: &'static str) -> OperationFigures {
        OperationFigures {
            verb,
            ok: self.ok.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            timed_out: self.timed_out.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            durations: self.durations.read(),
        }
    }
}

impl<'a> UnderWay<'a> {
    fn new(counts: Option<&'a OfVerb>) -> Self {
        if let Some(counts) = counts {
            counts.in_flight.fetch_add(1, Ordering::Relaxed);
        }
        Self(counts)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(counts) = self.0 {
            counts.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn is_timeout(error: &CniError) -> bool {
    match error {
        CniError::Deadline { .. } => true,
        CniError::Several(failures) => failures.iter().any(is_timeout),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &Counts, verb: &str) -> OperationFigures {
        counts.read().into_iter().find(|figures| figures.verb == verb).unwrap()
    }

    fn deadline() -> CniError {
        let limit = std::time::Duration::from_secs(1);
        CniError::Deadline { plugin: "a".to_owned(), command: "GC", limit }
    }

    #[tokio::test]
    async fn each_end_is_counted_as_what_it_is() {
        let counts = Arc::new(Counts::default());
        counts.around(Verb::Add, async { Ok(()) }).await.unwrap();
        counts.around::<()>(Verb::Add, async { Err(CniError::NotAttached) }).await.unwrap_err();
        let both = CniError::Several(vec![CniError::NotAttached, deadline()]);
        counts.around::<()>(Verb::Gc, async { Err(both) }).await.unwrap_err();
        counts.refused(Verb::Add, &CniError::NotInitialized(String::new()));
        let add = of(&counts, "ADD");
        assert_eq!((add.ok, add.failed, add.timed_out, add.durations.total()), (1, 2, 0, 2));
        let gc = of(&counts, "GC");
        assert_eq!((gc.ok, gc.failed, gc.timed_out, gc.durations.total()), (0, 0, 1, 1));
    }

    #[tokio::test]
    async fn what_is_dropped_is_not_under_way_and_not_counted() {
        let counts = Arc::new(Counts::default());
        let mut hung = Box::pin(counts.around::<()>(Verb::Status, std::future::pending()));
        std::future::poll_fn(|context| std::task::Poll::Ready(hung.as_mut().poll(context).is_pending()))
            .await;
        assert_eq!(of(&counts, "STATUS").in_flight, 1);
        drop(hung);
        let status = of(&counts, "STATUS");
        assert_eq!((status.in_flight, status.ok, status.failed, status.durations.total()), (0, 0, 0, 0));
    }
}
