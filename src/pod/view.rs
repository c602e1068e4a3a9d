//! What readers see: immutable snapshots that a pod's task publishes after each change.
//!
//! List, Status and Stats read these and nothing else, so they never wait for a slow operation.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use spec::{ContainerRequest, SandboxRequest};
use types::{ContainerId, ImageId, SandboxId, Timestamp};

/// A sandbox's state as CRI knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Its network is up and its pause container runs.
    Ready,
    /// Anything else.
    NotReady,
}

/// A container's state as CRI knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or could not be started.
    Exited,
}

/// One sandbox at one moment.
#[derive(Debug, Clone)]
pub struct SandboxView {
    /// Identity.
    pub id: SandboxId,
    /// What the caller asked for.
    pub request: Arc<SandboxRequest>,
    /// State.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Addresses on the pod's interface, primary first; empty with the host's network or once it is stopped.
    pub ips: Vec<IpAddr>,
    /// The network plugins' whole result.
    pub network: Option<serde_json::Value>,
    /// Path of the network namespace; none with the host's network.
    pub netns: Option<PathBuf>,
    /// Whether the network namespace is gone.
    pub netns_closed: bool,
    /// Process id of the pause container.
    pub pid: Option<i32>,
    /// The runtime handler in use.
    pub handler: String,
    /// `cgroupsPath` of the pause container.
    pub cgroup: String,
}

/// One container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Identity.
    pub id: ContainerId,
    /// The pod it belongs to.
    pub sandbox: SandboxId,
    /// What the caller asked for.
    pub request: Arc<ContainerRequest>,
    /// State.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its process started; unset before.
    pub started_at: Timestamp,
    /// When its process ended; unset before.
    pub finished_at: Timestamp,
    /// Exit code; 128 + n when signal n ended it.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `Unknown`; empty while it has not ended.
    pub reason: &'static str,
    /// Details of a failure.
    pub message: String,
    /// The image it was made from.
    pub image: ImageId,
    /// Digest reference of the image, else its id.
    pub image_ref: String,
    /// First tag of the image, else what the caller wrote.
    pub image_name: String,
    /// Absolute path of the log; none when none was asked for.
    pub log_path: Option<PathBuf>,
    /// Host process id while it runs.
    pub pid: Option<i32>,
    /// User, group and supplementary groups of its first process.
    pub user: (u32, u32, Vec<u32>),
    /// Signal number that stops it.
    pub stop_signal: i32,
    /// The OCI bundle's directory.
    pub bundle: PathBuf,
    /// `cgroupsPath`.
    pub cgroup: String,
}

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The sandbox, once it is more than an intent.
    pub sandbox: Option<Arc<SandboxView>>,
    /// Its containers, oldest first; only those that were made completely.
    pub containers: Vec<Arc<ContainerView>>,
}

impl PodView {
    /// The container with this id.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<ContainerView>> {
        self.containers.iter().find(|container| container.id == *id)
    }
}
