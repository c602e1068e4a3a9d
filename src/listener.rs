//! The unix socket on which kubelet and crictl reach the server.
//!
//! Promises: one daemon for a state directory, held by a lock that the kernel gives back however the daemon ends;
//! only root can connect, from the first moment on; the socket file of a daemon that died is replaced, that of one
//! that lives never; a socket handed over by systemd is used as it is and left where it is.
//!
//! ```text
//! <state>/crimson.lock   flock'ed while the daemon lives; its content, a pid, is for messages only
//! <socket>               mode 0600; its directory 0700 where that is crimson's own, 0711 where it is the state directory
//! ```

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::{fs, io};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;

mod lock;

pub use lock::{StateLock, daemon_on, state_of};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon has the state directory.
    #[error("{} is in use by another crimson daemon{}", state.display(), by(*pid))]
    StateInUse {
        /// The state directory.
        state: PathBuf,
        /// That daemon, when it said who it is.
        pid: Option<u32>,
    },
    /// A server answers on the socket.
    #[error("a server is already listening on {}", .0.display())]
    SocketInUse(PathBuf),
    /// Where the socket should be is something else.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// systemd handed over something that is not a unix stream socket.
    #[error("none of the sockets handed over by systemd is a unix stream socket")]
    Inherited(#[source] io::Error),
    /// A step failed.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// A socket handed over by systemd, if any. To be called once, before the program has other threads: it takes the
/// variables out of the environment, so that no child believes them meant for itself.
///
/// # Errors
/// When sockets were handed over and none of them can be listened on.
pub fn inherited() -> Result<Option<StdUnixListener>, ListenError> {
    let mut sockets = ListenFd::from_env();
    let mut refused = None;
    for index in 0..sockets.len() {
        match sockets.take_unix_listener(index) {
            Ok(Some(listener)) => return Ok(Some(listener)),
            Ok(None) => {}
            Err(error) => refused = Some(error),
        }
    }
    refused.map_or(Ok(None), |error| Err(ListenError::Inherited(error)))
}

/// Takes possession of the `state` directory without listening: no daemon works there while the lock is held.
///
/// # Errors
/// When a daemon has it, or a step fails.
pub fn lock_state(state: &Path) -> Result<StateLock, ListenError> {
    own_directory(state, state)?;
    StateLock::acquire(state)
}

/// A socket of root's own in a state directory that is ours, with its file.
///
/// # Errors
/// When it cannot be had, since something else is there or a step fails.
pub(crate) fn open_socket(path: &Path) -> Result<(StdUnixListener, SocketFile), ListenError> {
    remove_stale(path)?;
    bind(path)
}

/// A socket that clients can connect to; they wait until it becomes a stream of connections.
#[derive(Debug)]
pub struct Listener {
    socket: StdUnixListener,
    file: Option<SocketFile>,
    lock: StateLock,
}

impl Listener {
    /// Takes possession of the `state` directory, and listens on `path` or on the inherited socket.
    ///
    /// # Errors
    /// When another daemon has either, or a step fails. What was made by then is taken back.
    pub fn open(path: &Path, state: &Path, inherited: Option<StdUnixListener>) -> Result<Self, ListenError> {
        own_directory(state, state)?;
        let lock = StateLock::acquire(state)?;
        if let Some(socket) = inherited {
            return Ok(Self { socket, file: None, lock });
        }
        prepare_parent(path, state)?;
        remove_stale(path)?;
        let (socket, file) = bind(path)?;
        Ok(Self { socket, file: Some(file), lock })
    }

    /// The lock on the state directory, to be kept until the daemon has written there for the last time: the stream of
    /// connections ends long before that.
    #[must_use]
    pub fn state_lock(&self) -> StateLock {
        self.lock.clone()
    }

    /// Whether systemd made the socket.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.file.is_none()
    }

    /// Where clients connect to.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.socket.local_addr().ok()?.as_pathname().map(Path::to_owned)
    }

    /// The connections, for `serve_with_incoming_shutdown`. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn into_incoming(self) -> io::Result<Incoming> {
        self.socket.set_nonblocking(true)?;
        let socket = UnixListener::from_std(self.socket)?;
        Ok(Incoming { socket, _file: self.file, _lock: self.lock })
    }
}

/// The stream of connections. Dropping it removes the socket file, and gives the lock back unless somebody else holds
/// it.
#[derive(Debug)]
pub struct Incoming {
    socket: UnixListener,
    _file: Option<SocketFile>,
    _lock: StateLock,
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.socket.poll_accept(context).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

/// A socket file that this process made.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The lock is still held, so the file at this path is ours. A failure leaves a stale file, which the next
        // start removes.
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), error = %error, "socket file not removed");
        }
    }
}

/// Makes a directory that is crimson's alone, or takes the access of others away. Through the state directory others may pass: the
/// root of a pod with a user namespace is one of them, and on its way to its root file system. What lies there looks after itself.
fn own_directory(path: &Path, state: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let mode = if path == state { 0o711 } else { 0o700 };
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(at("creating", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("closing to others", path))
}

/// The directory of the socket is crimson's own when it lies in the state directory or does not exist yet. Any other,
/// such as /run, keeps its mode.
fn prepare_parent(path: &Path, state: &Path) -> Result<(), ListenError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let exists = parent.try_exists().map_err(at("looking for", parent))?;
    if exists && !parent.starts_with(state) { Ok(()) } else { own_directory(parent, state) }
}

/// Removes the socket file of a server that is gone.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt as _;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("looking at", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    if is_served(path).map_err(at("connecting to", path))? {
        return Err(ListenError::SocketInUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(at("removing the stale socket", path))
}

/// Whether a server listens on `path`. Does not wait for one that is too busy to accept.
fn is_served(path: &Path) -> io::Result<bool> {
    let probe = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn bind(path: &Path) -> Result<(StdUnixListener, SocketFile), ListenError> {
    let socket = unix_socket(SocketFlags::CLOEXEC).map_err(at("making a socket for", path))?;
    let address = SocketAddrUnix::new(path).map_err(|error| at("naming", path)(error.into()))?;
    // A socket file gets the mode of the socket it is bound to, so nobody else can connect even for a moment.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::fchmod(&socket, mode).map_err(|error| at("closing to others", path)(error.into()))?;
    rustix::net::bind(&socket, &address).map_err(|error| at("binding to", path)(error.into()))?;
    let file = SocketFile(path.to_owned());
    rustix::net::listen(&socket, BACKLOG).map_err(|error| at("listening on", path)(error.into()))?;
    Ok((StdUnixListener::from(socket), file))
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ListenError {
    let path = path.to_owned();
    move |source| ListenError::Io { step, path, source }
}

#[cfg(test)]
mod tests;
