//! What a session does, whichever transport carries it: bytes between a client and a process or a port.
//!
//! Promises: the output is with the transport before the session's end is told; the end is told though the client sends no
//! more; a client that reads slowly holds up its own session only; a client that leaves ends it, and with it what it started.
//! A session ends as well when no byte has moved for [`Bounds::idle`] and when the server stops.

mod activity;
mod copy;
mod forward;
mod remote;
mod sizes;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub(crate) use forward::forward;
pub(crate) use remote::{attach, exec};
#[cfg(any(test, fuzzing))]
pub(crate) use sizes::take as take_size;

/// How long one direction may be silent after the other has ended: output after its process, and a forwarded connection
/// whose other half is closed.
const GRACE: Duration = Duration::from_secs(1);

/// What ends a session from outside.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// This much time without a byte.
    pub(crate) idle: Duration,
    /// The server stops.
    pub(crate) stop: CancellationToken,
}

/// How a session was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The client was told how it ended; what it has not read yet is still to be sent.
    Told,
    /// There is nobody to tell.
    Left,
}

#[cfg(test)]
mod tests;
