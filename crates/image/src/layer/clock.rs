//! Where a layer's time goes.
//!
//! One thread does all that becomes of a layer, so at any moment it is busy with one part. The clock is told when that
//! changes; the parts therefore add up to the whole.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Expected;

/// What the thread is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Waiting for bytes.
    Network,
    Decompress,
    /// Of the blob and of its content.
    Hash,
    /// Reading the archive and making files of it.
    Write,
}

/// How long each part took so far.
#[derive(Debug)]
pub(super) struct Clock {
    now: Cell<Part>,
    since: Cell<Instant>,
    spent: [Cell<Duration>; 4],
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { now: Cell::new(Part::Write), since: Cell::new(Instant::now()), spent: Default::default() }
    }

    /// Does `work` as that part; what it interrupts goes on afterwards.
    pub(super) fn during<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let interrupted = self.turn_to(part);
        let result = work();
        self.turn_to(interrupted);
        result
    }

    fn turn_to(&self, part: Part) -> Part {
        let (before, now) = (self.now.replace(part), Instant::now());
        if let Some(spent) = self.spent.get(before as usize) {
            spent.set(spent.get() + now.duration_since(self.since.replace(now)));
        }
        before
    }

    fn milliseconds(&self, part: Part) -> f64 {
        self.spent.get(part as usize).map_or(0.0, |spent| spent.get().as_secs_f64() * 1000.0)
    }

    /// Tells the log, for a layer that became `unpacked_bytes` of archive.
    pub(super) fn log(&self, layer: &Expected, unpacked_bytes: u64) {
        self.turn_to(Part::Write);
        tracing::debug!(
            target: "crimson::step",
            op = "pull",
            step = "layer",
            layer = layer.digest.as_str(),
            bytes = layer.size,
            unpacked_bytes,
            network_ms = self.milliseconds(Part::Network),
            decompress_ms = self.milliseconds(Part::Decompress),
            hash_ms = self.milliseconds(Part::Hash),
            write_ms = self.milliseconds(Part::Write),
            elapsed_ms = self.spent.iter().map(Cell::get).sum::<Duration>().as_secs_f64() * 1000.0,
            "done"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_counts_once_and_the_interrupted_part_goes_on() {
        let clock = Clock::start();
        let pause = Duration::from_millis(5);
        clock.during(Part::Decompress, || {
            clock.during(Part::Network, || std::thread::sleep(pause));
            assert_eq!(clock.now.get(), Part::Decompress);
        });
        assert_eq!(clock.now.get(), Part::Write);
        let [network, decompress] = [Part::Network, Part::Decompress].map(|part| clock.milliseconds(part));
        assert!(network >= 5.0, "{network} ms");
        let begun = clock.since.get();
        clock.turn_to(Part::Hash);
        let whole: Duration = clock.spent.iter().map(Cell::get).sum();
        assert!(whole >= pause && whole.as_secs_f64() * 1000.0 >= network + decompress);
        assert!(clock.since.get() >= begun);
        assert_eq!(clock.milliseconds(Part::Hash), 0.0);
    }
}
