//! StopContainer: asks once, kills when the grace is over, returns when the exit is recorded.

use std::sync::Arc;
use std::time::Duration;

use monitor_api::Monitor;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{ErrorKind, Kind};

use super::error::{PodError, StepError};
use super::record::ContainerRecord;
use super::shared::Shared;
use super::steps::Steps;
use super::teardown;
use super::view::{ContainerState, PodView};

/// How long a killed container may take to be seen dead.
const KILL_WAIT: Duration = Duration::from_secs(30);
const SIGKILL: i32 = 9;

/// The moment at which a container is killed. Later calls may only bring it nearer.
#[derive(Debug)]
pub(super) struct Deadline(watch::Sender<Instant>);

impl Deadline {
    pub(super) fn new(grace: Duration) -> Self {
        Self(watch::Sender::new(after(grace)))
    }

    /// Moves the deadline if this is earlier.
    pub(super) fn shorten(&self, grace: Duration) {
        let candidate = after(grace);
        self.0.send_if_modified(|at| {
            let earlier = candidate < *at;
            if earlier {
                *at = candidate;
            }
            earlier
        });
    }

    fn is_past(&self) -> bool {
        *self.0.borrow() <= Instant::now()
    }

    /// Returns when the deadline, as it then stands, has passed.
    async fn passed(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let at = *changes.borrow_and_update();
            // Both arms may be dropped at any point: a timer and a change notice hold no state of ours.
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn after(grace: Duration) -> Instant {
    let now = Instant::now();
    // Kubelet may send i64::MAX seconds; a year is as good.
    now.checked_add(grace).unwrap_or_else(|| now + Duration::from_secs(365 * 86_400))
}

/// One stop under way.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) shared: Arc<Shared>,
    pub(super) record: ContainerRecord,
    pub(super) monitor: Option<Arc<dyn Monitor>>,
    pub(super) view: watch::Receiver<Arc<PodView>>,
    pub(super) deadline: Arc<Deadline>,
}

impl Stop {
    pub(super) async fn run(mut self) -> Result<(), PodError> {
        let shared = Arc::clone(&self.shared);
        let id = self.record.id.to_string();
        let steps = Steps::new(&shared, "stop container", self.record.display(), &id);
        if !self.deadline.is_past() {
            steps.run("signal", self.ask()).await?;
            let deadline = Arc::clone(&self.deadline);
            let _grace = steps.waits("grace");
            // Dropping either arm loses nothing: a view is a snapshot, the deadline a timer.
            tokio::select! {
                () = self.exited() => return Ok(()),
                () = deadline.passed() => {}
            }
        }
        steps.run("kill", self.kill()).await
    }

    async fn ask(&self) -> Result<(), StepError> {
        let Some(monitor) = &self.monitor else { return Ok(()) };
        match monitor.signal(&self.record.id, self.record.stop_signal, false).await {
            Ok(()) => Ok(()),
            // It has just ended by itself.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn kill(&mut self) -> Result<(), StepError> {
        if let Some(monitor) = &self.monitor {
            // The first process alone: with a pid namespace of its own all others go with it.
            if let Err(error) = monitor.signal(&self.record.id, SIGKILL, false).await {
                tracing::debug!(container.id = %self.record.id, error = types::error::chain(&error), "kill");
            }
        }
        let shared = Arc::clone(&self.shared);
        teardown::kill(&shared, &self.record, self.monitor.as_ref()).await;
        match tokio::time::timeout(KILL_WAIT, self.exited()).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let text = format!("its processes live on {} s after SIGKILL", KILL_WAIT.as_secs());
                Err(StepError::Timeout(text))
            }
        }
    }

    /// Returns when the exit has been recorded, or the container or its pod is gone.
    async fn exited(&mut self) {
        let id = self.record.id.clone();
        let ended =
            |view: &Arc<PodView>| view.container(&id).is_none_or(|c| c.state != ContainerState::Running);
        if self.view.wait_for(ended).await.is_err() {
            tracing::debug!(container.id = %id, "its pod is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_later_call_may_only_shorten_the_grace() {
        let begun = Instant::now();
        let deadline = Arc::new(Deadline::new(Duration::from_secs(30)));
        deadline.shorten(Duration::from_secs(60));
        deadline.shorten(Duration::from_secs(5));
        deadline.shorten(Duration::from_secs(20));
        deadline.passed().await;
        assert_eq!(begun.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn shortening_wakes_who_waits() {
        let deadline = Arc::new(Deadline::new(Duration::from_secs(1000)));
        let waiter = tokio::spawn({
            let deadline = Arc::clone(&deadline);
            async move {
                let begun = Instant::now();
                deadline.passed().await;
                begun.elapsed()
            }
        });
        tokio::task::yield_now().await;
        deadline.shorten(Duration::from_secs(2));
        assert_eq!(waiter.await.unwrap().as_secs(), 2);
    }

    #[test]
    fn an_endless_grace_does_not_overflow() {
        assert!(!Deadline::new(Duration::from_secs(u64::MAX)).is_past());
        assert!(Deadline::new(Duration::ZERO).is_past());
    }
}
