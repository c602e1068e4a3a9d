//! The two tasks that keep the published state true: one loads the configuration whenever the directory changes, one
//! asks the plugins how they are.
//!
//! Loading never waits for a plugin and readers never wait for either. Both tasks end with their token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::chain::Chain;
use crate::discover::{self, Found, Source};
use crate::plugin::Deadline;
use crate::published::{Health, Published};
use crate::watch::Watch;

/// How often what, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Rhythm {
    /// A look into the directory without an event: mounts and network filesystems send none.
    pub(crate) look_every: Duration,
    /// A change is taken for complete after this much quiet …
    pub(crate) settle: Duration,
    /// … or after this long in any case.
    pub(crate) settle_at_most: Duration,
    pub(crate) status_every: Duration,
    pub(crate) status_limit: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            look_every: Duration::from_secs(10),
            settle: Duration::from_millis(50),
            settle_at_most: Duration::from_millis(500),
            status_every: Duration::from_secs(10),
            status_limit: Duration::from_secs(5),
        }
    }
}

/// Starts both tasks. The first look has been taken when this returns.
pub(crate) async fn spawn(
    dir: PathBuf,
    chain: Chain,
    rhythm: Rhythm,
    end: CancellationToken,
) -> watch::Receiver<Published> {
    let (watch, found) = observe(&dir).await;
    let state = Published::new(found);
    report(&state, &dir);
    let (sender, receiver) = watch::channel(state);
    let loader = Loader { dir, rhythm: rhythm.clone(), state: sender.clone() };
    let prober = Prober { chain, rhythm, state: sender };
    let token = end.clone();
    tokio::spawn(async move {
        // Dropping the loader loses nothing: it only ever waits, and publishes in one step.
        tokio::select! { () = loader.run(watch) => {}, () = token.cancelled() => {} }
    });
    tokio::spawn(async move {
        // Dropping the prober kills a STATUS that is running.
        tokio::select! { () = prober.run() => {}, () = end.cancelled() => {} }
    });
    receiver
}

/// Watches, then looks: what changes after the look is an event of the watch.
async fn observe(dir: &Path) -> (Option<Watch>, Found) {
    let watch = match Watch::new(dir) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(path = %dir.display(), error = %error, "network configuration is not watched, only looked at");
            None
        }
    };
    let dir = dir.to_owned();
    let found = tokio::task::spawn_blocking(move || discover::look(&dir)).await;
    (watch, found.unwrap_or_else(|error| Found { problems: vec![error.to_string()], ..Found::default() }))
}

fn report(state: &Published, dir: &Path) {
    if let Some(problems) = state.problems() {
        tracing::warn!(path = %dir.display(), error = problems, "network configuration files passed over");
    }
    match &state.network {
        Some(source) => tracing::info!(path = %source.path.display(), "network configuration loaded"),
        None => {
            tracing::warn!(path = %dir.display(), error = state.why_none(dir), "no network configuration")
        }
    }
}

struct Loader {
    dir: PathBuf,
    rhythm: Rhythm,
    state: watch::Sender<Published>,
}

impl Loader {
    async fn run(self, mut watch: Option<Watch>) {
        loop {
            self.wait(watch.as_ref()).await;
            let (next, found) = observe(&self.dir).await;
            watch = next;
            let dir = &self.dir;
            self.state.send_if_modified(|state| {
                let news = state.take(found);
                if news {
                    report(state, dir);
                }
                news
            });
        }
    }

    /// Waits for a change and its end, or for the next look that needs none.
    async fn wait(&self, watch: Option<&Watch>) {
        let Some(watch) = watch else {
            return tokio::time::sleep(self.rhythm.look_every).await;
        };
        match timeout(self.rhythm.look_every, watch.changed()).await {
            Ok(Ok(())) => self.settle(watch).await,
            Ok(Err(error)) => {
                tracing::warn!(path = %self.dir.display(), error = %error, "watching the network configuration failed");
                tokio::time::sleep(self.rhythm.settle_at_most).await;
            }
            Err(_) => {}
        }
    }

    /// Whoever writes several files, or one in pieces, is given a moment to finish.
    async fn settle(&self, watch: &Watch) {
        let latest = Instant::now() + self.rhythm.settle_at_most;
        let quiet = async { while let Ok(Ok(())) = timeout(self.rhythm.settle, watch.changed()).await {} };
        // Running out of time here means that changes go on; the next round sees the rest.
        drop(timeout_at(latest, quiet).await);
    }
}

struct Prober {
    chain: Chain,
    rhythm: Rhythm,
    state: watch::Sender<Published>,
}

impl Prober {
    async fn run(self) {
        let mut changes = self.state.subscribe();
        loop {
            let network = changes.borrow_and_update().network.clone();
            if let Some(network) = network.filter(|network| network.list.version.has_gc_and_status()) {
                let health = self.ask(&network).await;
                self.publish(&network, health);
            }
            // A change of health is this task's own and wakes it once more than needed, so only a new network counts.
            let asked = changes.borrow_and_update().network.clone();
            let other = changes.wait_for(|state| state.network != asked);
            if let Ok(Err(_)) = timeout(self.rhythm.status_every, other).await {
                return;
            }
        }
    }

    async fn ask(&self, network: &Source) -> Health {
        match self.chain.status(&network.list, Deadline::after(self.rhythm.status_limit)).await {
            Ok(()) => Health::Good,
            Err(error) => Health::Bad(types::error::chain(&error)),
        }
    }

    /// Publishes the answer unless another network was loaded meanwhile.
    fn publish(&self, network: &Source, health: Health) {
        self.state.send_if_modified(|state| {
            let current = state.network.as_deref() == Some(network);
            if !current || state.health == health {
                return false;
            }
            match &health {
                Health::Bad(error) => tracing::warn!(error, "network is not ready"),
                Health::Good | Health::Unknown => tracing::info!("network is ready"),
            }
            state.health = health;
            true
        });
    }
}
