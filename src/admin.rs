//! The admin endpoint: what the daemon is doing, to be asked while it does it.
//!
//! ```text
//! <state>/admin.sock   root only   GET /status   GET, PUT /log-level   GET /metrics   GET /healthz
//! [metrics] address    TCP                                             GET /metrics   GET /healthz
//! ```
//!
//! HTTP/1.1, one request for each connection. Served by a thread with an async runtime of its own, from the moment the state
//! directory is taken until the daemon has left it: also while OCI runtimes are tried out, while pods are recovered, while operations
//! hang at the end, and when the workers of the daemon are stuck, which is then what it tells.
//!
//! Promises: answers are made of published snapshots, and no pod's task, driver or disk is asked; heads, bodies, connections and the
//! time of each are bounded; what does not come in time is cut; nothing that a client sends ends the daemon.
//!
//! [`board`] is what is known, [`status`] the answer's types, [`collect`] makes the one of the other, [`answer`] is one request,
//! [`server`] the connections; [`client`] and [`text`] are the side of `crimson status`.

mod answer;
pub mod board;
pub mod client;
mod collect;
mod redact;
mod server;
pub mod status;
#[cfg(test)]
mod tests;
pub mod text;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use self::board::Board;
use crate::listener::{self, ListenError, SocketFile};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "admin.sock";

/// Why the endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The address for metrics cannot be had.
    #[error("metrics.address: listening on {0}")]
    Address(SocketAddr, #[source] io::Error),
    /// It cannot be served.
    #[error("serving {}", .0.display())]
    Serve(PathBuf, #[source] io::Error),
}

/// Serves as long as it lives.
#[derive(Debug)]
pub struct Admin {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    address: Option<SocketAddr>,
    // After the thread has ended.
    _file: SocketFile,
}

/// The doors of the endpoint.
#[derive(Debug)]
struct Doors {
    socket: UnixListener,
    tcp: Option<TcpListener>,
}

impl Admin {
    /// Serves what `board` tells in the `state` directory, which must be ours, and the metrics on `address` too.
    ///
    /// # Errors
    /// When the socket, the address or a thread cannot be had.
    pub fn open(state: &Path, address: Option<SocketAddr>, board: Arc<Board>) -> Result<Self, AdminError> {
        let path = state.join(SOCKET);
        let failed = |error| AdminError::Serve(path.clone(), error);
        let (socket, file) = listener::open_socket(&path)?;
        let tcp = address.map(listen).transpose()?;
        let address = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
        let stop = CancellationToken::new();
        let (runtime, end) = (server::runtime().map_err(failed)?, stop.clone());
        let doors = Doors { socket, tcp };
        let serve = move || server::run(runtime, doors, &board, &end);
        let thread = std::thread::Builder::new().name("crimson-admin".to_owned()).spawn(serve);
        if let Some(address) = address {
            tracing::info!(%address, "metrics are served over HTTP");
        }
        Ok(Self { stop, thread: Some(thread.map_err(failed)?), address, _file: file })
    }

    /// Where metrics are served besides.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Admin {
    /// What is being answered is cut off.
    fn drop(&mut self) {
        self.stop.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the admin endpoint has panicked");
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, AdminError> {
    let failed = |error| AdminError::Address(address, error);
    let listener = TcpListener::bind(address).map_err(failed)?;
    Ok(listener)
}
