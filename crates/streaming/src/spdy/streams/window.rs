//! Flow control with clients that know it: how much either side may send.

use super::state::{State, Stream};
use crate::spdy::frame::{self, INITIAL_WINDOW};

/// What the client has said about windows.
#[derive(Debug)]
pub(super) struct Windows {
    /// It has spoken of them.
    pub(super) known: bool,
    pub(super) initial: i64,
    /// Of the connection: [`INITIAL_WINDOW`] and updates, less what was sent.
    pub(super) credit: i64,
    /// What was read of all streams since the client was last told.
    pub(super) owed: u32,
}

impl Windows {
    pub(super) fn new() -> Self {
        let window = i64::from(INITIAL_WINDOW);
        Self { known: false, initial: window, credit: window, owed: 0 }
    }

    /// How much may be sent on a stream.
    pub(super) fn left(&self, stream: &Stream) -> usize {
        if !self.known {
            return usize::MAX;
        }
        let left = self.credit.min(self.initial + stream.credit);
        usize::try_from(left).unwrap_or(0)
    }
}

impl State {
    /// So much data was put into `out`.
    pub(super) fn sent(&mut self, id: u32, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.windows.credit -= count;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.credit -= count;
        }
        self.moved = true;
    }

    /// So much was read and makes room in the windows of the connection and of a stream.
    pub(super) fn owe(&mut self, id: Option<u32>, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.windows.owed = self.windows.owed.saturating_add(count);
        let stream = id.and_then(|id| self.streams.get_mut(&id)).filter(|stream| !stream.ended);
        if let Some(stream) = stream {
            stream.owed = stream.owed.saturating_add(count);
        }
        self.pay(id, INITIAL_WINDOW / 2);
    }

    /// Tells the client what it may send, if that is at least `worth` bytes.
    pub(super) fn pay(&mut self, id: Option<u32>, worth: u32) {
        if !self.windows.known {
            return;
        }
        let of_stream = id.and_then(|id| Some((id, &mut self.streams.get_mut(&id)?.owed)));
        let of_connection = (0, &mut self.windows.owed);
        let mut told = Vec::new();
        for (id, owed) in [Some(of_connection), of_stream].into_iter().flatten() {
            if *owed >= worth {
                told.push((id, std::mem::take(owed)));
            }
        }
        for (id, more) in told {
            self.answer(|state| frame::put_window(id, more, &mut state.out));
        }
    }

    /// The client speaks of windows: from now on it is told of ours, and its own are kept.
    pub(super) fn know_windows(&mut self) {
        if std::mem::replace(&mut self.windows.known, true) {
            return;
        }
        let wider = u32::try_from(self.bounds.connection).unwrap_or(u32::MAX).saturating_sub(INITIAL_WINDOW);
        self.windows.owed = self.windows.owed.saturating_add(wider);
        let streams: Vec<u32> = self.streams.keys().copied().collect();
        for id in streams {
            self.pay(Some(id), 1);
        }
        self.pay(None, 1);
    }
}
