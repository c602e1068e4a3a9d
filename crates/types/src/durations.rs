//! How long things took, counted into fixed buckets by whoever does them, and read by whoever shows them.
//!
//! Counting is one addition in each of two places, without a lock. A reader may see a duration in its bucket that is not in
//! the sum yet, never a number of them that differs from what is in the buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts durations. The buckets do not change while it lives.
#[derive(Debug)]
pub struct Durations {
    /// Upper bounds in seconds, ascending.
    bounds: &'static [f64],
    /// One for each bound, and one for what is above the last.
    counts: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

/// What [`Durations`] have counted by some moment.
#[derive(Debug, Clone, PartialEq)]
pub struct DurationCounts {
    /// How many fell into each bucket, not added up: those above the bound before and not above this one, in seconds. The last
    /// bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// All durations together.
    pub sum: Duration,
}

impl Durations {
    /// Nothing counted yet; `bounds` are in seconds, ascending and without infinity.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_us: AtomicU64::new(0) }
    }

    /// Counts one.
    pub fn add(&self, taken: Duration) {
        let seconds = taken.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> DurationCounts {
        let sum = Duration::from_micros(self.sum_us.load(Ordering::Relaxed));
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        DurationCounts { buckets: bounds.zip(counts).collect(), sum }
    }
}

impl DurationCounts {
    /// How many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_one_bucket_its_bound_included() {
        let durations = Durations::new(&[0.1, 1.0]);
        for ms in [0, 100, 101, 1000, 1001, 3_600_000] {
            durations.add(Duration::from_millis(ms));
        }
        let counts = durations.read();
        assert_eq!(counts.buckets, [(0.1, 2), (1.0, 2), (f64::INFINITY, 2)]);
        assert_eq!(counts.total(), 6);
        assert_eq!(counts.sum, Duration::from_millis(3_602_202));
    }

    #[test]
    fn without_bounds_everything_is_counted() {
        let durations = Durations::new(&[]);
        durations.add(Duration::MAX);
        assert_eq!(durations.read().buckets, [(f64::INFINITY, 1)]);
    }
}
