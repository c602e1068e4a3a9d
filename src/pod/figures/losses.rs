//! Log lines that monitors could not write: totals that only grow, made of what each monitor says of its containers.
//!
//! A monitor counts for each container since that was made. What is new in its words is added here; so nothing that is told twice
//! counts twice, and what is gone has been counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use monitor_api::ContainerState;
use types::ContainerId;

/// Lost lines since the server started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostLogLines {
    /// Of all containers, those that are gone included.
    pub total: u64,
    /// Of each container that exists and lost any, since it was made.
    pub containers: Vec<(ContainerId, u64)>,
}

#[derive(Debug, Default)]
pub(in super::super) struct Losses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    total: u64,
    /// What the monitors said last.
    containers: BTreeMap<ContainerId, u64>,
}

impl Losses {
    /// A monitor says how many lines of a container were lost since it was made.
    pub(in super::super) fn note(&self, container: &ContainerId, lines: u64) {
        if lines == 0 {
            return;
        }
        let mut known = self.known();
        let before = known.containers.entry(container.clone()).or_default();
        let news = lines.saturating_sub(*before);
        *before += news;
        known.total = known.total.saturating_add(news);
    }

    /// What a monitor says of a container that an earlier server knew. What that was told of is not counted again; a monitor
    /// that does not say what it told is taken to have told everything.
    pub(in super::super) fn recover(&self, state: &ContainerState) {
        let told = state.dropped_log_lines_told.unwrap_or(state.dropped_log_lines);
        if told > 0 {
            self.known().containers.entry(state.container.clone()).or_insert(told);
        }
        self.note(&state.container, state.dropped_log_lines);
    }

    /// The container is gone; what it lost stays in the total.
    pub(in super::super) fn forget(&self, container: &ContainerId) {
        self.known().containers.remove(container);
    }

    pub(super) fn of(&self, container: &ContainerId) -> u64 {
        self.known().containers.get(container).copied().unwrap_or(0)
    }

    pub(super) fn read(&self) -> LostLogLines {
        let known = self.known();
        let containers = known.containers.iter().map(|(id, lines)| (id.clone(), *lines)).collect();
        LostLogLines { total: known.total, containers }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while the lock is held cannot leave more than one number out of date.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(seed: u8) -> ContainerId {
        ContainerId::from_random([seed; 32])
    }

    fn state(seed: u8, lines: u64, told: Option<u64>) -> ContainerState {
        ContainerState {
            container: id(seed),
            pid: None,
            phase: monitor_api::Phase::Running,
            exit: None,
            dropped_log_lines: lines,
            dropped_log_lines_told: told,
            started_at: types::Timestamp::UNSET,
        }
    }

    #[test]
    fn only_news_are_added_and_what_is_gone_stays_in_the_total() {
        let losses = Losses::default();
        losses.note(&id(1), 0);
        assert_eq!(losses.read(), LostLogLines::default());
        losses.note(&id(1), 10);
        losses.note(&id(1), 10);
        losses.note(&id(2), 3);
        losses.note(&id(1), 15);
        assert_eq!((losses.read().total, losses.of(&id(1))), (18, 15));
        losses.forget(&id(1));
        assert_eq!(losses.read(), LostLogLines { total: 18, containers: vec![(id(2), 3)] });
    }

    #[test]
    fn what_an_earlier_server_heard_is_not_counted_again() {
        let losses = Losses::default();
        losses.recover(&state(1, 107, Some(100)));
        losses.recover(&state(2, 55, None));
        losses.recover(&state(3, 0, Some(0)));
        assert_eq!(losses.read(), LostLogLines { total: 7, containers: vec![(id(1), 107), (id(2), 55)] });
        losses.note(&id(1), 107);
        losses.note(&id(2), 56);
        losses.note(&id(3), 1);
        assert_eq!(losses.read().total, 9);
    }

    proptest! {
        #[test]
        fn the_total_never_falls(says in proptest::collection::vec((0_u8..4, 0_u64..50, 0_u8..3), 0..60)) {
            let losses = Losses::default();
            let mut before = 0;
            for (container, lines, what) in says {
                match what {
                    0 => losses.forget(&id(container)),
                    1 => losses.recover(&state(container, lines, Some(lines / 2))),
                    _ => losses.note(&id(container), lines),
                }
                let total = losses.read().total;
                prop_assert!(total >= before);
                before = total;
            }
        }
    }
}
