//! What the endpoint knows of the daemon, which writes it here as it comes up and goes down.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use types::Timestamp;

use super::status::Phase;
use crate::config::ConfigFile;
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::pod::Recovery;
use crate::reload::Live;

/// Shared by the daemon and its admin endpoint.
#[derive(Debug)]
pub struct Board {
    pub(super) begun: Instant,
    pub(super) begun_at: Timestamp,
    pub(super) logging: Logging,
    pub(super) metrics: Metrics,
    /// What the daemon was started with.
    pub(super) config: Arc<ConfigFile>,
    /// The runtime that does the daemon's work.
    pub(super) workers: Handle,
    pub(super) daemon: OnceLock<Daemon>,
    pub(super) recovery: OnceLock<Recovery>,
    phase: watch::Sender<Phase>,
    stop: CancellationToken,
}

/// What there is once the daemon serves.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) live: Arc<Live>,
    /// The version of control groups, which does not change while a host runs.
    pub(super) cgroups: Option<String>,
}

impl Board {
    /// For a daemon that begins to work on the runtime in which this is called, and is asked to end by `stop`.
    #[must_use]
    pub fn new(config: ConfigFile, logging: Logging, metrics: Metrics, stop: CancellationToken) -> Self {
        Self {
            begun: Instant::now(),
            begun_at: Timestamp::now(),
            logging,
            metrics,
            config: Arc::new(config),
            workers: Handle::current(),
            daemon: OnceLock::new(),
            recovery: OnceLock::new(),
            phase: watch::Sender::new(Phase::Starting),
            stop,
        }
    }

    /// What the daemon was started with.
    #[must_use]
    pub fn config(&self) -> Arc<ConfigFile> {
        Arc::clone(&self.config)
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The parts are there, and recovery begins.
    pub fn recovering(&self, live: Arc<Live>) {
        let cgroups = cgroup::detect().ok().map(|hierarchy| hierarchy_word(hierarchy).to_owned());
        if self.daemon.set(Daemon { live, cgroups }).is_err() {
            tracing::debug!("the parts of the daemon are known already");
        }
        self.phase.send_replace(Phase::Recovering);
    }

    /// Recovery has ended.
    pub fn serving(&self, recovery: Recovery) {
        // Said once in the life of a daemon.
        self.recovery.get_or_init(|| recovery);
        self.phase.send_replace(Phase::Serving);
    }

    pub(super) fn phase(&self) -> Phase {
        if self.stop.is_cancelled() { Phase::Stopping } else { *self.phase.borrow() }
    }
}

fn hierarchy_word(hierarchy: cgroup::Hierarchy) -> &'static str {
    match hierarchy {
        cgroup::Hierarchy::V1 => "v1",
        cgroup::Hierarchy::V2 => "v2",
        cgroup::Hierarchy::Hybrid => "v1 with v2 beside it",
    }
}
