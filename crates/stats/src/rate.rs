//! How much of the processors is used, from two readings.

/// A counter's rate between the last two readings that were far enough apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    last: Option<(u64, u64)>,
    rate: Option<u64>,
}

/// Readings closer than this, in nanoseconds, tell of the clock's tick rather than of the container.
const LEAST: u64 = 500_000_000;

impl Rate {
    /// Takes note of `count` nanoseconds of processor time at `now`, in nanoseconds of a clock that never goes back.
    pub fn note(&mut self, now: u64, count: u64) {
        match self.last {
            Some((then, before)) if count >= before && now > then => {
                let passed = now - then;
                if passed < LEAST {
                    return;
                }
                let rate = u128::from(count - before) * 1_000_000_000 / u128::from(passed);
                self.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
            }
            // Another group counts now, or the clock stood still.
            Some(_) => self.rate = None,
            None => {}
        }
        self.last = Some((now, count));
    }

    /// Nanoseconds of processor time per second; `None` before the second reading.
    #[must_use]
    pub fn nano_cores(&self) -> Option<u64> {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn half_a_processor_is_half_a_billion() {
        let mut rate = Rate::default();
        rate.note(10 * SECOND, 0);
        assert_eq!(rate.nano_cores(), None);
        rate.note(12 * SECOND, SECOND);
        assert_eq!(rate.nano_cores(), Some(SECOND / 2));
        rate.note(22 * SECOND, 21 * SECOND);
        assert_eq!(rate.nano_cores(), Some(2 * SECOND));
    }

    #[test]
    fn readings_in_a_hurry_do_not_blur_the_rate() {
        let mut rate = Rate::default();
        rate.note(0, 0);
        rate.note(SECOND, SECOND);
        rate.note(SECOND + 1000, SECOND + 1000);
        assert_eq!(rate.nano_cores(), Some(SECOND));
        rate.note(2 * SECOND, SECOND + 1000);
        assert_eq!(rate.nano_cores(), Some(1000), "the hurried reading was left out");
    }

    #[test]
    fn a_counter_that_begins_anew_has_no_rate_yet() {
        let mut rate = Rate::default();
        rate.note(0, 5 * SECOND);
        rate.note(SECOND, 6 * SECOND);
        rate.note(2 * SECOND, 0);
        assert_eq!(rate.nano_cores(), None);
        rate.note(3 * SECOND, SECOND / 4);
        assert_eq!(rate.nano_cores(), Some(SECOND / 4));
    }
}
