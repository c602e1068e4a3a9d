//! The socket over which a runtime hands out a terminal's master.
//!
//! The runtime gets the socket's path on its command line, and a socket address has room for 107 bytes only. So the path goes
//! through a descriptor of ours for the bundle directory, `/proc/<monitor>/fd/<n>/…`, which is short however deep the
//! bundle lies. The master waits in the socket until the runtime has ended; nobody has to listen meanwhile.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// A listening socket, removed from its directory when it is dropped.
#[derive(Debug)]
pub(crate) struct Console {
    listener: OwnedFd,
    dir: OwnedFd,
    name: String,
}

impl Console {
    /// Listens at `name` in `dir`.
    pub(crate) fn listen(dir: &Path, name: String) -> io::Result<Self> {
        let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let console = Self { listener, dir, name };
        console.unlink();
        rustix::net::bind(&console.listener, &SocketAddrUnix::new(console.path())?)?;
        rustix::net::listen(&console.listener, 1)?;
        Ok(console)
    }

    /// The socket's path, for any process of this host.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}/{}", std::process::id(), self.dir.as_raw_fd(), self.name).into()
    }

    /// The master that was sent.
    pub(crate) fn take_master(&self) -> io::Result<OwnedFd> {
        let connection =
            rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // The message's bytes name the terminal; nobody needs the name.
        let (_, mut fds) = sys::fdpass::recv(&connection, &mut [0; 4096], 1)?;
        fds.pop().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
    }

    fn unlink(&self) {
        // A missing socket is the usual case.
        rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()).ok();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.unlink();
    }
}
