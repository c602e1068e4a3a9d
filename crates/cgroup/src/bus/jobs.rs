//! Who waits for which job of systemd.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use zbus::zvariant::OwnedObjectPath;

/// The end of a job.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) job: OwnedObjectPath,
    /// `done`, or why not.
    pub(super) result: String,
}

/// The waiters of one connection. Once it is closed they all are told, and so is everybody who comes later.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    next: u64,
    waiters: Vec<(u64, String, watch::Sender<Vec<Ended>>)>,
}

/// Hears of every job of one unit that ends from now on: a job may end before the call that began it returns.
#[derive(Debug)]
pub(super) struct Waiter {
    id: u64,
    jobs: Arc<Jobs>,
    ended: watch::Receiver<Vec<Ended>>,
}

impl Jobs {
    pub(super) fn wait_for(self: &Arc<Self>, unit: &str) -> Waiter {
        let (sender, ended) = watch::channel(Vec::new());
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        if !state.closed {
            state.waiters.push((id, unit.to_owned(), sender));
        }
        Waiter { id, jobs: Arc::clone(self), ended }
    }

    pub(super) fn ended(&self, unit: &str, ended: &Ended) {
        for (_, _, waiter) in self.state().waiters.iter().filter(|(_, name, _)| name == unit) {
            waiter.send_modify(|all| all.push(ended.clone()));
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiters.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// The result of the job; none when the connection is lost before.
    pub(super) async fn result_of(mut self, job: &OwnedObjectPath) -> Option<String> {
        let is_it = |ended: &&Ended| ended.job == *job;
        let all = self.ended.wait_for(|all| all.iter().any(|ended| is_it(&ended))).await.ok()?;
        all.iter().find(is_it).map(|ended| ended.result.clone())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.jobs.state().waiters.retain(|(id, ..)| *id != self.id);
    }
}
