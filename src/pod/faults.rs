//! Places where a test can break a verb. Without `cfg(test)` this is nothing.

use super::error::StepError;

/// Which step of which verb fails, if any.
#[derive(Debug, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    armed: std::sync::Mutex<Option<(&'static str, &'static str)>>,
    #[cfg(test)]
    pub(super) seen: std::sync::Mutex<std::collections::BTreeSet<(&'static str, &'static str)>>,
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
        let mut armed = self.armed.lock().unwrap();
        if *armed == Some((verb, step)) {
            *armed = None;
            return Err(StepError::Injected);
        }
        Ok(())
    }

    /// Makes the step fail once.
    #[cfg(test)]
    pub(super) fn arm(&self, verb: &'static str, step: &'static str) {
        *self.armed.lock().unwrap() = Some((verb, step));
    }
}
