//! The streams of one connection: what has come for each and is not read yet, and what waits to be sent.
//!
//! Shared by the connection's task, which moves bytes between here and the network, and by the two ends of each stream
//! ([`super::ends`]), which sessions hold. A stream is kept while one of its ends is. Who drops the writing end says that
//! nothing follows; who drops the reading end before the client has ended it resets the stream once the other end is gone too.
//!
//! Bounds. Writers wait while [`OUT_BOUND`] bytes are to be sent, so one connection has at most twice that and two writes
//! ([`MAX_WRITE`]) waiting, and answers. What comes for a stream has a bound of its own and one for all streams ([`Bounds`]);
//! beyond it the connection is not read any further until the fullest stream has been read half empty. Clients that know windows
//! never get there. Those of Kubernetes know none: they send what they have, and handle updates of windows like data, in queues of
//! which one that is not read holds up the others. That is why nobody is told of windows who has not spoken of them first.

mod state;
mod window;

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ends::{StreamReader, StreamWriter};
use super::frame::{self, CloseReason, ResetReason};
use state::{State, Stream};

/// Writers wait while so much is to be sent.
pub(super) const OUT_BOUND: usize = 128 * 1024;
/// The most that one write takes: what a pipe holds.
pub(super) const MAX_WRITE: usize = 64 * 1024;
/// The most that is sent in one frame. Go's library takes time for each frame rather than for each byte.
const MAX_FRAME: usize = 128 * 1024;
/// Nothing is read while so much is to be answered.
const ANSWER_BOUND: usize = 64 * 1024;
/// A buffer that has been empty for a while keeps no more than this.
const KEPT: usize = 4 * 1024;
/// A stream that is too full is left alone for so long, if it holds up others.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much may have come that is not read. What one read from the network brings may exceed it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// For one stream.
    pub(super) stream: usize,
    /// For all of them.
    pub(super) connection: usize,
}

/// Tells a stream's user that the client has reset it.
#[derive(Debug, Clone, Default)]
pub(super) struct Notice {
    token: CancellationToken,
    guard: Option<Arc<DropGuard>>,
}

impl Notice {
    /// Cancels `token` when a stream that has this notice is reset, or the connection lost.
    pub(super) fn of(token: CancellationToken) -> Self {
        Self { token, guard: None }
    }

    /// Cancels it also when all streams with clones of this notice are gone.
    pub(super) fn and_of_the_last(mut self) -> Self {
        self.guard = Some(Arc::new(self.token.clone().drop_guard()));
        self
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    state: Mutex<State>,
}

impl Streams {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(bounds)) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For those who decide about new streams.
impl Streams {
    /// Accepts a stream that only the client writes to.
    pub(super) fn accept_input(self: &Arc<Self>, id: u32, ended: bool, notice: Notice) -> StreamReader {
        self.lock().accept(id, Stream::new(ended, 1, true, notice));
        StreamReader::new(Arc::clone(self), id)
    }

    /// Accepts a stream that only we write to.
    pub(super) fn accept_output(self: &Arc<Self>, id: u32, ended: bool, notice: Notice) -> StreamWriter {
        self.lock().accept(id, Stream::new(ended, 1, false, notice));
        StreamWriter::new(Arc::clone(self), id)
    }

    /// Accepts a stream that both write to.
    pub(super) fn accept(
        self: &Arc<Self>,
        id: u32,
        ended: bool,
        notice: Notice,
    ) -> (StreamReader, StreamWriter) {
        self.lock().accept(id, Stream::new(ended, 2, true, notice));
        (StreamReader::new(Arc::clone(self), id), StreamWriter::new(Arc::clone(self), id))
    }

    /// Accepts a stream of which nobody here knows what it is for. What comes is thrown away.
    pub(super) fn ignore(&self, id: u32) {
        self.lock().answer(|state| frame::put_reply(id, true, &mut state.replies, &mut state.out));
    }

    /// Does not accept a stream.
    pub(super) fn refuse(&self, id: u32, reason: ResetReason) {
        self.lock().answer(|state| frame::put_reset(id, reason, &mut state.out));
    }

    /// Ends a stream in both directions, if it still exists. When the connection is lost, what has come can still be read.
    pub(super) fn reset(&self, id: u32, reason: ResetReason) {
        let mut state = self.lock();
        if !state.lost && state.break_off(id) {
            state.answer(|state| frame::put_reset(id, reason, &mut state.out));
        }
    }
}

/// For the connection's task.
impl Streams {
    /// Data has come.
    pub(super) fn received(&self, id: u32, bytes: &[u8], last: bool) {
        let mut state = self.lock();
        state.received(id, bytes);
        if last {
            state.ended(id);
        }
    }

    /// Nothing more will come for this stream.
    pub(super) fn ended(&self, id: u32) {
        self.lock().ended(id);
    }

    /// The client has reset a stream.
    pub(super) fn was_reset(&self, id: u32) {
        let mut state = self.lock();
        state.break_off(id);
        if let Some(stream) = state.streams.get(&id) {
            stream.notice.token.cancel();
        }
    }

    /// The client has said with which window streams begin.
    pub(super) fn initial_window(&self, window: u32) {
        let mut state = self.lock();
        state.windows.initial = i64::from(window);
        state.know_windows();
        state.wake_writers();
    }

    /// The client has widened a window.
    pub(super) fn widened(&self, id: u32, more: u32) {
        let mut state = self.lock();
        state.know_windows();
        if id == 0 {
            state.windows.credit += i64::from(more);
        } else if let Some(stream) = state.streams.get_mut(&id) {
            stream.credit += i64::from(more);
        }
        state.wake_writers();
    }

    /// A ping, or the answer to one.
    pub(super) fn ping(&self, id: u32) {
        self.lock().answer(|state| frame::put_ping(id, &mut state.out));
    }

    /// Tells the client that the connection ends.
    pub(super) fn go_away(&self, last_stream: u32, reason: CloseReason) {
        self.lock().answer(|state| frame::put_go_away(last_stream, reason, &mut state.out));
    }

    /// Moves what is to be sent into `flight`, which is empty, and says whether data is among it. The task is woken when there
    /// is more, when reading may go on, and when a stream has gone.
    pub(super) fn take_out(&self, cx: &Context<'_>, flight: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        state.remember(cx);
        if state.out.is_empty() {
            return false;
        }
        std::mem::swap(&mut state.out, flight);
        state.answers = 0;
        state.last = None;
        state.wake_writers();
        std::mem::take(&mut state.moved)
    }

    /// Gives back the memory of buffers that are empty.
    pub(super) fn shrink(&self) {
        let mut state = self.lock();
        state.out.shrink_to(KEPT);
        for stream in state.streams.values_mut() {
            stream.received.shrink_to(KEPT);
        }
    }

    /// Whether anything is to be read now.
    pub(super) fn may_read(&self) -> bool {
        let state = self.lock();
        state.full.is_none() && state.answers <= ANSWER_BOUND
    }

    /// Nothing has been read for a while. When that is because of one stream, and there are others, that one is given up.
    pub(super) fn give_up_fullest(&self, pair: usize) {
        let state = self.lock();
        let Some(full) = state.full else { return };
        if full.since.elapsed() < PATIENCE || state.streams.len() <= pair {
            return;
        }
        drop(state);
        self.reset(full.stream, ResetReason::FlowControl);
        self.was_reset(full.stream);
    }

    /// Whether nobody has an end of a stream.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().streams.is_empty()
    }

    /// Whether there is nothing that [`Self::take_out`] would move.
    pub(super) fn nothing_to_send(&self) -> bool {
        self.lock().out.is_empty()
    }

    /// The connection is lost: readers get what has come and then an error, writers an error.
    pub(super) fn lose(&self) {
        let mut state = self.lock();
        state.lost = true;
        state.task = None;
        state.out = Vec::new();
        for stream in state.streams.values_mut() {
            stream.wake();
            stream.notice.token.cancel();
        }
    }
}

/// For the ends.
impl Streams {
    pub(super) fn poll_read(&self, id: u32, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let lost = state.lost;
        let Some(stream) = state.streams.get_mut(&id) else {
            return Poll::Ready(Err(ErrorKind::NotConnected.into()));
        };
        if stream.reset {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        if stream.received.is_empty() {
            return match (stream.ended, lost) {
                (true, _) => Poll::Ready(Ok(())),
                (false, true) => Poll::Ready(Err(ErrorKind::ConnectionAborted.into())),
                (false, false) => {
                    stream.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let (front, _) = stream.received.as_slices();
        let count = front.len().min(buf.remaining());
        buf.put_slice(&front[..count]);
        stream.received.drain(..count);
        state.was_read(id, count);
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&self, id: u32, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let stream = state.streams.get(&id).filter(|stream| !state.lost && !stream.reset && !stream.finished);
        let Some(stream) = stream else { return Poll::Ready(Err(ErrorKind::BrokenPipe.into())) };
        let window = state.windows.left(stream);
        let count = bytes.len().min(MAX_WRITE).min(window);
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if count == 0 || state.out.len() >= OUT_BOUND {
            state.wait(id, cx);
            return Poll::Pending;
        }
        state.put_data(id, &bytes[..count]);
        state.sent(id, count);
        Poll::Ready(Ok(count))
    }

    /// Says that nothing more will be written.
    pub(super) fn finish(&self, id: u32) {
        self.lock().finish(id);
    }

    /// An end is dropped.
    pub(super) fn release(&self, id: u32, reading: bool) {
        self.lock().release(id, reading);
    }
}
