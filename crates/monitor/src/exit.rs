//! From the end of a container's init to its exit record.
//!
//! The order is the promise: everything that the container printed is in the log, nothing of it runs any more, the record
//! is on disk; only then is it announced. Neither a process outside that holds the pipes open nor a full disk nor a log whose
//! file system hangs may put that off for ever, so each wait has an end.

use std::time::{Duration, Instant};

use crilog::Stream;
use monitor_api::{Event, ExitRecord};
use types::ContainerId;

use crate::container::{Draining, End, Stage};
use crate::lifecycle::KILL_GRACE;
use crate::report;
use crate::server::Monitor;
use crate::stdio::Pumped;

/// How long output is awaited from those who hold a dead container's pipes.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How often the cgroup is looked at while something in it has yet to die.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often, and for how long, a record is tried that cannot be written. After that the daemon, which can keep it in memory
/// too, is told nevertheless: a container that never ends would be worse.
const WRITE_EVERY: Duration = Duration::from_millis(500);
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Buffers read from a dead container's stream at a time.
const ROUNDS: u32 = 16;

impl Monitor {
    /// A container's init was reaped.
    pub(crate) fn init_ended(&mut self, id: &ContainerId, end: End) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.pid = None;
        self.look_for_oom_kill(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.starting {
            // The daemon must hear that it started first.
            container.early_end = Some(end);
            return;
        }
        let now = Instant::now();
        let (until, alive_until) = (now + DRAIN_LIMIT, now + KILL_GRACE);
        container.stage = Stage::Draining(Draining { end, until, alive_until, look: now, unwritten: None });
        self.kill_execs_of(id);
        self.advance_drain(id);
    }

    /// Looks whether the OOM killer struck in a container.
    pub(crate) fn look_for_oom_kill(&mut self, id: &ContainerId) {
        let news = self.containers.get_mut(id).is_some_and(|container| container.cgroup.look_for_oom_kill());
        if news {
            let others = self.containers.iter_mut().filter(|(other, _)| *other != id);
            others.for_each(|(_, other)| other.cgroup.neighbour_was_struck());
        }
    }

    /// Goes on with what is left of a container whose init has ended.
    pub(crate) fn advance_drain(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Draining(draining) = &mut container.stage else { return };
        if draining.unwritten.is_some() {
            return self.write_record(id);
        }
        let left = container.cgroup.kill();
        let (key, onlookers) = (container.key, &mut self.onlookers);
        let look_on = &mut |stream, bytes: &[u8]| onlookers.give(key, stream, bytes);
        let more = [Stream::Stdout, Stream::Stderr]
            .map(|stream| container.streams.pump(stream, &mut self.buffer, ROUNDS, look_on) == Pumped::More)
            .contains(&true);
        let now = Instant::now();
        if left && now < draining.alive_until {
            // They have been killed, and what they wrote is awaited once they are dead.
            draining.until = now + DRAIN_LIMIT;
        }
        let soon = left || more || container.streams.is_behind();
        if now < draining.until && (soon || !container.streams.ended()) {
            draining.look = if soon { now + LOOK_EVERY } else { draining.until };
            return self.onlookers.settle(&self.poller);
        }
        let end = draining.end;
        container.streams.finish(&mut self.buffer, look_on);
        let record = container.exit_record(end);
        if let Stage::Draining(draining) = &mut container.stage {
            draining.unwritten = Some((record, now + WRITE_LIMIT));
        }
        self.onlookers.container_ended(key, &self.poller);
        self.write_record(id);
    }

    /// Writes the record and announces it, or tries again later.
    fn write_record(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Draining(draining) = &mut container.stage else { return };
        let Some((record, give_up_at)) = draining.unwritten.clone() else { return };
        match save(&container.exit_file, &record) {
            Ok(()) => self.announce(id, record),
            Err(message) if Instant::now() >= give_up_at => {
                report::line(&format!("{message}; the exit of container {id} is announced without it"));
                self.announce(id, record);
            }
            Err(_) => draining.look = Instant::now() + WRITE_EVERY,
        }
    }

    fn announce(&mut self, id: &ContainerId, record: ExitRecord) {
        if let Some(container) = self.containers.get_mut(id) {
            container.stage = Stage::Exited(record.clone());
        }
        self.tell_drops_of(id);
        self.connections.tell(&self.poller, &Event::Exited(record));
        self.advance_deletion(id);
    }
}

fn save(file: &std::path::Path, record: &ExitRecord) -> Result<(), String> {
    let json = record.to_json().map_err(|error| types::error::chain(&error))?;
    sys::atomic::write(file, &json, 0o600).map_err(|error| types::error::chain(&error))
}
