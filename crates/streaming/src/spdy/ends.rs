//! The two ends of a stream as sessions hold them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::streams::Streams;

/// Reads what the client sends; ends where the client says so, fails when it resets the stream or is gone.
#[derive(Debug)]
pub(super) struct StreamReader {
    streams: Arc<Streams>,
    id: u32,
}

impl StreamReader {
    pub(super) fn new(streams: Arc<Streams>, id: u32) -> Self {
        Self { streams, id }
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.streams.poll_read(self.id, cx, buf)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.streams.release(self.id, true);
    }
}

/// Writes to the client. What is written is sent without a flush; shutting it down, or dropping it, says that nothing follows.
#[derive(Debug)]
pub(super) struct StreamWriter {
    streams: Arc<Streams>,
    id: u32,
}

impl StreamWriter {
    pub(super) fn new(streams: Arc<Streams>, id: u32) -> Self {
        Self { streams, id }
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.streams.poll_write(self.id, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.streams.finish(self.id);
        Poll::Ready(Ok(()))
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        self.streams.finish(self.id);
        self.streams.release(self.id, false);
    }
}
