//! `crimson check`: what exists of pods that are not on record, shown or removed.
//!
//! Looking is safe at any time: nothing is opened that a server has open, nothing is written, and while a server is at work
//! only what a second look finds again counts. Removing needs the lock of the state directory, so no server is at work then.
//! What is found and how it goes is the same as in the sweep at the start of the server ([`crate::pod`]).

pub mod images;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::listener::{self, ListenError};
use crate::pod::{
    Drivers, Kernel, Layout, Pods, SecurityModules, Settings, StepError, Stray, World, persisting,
};
use crate::{app, drivers};

/// Exit code when something is found, or stays.
pub const FOUND: u8 = 1;
/// Exit code when it could not be found out.
pub const FAILURE: u8 = 2;

/// Between the two looks beside a server that is at work.
const PAUSE: Duration = Duration::from_secs(1);
/// What goes may bring something else to light: a record that is set aside owns nothing any more.
const ROUNDS: usize = 4;

/// Why it could not be found out what there is.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The server is at work, or may be.
    #[error("nothing can be removed now: stop the server first")]
    Locked(#[source] ListenError),
    /// Whether a server is at work cannot be said.
    #[error("looking for the server")]
    Server(#[source] io::Error),
    /// Something of what there may be cannot be read.
    #[error("looking for what nobody owns")]
    Look(#[from] StepError),
    /// A directory cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroups of this host cannot be looked at.
    #[error("looking at cgroups")]
    Cgroups(#[source] cgroup::CgroupError),
    /// The image store cannot be opened.
    #[error("opening the image store")]
    Images(#[source] image::ImageError),
    /// The network driver cannot be set up.
    #[error("setting up the network driver")]
    Network(#[source] cni::CniError),
    /// No thread, or no memory.
    #[error("starting")]
    Start(#[source] io::Error),
}

/// One thing without an owner, and what became of it.
#[derive(Debug, Serialize)]
pub struct Finding {
    #[serde(flatten)]
    stray: Stray,
    /// Whether it is gone.
    removed: bool,
    /// Why it could not be removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What has been found, of one kind of trouble.
#[derive(Debug, Serialize)]
pub struct Report<F> {
    findings: Vec<F>,
}

/// One trouble in a [`Report`].
pub trait Outcome: Serialize {
    /// Whether it is over.
    fn is_over(&self) -> bool;

    /// A line, or several, for people.
    fn lines(&self) -> String;
}

impl<F: Outcome> Report<F> {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(F::is_over)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        if self.findings.is_empty() {
            return "clean\n".to_owned();
        }
        self.findings.iter().map(F::lines).collect()
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }
}

impl Outcome for Finding {
    fn is_over(&self) -> bool {
        self.removed
    }

    fn lines(&self) -> String {
        match (&self.error, self.removed) {
            (Some(error), _) => format!("left: {}: {error}\n", self.stray),
            (None, true) => format!("removed: {}\n", self.stray),
            (None, false) => format!("{}\n", self.stray),
        }
    }
}

/// Looks, and with `repair` removes what it finds.
///
/// # Errors
/// When it cannot be found out what there is, or a server has what would be removed.
pub fn run(config: &Config, repair: bool) -> Result<Report<Finding>, CheckError> {
    if !repair {
        let findings = look(config)?.into_iter().map(|stray| Finding { stray, removed: false, error: None });
        return Ok(Report { findings: findings.collect() });
    }
    let _lock = listener::lock_state(&config.state).map_err(CheckError::Locked)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CheckError::Start)?;
    runtime.block_on(mend(config))
}

/// Everything without an owner, as the disk and the kernel have it.
fn look(config: &Config) -> Result<Vec<Stray>, CheckError> {
    let first = world(config)?.look()?;
    let is_served = listener::daemon_on(&config.state).map_err(CheckError::Server)?.is_some();
    if first.is_empty() || !is_served {
        return Ok(first);
    }
    std::thread::sleep(PAUSE);
    Ok(persisting(first, &world(config)?.look()?))
}

fn world(config: &Config) -> Result<World, CheckError> {
    let (images, network) = (drivers::images(config).root, drivers::network(config).cache_dir);
    let leases =
        image::leases_on_disk(&images).map_err(|source| CheckError::Read { path: images, source })?;
    let networks = cni::recorded_in(&network).map_err(|source| CheckError::Read { path: network, source })?;
    Ok(World {
        layout: Layout::new(config.root.clone(), config.state.clone()),
        netns_dir: PathBuf::from(app::NETNS_DIR),
        host: Arc::new(Kernel),
        cgroups: app::cgroups_in_use(config).map_err(CheckError::Cgroups)?,
        leases,
        networks,
    })
}

async fn mend(config: &Config) -> Result<Report<Finding>, CheckError> {
    let end = CancellationToken::new();
    let pods = open(config, &end).await?;
    let mut findings: Vec<Finding> = Vec::new();
    for _ in 0..ROUNDS {
        let found = pods.strays().await?;
        let news: Vec<Stray> =
            found.into_iter().filter(|stray| findings.iter().all(|known| known.stray != *stray)).collect();
        if news.is_empty() {
            break;
        }
        for stray in news {
            let outcome = pods.remove_stray(&stray).await;
            let error = outcome.err().map(|error| types::error::chain(&error));
            findings.push(Finding { stray, removed: error.is_none(), error });
        }
    }
    // What looked removed and is there again, or still, is not.
    let left = pods.strays().await?;
    for finding in findings.iter_mut().filter(|finding| left.contains(&finding.stray)) {
        finding.removed = false;
        finding.error.get_or_insert_with(|| "it is still there".to_owned());
    }
    end.cancel();
    Ok(Report { findings })
}

async fn open(config: &Config, end: &CancellationToken) -> Result<Pods, CheckError> {
    let layout = Layout::new(config.root.clone(), config.state.clone());
    let images = image::Images::open(drivers::images(config)).await.map_err(CheckError::Images)?;
    let network = cni::Cni::open(drivers::network(config), end.clone()).await.map_err(CheckError::Network)?;
    let monitors =
        monitor_api::ProcessMonitors { binary: PathBuf::new(), state_dir: layout.state().to_owned() };
    let drivers = Drivers {
        images: Arc::new(images),
        network: Arc::new(network),
        cgroups: app::cgroups_in_use(config).map_err(CheckError::Cgroups)?,
        monitors: Arc::new(monitors),
        host: Arc::new(Kernel),
        confinement: Arc::new(SecurityModules::find()),
    };
    let settings = Settings { netns_dir: PathBuf::from(app::NETNS_DIR), ..Settings::at(layout) };
    Ok(Pods::new(drivers, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(removed: bool, error: Option<&str>) -> Finding {
        let stray = Stray::Directory { path: PathBuf::from("/run/crimson/pods/x") };
        Finding { stray, removed, error: error.map(str::to_owned) }
    }

    #[test]
    fn what_stays_is_told_from_what_went() {
        let report = Report { findings: vec![finding(true, None), finding(false, Some("busy"))] };
        assert!(!report.is_clean());
        assert_eq!(
            report.text(),
            "removed: directory /run/crimson/pods/x\nleft: directory /run/crimson/pods/x: busy\n"
        );
        assert!(Report { findings: vec![finding(true, None)] }.is_clean());
        let empty = Report::<Finding> { findings: Vec::new() };
        assert_eq!(
            (empty.is_clean(), empty.text().as_str(), empty.json().as_str()),
            (true, "clean\n", "{\"findings\":[]}\n")
        );
    }

    #[test]
    fn programs_read_what_it_is_and_what_became_of_it() {
        let json: serde_json::Value =
            serde_json::from_str(&Report { findings: vec![finding(false, None)] }.json()).unwrap();
        let expected = serde_json::json!({
            "findings": [{ "kind": "directory", "path": "/run/crimson/pods/x", "removed": false }],
        });
        assert_eq!(json, expected);
    }
}
