//! Places where a test can break a verb, or end the server in the middle of it. Without `cfg(test)` this is nothing.

use super::error::StepError;

/// What happens at the step that is armed.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strike {
    /// It fails without having done anything.
    Fail,
    /// It is never begun, and nothing after it: the test ends the server when it hears of it.
    Crash,
}

/// Which step of which verb is struck, if any.
#[derive(Debug, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    armed: std::sync::Mutex<Option<(&'static str, &'static str, Strike)>>,
    #[cfg(test)]
    pub(super) seen: std::sync::Mutex<std::collections::BTreeSet<(&'static str, &'static str)>>,
    /// Told when a crash is due.
    #[cfg(test)]
    pub(super) crashed: tokio::sync::Notify,
}

impl Faults {
    /// Fails when this step is armed.
    #[cfg(not(test))]
    #[expect(clippy::unused_async, reason = "the test build waits here")]
    pub(super) async fn strike(&self, _verb: &'static str, _step: &'static str) -> Result<(), StepError> {
        Ok(())
    }

    /// Fails when this step is armed, and notes that it was reached.
    #[cfg(test)]
    pub(super) async fn strike(&self, verb: &'static str, step: &'static str) -> Result<(), StepError> {
        self.seen.lock().unwrap().insert((verb, step));
        match self.due(verb, step) {
            None => Ok(()),
            Some(Strike::Fail) => Err(StepError::Injected),
            Some(Strike::Crash) => {
                self.crashed.notify_one();
                std::future::pending().await
            }
        }
    }

    #[cfg(test)]
    fn due(&self, verb: &'static str, step: &'static str) -> Option<Strike> {
        let mut armed = self.armed.lock().unwrap();
        let (_, _, strike) = armed.take_if(|(at, of, _)| (*at, *of) == (verb, step))?;
        Some(strike)
    }

    /// Makes the step fail once.
    #[cfg(test)]
    pub(super) fn arm(&self, verb: &'static str, step: &'static str) {
        *self.armed.lock().unwrap() = Some((verb, step, Strike::Fail));
    }

    /// Makes the step the last that is reached.
    #[cfg(test)]
    pub(super) fn arm_crash(&self, verb: &'static str, step: &'static str) {
        *self.armed.lock().unwrap() = Some((verb, step, Strike::Crash));
    }
}
