//! How the daemon ends, and the signals it listens to.
//!
//! ```text
//! running ──SIGTERM, SIGINT──▶ draining ──all tasks done──────────────▶ ended
//!                                  └─────grace over, second signal──▶ ended, what was left is named
//! ```
//!
//! Owns the token every long-lived task watches, and the tracker every task is spawned through. Ending the daemon ends
//! no container: tasks that are cut off have recorded their intent and are taken up again after the next start.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The end of the daemon: asks for it, and waits for it. Clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    hurried: CancellationToken,
    tasks: TaskTracker,
}

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every task has come to its end.
    Completely,
    /// This many tasks were still at work when the grace was over or a second signal came.
    Leaving(usize),
}

impl Shutdown {
    /// A daemon that runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Is cancelled when the daemon shall end. Long-lived tasks end at it; work in progress does not look at it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.requested.child_token()
    }

    /// Returns when the daemon shall end.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Asks for the end; asking again ends the grace of [`Shutdown::drain`].
    pub fn request(&self) {
        if self.requested.is_cancelled() {
            self.hurried.cancel();
        }
        self.requested.cancel();
    }

    /// Runs a task that [`Shutdown::drain`] will wait for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Waits until all tasks are done, but no longer than `grace`.
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.tasks.close();
        // Each arm is only a wait, so dropping the others loses nothing.
        tokio::select! {
            () = self.tasks.wait() => Drained::Completely,
            () = tokio::time::sleep(grace) => Drained::Leaving(self.tasks.len()),
            () = self.hurried.cancelled() => Drained::Leaving(self.tasks.len()),
        }
    }

    /// Turns SIGTERM and SIGINT into [`Shutdown::request`] from now on.
    ///
    /// # Errors
    /// When the signals cannot be received.
    pub fn listen(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        // Not tracked: it listens as long as the process lives, so that a second signal is heard while draining.
        tokio::spawn(async move {
            while let Some(name) = next_of(&mut terminate, &mut interrupt).await {
                tracing::info!(op = name, "asked to stop");
                shutdown.request();
            }
        });
        Ok(())
    }
}

/// The name of the next signal; receiving can be cancelled without loss.
async fn next_of(terminate: &mut Signal, interrupt: &mut Signal) -> Option<&'static str> {
    tokio::select! {
        received = terminate.recv() => received.map(|()| "SIGTERM"),
        received = interrupt.recv() => received.map(|()| "SIGINT"),
    }
}

/// The requests to read the configuration again (SIGHUP), from now on.
///
/// # Errors
/// When the signal cannot be received.
pub fn reload_requests() -> io::Result<tokio_stream::wrappers::SignalStream> {
    signal(SignalKind::hangup()).map(tokio_stream::wrappers::SignalStream::new)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};
    use tokio_stream::StreamExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_every_task() {
        let shutdown = Shutdown::new();
        let done = shutdown.spawn(tokio::time::sleep(Duration::from_secs(5)));
        shutdown.request();
        assert_eq!(shutdown.drain(LONG).await, Drained::Completely);
        assert!(done.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_ends_a_drain_that_hangs() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        let before = tokio::time::Instant::now();
        assert_eq!(shutdown.drain(Duration::from_secs(20)).await, Drained::Leaving(1));
        assert_eq!(before.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_ends_the_grace() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        shutdown.request();
        shutdown.requested().await;
        shutdown.request();
        let before = tokio::time::Instant::now();
        assert_eq!(shutdown.drain(LONG).await, Drained::Leaving(1));
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    /// One test for all signals: they are the whole process's.
    #[tokio::test]
    async fn signals_ask_for_the_end_and_for_a_reload() {
        let shutdown = Shutdown::new();
        shutdown.listen().unwrap();
        let mut reloads = reload_requests().unwrap();
        kill_process(getpid(), Number::HUP).unwrap();
        assert_eq!(reloads.next().await, Some(()));
        assert!(!shutdown.token().is_cancelled());
        kill_process(getpid(), Number::TERM).unwrap();
        shutdown.requested().await;
        kill_process(getpid(), Number::INT).unwrap();
        shutdown.hurried.cancelled().await;
    }
}
