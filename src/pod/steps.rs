//! Runs the named steps of a verb: times each, logs it, shows it among the operations in flight ([`crate::tasks`]), names it in the
//! error, and lets a test break it ([`super::faults`]).
//! Whatever has an effect is a step, that of undoing and of recovery included.

use std::future::Future;
use std::time::{Duration, Instant};

use tracing::Instrument as _;

use super::error::{PodError, StepError};
use super::shared::Shared;
use super::trace;
use crate::tasks::{Stage, Task};

/// One verb on one object, under way.
#[derive(Debug, Clone)]
pub(super) struct Steps<'a> {
    shared: &'a Shared,
    begun: Instant,
    verb: &'static str,
    /// Names the object; in flight as long as any of its steps may come.
    task: Task,
}

impl<'a> Steps<'a> {
    /// `object` names it in errors; `id` stands in logs only.
    pub(super) fn new(shared: &'a Shared, verb: &'static str, object: String, id: &str) -> Self {
        Self {
            shared,
            begun: Instant::now(),
            verb,
            task: shared.in_flight.begin(verb, object, id.to_owned()),
        }
    }

    /// Steps of an operation that is in flight already.
    pub(super) fn of(shared: &'a Shared, task: &Task) -> Self {
        Self { shared, begun: Instant::now(), verb: task.verb(), task: task.clone() }
    }

    /// Shows that nothing is done for a while, on purpose; it is over when the value is dropped.
    pub(super) fn waits(&self, what: &'static str) -> Stage<'_> {
        self.task.waits(what)
    }

    /// Performs one step.
    pub(super) async fn run<T, E: Into<StepError>>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, PodError> {
        let begun = Instant::now();
        let _stage = self.task.stage(step);
        let work = async { work.await.map_err(Into::into) };
        let span = trace::step(self.shared, self.verb, step, self.task.id());
        let result = self.shared.faults.around(self.verb, step, work).instrument(span.clone()).await;
        let taken = begun.elapsed();
        self.tell(step, taken, result.is_ok());
        let elapsed_ms = taken.as_secs_f64() * 1000.0;
        match result {
            Ok(value) => {
                tracing::debug!(target: "crimson::step", op = self.verb, step, id = %self.task.id(), elapsed_ms, "done");
                Ok(value)
            }
            Err(source) => {
                trace::failed(&span, &source);
                let error = types::error::chain(&source);
                tracing::warn!(target: "crimson::step", op = self.verb, step, id = %self.task.id(), elapsed_ms, error, "failed");
                Err(self.fail(step, source))
            }
        }
    }

    /// Performs one step on whose failure nothing hangs: it is logged. Says whether it succeeded.
    pub(super) async fn attempt<E: Into<StepError>>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<(), E>>,
    ) -> bool {
        self.run(step, work).await.is_ok()
    }

    /// Logs a part of a step that somebody else has measured.
    pub(super) fn part(&self, step: &'static str, taken: Duration) {
        self.tell(step, taken, true);
        let elapsed_ms = taken.as_secs_f64() * 1000.0;
        tracing::debug!(target: "crimson::step", op = self.verb, step, id = %self.task.id(), elapsed_ms, "done");
    }

    /// The verb as a whole has ended.
    pub(super) fn ended(&self, succeeded: bool) {
        if let Some(observer) = self.shared.observer.get() {
            observer.verb(self.verb, self.begun.elapsed(), succeeded);
        }
    }

    fn tell(&self, step: &'static str, taken: Duration, succeeded: bool) {
        if let Some(observer) = self.shared.observer.get() {
            observer.step(self.verb, step, taken, succeeded);
        }
    }

    /// The error of a step that failed outside [`Steps::run`].
    pub(super) fn fail(&self, step: &'static str, source: StepError) -> PodError {
        match source {
            // These messages begin with a prefix that kubelet matches.
            StepError::Spec(error) => PodError::Spec(error),
            StepError::ImageVolume(error) => PodError::ImageVolume(error),
            StepError::Invalid(text) => PodError::Invalid(text),
            source => PodError::Step {
                verb: self.verb,
                object: self.task.object().to_owned(),
                step,
                source: Box::new(source),
            },
        }
    }
}
