//! Sessions over WebSocket (RFC 6455): every message belongs to a channel, which its first byte names.
//!
//! States of a connection: open → (the session has let go of all channels: what it wrote is sent, then a close frame) → closed.
//! A client that closes, or sends what is no message of its protocol, ends it at once. The library checks frames, this module
//! what is in them.

mod driver;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod handshake;
mod message;
mod pipe;
mod tunnel;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::{Reader, Streams, Writer};
use crate::channels::{Channels, Forwarded, Forwards, StatusForm};
use driver::Driver;
pub(crate) use message::Protocol;
use pipe::{ChannelReader, ChannelWriter, Outgoing};
pub(crate) use tunnel::Tunnel;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Messages of one channel that wait for the session; and messages that wait for the client.
const QUEUE: usize = 2;

/// A connection whose other end may be known to be gone before all of it is read.
pub(crate) trait Peer: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Whether the client has closed its end, though data may wait before that.
    fn has_hung_up(&self) -> bool;
}

/// The channels of a connection while they are made.
struct Builder {
    protocol: Protocol,
    outgoing: mpsc::Sender<Outgoing>,
    incoming: Vec<(u8, mpsc::Sender<Bytes>)>,
    gone: CancellationToken,
}

impl Builder {
    fn new(protocol: Protocol) -> (Self, mpsc::Receiver<Outgoing>) {
        let (outgoing, waiting) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        (Self { protocol, outgoing, incoming: Vec::new(), gone }, waiting)
    }

    fn reader(&mut self, channel: u8) -> Reader {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.incoming.push((channel, sender));
        Box::new(ChannelReader::new(receiver, self.outgoing.clone(), self.gone.clone()))
    }

    fn writer(&self, channel: u8) -> Writer {
        Box::new(ChannelWriter::new(channel, self.protocol, self.outgoing.clone()))
    }

    /// Messages that go before all others.
    fn begin<S: Peer>(self, peer: S, first: Vec<Outgoing>, waiting: mpsc::Receiver<Outgoing>) {
        tokio::spawn(Driver::serve(peer, self.protocol, self.incoming, first, waiting, self.gone));
    }
}

/// The channels of a remote command. The client is told at once, by an empty message, that the connection stands.
pub(crate) fn remote_command<S: Peer>(peer: S, protocol: Protocol, streams: Streams) -> Channels {
    let (mut builder, waiting) = Builder::new(protocol);
    let channels = Channels {
        stdin: streams.stdin.then(|| builder.reader(STDIN)),
        stdout: streams.stdout.then(|| builder.writer(STDOUT)),
        stderr: streams.stderr.then(|| builder.writer(STDERR)),
        resize: streams.tty.then(|| builder.reader(RESIZE)),
        error: builder.writer(ERROR),
        status: if protocol.has_exit_codes() { StatusForm::Json } else { StatusForm::Text },
        gone: builder.gone.clone(),
    };
    let lowest = if streams.stdout {
        STDOUT
    } else if streams.stderr {
        STDERR
    } else {
        ERROR
    };
    builder.begin(peer, vec![protocol.encode(lowest, &[])], waiting);
    channels
}

/// Whether a connection can carry them.
pub(crate) fn check_ports(protocol: Protocol, ports: &[u16]) -> Result<(), &'static str> {
    match ports.len() {
        0 => Err("the request names no port, which port-forward over WebSocket needs without a SPDY tunnel"),
        count if count * 2 <= protocol.channels() => Ok(()),
        _ => Err("the request names more ports than the subprotocol has channels for"),
    }
}

/// One forwarded connection for each port. Each of the two channels of a port begins with its number.
pub(crate) fn forwards<S: Peer>(peer: S, protocol: Protocol, ports: &[u16]) -> Forwards {
    let (mut builder, waiting) = Builder::new(protocol);
    let (sender, receiver) = mpsc::channel(ports.len().max(1));
    let mut first = Vec::new();
    for (data, &port) in (0u8..).step_by(2).zip(ports) {
        let error = data + 1;
        first.extend([data, error].map(|channel| protocol.encode(channel, &port.to_le_bytes())));
        let forwarded = Forwarded {
            port,
            input: builder.reader(data),
            output: builder.writer(data),
            error: builder.writer(error),
            reset: CancellationToken::new(),
        };
        // There is room for all of them.
        drop(sender.try_send(forwarded));
    }
    let gone = builder.gone.clone();
    tokio::spawn(async move {
        gone.cancelled().await;
        drop(sender);
    });
    builder.begin(peer, first, waiting);
    receiver
}

#[cfg(test)]
mod tests;
