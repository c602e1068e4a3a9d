//! What pulls have come to since the store was opened, and which of them are under way.
//!
//! Totals are atomic numbers, and only grow. A pull is on the list from its start to its end, whatever end that is, and it is off
//! the list before its callers hear of it. Reading waits for nothing but another reader, a pull that begins or one that ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use types::{DurationCounts, Durations, ImageId};

mod rates;

pub use self::rates::RateCounts;
use self::rates::Rates;

use crate::error::ImageError;
use crate::images::Images;
use crate::pull::{Progress, PullProgress};
use crate::store::StoreUsage;

/// Seconds: from an image that is there already to one that nobody waits for any more.
const BOUNDS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// What the store tells of itself without touching the disk.
#[derive(Debug, Clone)]
pub struct ImageFigures {
    /// Images in the list.
    pub images: usize,
    /// What they take on disk, as accounted.
    pub usage: StoreUsage,
    /// Pulls.
    pub pulls: PullFigures,
}

/// Pulls since the store was opened. A request that makes no sense (a malformed reference, say) begins none.
#[derive(Debug, Clone)]
pub struct PullFigures {
    /// Begun; each ends as succeeded or as one of `failed`, or is in `in_progress`.
    pub started: u64,
    /// Requests that joined one under way instead of beginning another.
    pub joined: u64,
    /// Ended with the image in the store.
    pub succeeded: u64,
    /// Ended otherwise: every kind there is, in a fixed order.
    pub failed: Vec<(PullFailure, u64)>,
    /// Bytes of blobs that came over the network, those that were thrown away included.
    pub received_bytes: u64,
    /// Bytes that unpacked layers took on disk.
    pub unpacked_bytes: u64,
    /// Layers that were fetched and unpacked.
    pub layers_fetched: u64,
    /// Layers that were in the store already, or that another pull brought meanwhile.
    pub layers_shared: u64,
    /// How long those took that succeeded.
    pub durations: DurationCounts,
    /// How fast layers came that were fetched whole or to their end, waiting for the disk included.
    pub download_rates: RateCounts,
    /// Those under way, the oldest first.
    pub in_progress: Vec<PullProgress>,
}

/// Why a pull failed, as far as it helps to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PullFailure {
    /// The registry wants other credentials.
    Unauthenticated,
    /// The registry forbids the access.
    Denied,
    /// The registry does not have the image, or not for this platform.
    NotFound,
    /// No server could be reached, or all failed.
    Unavailable,
    /// A server does not speak the protocol.
    Protocol,
    /// What came has another digest or size than it should.
    Corrupt,
    /// The image is none that can be used here, or a layer of it cannot be unpacked.
    Unusable,
    /// The store's disk is full.
    DiskFull,
    /// The store's disk, or the configuration, cannot be read or written.
    Local,
    /// Nobody waited any more, the image was removed by its name, or the store was closed.
    Cancelled,
    /// Its task was cut off: it panicked.
    Interrupted,
}

impl PullFailure {
    /// All there are.
    pub const ALL: [Self; 11] = [
        Self::Unauthenticated,
        Self::Denied,
        Self::NotFound,
        Self::Unavailable,
        Self::Protocol,
        Self::Corrupt,
        Self::Unusable,
        Self::DiskFull,
        Self::Local,
        Self::Cancelled,
        Self::Interrupted,
    ];

    /// A word for machines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Unavailable => "unavailable",
            Self::Protocol => "protocol",
            Self::Corrupt => "corrupt",
            Self::Unusable => "unusable",
            Self::DiskFull => "disk_full",
            Self::Local => "local",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    fn of(error: &ImageError) -> Self {
        match error {
            ImageError::Unauthenticated { .. } | ImageError::Credentials { .. } => Self::Unauthenticated,
            ImageError::Denied { .. } => Self::Denied,
            ImageError::NotFound { .. } | ImageError::NoPlatform { .. } | ImageError::Unknown(_) => {
                Self::NotFound
            }
            ImageError::Unavailable { .. } => Self::Unavailable,
            ImageError::Protocol { .. } => Self::Protocol,
            ImageError::Corrupt { .. } => Self::Corrupt,
            ImageError::Reference { .. } | ImageError::Unsupported { .. } => Self::Unusable,
            ImageError::Unpack { source, .. } if source.is_of_content() => Self::Unusable,
            ImageError::DiskFull { .. } => Self::DiskFull,
            ImageError::Unpack { .. }
            | ImageError::Damaged { .. }
            | ImageError::Owner(_)
            | ImageError::Hosts { .. }
            | ImageError::Store { .. } => Self::Local,
            ImageError::Closed | ImageError::Abandoned { .. } | ImageError::Removed { .. } => Self::Cancelled,
            ImageError::Shared(inner) => Self::of(inner),
        }
    }
}

impl Images {
    /// How many images there are and what they take, and what pulls have come to and are at. Never waits for disk or network.
    #[must_use]
    pub fn figures(&self) -> ImageFigures {
        let shared = &self.shared;
        let pulls = shared.counts.read(shared.environment.received());
        ImageFigures { images: shared.store.index().images().len(), usage: self.usage(), pulls }
    }
}

/// The totals and the list.
#[derive(Debug)]
pub(crate) struct Counts {
    started: AtomicU64,
    joined: AtomicU64,
    succeeded: AtomicU64,
    failed: [AtomicU64; PullFailure::ALL.len()],
    unpacked_bytes: AtomicU64,
    layers_fetched: AtomicU64,
    layers_shared: AtomicU64,
    durations: Durations,
    rates: Rates,
    under_way: Mutex<BTreeMap<u64, Arc<Progress>>>,
}

/// A pull's place on the list, which it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    counts: Arc<Counts>,
    number: u64,
    begun: Instant,
    has_ended: bool,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            started: AtomicU64::default(),
            joined: AtomicU64::default(),
            succeeded: AtomicU64::default(),
            failed: std::array::from_fn(|_| AtomicU64::default()),
            unpacked_bytes: AtomicU64::default(),
            layers_fetched: AtomicU64::default(),
            layers_shared: AtomicU64::default(),
            durations: Durations::new(BOUNDS),
            rates: Rates::default(),
            under_way: Mutex::default(),
        }
    }
}

impl Counts {
    /// Enters a pull that begins.
    pub(crate) fn enter(self: &Arc<Self>, progress: &Arc<Progress>) -> Entry {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        self.under_way().insert(number, Arc::clone(progress));
        Entry { counts: Arc::clone(self), number, begun: Instant::now(), has_ended: false }
    }

    pub(crate) fn joined(&self) {
        self.joined.fetch_add(1, Ordering::Relaxed);
    }

    /// So many layers need not be fetched.
    pub(crate) fn layers_shared(&self, count: usize) {
        self.layers_shared.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// A layer was fetched, and takes so many bytes.
    pub(crate) fn layer_unpacked(&self, bytes: u64) {
        self.layers_fetched.fetch_add(1, Ordering::Relaxed);
        self.unpacked_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A layer's blob has come: so many bytes since `begun`.
    pub(crate) fn downloaded(&self, bytes: u64, begun: Instant) {
        self.rates.add(bytes, begun.elapsed());
    }

    fn failed(&self, failure: PullFailure) {
        let mut kinds = PullFailure::ALL.iter().zip(&self.failed);
        if let Some((_, count)) = kinds.find(|(kind, _)| **kind == failure) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self, received_bytes: u64) -> PullFigures {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        PullFigures {
            in_progress: self.under_way().values().map(|progress| progress.read()).collect(),
            started: read(&self.started),
            joined: read(&self.joined),
            succeeded: read(&self.succeeded),
            failed: PullFailure::ALL.into_iter().zip(self.failed.iter().map(read)).collect(),
            received_bytes,
            unpacked_bytes: read(&self.unpacked_bytes),
            layers_fetched: read(&self.layers_fetched),
            layers_shared: read(&self.layers_shared),
            durations: self.durations.read(),
            download_rates: self.rates.read(),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Progress>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The pull has come to its end.
    pub(crate) fn ended(&mut self, outcome: &Result<ImageId, ImageError>) {
        self.has_ended = true;
        match outcome {
            Ok(_) => {
                self.counts.succeeded.fetch_add(1, Ordering::Relaxed);
                self.counts.durations.add(self.begun.elapsed());
            }
            Err(error) => self.counts.failed(PullFailure::of(error)),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.has_ended {
            self.counts.failed(PullFailure::Interrupted);
        }
        self.counts.under_way().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(counts: &Arc<Counts>) -> Entry {
        counts.enter(&Arc::new(Progress::new("docker.io/library/a:1".to_owned())))
    }

    fn failures(counts: &Counts) -> Vec<(PullFailure, u64)> {
        counts.read(0).failed.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn every_end_of_a_pull_takes_it_from_the_list_and_counts_once() {
        let counts = Arc::new(Counts::default());
        let mut good = enter(&counts);
        let mut bad = enter(&counts);
        let cut = enter(&counts);
        assert_eq!(counts.read(0).in_progress.len(), 3);
        good.ended(&Ok(ImageId(crate::hash::digest_of(b"x"))));
        drop(good);
        let error = ImageError::DiskFull { what: "x".to_owned() };
        bad.ended(&Err(ImageError::Shared(Arc::new(error))));
        drop(bad);
        drop(cut);
        let read = counts.read(0);
        assert!(read.in_progress.is_empty());
        assert_eq!((read.started, read.succeeded, read.durations.total()), (3, 1, 1));
        assert_eq!(failures(&counts), [(PullFailure::DiskFull, 1), (PullFailure::Interrupted, 1)]);
    }

    #[test]
    fn a_panic_takes_the_pull_from_the_list() {
        let counts = Arc::new(Counts::default());
        let pulling = std::thread::spawn({
            let counts = Arc::clone(&counts);
            move || {
                let _entry = enter(&counts);
                panic!("as a test");
            }
        });
        assert!(pulling.join().is_err());
        assert!(counts.read(0).in_progress.is_empty());
        assert_eq!(failures(&counts), [(PullFailure::Interrupted, 1)]);
    }

    #[test]
    fn words_are_one_for_each_kind() {
        let words: std::collections::BTreeSet<_> = PullFailure::ALL.map(PullFailure::word).into();
        assert_eq!(words.len(), PullFailure::ALL.len());
    }
}
