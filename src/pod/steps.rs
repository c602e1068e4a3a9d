//! Runs the named steps of a verb: times each, logs it, names it in the error, and lets a test break it.

use std::future::Future;
use std::time::{Duration, Instant};

use super::error::{PodError, StepError};
use super::shared::Shared;

/// One verb on one object, under way.
#[derive(Debug, Clone)]
pub(super) struct Steps<'a> {
    shared: &'a Shared,
    verb: &'static str,
    object: String,
    id: String,
}

impl<'a> Steps<'a> {
    /// `object` names it in errors; `id` stands in logs only.
    pub(super) fn new(shared: &'a Shared, verb: &'static str, object: String, id: &str) -> Self {
        Self { shared, verb, object, id: id.to_owned() }
    }

    /// Performs one step.
    pub(super) async fn run<T, E: Into<StepError>>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, PodError> {
        let begun = Instant::now();
        let result = match self.shared.faults.strike(self.verb, step).await {
            Ok(()) => work.await.map_err(Into::into),
            Err(fault) => Err(fault),
        };
        let elapsed_ms = begun.elapsed().as_secs_f64() * 1000.0;
        match result {
            Ok(value) => {
                tracing::debug!(target: "crimson::step", op = self.verb, step, id = %self.id, elapsed_ms, "done");
                Ok(value)
            }
            Err(source) => {
                let error = types::error::chain(&source);
                tracing::warn!(target: "crimson::step", op = self.verb, step, id = %self.id, elapsed_ms, error, "failed");
                Err(self.fail(step, source))
            }
        }
    }

    /// Logs a part of a step that somebody else has measured.
    pub(super) fn part(&self, step: &'static str, taken: Duration) {
        let elapsed_ms = taken.as_secs_f64() * 1000.0;
        tracing::debug!(target: "crimson::step", op = self.verb, step, id = %self.id, elapsed_ms, "done");
    }

    /// The error of a step that failed outside [`Steps::run`].
    pub(super) fn fail(&self, step: &'static str, source: StepError) -> PodError {
        match source {
            // These messages begin with a prefix that kubelet matches.
            StepError::Spec(error) => PodError::Spec(error),
            StepError::Invalid(text) => PodError::Invalid(text),
            source => PodError::Step {
                verb: self.verb,
                object: self.object.clone(),
                step,
                source: Box::new(source),
            },
        }
    }
}
