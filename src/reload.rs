//! Reads the configuration again while the daemon serves.
//!
//! ```text
//! SIGHUP ─▶ read and check all of it ─▶ try out OCI runtimes ─▶ read certificates ─▶ log, network, images, pods ─▶ outcome
//!                     └── a problem ──────────┴── the default stops working ┴── unusable ─────────────────────────┘
//! ```
//!
//! Promises: nothing changes before everything has been checked, and from then on nothing can fail; what waits for a restart is
//! named; every attempt ends with its outcome in the log, in systemd's status and in `<state>/reload.json`, where
//! [`request`] finds it. Requests that arrive during a reload are one further reload. Operations under way end by the
//! settings that they began with.

pub mod request;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _};

use crate::config::{self, Change, Config, ConfigError, ConfigFile, Loaded, Source};
use crate::handlers::{self, Handlers};
use crate::logging::Logging;
use crate::pod::{Pods, Settings};
use crate::{app, drivers, notify};

/// What became of one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// When it began to read, in microseconds of the monotonic clock: changes to files made before that have been seen.
    pub begun_usec: u64,
    /// Why the old configuration stays in force, if it does.
    pub error: Option<String>,
    /// Keys that have changed and are in force.
    pub applied: Vec<String>,
    /// Keys that have changed and wait for a restart.
    pub waiting: Vec<String>,
}

/// Why the old configuration stays in force.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("runtime.default: handler {name:?} would not work: {reason}")]
    Default { name: String, reason: String },
    #[error(transparent)]
    Streaming(#[from] ::streaming::TlsError),
    #[error("a task of the reload was lost")]
    Lost(#[from] tokio::task::JoinError),
}

/// Everything that a reload reaches.
#[derive(Debug)]
pub struct Live {
    /// The pods.
    pub pods: Pods,
    /// The image store.
    pub images: image::Images,
    /// The network driver.
    pub network: Arc<cni::Cni>,
    /// The server of sessions.
    pub streaming: ::streaming::Server,
    /// Whether systemd makes cgroups.
    pub systemd: bool,
    /// The configuration as verbose answers show it.
    pub described: watch::Sender<Arc<Value>>,
    /// The configuration in force.
    pub config: watch::Sender<Arc<Config>>,
    /// The same as it could be written to a file.
    pub written: watch::Sender<Arc<ConfigFile>>,
}

/// Does it.
#[derive(Debug)]
pub struct Reloader {
    source: Source,
    running: Loaded,
    logging: Logging,
    live: Arc<Live>,
}

impl Reloader {
    /// For a daemon that was started by `running`, which was read from `source`.
    #[must_use]
    pub fn new(source: Source, running: Loaded, logging: Logging, live: Arc<Live>) -> Self {
        Self { source, running, logging, live }
    }

    /// Reloads at each request, until there are no more.
    pub async fn serve(mut self, mut requests: impl Stream<Item = ()> + Unpin) {
        while requests.next().await.is_some() {
            self.once().await;
        }
    }

    async fn once(&mut self) {
        let begun_usec = now_usec();
        notify::reloading();
        let outcome = match self.attempt().await {
            Ok(changes) => Outcome { begun_usec, ..Outcome::of(&changes) },
            Err(error) => {
                Outcome { begun_usec, error: Some(types::error::chain(&error)), ..Outcome::default() }
            }
        };
        outcome.log();
        outcome.save(self.live.pods.layout().state());
        notify::ready(&outcome.status());
    }

    async fn attempt(&mut self) -> Result<Vec<Change>, ReloadError> {
        let (source, written) = (self.source.clone(), self.running.written.clone());
        let read = tokio::task::spawn_blocking(move || config::load_again(&source, &written));
        let (next, changes) = read.await??;
        let handlers = self.probe(&next.config).await?;
        self.check_default(&handlers)?;
        // The last that can fail, and it changes nothing then.
        self.live.streaming.reload_tls()?;
        self.apply(&next.config, handlers).await;
        self.live.written.send_replace(Arc::new(next.written.clone()));
        self.running = next;
        Ok(changes)
    }

    async fn probe(&self, config: &Config) -> Result<Handlers, ReloadError> {
        let (config, layout) = (config.clone(), self.live.pods.layout().clone());
        let systemd = self.live.systemd;
        let found = tokio::task::spawn_blocking(move || handlers::find(&config, &layout, systemd)).await?;
        // Nobody waits for a systemd that is away.
        tokio::spawn(app::forget_ended(Arc::clone(&self.live.pods.drivers().cgroups)));
        Ok(found)
    }

    /// A node that can start pods shall not lose that by a slip of the pen.
    fn check_default(&self, next: &Handlers) -> Result<(), ReloadError> {
        let settings = Settings {
            handlers: next.all.clone(),
            default_handler: next.default.clone(),
            ..Settings::clone(&self.live.pods.settings())
        };
        match settings.handler("") {
            Err(error) if self.live.pods.settings().handler("").is_ok() => {
                Err(ReloadError::Default { name: next.default.clone(), reason: types::error::chain(&error) })
            }
            _ => Ok(()),
        }
    }

    async fn apply(&self, config: &Config, handlers: Handlers) {
        if let Err(error) = self.logging.change(config.log) {
            tracing::warn!(error = types::error::chain(&error), "the log stays as it is");
        }
        self.live.network.reconfigure(drivers::network(config)).await;
        self.live.images.reconfigure(drivers::images(config));
        self.live.described.send_replace(Arc::new(drivers::describe(config, &handlers)));
        let old = Settings::clone(&self.live.pods.settings());
        self.live.pods.reconfigure(drivers::settings(config, handlers, old));
        self.live.config.send_replace(Arc::new(config.clone()));
    }
}

impl Outcome {
    fn of(changes: &[Change]) -> Self {
        let keys = |waiting: bool| {
            changes.iter().filter(|it| it.needs_restart == waiting).map(|it| it.key.clone()).collect()
        };
        Self { applied: keys(false), waiting: keys(true), ..Self::default() }
    }

    /// Where it is left for [`request`].
    fn file(state: &Path) -> PathBuf {
        state.join("reload.json")
    }

    fn save(&self, state: &Path) {
        let saved = serde_json::to_vec(self).map_err(|error| types::error::chain(&error)).and_then(|bytes| {
            let saved = sys::atomic::write(&Self::file(state), &bytes, 0o600);
            saved.map_err(|error| types::error::chain(&error))
        });
        if let Err(error) = saved {
            tracing::warn!(error, "the outcome of a reload is not recorded");
        }
    }

    fn log(&self) {
        if let Some(error) = &self.error {
            tracing::error!(error, "reload failed: the old configuration stays in force");
            return;
        }
        match self.applied.as_slice() {
            [] => tracing::info!("configuration reloaded, nothing new is in force"),
            keys => tracing::info!(keys = keys.join(", "), "configuration reloaded"),
        }
        if !self.waiting.is_empty() {
            tracing::warn!(keys = self.waiting.join(", "), "changed settings take effect at a restart only");
        }
    }

    fn status(&self) -> String {
        match (&self.error, self.waiting.as_slice()) {
            (Some(error), _) => format!("reload failed, the old configuration stays in force: {error}"),
            (None, []) => "configuration reloaded".to_owned(),
            (None, keys) => format!("configuration reloaded; restart crimson to apply {}", keys.join(", ")),
        }
    }
}

/// The monotonic clock of the kernel, which all processes share.
fn now_usec() -> u64 {
    match sd_notify::NotifyState::monotonic_usec_now() {
        Ok(sd_notify::NotifyState::MonotonicUsec(now)) => u64::try_from(now).unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, needs_restart: bool) -> Change {
        Change { key: key.to_owned(), needs_restart }
    }

    #[test]
    fn the_status_names_what_waits_for_a_restart() {
        let outcome =
            Outcome::of(&[change("root", true), change("log.level", false), change("socket", true)]);
        assert_eq!((outcome.applied.len(), outcome.waiting.len()), (1, 2));
        assert_eq!(outcome.status(), "configuration reloaded; restart crimson to apply root, socket");
        assert_eq!(Outcome::of(&[]).status(), "configuration reloaded");
        let failed = Outcome { error: Some("line 3".to_owned()), ..Outcome::default() };
        assert!(failed.status().ends_with("stays in force: line 3"));
    }

    #[test]
    fn the_clock_goes_forward() {
        let first = now_usec();
        assert!(first > 0 && now_usec() >= first);
    }
}
