//! A byte stream inside binary messages, whose borders mean nothing: how clients carry SPDY through what speaks WebSocket only.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::Peer;
use super::driver::socket;

/// The most that one message carries.
const LARGEST: usize = 64 * 1024;

/// The stream.
pub(crate) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    current: Bytes,
}

impl<S: Peer> Tunnel<S> {
    pub(crate) async fn new(peer: S) -> Self {
        Self { socket: socket(peer).await, current: Bytes::new() }
    }
}

fn failed(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: Peer> AsyncRead for Tunnel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.current.has_remaining() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.current = data,
                Some(Ok(Message::Text(_))) => {
                    let why = "text in a tunnel";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            }
        }
        let count = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: Peer> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(failed)?;
        let data = data.get(..LARGEST).unwrap_or(data);
        let message = Message::binary(Bytes::copy_from_slice(data));
        Pin::new(&mut self.socket).start_send(message).map_err(failed)?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(failed)
    }

    /// Sends a close frame.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn pair() -> (WebSocketStream<DuplexStream>, Tunnel<DuplexStream>) {
        let (near, far) = duplex(1024);
        let client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        (client, Tunnel::new(far).await)
    }

    #[tokio::test]
    async fn borders_of_messages_mean_nothing() {
        let (mut client, mut tunnel) = pair().await;
        for part in [&b"he"[..], b"", b"llo"] {
            client.send(Message::binary(part)).await.unwrap();
        }
        client.send(Message::Ping(Bytes::new())).await.unwrap();
        let mut read = [0; 4];
        tunnel.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hell");
        client.close(None).await.unwrap();
        let mut rest = Vec::new();
        tunnel.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"o");
    }

    #[tokio::test]
    async fn more_than_a_message_holds_arrives_whole_and_a_shutdown_closes() {
        let (mut client, mut tunnel) = pair().await;
        let sent = vec![7; LARGEST * 2 + 5];
        let expected = sent.len();
        let write = async move {
            tunnel.write_all(&sent).await.unwrap();
            tunnel.shutdown().await.unwrap();
        };
        let read = async {
            let mut count = 0;
            loop {
                match client.next().await.unwrap().unwrap() {
                    Message::Binary(data) => count += data.len(),
                    Message::Close(_) => return count,
                    other => panic!("{other:?}"),
                }
            }
        };
        assert_eq!(tokio::join!(write, read).1, expected);
    }

    #[tokio::test]
    async fn text_is_an_error() {
        let (mut client, mut tunnel) = pair().await;
        client.send(Message::text("x")).await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
