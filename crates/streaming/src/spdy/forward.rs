//! Forwarded connections: each is a pair of streams, `error` and `data`, with the same header `requestid`.
//!
//! The halves of a pair come one after the other; one that stays alone for too long is reset. There is a bound on pairs, half
//! ones included: what comes beyond it is refused stream by stream, which clients report for that one connection. (Text on an
//! error stream would not do: kubectl closes the whole tunnel when it reads some.)

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Limits;
use super::connection::{Opened, Role};
use super::ends::{StreamReader, StreamWriter};
use super::frame::ResetReason;
use super::streams::{Bounds, Notice, Streams};
use crate::channels::{Forwarded, Forwards};

/// A connection that its pod does not read may fill this before the others have to wait for it, for 30 s at the most.
pub(super) const BOUNDS: Bounds = Bounds { stream: 1024 * 1024, connection: 8 * 1024 * 1024 };

/// So many deadlines are kept without a look at whether they are still needed.
const MANY_DEADLINES: usize = 1024;

/// What a stream is for, from its headers.
struct Wanted {
    request: String,
    port: u16,
    data: bool,
}

/// One half of a pair.
#[derive(Debug)]
enum Half {
    Error(StreamWriter),
    Data(StreamReader, StreamWriter),
}

/// A pair of which one half has come.
#[derive(Debug)]
struct Waiting {
    id: u32,
    port: u16,
    half: Half,
    notice: Notice,
    reset: CancellationToken,
    place: OwnedSemaphorePermit,
}

/// Joins streams to pairs.
pub(super) struct Forward {
    creation: Duration,
    places: Arc<Semaphore>,
    waiting: HashMap<String, Waiting>,
    /// When halves came, with their streams; some have found the other half since.
    deadlines: VecDeque<(Instant, String, u32)>,
    pairs: Option<mpsc::Sender<Forwarded>>,
    unwanted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Forward {
    pub(super) fn new(limits: &Limits) -> (Self, Forwards) {
        let places = limits.pairs.max(1);
        let (pairs, forwards) = mpsc::channel(places);
        let watch = pairs.clone();
        let forward = Self {
            creation: limits.creation,
            places: Arc::new(Semaphore::new(places)),
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            pairs: Some(pairs),
            unwanted: Some(Box::pin(async move { watch.closed().await })),
        };
        (forward, forwards)
    }

    /// The first half of a pair.
    fn begin(&mut self, streams: &Arc<Streams>, opened: &Opened, wanted: Wanted) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            debug!(port = wanted.port, "too many forwarded connections: one more is refused");
            return streams.refuse(opened.id, ResetReason::Refused);
        };
        let reset = CancellationToken::new();
        let notice = Notice::of(reset.clone()).and_of_the_last();
        let half = accept(streams, opened, &wanted, notice.clone());
        let waiting = Waiting { id: opened.id, port: wanted.port, half, notice, reset, place };
        self.forget_deadlines();
        self.deadlines.push_back((Instant::now() + self.creation, wanted.request.clone(), opened.id));
        self.waiting.insert(wanted.request, waiting);
    }

    /// The second half.
    fn complete(&mut self, streams: &Arc<Streams>, opened: &Opened, wanted: &Wanted, first: Waiting) {
        let second = accept(streams, opened, wanted, first.notice);
        let (port, (input, output), error) = match (first.half, second) {
            (Half::Error(error), Half::Data(reader, writer)) => (wanted.port, (reader, writer), error),
            (Half::Data(reader, writer), Half::Error(error)) => (first.port, (reader, writer), error),
            _ => return,
        };
        watch_reset(Arc::clone(streams), first.reset.clone(), [first.id, opened.id], first.place);
        let forwarded = Forwarded {
            port,
            input: Box::new(input),
            output: Box::new(output),
            error: Box::new(error),
            reset: first.reset,
        };
        if let Some(pairs) = &self.pairs {
            // There is room for as many as there are places. Who has left wants none.
            drop(pairs.try_send(forwarded));
        }
    }

    /// Forgets the deadlines of halves that have found each other: those in front, and all when there are many.
    fn forget_deadlines(&mut self) {
        let waiting = &self.waiting;
        let waits = |(_, request, id): &(Instant, String, u32)| {
            waiting.get(request).is_some_and(|half| half.id == *id)
        };
        while self.deadlines.front().is_some_and(|front| !waits(front)) {
            self.deadlines.pop_front();
        }
        if self.deadlines.len() > MANY_DEADLINES.max(2 * waiting.len()) {
            self.deadlines.retain(waits);
        }
    }
}

impl Role for Forward {
    fn opened(&mut self, streams: &Arc<Streams>, opened: Opened) {
        let Some(wanted) = Wanted::read(&opened) else {
            debug!(headers = ?opened.headers, "a stream that is no forwarded connection is refused");
            return streams.refuse(opened.id, ResetReason::Cancel);
        };
        match self.waiting.remove(&wanted.request) {
            None => self.begin(streams, &opened, wanted),
            Some(first) if first.is_data() == wanted.data => {
                streams.refuse(opened.id, ResetReason::Protocol);
                self.waiting.insert(wanted.request, first);
            }
            Some(first) => self.complete(streams, &opened, &wanted, first),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, ..)| *deadline)
    }

    fn expire(&mut self, streams: &Streams, now: Instant) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            let Some((_, request, id)) = self.deadlines.pop_front() else { return };
            if self.waiting.get(&request).is_some_and(|half| half.id == id) {
                debug!(request, "the other stream of a forwarded connection has not come");
                streams.reset(id, ResetReason::Cancel);
                self.waiting.remove(&request);
            }
        }
    }

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.unwanted.as_mut().map_or(Poll::Ready(()), |unwanted| unwanted.as_mut().poll(cx))
    }

    fn close(&mut self) {
        self.waiting.clear();
        self.deadlines.clear();
        self.pairs = None;
        self.unwanted = None;
    }

    fn together(&self) -> usize {
        2
    }
}

impl Waiting {
    fn is_data(&self) -> bool {
        matches!(self.half, Half::Data(..))
    }
}

impl Wanted {
    /// `None` if the headers make no sense.
    fn read(opened: &Opened) -> Option<Self> {
        let port = opened.headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
        let data = match opened.headers.get("streamtype")? {
            "data" => true,
            "error" => false,
            _ => return None,
        };
        // Old clients send no request: they open the error stream and right after it the data stream.
        let of_error = if data { opened.id.saturating_sub(2) } else { opened.id };
        let request = opened.headers.get("requestid").filter(|request| !request.is_empty());
        Some(Self { request: request.map_or_else(|| of_error.to_string(), str::to_owned), port, data })
    }
}

fn accept(streams: &Arc<Streams>, opened: &Opened, wanted: &Wanted, notice: Notice) -> Half {
    if wanted.data {
        let (reader, writer) = streams.accept(opened.id, opened.ended, notice);
        Half::Data(reader, writer)
    } else {
        Half::Error(streams.accept_output(opened.id, opened.ended, notice))
    }
}

/// Resets both streams of a pair when its user says so. The place is free once both are gone.
fn watch_reset(streams: Arc<Streams>, reset: CancellationToken, ids: [u32; 2], place: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        reset.cancelled().await;
        for id in ids {
            streams.reset(id, ResetReason::Cancel);
        }
        drop(place);
    });
}
