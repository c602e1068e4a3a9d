//! SPDY/3.1 on a connection that was upgraded from HTTP/1.1, in the server's part.
//!
//! ```text
//! bytes ⇄ connection (one task) ⇄ streams (shared) ⇄ ends ⇄ a session
//!            │ frame, headers: the codec, without i/o
//!            └ command | forward: what a new stream is for
//! ```
//!
//! Written for the clients of Kubernetes (moby/spdystream in kubelet, crictl and kubectl), which use a part of the protocol:
//! no priorities, no windows, no pushed streams. The other parts are understood as far as a client could need them.
//!
//! A connection holds at most: 32 KiB of input, 400 KiB to be sent, 64 KiB of answers, one control frame (16 KiB) with its
//! headers (64 KiB), 48 KiB for inflating, and what its streams have not read: 512 KiB for a command, 8 MiB for all forwarded
//! connections of a client. Buffers grow by doubling, so they may take twice that. A second after the last byte only the first
//! and the fifth are left.
//!
//! A client that reads nothing makes writers of its own session wait, and nobody else.

mod command;
mod connection;
mod ends;
mod forward;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod headers;
mod streams;
#[cfg(test)]
mod tests;
mod version;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

pub(crate) use version::{Kind, NegotiationError, Version, negotiate};

use crate::backend::Streams;
use crate::channels::{Channels, Forwards};
use command::Command;
use connection::Connection;
use forward::Forward;

/// What a connection is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For a client to open the streams that belong together.
    pub(crate) creation: Duration,
    /// Without a byte in either direction; pings do not count. The connection ends then.
    pub(crate) idle: Duration,
    /// Forwarded connections at the same time. Further ones are refused one by one.
    pub(crate) pairs: usize,
}

/// Why there are no channels. Nothing can be told to the client any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SpdyError {
    /// The client did not open all of them in time.
    #[error("the client has not opened all streams within {0:?}")]
    Timeout(Duration),
    /// The client has left, or sends something else than SPDY/3.1.
    #[error("the connection was lost before all streams were open")]
    Lost,
}

/// Waits for the streams of a remote command and accepts them. The connection goes on in a task of its own until all channels are
/// dropped and everything written to them is sent.
///
/// # Errors
/// When they do not come in time, or the connection is lost.
pub(crate) async fn remote_command<S>(
    io: S,
    version: Version,
    expected: Streams,
    limits: Limits,
) -> Result<Channels, SpdyError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (ready, channels) = oneshot::channel();
    let streams = streams::Streams::new(command::BOUNDS);
    Connection::spawn(io, streams, Command::new(version, expected, ready), limits.idle);
    match tokio::time::timeout(limits.creation, channels).await {
        Ok(channels) => channels.map_err(|_| SpdyError::Lost),
        Err(_) => Err(SpdyError::Timeout(limits.creation)),
    }
}

/// Forwarded connections as the client opens them. Their transport goes on in a task of its own until this and all of them are
/// dropped and everything written to them is sent.
pub(crate) fn forwards<S>(io: S, limits: Limits) -> Forwards
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (forward, forwards) = Forward::new(&limits);
    Connection::spawn(io, streams::Streams::new(forward::BOUNDS), forward, limits.idle);
    forwards
}
