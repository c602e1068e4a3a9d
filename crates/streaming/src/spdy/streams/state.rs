//! What the streams of a connection consist of, behind the lock.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Waker};

use tokio::time::Instant;

use super::window::Windows;
use super::{Bounds, MAX_FRAME, Notice};
use crate::spdy::frame::{self, ResetReason};
use crate::spdy::headers::HeaderWriter;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Come and not read.
    pub(super) received: VecDeque<u8>,
    /// The client sends nothing more.
    pub(super) ended: bool,
    /// We send nothing more.
    pub(super) finished: bool,
    /// Nothing is possible any more in either direction.
    pub(super) reset: bool,
    /// Its reading end exists; what comes is thrown away otherwise.
    pub(super) read: bool,
    /// It had a reading end.
    pub(super) was_read: bool,
    pub(super) ends: u8,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Of what we may send: the client's updates, less what was sent.
    pub(super) credit: i64,
    /// What was read since the client was last told.
    pub(super) owed: u32,
    pub(super) notice: Notice,
}

/// The stream because of which nothing is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Full {
    pub(super) stream: u32,
    /// When it was last read.
    pub(super) since: Instant,
}

/// Everything that is shared.
#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: HashMap<u32, Stream>,
    pub(super) bounds: Bounds,
    /// Frames to be sent.
    pub(super) out: Vec<u8>,
    /// How much of them is not data.
    pub(super) answers: usize,
    /// The last of them, if it is data: its stream, and where it begins.
    pub(super) last: Option<(u32, usize)>,
    /// Whether there is data among them.
    pub(super) moved: bool,
    pub(super) replies: HeaderWriter,
    /// Streams whose writers wait.
    pub(super) waiting: Vec<u32>,
    /// Come and not read, of all streams.
    pub(super) held: usize,
    pub(super) full: Option<Full>,
    pub(super) windows: Windows,
    pub(super) task: Option<Waker>,
    pub(super) lost: bool,
}

impl Stream {
    pub(super) fn new(ended: bool, ends: u8, read: bool, notice: Notice) -> Self {
        Self {
            received: VecDeque::new(),
            ended,
            finished: false,
            reset: false,
            read,
            was_read: read,
            ends,
            reader: None,
            writer: None,
            credit: 0,
            owed: 0,
            notice,
        }
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl State {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            streams: HashMap::new(),
            bounds,
            out: Vec::new(),
            answers: 0,
            last: None,
            moved: false,
            replies: HeaderWriter::default(),
            waiting: Vec::new(),
            held: 0,
            full: None,
            windows: Windows::new(),
            task: None,
            lost: false,
        }
    }

    pub(super) fn accept(&mut self, id: u32, stream: Stream) {
        self.streams.insert(id, stream);
        self.answer(|state| frame::put_reply(id, false, &mut state.replies, &mut state.out));
    }

    /// Has something sent that is no data.
    pub(super) fn answer(&mut self, put: impl FnOnce(&mut Self)) {
        if self.lost {
            return;
        }
        let before = self.out.len();
        put(self);
        self.answers += self.out.len() - before;
        self.last = None;
        self.wake_sender(before);
    }

    /// Has data sent, in the frame that is there already if it is for the same stream.
    pub(super) fn put_data(&mut self, id: u32, bytes: &[u8]) {
        let before = self.out.len();
        match self.last {
            Some((stream, begin)) if stream == id && before - begin + bytes.len() <= MAX_FRAME => {
                frame::extend_data(begin, bytes, &mut self.out);
            }
            _ => {
                self.last = Some((id, before));
                frame::put_data(id, bytes, false, &mut self.out);
            }
        }
        self.wake_sender(before);
    }

    pub(super) fn received(&mut self, id: u32, bytes: &[u8]) {
        self.moved = true;
        let Some(stream) =
            self.streams.get_mut(&id).filter(|stream| stream.read && !stream.reset && !stream.ended)
        else {
            self.owe(None, bytes.len());
            return;
        };
        stream.received.extend(bytes);
        let filled = stream.received.len();
        if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
        self.held += bytes.len();
        if filled > self.bounds.stream {
            self.full = Some(Full { stream: id, since: Instant::now() });
        } else if self.held > self.bounds.connection {
            self.full = self.fullest();
        }
    }

    pub(super) fn fullest(&self) -> Option<Full> {
        let (&stream, _) = self.streams.iter().max_by_key(|(_, stream)| stream.received.len())?;
        Some(Full { stream, since: Instant::now() })
    }

    pub(super) fn ended(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ended = true;
        if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
    }

    /// So many bytes of a stream were read.
    pub(super) fn was_read(&mut self, id: u32, count: usize) {
        self.owe(Some(id), count);
        self.lighten(count);
        if let Some(full) = self.full.as_mut().filter(|full| full.stream == id) {
            full.since = Instant::now();
        }
    }

    /// So many bytes less are held. When the fullest stream is half empty, and all together hold less than their bound, the
    /// connection is read again.
    pub(super) fn lighten(&mut self, count: usize) {
        self.held = self.held.saturating_sub(count);
        let Some(full) = self.full else { return };
        let filled = self.streams.get(&full.stream).map_or(0, |stream| stream.received.len());
        if filled > self.bounds.stream / 2 {
            return;
        }
        self.full = if self.held > self.bounds.connection { self.fullest() } else { None };
        if self.full.is_none() {
            self.wake_task();
        }
    }

    /// Ends a stream in both directions; whether it was there to be ended.
    pub(super) fn break_off(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.reset) else { return false };
        stream.reset = true;
        stream.wake();
        let dropped = std::mem::take(&mut stream.received).len();
        self.owe(None, dropped);
        self.lighten(dropped);
        true
    }

    pub(super) fn finish(&mut self, id: u32) {
        let lost = self.lost;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if std::mem::replace(&mut stream.finished, true) || stream.reset || lost {
            return;
        }
        self.answer(|state| frame::put_data(id, &[], true, &mut state.out));
    }

    pub(super) fn release(&mut self, id: u32, reading: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ends -= 1;
        let gone = stream.ends == 0;
        if reading {
            stream.read = false;
            let dropped = std::mem::take(&mut stream.received).len();
            self.owe(None, dropped);
            self.lighten(dropped);
        }
        if gone {
            self.finish(id);
            self.forget(id);
        }
    }

    /// Nobody has an end of the stream any more.
    pub(super) fn forget(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        if stream.was_read && !stream.ended && !stream.reset {
            self.answer(|state| frame::put_reset(id, ResetReason::Cancel, &mut state.out));
        }
        if self.full.is_some_and(|full| full.stream == id) {
            self.lighten(0);
        }
        self.wake_task();
    }

    /// A writer waits.
    pub(super) fn wait(&mut self, id: u32, cx: &Context<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.writer.replace(cx.waker().clone()).is_none() {
            self.waiting.push(id);
        }
    }

    pub(super) fn wake_writers(&mut self) {
        for id in std::mem::take(&mut self.waiting) {
            if let Some(writer) = self.streams.get_mut(&id).and_then(|stream| stream.writer.take()) {
                writer.wake();
            }
        }
    }

    pub(super) fn remember(&mut self, cx: &Context<'_>) {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    /// Something was put into `out`, where there were `before` bytes. If there were any, the task will come for them anyway.
    pub(super) fn wake_sender(&self, before: usize) {
        if before == 0 {
            self.wake_task();
        }
    }

    pub(super) fn wake_task(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }
}
