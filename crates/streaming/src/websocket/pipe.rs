//! The ends of a channel that a session holds. Each of them keeps the connection open.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_util::sync::{CancellationToken, PollSender};

use super::message::Protocol;

/// A message on its way to the client.
pub(crate) type Outgoing = Message;

/// The most that one message carries.
const LARGEST: usize = 64 * 1024;

/// What the client sends on one channel.
pub(super) struct ChannelReader {
    messages: mpsc::Receiver<Bytes>,
    current: Bytes,
    gone: CancellationToken,
    _open: mpsc::Sender<Outgoing>,
}

impl ChannelReader {
    pub(super) fn new(
        messages: mpsc::Receiver<Bytes>,
        open: mpsc::Sender<Outgoing>,
        gone: CancellationToken,
    ) -> Self {
        Self { messages, current: Bytes::new(), gone, _open: open }
    }
}

impl AsyncRead for ChannelReader {
    /// Ends when the client has closed the channel, fails when it has left.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.current.has_remaining() {
            match ready!(self.messages.poll_recv(cx)) {
                Some(message) => self.current = message,
                None if self.gone.is_cancelled() => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current.split_to(count));
        Poll::Ready(Ok(()))
    }
}

/// What the client gets on one channel. There is no way to tell it that nothing more comes.
pub(super) struct ChannelWriter {
    channel: u8,
    protocol: Protocol,
    messages: PollSender<Outgoing>,
}

impl ChannelWriter {
    pub(super) fn new(channel: u8, protocol: Protocol, messages: mpsc::Sender<Outgoing>) -> Self {
        Self { channel, protocol, messages: PollSender::new(messages) }
    }
}

fn broken<T>(_: T) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.messages.poll_reserve(cx)).map_err(broken)?;
        let data = data.get(..LARGEST).unwrap_or(data);
        let message = self.protocol.encode(self.channel, data);
        self.messages.send_item(message).map_err(broken)?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.messages.close();
        Poll::Ready(Ok(()))
    }
}
