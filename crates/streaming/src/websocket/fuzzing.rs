//! What the fuzzer of `fuzz/` calls for WebSocket, with the promises that hold for every input.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::Message;

use super::Peer;
use super::message::{Incoming, Protocol};
use crate::backend::{Reader, Streams};
use crate::session::take_size;

const ALL: [Protocol; 6] = [
    Protocol::Binary,
    Protocol::Base64,
    Protocol::BinaryV4,
    Protocol::Base64V4,
    Protocol::BinaryV5,
    Protocol::Tunnel,
];

/// The first byte chooses the subprotocol, and whether the rest are messages, each after its length in a byte, or a whole
/// connection's frames.
pub(crate) fn channels(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let protocol = ALL[usize::from(choice & 0x7f) % ALL.len()];
    if choice & 0x80 == 0 { messages(protocol, rest) } else { frames(protocol, rest) }
}

/// What is read is written and read as the same again; sizes are usable, whatever comes before them.
fn messages(protocol: Protocol, mut input: &[u8]) {
    let mut resize = Vec::new();
    while let Some((length, rest)) = input.split_first() {
        let (message, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        input = rest;
        let Ok(Incoming::Data(channel, data)) = protocol.decode(Bytes::copy_from_slice(message)) else {
            continue;
        };
        assert!(data.len() < message.len());
        if usize::from(channel) < protocol.channels() {
            let again = match protocol.encode(channel, &data) {
                Message::Binary(message) => protocol.decode(message),
                Message::Text(message) => protocol.decode(message.into()),
                other => unreachable!("{other:?}"),
            };
            assert_eq!(again, Ok(Incoming::Data(channel, data.clone())));
        }
        resize.extend_from_slice(&data);
        loop {
            match take_size(&mut resize) {
                Ok(Some(size)) => assert!(size.width > 0 && size.height > 0),
                Ok(None) => break,
                Err(_) => resize.clear(),
            }
        }
    }
}

/// Whatever a client sends, its connection ends with it, and no channel has more than was sent.
fn frames(protocol: Protocol, input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let peer = Script(Bytes::copy_from_slice(input));
        let streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };
        let channels = super::remote_command(peer, protocol, streams);
        let (stdin, resize) = tokio::join!(count(channels.stdin), count(channels.resize));
        assert!(stdin + resize <= input.len());
        channels.gone.cancelled().await;
    });
}

async fn count(channel: Option<Reader>) -> usize {
    let mut read = Vec::new();
    // Either end is fine: a connection that breaks is one of them.
    if let Some(mut channel) = channel {
        drop(channel.read_to_end(&mut read).await);
    }
    read.len()
}

/// A client that says this and leaves.
struct Script(Bytes);

impl Peer for Script {
    fn has_hung_up(&self) -> bool {
        false
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
