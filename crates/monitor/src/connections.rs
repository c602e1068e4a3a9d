//! The daemons' connections. Normally one; two while an upgraded daemon takes over; none while it restarts.
//!
//! Nothing here ever waits for a daemon. A message that the socket has no room for is queued, and a connection whose queue
//! is full is closed: its daemon connects again and lists.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use monitor_api::codec;
use monitor_api::{Event, Refusal, RefusalKind, Reply};

use crate::poller::{Poller, Source};
use crate::report;

/// Bytes that may wait in one connection's queue.
const QUEUE_LIMIT: usize = 512 * 1024;
/// Connections at a time: far more than daemons, far fewer than descriptors.
const CONNECTIONS: usize = 64;
/// Descriptors that may wait with them.
const QUEUED_FDS: usize = 16;

/// Who asked: what a reply needs to find its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) connection: u32,
    pub(crate) seq: u64,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    queue: VecDeque<Outgoing>,
    queued: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: BTreeMap<u32, Connection>,
    closed: Vec<u32>,
    next: u32,
}

impl Connections {
    /// Takes a connected, non-blocking socket in, unless there are too many.
    pub(crate) fn add(&mut self, socket: OwnedFd, poller: &Poller) -> io::Result<()> {
        if self.open.len() >= CONNECTIONS {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "there are too many"));
        }
        self.next = self.next.wrapping_add(1);
        poller.add(&socket, Source::Connection(self.next))?;
        self.open.insert(self.next, Connection { socket, queue: VecDeque::new(), queued: 0 });
        Ok(())
    }

    /// Reads one message into `buffer`. `None`: there is none, now or ever again.
    pub(crate) fn receive(&mut self, key: u32, buffer: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
        let connection = self.open.get(&key)?;
        match sys::fdpass::recv(connection.socket.as_fd(), buffer, 3) {
            Ok((0, _)) => self.close(key),
            Ok(message) => return Some(message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(key),
        }
        None
    }

    /// Answers a request. A connection that is gone needs no answer.
    pub(crate) fn reply(&mut self, poller: &Poller, asker: Asker, reply: &Reply, fd: Option<OwnedFd>) {
        let bytes = codec::encode(asker.seq, reply).or_else(|error| {
            report::failure("making a reply", &error);
            codec::encode(asker.seq, &Reply::Refused(Refusal::new(RefusalKind::Io, error.to_string())))
        });
        if let Ok(bytes) = bytes {
            self.send(poller, asker.connection, Outgoing { bytes, fd });
        }
    }

    /// Tells an event to everybody.
    pub(crate) fn tell(&mut self, poller: &Poller, event: &Event) {
        match codec::encode(0, event) {
            Ok(bytes) => {
                let keys: Vec<u32> = self.open.keys().copied().collect();
                for key in keys {
                    self.send(poller, key, Outgoing { bytes: bytes.clone(), fd: None });
                }
            }
            Err(error) => report::failure("making an event", &error),
        }
    }

    /// Sends what was queued, now that there is room.
    pub(crate) fn flush(&mut self, poller: &Poller, key: u32) {
        let Some(connection) = self.open.get_mut(&key) else { return };
        let emptied = connection.flush().and_then(|emptied| {
            poller.want_room(&connection.socket, Source::Connection(key), !emptied)?;
            Ok(emptied)
        });
        if emptied.is_err() {
            self.close(key);
        }
    }

    /// The connections that were closed since the last call.
    pub(crate) fn take_closed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.closed)
    }

    /// Whether nobody is connected.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn is_open(&self, key: u32) -> bool {
        self.open.contains_key(&key)
    }

    pub(crate) fn close(&mut self, key: u32) {
        if self.open.remove(&key).is_some() {
            self.closed.push(key);
        }
    }

    fn send(&mut self, poller: &Poller, key: u32, message: Outgoing) {
        let Some(connection) = self.open.get_mut(&key) else { return };
        if !connection.push(message) {
            report::line("a daemon does not read what it is told; its connection is closed");
            return self.close(key);
        }
        self.flush(poller, key);
    }
}

impl Connection {
    fn push(&mut self, message: Outgoing) -> bool {
        self.queued += message.bytes.len();
        self.queue.push_back(message);
        let fds = self.queue.iter().filter(|message| message.fd.is_some()).count();
        self.queued <= QUEUE_LIMIT && fds <= QUEUED_FDS
    }

    /// Whether the queue is empty now.
    fn flush(&mut self) -> io::Result<bool> {
        while let Some(message) = self.queue.front() {
            let fds: Vec<_> = message.fd.iter().map(AsFd::as_fd).collect();
            match sys::fdpass::send(self.socket.as_fd(), &message.bytes, &fds) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            self.queued -= message.bytes.len();
            self.queue.pop_front();
        }
        self.queue = VecDeque::new();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use types::ExecId;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (ours, theirs) = sys::fdpass::pair().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        (ours, theirs)
    }

    fn event(byte: u8) -> Event {
        Event::ExecExited { exec: ExecId::from_random([byte; 32]), exit_code: 0, signal: None }
    }

    #[test]
    fn a_daemon_that_never_reads_is_closed_and_the_others_are_not() {
        let poller = Poller::new().unwrap();
        let mut connections = Connections::default();
        let ((slow, _slow_end), (good, good_end)) = (pair(), pair());
        connections.add(slow, &poller).unwrap();
        connections.add(good, &poller).unwrap();
        let mut buffer = vec![0; codec::MESSAGE_LIMIT];
        let mut told = 0u32;
        while connections.is_open(1) {
            connections.tell(&poller, &event(1));
            sys::fdpass::recv(&good_end, &mut buffer, 0).unwrap();
            told += 1;
            assert!(told < 100_000, "the queue has no bound");
        }
        assert!(connections.is_open(2));
        assert_eq!(connections.take_closed(), [1]);
    }

    #[test]
    fn there_is_an_end_to_connections_and_room_again_when_one_closes() {
        let poller = Poller::new().unwrap();
        let mut connections = Connections::default();
        let pairs: Vec<_> = (0..=CONNECTIONS).map(|_| pair()).collect();
        let mut added = 0;
        for (ours, _) in &pairs {
            added += usize::from(connections.add(ours.try_clone().unwrap(), &poller).is_ok());
        }
        assert_eq!(added, CONNECTIONS);
        connections.close(1);
        connections.add(pair().0, &poller).unwrap();
    }

    #[test]
    fn what_had_no_room_is_sent_in_order_later() {
        let poller = Poller::new().unwrap();
        let mut connections = Connections::default();
        let (ours, theirs) = pair();
        connections.add(ours, &poller).unwrap();
        for byte in 0..=255 {
            connections.tell(&poller, &event(byte));
        }
        let mut buffer = vec![0; codec::MESSAGE_LIMIT];
        for byte in 0..=255 {
            let (len, _) = sys::fdpass::recv(&theirs, &mut buffer, 0).unwrap();
            assert_eq!(codec::decode::<Event>(&buffer[..len]).unwrap().body, event(byte));
            connections.flush(&poller, 1);
        }
    }
}
