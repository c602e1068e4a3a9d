//! The one place where the monitor waits: an epoll whose events say what they are about.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crilog::Stream;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// What a descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Signals,
    Listener,
    /// A daemon's connection.
    Connection(u32),
    /// A stream of the container with this key.
    Output(u32, Stream),
    /// The count of OOM kills of the container with this key.
    OomKills(u32),
    /// A stream to the client with this key that looks on.
    Onlooker(u32, Stream),
}

const KIND_SHIFT: u32 = 32;

impl Source {
    fn to_data(self) -> EventData {
        let (kind, key) = match self {
            Self::Signals => (0, 0),
            Self::Listener => (1, 0),
            Self::Connection(key) => (2, key),
            Self::Output(key, Stream::Stdout) => (3, key),
            Self::Output(key, Stream::Stderr) => (4, key),
            Self::OomKills(key) => (5, key),
            Self::Onlooker(key, Stream::Stdout) => (6, key),
            Self::Onlooker(key, Stream::Stderr) => (7, key),
        };
        EventData::new_u64((kind << KIND_SHIFT) | u64::from(key))
    }

    fn from_data(data: EventData) -> Self {
        let data = data.u64();
        let key = u32::try_from(data & u64::from(u32::MAX)).unwrap_or_default();
        match data >> KIND_SHIFT {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Connection(key),
            3 => Self::Output(key, Stream::Stdout),
            4 => Self::Output(key, Stream::Stderr),
            5 => Self::OomKills(key),
            6 => Self::Onlooker(key, Stream::Stdout),
            _ => Self::Onlooker(key, Stream::Stderr),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) source: Source,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

/// Watches descriptors. They stay their owners': a closed one is forgotten by the kernel.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

/// Events taken at once; more wait their turn.
const BATCH: usize = 16;

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches for something to read (or the end).
    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, source.to_data(), EventFlags::IN)?)
    }

    /// Watches for a change of what a file of the kernel's says; it has to be read again to hear of the next.
    pub(crate) fn add_urgent(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, source.to_data(), EventFlags::PRI)?)
    }

    /// Watches for the end of whoever reads from the other side of a pipe.
    pub(crate) fn add_sink(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, source.to_data(), EventFlags::empty())?)
    }

    /// Watches a pipe that was added so for room too, or no longer.
    pub(crate) fn want_sink_room(&self, fd: impl AsFd, source: Source, wanted: bool) -> io::Result<()> {
        let flags = if wanted { EventFlags::OUT } else { EventFlags::empty() };
        Ok(epoll::modify(&self.0, fd, source.to_data(), flags)?)
    }

    /// Watches no longer.
    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Watches for room to write too, or no longer.
    pub(crate) fn want_room(&self, fd: impl AsFd, source: Source, wanted: bool) -> io::Result<()> {
        let flags = if wanted { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        Ok(epoll::modify(&self.0, fd, source.to_data(), flags)?)
    }

    /// Waits for events, at most for `limit`.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> io::Result<impl Iterator<Item = Ready> + use<>> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let empty = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [empty; BATCH];
        let count = match epoll::wait(&self.0, &mut events[..], limit.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(events.into_iter().take(count).map(ready))
    }
}

fn ready(event: Event) -> Ready {
    let (flags, data) = (event.flags, event.data);
    Ready {
        source: Source::from_data(data),
        readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
        writable: flags.contains(EventFlags::OUT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_the_journey_through_the_kernel() {
        let poller = Poller::new().unwrap();
        for source in [
            Source::Signals,
            Source::Listener,
            Source::Connection(u32::MAX),
            Source::Output(7, Stream::Stdout),
            Source::Output(8, Stream::Stderr),
            Source::OomKills(9),
            Source::Onlooker(10, Stream::Stdout),
            Source::Onlooker(11, Stream::Stderr),
        ] {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            poller.add(&reader, source).unwrap();
            drop(writer);
            let ready: Vec<Ready> = poller.wait(Some(Duration::from_secs(60))).unwrap().collect();
            assert_eq!(ready, [Ready { source, readable: true, writable: false }]);
        }
    }
}
