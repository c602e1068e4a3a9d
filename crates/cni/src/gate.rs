//! Who may run now: one operation per sandbox, any number of sandboxes, garbage collection alone.
//!
//! The specification forbids ADD and DEL while GC runs. GC never makes an operation wait for another operation: it
//! takes its turn only when none runs, and gives up after a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout_at;
use types::SandboxId;

use crate::error::CniError;
use crate::plugin::Deadline;

#[derive(Debug, Default)]
pub(crate) struct Gate {
    running: RwLock<()>,
    ended: Notify,
    sandboxes: Mutex<HashMap<SandboxId, Weak<AsyncMutex<()>>>>,
}

/// An operation on one sandbox; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Operation<'a> {
    gate: &'a Gate,
    sandbox: Option<OwnedMutexGuard<()>>,
    shared: Option<RwLockReadGuard<'a, ()>>,
}

impl Gate {
    /// Waits until nothing else works on the sandbox.
    pub(crate) async fn enter(&self, sandbox: &SandboxId) -> Operation<'_> {
        let own = self.lock_of(sandbox).lock_owned().await;
        let shared = self.running.read().await;
        Operation { gate: self, sandbox: Some(own), shared: Some(shared) }
    }

    /// Waits for a moment in which no operation runs and keeps others out while the guard lives.
    pub(crate) async fn enter_alone(&self, deadline: Deadline) -> Result<RwLockWriteGuard<'_, ()>, CniError> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before the look, so that an end between look and wait is not missed.
            ended.as_mut().enable();
            if let Ok(alone) = self.running.try_write() {
                return Ok(alone);
            }
            timeout_at(deadline.at, ended).await.map_err(|_| CniError::Busy(deadline.limit))?;
        }
    }

    fn lock_of(&self, sandbox: &SandboxId) -> Arc<AsyncMutex<()>> {
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = sandboxes.get(sandbox).and_then(Weak::upgrade) {
            return lock;
        }
        sandboxes.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        sandboxes.insert(sandbox.clone(), Arc::downgrade(&lock));
        lock
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.shared = None;
        self.sandbox = None;
        self.gate.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Waker};
    use std::time::Duration;

    /// Polls once.
    fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn id(seed: u8) -> SandboxId {
        SandboxId::from_random([seed; 32])
    }

    #[tokio::test]
    async fn one_operation_per_sandbox_and_others_beside_it() {
        let gate = Gate::default();
        let (one, two) = (id(1), id(2));
        let first = gate.enter(&one).await;
        let other = gate.enter(&two).await;
        let mut again = Box::pin(gate.enter(&one));
        assert!(is_pending(again.as_mut()));
        drop(first);
        drop(again.await);
        drop(other);
        drop(gate.enter(&id(3)).await);
        assert_eq!(gate.sandboxes.lock().unwrap().len(), 1, "locks of ended operations are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn collection_waits_for_quiet_without_holding_anybody_up() {
        let gate = Gate::default();
        let first = gate.enter(&id(1)).await;
        let mut alone = Box::pin(gate.enter_alone(Deadline::after(Duration::from_secs(60))));
        assert!(is_pending(alone.as_mut()));
        let second = gate.enter(&id(2)).await;
        drop(first);
        assert!(is_pending(alone.as_mut()));
        drop(second);
        let guard = alone.await.unwrap();
        let three = id(3);
        let mut next = Box::pin(gate.enter(&three));
        assert!(is_pending(next.as_mut()));
        drop(guard);
        let _running = next.await;
        let error = gate.enter_alone(Deadline::after(Duration::from_secs(60))).await.unwrap_err();
        assert!(matches!(error, CniError::Busy(_)));
    }
}
