//! Telling daemons of log lines that could not be written.
//!
//! A count is told when there is news, [`DROPS_TOLD_EVERY`] at most, and before the end of its container is announced; a list tells
//! it as well. What is lost while no daemon is connected counts as untold, so that the next one knows what nobody has
//! heard of. A log that is written by a thread of its own, since it may hang, is looked at again as long as that has something to do.

use std::time::{Duration, Instant};

use monitor_api::{ContainerState, DROPS_TOLD_EVERY, Event};
use types::ContainerId;

use crate::container::Container;
use crate::server::Monitor;

/// How often a log that is behind is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When daemons are told.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    due: Option<Instant>,
    last: Option<Instant>,
    /// When to look at logs that were behind.
    look: Option<Instant>,
}

impl Drops {
    /// There is news: it is told now, or when enough time has passed since the last.
    fn plan(&mut self) {
        self.due.get_or_insert_with(|| {
            let now = Instant::now();
            self.last.map_or(now, |last| now.max(last + DROPS_TOLD_EVERY))
        });
    }

    /// When there is something to tell, or may be.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.look).min()
    }
}

impl Monitor {
    /// A container has printed: looks whether lines of it were lost that nobody was told of.
    pub(crate) fn look_for_drops(&mut self, key: u32) {
        let found = self.containers.values().find(|container| container.key == key);
        let Some(container) = found else { return };
        if container.untold_drops().is_some() {
            self.drops.plan();
        } else if container.streams.is_behind() {
            self.drops.look.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
        }
    }

    /// Tells what is due.
    pub(crate) fn tell_drops(&mut self, now: Instant) {
        if self.drops.look.take_if(|look| *look <= now).is_some() {
            let keys: Vec<u32> = self.containers.values().map(|container| container.key).collect();
            keys.into_iter().for_each(|key| self.look_for_drops(key));
        }
        if self.drops.due.is_none_or(|due| due > now) {
            return;
        }
        (self.drops.due, self.drops.last) = (None, Some(now));
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        ids.iter().for_each(|id| self.tell_drops_of(id));
    }

    /// Tells what is new of one container, if anybody listens.
    pub(crate) fn tell_drops_of(&mut self, id: &ContainerId) {
        let Some(lines) = self.containers.get(id).and_then(Container::untold_drops) else { return };
        self.connections.tell(&self.poller, &Event::LogLinesDropped { container: id.clone(), lines });
        // A connection whose other end has gone is closed by the telling.
        if self.connections.is_empty() {
            return;
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.drops_told = lines;
        }
    }

    /// All containers as the daemon is told, which counts as telling what they have lost.
    pub(crate) fn list(&mut self) -> Vec<ContainerState> {
        let listed = |container: &mut Container| {
            let state = container.state()?;
            container.drops_told = state.dropped_log_lines;
            Some(state)
        };
        self.containers.values_mut().filter_map(listed).collect()
    }
}

impl Container {
    /// How many lines were lost, if nobody was told of the last of them.
    fn untold_drops(&self) -> Option<u64> {
        Some(self.streams.dropped_lines()).filter(|lines| *lines > self.drops_told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_told_at_once_and_then_with_a_pause() {
        let mut drops = Drops::default();
        drops.plan();
        let first = drops.due().unwrap();
        drops.plan();
        assert_eq!(drops.due(), Some(first), "it does not move");
        assert!(first <= Instant::now());
        drops = Drops { last: Some(first), ..Drops::default() };
        drops.plan();
        assert_eq!(drops.due(), Some(first + DROPS_TOLD_EVERY));
        let look = first + LOOK_EVERY;
        drops.look = Some(look);
        assert_eq!(drops.due(), Some(look), "it may be that there is nothing to tell by then");
    }
}
