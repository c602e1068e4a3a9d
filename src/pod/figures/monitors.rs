//! Which monitors the server is connected to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::SandboxId;

/// Monitors at one moment, and what became of others since the server started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorFigures {
    /// Those that the server is connected to, in the order in which that came about.
    pub running: Vec<RunningMonitor>,
    /// Monitors that had died while their pod needed them; what was left of those pods was ended.
    pub lost: u64,
    /// Connections that broke and were made again.
    pub reconnected: u64,
}

/// A monitor that the server is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningMonitor {
    /// Whose it is.
    pub sandbox: SandboxId,
    /// Its process.
    pub pid: i32,
    /// How long the connection has stood.
    pub age: Duration,
}

/// The table of connections.
#[derive(Debug, Default)]
pub(in super::super) struct Roster {
    next: AtomicU64,
    connected: Mutex<BTreeMap<u64, (SandboxId, i32, Instant)>>,
    lost: AtomicU64,
    reconnected: AtomicU64,
}

/// A connection, as long as the value lives.
#[derive(Debug)]
pub(in super::super) struct Connected {
    roster: Arc<Roster>,
    number: u64,
}

impl Roster {
    pub(in super::super) fn enter(self: &Arc<Self>, sandbox: &SandboxId, pid: i32) -> Connected {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.connected().insert(number, (sandbox.clone(), pid, Instant::now()));
        Connected { roster: Arc::clone(self), number }
    }

    /// One has died that was needed.
    pub(in super::super) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// A broken connection was made again.
    pub(in super::super) fn reconnected(&self) {
        self.reconnected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> MonitorFigures {
        let running = |(sandbox, pid, since): &(SandboxId, i32, Instant)| RunningMonitor {
            sandbox: sandbox.clone(),
            pid: *pid,
            age: since.elapsed(),
        };
        MonitorFigures {
            running: self.connected().values().map(running).collect(),
            lost: self.lost.load(Ordering::Relaxed),
            reconnected: self.reconnected.load(Ordering::Relaxed),
        }
    }

    fn connected(&self) -> MutexGuard<'_, BTreeMap<u64, (SandboxId, i32, Instant)>> {
        // A panic while the lock is held cannot leave the map half changed.
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.roster.connected().remove(&self.number);
    }
}
