//! One client's connection, as its transport gets it.
//!
//! Whoever holds the [`Line`] holds a place among the connections; dropping it gives the place back and tells the server. The
//! server can cut it whatever the transport waits for, and can see that the client has hung up behind data nobody reads yet.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::websocket::Peer;

/// With or without TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// What the server knows a connection by.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    /// Breaks the connection.
    pub(super) cut: CancellationToken,
    /// Resolves when it is closed.
    pub(super) closed: CancellationToken,
}

/// The connection.
pub(crate) struct Line {
    stream: Stream,
    /// Read by the HTTP server, but not meant for it.
    ahead: Bytes,
    cut: CancellationToken,
    cut_for_reading: Pin<Box<WaitForCancellationFutureOwned>>,
    cut_for_writing: Pin<Box<WaitForCancellationFutureOwned>>,
    _closed: DropGuard,
    _permit: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
}

impl Line {
    pub(super) fn new(
        stream: Stream,
        permit: OwnedSemaphorePermit,
        tracked: TaskTrackerToken,
        handle: &Handle,
    ) -> Self {
        let cut = handle.cut.clone();
        Self {
            stream,
            ahead: Bytes::new(),
            cut_for_reading: Box::pin(cut.clone().cancelled_owned()),
            cut_for_writing: Box::pin(cut.clone().cancelled_owned()),
            cut,
            _closed: handle.closed.clone().drop_guard(),
            _permit: permit,
            _tracked: tracked,
        }
    }

    /// Puts back what was read too early.
    pub(super) fn with_ahead(mut self, ahead: Bytes) -> Self {
        self.ahead = ahead;
        self
    }

    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.has_remaining() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }

    /// A write-like operation, unless the line is or gets cut.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        operation: impl FnOnce(&mut Stream, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Poll::Ready(result) = operation(&mut self.stream, cx) {
            return Poll::Ready(result);
        }
        ready!(self.cut_for_writing.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl Peer for Line {
    fn has_hung_up(&self) -> bool {
        hung_up(self.stream.tcp().as_fd())
    }
}

fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut asked = [PollFd::from_borrowed_fd(socket, over)];
    matches!(poll(&mut asked, Some(&at_once)), Ok(1..)) && asked[0].revents().intersects(over)
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Poll::Ready(result) = self.read(cx, buf) {
            return Poll::Ready(result);
        }
        ready!(self.cut_for_reading.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| match stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, data),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, data),
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| match stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
        })
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| match stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        })
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| match stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        })
    }
}
