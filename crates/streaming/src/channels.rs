//! What either transport delivers: the channels of a remote command, and forwarded connections one by one.
//!
//! The transports ([`crate::spdy`], [`crate::websocket`]) make these after the upgrade; the sessions use them and know no
//! transport.

use tokio::sync::mpsc;

use crate::backend::{Reader, Writer};

/// The channels of an exec or attach session. The transport is the task behind them: it ends when all of them are dropped, after
/// it has sent what they were given.
pub(crate) struct Channels {
    /// What the client types. Ends when the client half-closes it; fails when the connection is lost.
    pub(crate) stdin: Option<Reader>,
    /// To the client. A write waits while the client does not read (flow control), and fails when it is gone.
    pub(crate) stdout: Option<Writer>,
    /// To the client.
    pub(crate) stderr: Option<Writer>,
    /// JSON objects `{"Width":…,"Height":…}`, one after the other, as they come.
    pub(crate) resize: Option<Reader>,
    /// How the session ended, for the client.
    pub(crate) error: Writer,
    /// The form of what is written to `error`.
    pub(crate) status: StatusForm,
    /// Resolves when the client has left or the connection is lost: nobody reads any more. A half-closed stdin is no such thing.
    pub(crate) gone: tokio_util::sync::CancellationToken,
}

/// How the end of a session is written to its error channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusForm {
    /// v4 and later: a `meta/v1` Status as JSON, success included.
    Json,
    /// v1 to v3: text, and only about failures.
    Text,
}

/// A connection that a client wants to have forwarded.
pub(crate) struct Forwarded {
    /// The port inside the pod.
    pub(crate) port: u16,
    /// From the client; ends with its half-close, fails when it is reset.
    pub(crate) input: Reader,
    /// To the client. Shutting it down is a half-close.
    pub(crate) output: Writer,
    /// Text about what went wrong with this connection; closing it unwritten says that all is well.
    pub(crate) error: Writer,
    /// Ends the connection at once, both directions, without touching its neighbours. Also resolves when the client resets it.
    pub(crate) reset: tokio_util::sync::CancellationToken,
}

/// Forwarded connections of one client, in the order in which they come; `None` after the client has left.
pub(crate) type Forwards = mpsc::Receiver<Forwarded>;
