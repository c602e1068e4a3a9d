//! What `GET /status` answers, as JSON.
//!
//! `version` goes up when a field changes its meaning or goes away; new fields come without that, and readers ignore those that they
//! do not know. Ages and durations are in seconds, points in time in seconds since 1970, sizes in bytes. What is not known yet, since
//! the daemon is only starting, is null or empty.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::logging::LogLevel;

/// The version of this format.
pub const VERSION: u32 = 1;

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The program.
    pub build: Build,
    /// The process.
    pub server: Server,
    /// How much is logged.
    pub log: Option<LogLevel>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// The configured OCI runtimes, the default one first.
    pub handlers: Vec<Handler>,
    /// The pods' network.
    pub network: Option<Network>,
    /// What the start has found.
    pub recovery: Option<Recovered>,
    /// How many pods there are, by state.
    pub pods: PodCounts,
    /// How many containers there are, by state.
    pub containers: ContainerCounts,
    /// Lines of containers' logs that could not be written since the daemon was started.
    pub lost_log_lines: u64,
    /// Clients that hear of containers' events.
    pub event_subscribers: usize,
    /// Operations in flight, the oldest first.
    pub tasks: Vec<Task>,
    /// Callers who wait for something that is in none of these: it has yet to begin.
    pub waiting: Vec<Caller>,
    /// Sessions of exec and attach and commands of ExecSync, the oldest first.
    pub sessions: Vec<Task>,
    /// Connections of users that are being served: exec, attach and port-forward.
    pub streams: usize,
    /// Pulls in progress, the oldest first.
    pub pulls: Vec<Pull>,
    /// The processes that look after pods.
    pub monitors: Monitors,
    /// What could not be undone yet and is tried again.
    pub teardown: Vec<Pending>,
    /// The configuration in force, with every key, as `crimson config dump` prints it; secrets are hidden.
    pub config: Value,
    /// Each pod with its containers, where that was asked for (`/status?pods`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_list: Option<Vec<Pod>>,
}

/// The program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The commit it was built of, where whoever built it said so.
    pub commit: Option<String>,
    /// The compiler.
    pub rustc: String,
    /// What it is built for.
    pub target: String,
    /// `release` or `debug`.
    pub profile: String,
    /// What is built in besides: `failpoints`.
    pub features: Vec<String>,
}

/// The process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Its id.
    pub pid: u32,
    /// How far it is.
    pub phase: Phase,
    /// When it was started.
    pub started_at: f64,
    /// How long ago that was.
    pub uptime: f64,
    /// How long its workers took to run a task that does nothing. Null: they did not, they are stuck.
    pub latency: Option<f64>,
}

/// How far the daemon is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// OCI runtimes are tried out, stores are opened.
    #[default]
    Starting,
    /// It serves; lists and verbs wait until pods of an earlier run are back.
    Recovering,
    /// In service.
    Serving,
    /// It was asked to end, and finishes what is under way.
    Stopping,
}

impl Phase {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Recovering => "recovering",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
        }
    }
}

/// Control groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroups {
    /// Who makes them: `systemd` or `cgroupfs`.
    pub driver: Option<String>,
    /// The version of the kernel's interface.
    pub version: Option<String>,
}

/// An OCI runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handler {
    /// The handler's name.
    pub name: String,
    /// Its program.
    pub path: String,
    /// The line in which that tells its version.
    pub runtime: String,
    /// Whether pods that name none get it.
    pub is_default: bool,
    /// Whether a reload took it away; pods that have it keep it.
    pub is_retired: bool,
    /// Why it cannot be used, if so.
    pub broken: Option<String>,
}

/// The pods' network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Whether pods can be connected.
    pub ready: bool,
    /// A word why not.
    pub reason: String,
    /// And a sentence.
    pub message: String,
}

/// What the start has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recovered {
    /// Sandboxes that live on.
    pub sandboxes: usize,
    /// Containers that live on.
    pub containers: usize,
    /// Sandboxes whose making or removal had been interrupted.
    pub undone: usize,
    /// Records that cannot be read.
    pub broken: usize,
}

/// How many pods there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodCounts {
    /// Being made, and not listed yet.
    pub starting: usize,
    /// Ready.
    pub ready: usize,
    /// Stopped, stopping, or without what they need.
    pub not_ready: usize,
}

/// How many containers there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerCounts {
    /// Made, and not started.
    pub created: usize,
    /// Running.
    pub running: usize,
    /// Ended.
    pub exited: usize,
}

/// An operation in flight.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    /// What is done.
    pub verb: String,
    /// To what.
    pub object: String,
    /// And by its id.
    pub id: String,
    /// The pod, as `namespace/name`, where it is known yet.
    pub pod: Option<String>,
    /// How long it has been going on.
    pub age: f64,
    /// The steps it is in, the oldest first.
    pub stages: Vec<Stage>,
    /// Where it is in none: the last one, and how long ago that ended.
    pub after: Option<Stage>,
    /// How many callers wait for it. Whoever asked may have left, the operation goes on.
    pub callers: usize,
    /// How long the first of them has waited.
    pub waited: Option<f64>,
}

/// A step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// Its name, as in logs and errors.
    pub name: String,
    /// How long it has lasted.
    pub age: f64,
    /// Whether nothing is done meanwhile on purpose, such as while a container has its grace.
    pub waits: bool,
}

/// A caller who waits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// What for.
    pub verb: String,
    /// The container, by its id or in words; empty where the pod is meant.
    pub container: String,
    /// The pod's id.
    pub pod_id: String,
    /// The pod, as `namespace/name`, where it is known yet.
    pub pod: Option<String>,
    /// How long.
    pub age: f64,
}

/// A pull in progress.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pull {
    /// The image.
    pub reference: String,
    /// `resolving`, `fetching`, `unpacking` or `committing`.
    pub stage: String,
    /// How long it has been going on.
    pub age: f64,
    /// Bytes that are there.
    pub bytes: u64,
    /// And of how many; 0 while that is not known.
    pub bytes_expected: u64,
    /// Layers that are in place.
    pub layers_done: usize,
    /// And of how many.
    pub layers: usize,
    /// How many callers wait for it.
    pub callers: usize,
}

/// The processes that look after pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Monitors {
    /// Those with which there is a connection.
    pub connected: usize,
    /// Those that have died since the daemon was started.
    pub lost: u64,
    /// Connections that were lost and made again.
    pub reconnected: u64,
}

/// Something that goes on behind, or is tried again, until it is gone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pending {
    /// What is being done.
    pub verb: String,
    /// To what.
    pub object: String,
    /// And by its id.
    pub id: String,
    /// What it is at.
    pub stage: String,
    /// How long it has been going on.
    pub age: f64,
    /// How often it has failed.
    pub failures: u32,
    /// Why, the last time.
    pub reason: Option<String>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Its sandbox's id.
    pub id: String,
    /// `namespace/name`.
    pub name: String,
    /// `ready` or `not_ready`.
    pub state: String,
    /// When it was made.
    pub created_at: f64,
    /// Its OCI runtime's handler.
    pub handler: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// Its containers, the oldest first.
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Which attempt it is.
    pub attempt: u32,
    /// `created`, `running` or `exited`.
    pub state: String,
    /// When it was made.
    pub created_at: f64,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// Why.
    pub reason: String,
    /// Its image.
    pub image: String,
}
