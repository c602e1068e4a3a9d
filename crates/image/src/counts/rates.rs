//! How fast layers came, counted into fixed buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes per second: from a registry behind a thin line to one in the same rack.
const BOUNDS: [f64; 10] = [1e5, 5e5, 1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8];

/// Counts downloads by their rates.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    /// One for each bound, and one for what is above the last.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

/// Downloads by their rates at some moment, in bytes per second.
#[derive(Debug, Clone, PartialEq)]
pub struct RateCounts {
    /// How many fell into each bucket, not added up: those above the bound before and not above this one. The last bound is
    /// infinite.
    pub buckets: Vec<(f64, u64)>,
    /// All rates together.
    pub sum: u64,
}

impl Rates {
    /// Counts a download; one of nothing has no rate.
    pub(crate) fn add(&self, bytes: u64, taken: Duration) {
        let micros = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX).max(1);
        let Some(rate) = bytes.checked_mul(1_000_000).map(|bytes| bytes / micros).filter(|_| bytes > 0)
        else {
            return;
        };
        let bucket = BOUNDS.partition_point(|bound| *bound < rate as f64);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(rate, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> RateCounts {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        RateCounts { buckets: bounds.zip(counts).collect(), sum: self.sum.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_in_the_bucket_of_its_rate() {
        let rates = Rates::default();
        rates.add(3_000_000, Duration::from_secs(2));
        rates.add(1 << 40, Duration::from_secs(1));
        rates.add(0, Duration::from_secs(1));
        rates.add(u64::MAX, Duration::ZERO);
        let read = rates.read();
        let filled: Vec<_> = read.buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(filled, [(2.5e6, 1), (f64::INFINITY, 1)]);
        assert_eq!(read.sum, 1_500_000 + (1 << 40));
    }
}
