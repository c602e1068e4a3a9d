//! What a caller sends along with a verb: where the outcome goes, and the span that the work belongs to.

use tokio::sync::oneshot;
use tracing::Span;

use super::super::error::SharedError;
use super::Message;

/// One caller that waits for a verb's outcome.
#[derive(Debug)]
pub(in crate::pod) struct Reply<T> {
    outcome: oneshot::Sender<Result<T, SharedError>>,
    /// The caller's span, none where nothing is traced.
    asker: Span,
}

impl<T> Reply<T> {
    /// For the caller whose task this is.
    pub(in crate::pod) fn channel() -> (Self, oneshot::Receiver<Result<T, SharedError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { outcome: sender, asker: Span::current() }, receiver)
    }

    /// Tells the outcome; gives it back when nobody waits for it any more.
    pub(in crate::pod) fn send(self, outcome: Result<T, SharedError>) -> Result<(), Result<T, SharedError>> {
        self.outcome.send(outcome)
    }

    /// Enters this caller among those who wait. What they wait for is done in the name of the first, so the spans of the
    /// others refer to that one's.
    pub(in crate::pod) fn join(self, waiters: &mut Vec<Self>) {
        if let Some(first) = waiters.first() {
            self.asker.follows_from(&first.asker);
        }
        waiters.push(self);
    }
}

impl Message {
    /// The message with the span of whoever asks; as it is, where nothing is traced.
    pub(super) fn asked_by(self, asker: Span) -> Self {
        if asker.is_disabled() { self } else { Self::Traced(Box::new(self), asker) }
    }
}

/// Messages that wait for an operation's end, each with the span that it came with.
#[derive(Debug, Default)]
pub(in crate::pod) struct Deferred(Vec<Message>);

impl Deferred {
    pub(super) fn push(&mut self, message: Message) {
        self.0.push(message.asked_by(Span::current()));
    }

    pub(super) fn take(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.0)
    }
}
