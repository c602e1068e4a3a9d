//! The streams of exec and attach: one for each channel, named by the header `streamtype`.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Version;
use super::connection::{Opened, Role};
use super::ends::{StreamReader, StreamWriter};
use super::frame::ResetReason;
use super::streams::{Bounds, Notice, Streams as Shared};
use crate::backend::Streams;
use crate::channels::Channels;

/// Input that the process does not read. Nobody but its own client waits when it is full.
pub(super) const BOUNDS: Bounds = Bounds { stream: 256 * 1024, connection: 512 * 1024 };
/// Streams that nobody has asked for are accepted, as other servers do, but not without end.
const MAX_STREAMS: usize = 16;

/// Collects the streams of a session until they are complete.
pub(super) struct Command {
    expected: Streams,
    version: Version,
    streams: usize,
    stdin: Option<StreamReader>,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    resize: Option<StreamReader>,
    error: Option<StreamWriter>,
    gone: CancellationToken,
    ready: Option<oneshot::Sender<Channels>>,
}

impl Command {
    pub(super) fn new(version: Version, expected: Streams, ready: oneshot::Sender<Channels>) -> Self {
        Self {
            expected,
            version,
            streams: 0,
            stdin: None,
            stdout: None,
            stderr: None,
            resize: None,
            error: None,
            gone: CancellationToken::new(),
            ready: Some(ready),
        }
    }

    fn resizes(&self) -> bool {
        self.expected.tty && self.version.resizes()
    }

    fn is_complete(&self) -> bool {
        self.error.is_some()
            && self.stdin.is_some() == self.expected.stdin
            && self.stdout.is_some() == self.expected.stdout
            && self.stderr.is_some() == self.expected.stderr
            && self.resize.is_some() == self.resizes()
    }

    /// Accepts a stream if it is one of those that are waited for.
    fn accept(&mut self, shared: &Arc<Shared>, opened: &Opened) {
        let (id, ended) = (opened.id, opened.ended);
        let resizes = self.resizes();
        let kind = opened.headers.get("streamtype");
        // A client that wants to hear no more about how it ends has left.
        let notice = if kind == Some("error") { Notice::of(self.gone.clone()) } else { Notice::default() };
        let (output, input) = match kind {
            Some("error") => (Some(&mut self.error), None),
            Some("stdin") if self.expected.stdin => (None, Some(&mut self.stdin)),
            Some("stdout") if self.expected.stdout => (Some(&mut self.stdout), None),
            Some("stderr") if self.expected.stderr => (Some(&mut self.stderr), None),
            Some("resize") if resizes => (None, Some(&mut self.resize)),
            _ => return shared.ignore(id),
        };
        match (output, input) {
            (Some(slot), _) if slot.is_none() => *slot = Some(shared.accept_output(id, ended, notice)),
            (_, Some(slot)) if slot.is_none() => *slot = Some(shared.accept_input(id, ended, notice)),
            _ => shared.refuse(id, ResetReason::Protocol),
        }
    }

    /// Hands the channels over once they are complete.
    fn hand_over(&mut self) {
        if !self.is_complete() {
            return;
        }
        let (Some(error), Some(ready)) = (self.error.take(), self.ready.take()) else { return };
        let channels = Channels {
            stdin: self.stdin.take().map(|reader| Box::new(reader) as _),
            stdout: self.stdout.take().map(|writer| Box::new(writer) as _),
            stderr: self.stderr.take().map(|writer| Box::new(writer) as _),
            resize: self.resize.take().map(|reader| Box::new(reader) as _),
            error: Box::new(error),
            status: self.version.status_form(),
            gone: self.gone.clone(),
        };
        // Who has waited for them may have given up: they are dropped then.
        drop(ready.send(channels));
    }
}

impl Role for Command {
    fn opened(&mut self, shared: &Arc<Shared>, opened: Opened) {
        self.streams += 1;
        if self.ready.is_none() || self.streams > MAX_STREAMS {
            return shared.refuse(opened.id, ResetReason::Refused);
        }
        self.accept(shared, &opened);
        self.hand_over();
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn expire(&mut self, _: &Shared, _: Instant) {}

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ready.as_mut().map_or(Poll::Ready(()), |ready| ready.poll_closed(cx))
    }

    fn close(&mut self) {
        self.ready = None;
        (self.stdin, self.stdout, self.stderr, self.resize, self.error) = (None, None, None, None, None);
    }

    fn together(&self) -> usize {
        usize::MAX
    }
}
