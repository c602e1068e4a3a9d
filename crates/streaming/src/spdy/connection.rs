//! The task that moves bytes between a network connection and its streams.
//!
//! ```text
//! running ──all streams done, nobody wants more──▶ closing ──all sent──▶ lingering ──client closed──▶ ended
//!    └──────┴─ lost: end of file, an error, bytes that are no SPDY, too long idle ─────────────────────▶ ended
//! ```
//!
//! It ends by itself once nobody holds an end of a stream and no new ones are wanted: what was written is sent, GOAWAY follows,
//! and the client has [`LINGER`] to close, since closing before it would destroy what it has not received yet. Until it has
//! sent its first bytes, nothing is sent to it: it may still be busy with the HTTP answer.
//!
//! While nothing is read because of a stream that is too full, a ping goes out now and then: whether the client is still there
//! would not be seen otherwise.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tracing::debug;

use super::frame::{CloseReason, Decoder, Event, FrameError, ResetReason};
use super::headers::Headers;
use super::streams::Streams;

/// How much is read from the network at once.
const INPUT: usize = 32 * 1024;
/// For the client to close when all is done.
const LINGER: Duration = Duration::from_secs(30);
/// For telling a client why the connection is closed, if it wants to hear.
const FAREWELL: Duration = Duration::from_secs(1);
/// Without data for so long, the memory of empty buffers is given back.
const QUIET: Duration = Duration::from_secs(1);
/// Between looks at a stream that is too full.
const STALL_CHECK: Duration = Duration::from_secs(10);

/// A stream that the client has opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) headers: Headers,
    /// The client will send nothing on it.
    pub(super) ended: bool,
}

/// Decides what a new stream is for.
pub(super) trait Role: Send + 'static {
    /// Accepts, ignores or refuses a stream.
    fn opened(&mut self, streams: &Arc<Streams>, opened: Opened);

    /// When [`Self::expire`] is to be called.
    fn deadline(&self) -> Option<Instant>;

    /// Gives up what has waited for too long.
    fn expire(&mut self, streams: &Streams, now: Instant);

    /// Ready when nobody wants new streams any more.
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// No more streams will come: drops all that waits for them.
    fn close(&mut self);

    /// How many streams belong together; more of them are independent of each other.
    fn together(&self) -> usize;
}

/// Why a connection has ended before its time.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error("the client has left")]
    Left,
    #[error("the connection is broken")]
    Io(#[from] io::Error),
    #[error("the client speaks no SPDY/3.1")]
    Frame(#[from] FrameError),
    #[error("nothing was sent for too long")]
    Idle,
}

/// See the module.
pub(super) struct Connection<S, R> {
    io: S,
    streams: Arc<Streams>,
    role: R,
    decoder: Decoder,
    /// Read and not decoded yet: `start..end`.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// Being sent, from `sent` on.
    flight: Vec<u8>,
    sent: usize,
    unflushed: bool,
    last_stream: u32,
    /// No streams are accepted any more.
    refusing: bool,
    closing: bool,
    pings: u32,
    idle: Duration,
    active: Instant,
    /// There may be large buffers.
    roomy: bool,
    stalled: Option<Instant>,
    clock: Pin<Box<Sleep>>,
}

impl<S, R> Connection<S, R>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: Role,
{
    /// Starts the task.
    pub(super) fn spawn(io: S, streams: Arc<Streams>, role: R, idle: Duration) {
        let now = Instant::now();
        let connection = Self {
            io,
            streams,
            role,
            decoder: Decoder::new(),
            input: vec![0; INPUT].into_boxed_slice(),
            start: 0,
            end: 0,
            flight: Vec::new(),
            sent: 0,
            unflushed: false,
            last_stream: 0,
            refusing: false,
            closing: false,
            pings: 0,
            idle,
            active: now,
            roomy: false,
            stalled: None,
            clock: Box::pin(sleep_until(now + idle)),
        };
        tokio::spawn(connection.run());
    }

    async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.role.close();
        match end {
            Ok(()) => self.linger().await,
            Err(loss) => {
                self.log(&loss);
                self.farewell(&loss).await;
            }
        }
    }

    /// Does all that can be done now. Ready when the connection is closing and all is sent.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Loss>> {
        loop {
            let sent = self.poll_send(cx)?;
            let received = self.poll_receive(cx)?;
            self.poll_clock(cx)?;
            if !self.refusing && self.role.poll_done(cx).is_ready() {
                self.refuse();
            }
            if self.closing && !received && self.all_sent() {
                return Poll::Ready(Ok(()));
            }
            let close = self.refusing && !self.closing && self.streams.is_empty();
            if close {
                self.closing = true;
                self.streams.go_away(self.last_stream, CloseReason::Done);
            }
            if !(sent || received || close) {
                return Poll::Pending;
            }
        }
    }

    /// Sends what waits; whether there may be more to send.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<bool, Loss> {
        if self.sent == self.flight.len() {
            self.roomy |= self.sent > 0;
            self.flight.clear();
            self.sent = 0;
            if self.streams.take_out(cx, &mut self.flight) {
                self.active = Instant::now();
                self.roomy = true;
            }
        }
        while self.sent < self.flight.len() {
            match Pin::new(&mut self.io).poll_write(cx, &self.flight[self.sent..]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(count)) => self.sent += count,
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
            self.unflushed = true;
        }
        let sent = self.sent > 0;
        if self.unflushed && Pin::new(&mut self.io).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(sent)
    }

    fn all_sent(&mut self) -> bool {
        self.sent == self.flight.len() && !self.unflushed && self.streams.nothing_to_send()
    }

    /// Reads and hands out what has come; whether there may be more to read.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<bool, Loss> {
        if self.start < self.end {
            self.decode()?;
        }
        if self.start < self.end || !self.streams.may_read() {
            self.stalled.get_or_insert_with(Instant::now);
            return Ok(false);
        }
        self.stalled = None;
        let mut buffer = ReadBuf::new(&mut self.input);
        if Pin::new(&mut self.io).poll_read(cx, &mut buffer)?.is_pending() {
            return Ok(false);
        }
        self.start = 0;
        self.end = buffer.filled().len();
        if self.end == 0 {
            return Err(Loss::Left);
        }
        self.decode()?;
        Ok(true)
    }

    /// Hands out what was read, as far as it may be.
    fn decode(&mut self) -> Result<(), Loss> {
        while self.streams.may_read() {
            let mut rest = &self.input[self.start..self.end];
            let event = self.decoder.next(&mut rest)?;
            let start = self.end - rest.len();
            match event {
                None => {
                    self.start = self.end;
                    return Ok(());
                }
                Some(Event::Data { stream, bytes, last }) => {
                    known(stream, self.last_stream)?;
                    self.active = Instant::now();
                    self.roomy = true;
                    self.streams.received(stream, bytes, last);
                }
                Some(Event::Open { stream, headers, last, unidirectional }) => {
                    let opened = Opened { id: stream, headers, ended: last };
                    self.opened(opened, unidirectional)?;
                }
                Some(Event::Last { stream }) => self.streams.ended(stream),
                Some(Event::Reset { stream }) => self.streams.was_reset(stream),
                Some(Event::InitialWindow(window)) => self.streams.initial_window(window),
                Some(Event::Window { stream, more }) => self.streams.widened(stream, more),
                // Those with even numbers are answers to ours.
                Some(Event::Ping(id)) if id % 2 == 1 => self.streams.ping(id),
                Some(Event::Ping(_)) => {}
                Some(Event::GoAway) => self.refuse(),
            }
            self.start = start;
        }
        Ok(())
    }

    fn opened(&mut self, opened: Opened, unidirectional: bool) -> Result<(), Loss> {
        if opened.id.is_multiple_of(2) || opened.id <= self.last_stream {
            return Err(FrameError::Stream(opened.id).into());
        }
        self.last_stream = opened.id;
        if self.refusing {
            self.streams.refuse(opened.id, ResetReason::Refused);
        } else if unidirectional {
            self.streams.refuse(opened.id, ResetReason::Protocol);
        } else {
            self.role.opened(&self.streams, opened);
        }
        Ok(())
    }

    /// No more streams.
    fn refuse(&mut self) {
        self.refusing = true;
        self.role.close();
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Result<(), Loss> {
        while self.clock_deadline() < self.clock.deadline() || self.clock.as_mut().poll(cx).is_ready() {
            self.expire()?;
            let next = self.clock_deadline();
            self.clock.as_mut().reset(next);
        }
        Ok(())
    }

    fn clock_deadline(&self) -> Instant {
        let stalled = self.stalled.map(|since| since + STALL_CHECK);
        let quiet = self.roomy.then(|| self.active + QUIET);
        let others = [self.role.deadline(), stalled, quiet];
        others.into_iter().flatten().fold(self.active + self.idle, Instant::min)
    }

    /// Does what is due.
    fn expire(&mut self) -> Result<(), Loss> {
        let now = Instant::now();
        if now >= self.active + self.idle {
            return Err(Loss::Idle);
        }
        if self.roomy && now >= self.active + QUIET {
            self.shrink();
        }
        if self.role.deadline().is_some_and(|deadline| now >= deadline) {
            self.role.expire(&self.streams, now);
        }
        if self.stalled.is_some_and(|since| now >= since + STALL_CHECK) {
            self.stalled = Some(now);
            self.pings = self.pings.wrapping_add(2) & 0x7fff_fffe;
            self.streams.ping(self.pings.max(2));
            self.streams.give_up_fullest(self.role.together());
        }
        Ok(())
    }

    /// Gives back the memory of buffers that are empty.
    fn shrink(&mut self) {
        self.roomy = false;
        if self.flight.len() == self.sent {
            self.flight = Vec::new();
            self.sent = 0;
        }
        self.streams.shrink();
    }

    /// All is sent. Waits until the client has closed, so that nothing that it still has to receive is destroyed.
    async fn linger(mut self) {
        let closed = async {
            self.io.shutdown().await?;
            while self.io.read(&mut self.input).await? > 0 {}
            io::Result::Ok(())
        };
        let result = timeout(LINGER, closed).await;
        debug!(closed = matches!(result, Ok(Ok(()))), "SPDY connection ended");
    }

    fn log(&self, loss: &Loss) {
        let source = std::error::Error::source(loss).map(ToString::to_string);
        debug!(error = %loss, source, "SPDY connection lost");
    }

    /// Tells the client, if it is there, that it is our wish to end.
    async fn farewell(&mut self, loss: &Loss) {
        self.streams.lose();
        let reason = match loss {
            Loss::Frame(_) => CloseReason::Protocol,
            Loss::Idle => CloseReason::Done,
            Loss::Left | Loss::Io(_) => return,
        };
        let mut rest = self.flight.split_off(self.sent);
        super::frame::put_go_away(self.last_stream, reason, &mut rest);
        let told = async {
            self.io.write_all(&rest).await?;
            self.io.shutdown().await
        };
        if !matches!(timeout(FAREWELL, told).await, Ok(Ok(()))) {
            debug!("the client was not told");
        }
    }
}

/// Data comes only for streams that were opened once.
fn known(stream: u32, last_stream: u32) -> Result<(), FrameError> {
    if stream % 2 == 1 && stream <= last_stream { Ok(()) } else { Err(FrameError::Stream(stream)) }
}

impl<S, R> Drop for Connection<S, R> {
    fn drop(&mut self) {
        self.streams.lose();
    }
}
