//! The socket on which daemons connect. It came as stdin, already listening.
//!
//! When there are no descriptors left for a connection, the socket would stay readable for ever: it is not looked at for a
//! moment, and the daemon waits in the backlog.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::poller::{Poller, Source};
use crate::report;

/// How long nobody is let in after that failed for want of something.
const PAUSE: Duration = Duration::from_millis(200);

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    /// When to listen again; now, without.
    again: Option<Instant>,
}

impl Listener {
    /// Takes the socket from stdin, which becomes `/dev/null`, and watches it.
    pub(crate) fn take(poller: &Poller) -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin is not a listening socket"));
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Self::watched(socket, poller)
    }

    fn watched(socket: OwnedFd, poller: &Poller) -> io::Result<Self> {
        poller.add(&socket, Source::Listener)?;
        Ok(Self { socket, again: None })
    }

    /// The next connection, if there is one and room for it.
    pub(crate) fn accept(&mut self, poller: &Poller) -> Option<OwnedFd> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Some(socket),
            // It went away again.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => None,
            Err(error) => {
                report::failure("taking a connection", &io::Error::from(error));
                self.pause(poller);
                None
            }
        }
    }

    fn pause(&mut self, poller: &Poller) {
        if poller.remove(&self.socket).is_ok() {
            self.again = Some(Instant::now() + PAUSE);
        }
    }

    /// When [`Listener::resume`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    /// Listens again after a pause.
    pub(crate) fn resume(&mut self, poller: &Poller, now: Instant) {
        if self.again.is_none_or(|again| now < again) {
            return;
        }
        match poller.add(&self.socket, Source::Listener) {
            Ok(()) => self.again = None,
            Err(_) => self.again = Some(now + PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, socket_with};

    use super::*;

    fn socket() -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn after_a_pause_the_one_who_waited_is_let_in() {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(dir.path().join("s")).unwrap();
        let (server, client, poller) = (socket(), socket(), Poller::new().unwrap());
        bind(&server, &address).unwrap();
        listen(&server, 4).unwrap();
        let mut listener = Listener::watched(server, &poller).unwrap();
        connect(&client, &address).unwrap();
        listener.pause(&poller);
        let none = poller.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(none.count(), 0, "a listener that pauses wakes nobody");
        let again = listener.deadline().unwrap();
        listener.resume(&poller, again - Duration::from_millis(1));
        assert_eq!(listener.deadline(), Some(again));
        listener.resume(&poller, again);
        assert_eq!(listener.deadline(), None);
        let ready: Vec<_> = poller.wait(Some(Duration::from_secs(60))).unwrap().collect();
        assert_eq!(ready.len(), 1);
        assert!(listener.accept(&poller).is_some());
        assert!(listener.accept(&poller).is_none());
    }
}
