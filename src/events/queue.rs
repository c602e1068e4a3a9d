//! The events that wait for one subscriber.
//!
//! ```text
//! open ──too many wait──▶ ended: Stalled       (what waited is let go of at once)
//!   └────server ends────▶ ended: ShuttingDown  (what waits is read first)
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Event, QUEUE, SubscriptionError};

/// The hub's end.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<Arc<Event>>,
    end: Option<SubscriptionError>,
    reader: Option<Waker>,
}

impl Queue {
    pub(super) fn new(events: Vec<Arc<Event>>) -> Self {
        Self { state: Mutex::new(State { events: events.into(), end: None, reader: None }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is half done when a panic lets go of this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; whether there will be room for others. A queue that runs full has ended.
    pub(super) fn push(&self, event: &Arc<Event>) -> bool {
        let mut state = self.state();
        if state.events.len() >= QUEUE {
            drop(state);
            tracing::warn!(waiting = QUEUE, "a client of container events does not read them and is cut off");
            self.end(SubscriptionError::Stalled);
            return false;
        }
        state.events.push_back(Arc::clone(event));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Ends the subscription.
    pub(super) fn end(&self, reason: SubscriptionError) {
        let mut state = self.state();
        let events = match *state.end.get_or_insert(reason) {
            SubscriptionError::Stalled => std::mem::take(&mut state.events),
            SubscriptionError::ShuttingDown => VecDeque::new(),
        };
        let reader = state.reader.take();
        drop(state);
        drop(events);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Result<Arc<Event>, SubscriptionError>> {
        let mut state = self.state();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Ok(event));
        }
        if let Some(reason) = state.end {
            return Poll::Ready(Err(reason));
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The subscriber's end. The hub forgets it when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
    _reader: Arc<()>,
}

impl Subscription {
    pub(super) fn new(queue: Arc<Queue>, reader: Arc<()>) -> Self {
        Self { queue, _reader: reader }
    }

    /// The next event as soon as there is one; from the end on, its reason.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Arc<Event>, SubscriptionError>> {
        self.queue.poll(context)
    }

    /// The next event.
    ///
    /// # Errors
    /// When the subscription has ended.
    pub async fn next(&mut self) -> Result<Arc<Event>, SubscriptionError> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}
