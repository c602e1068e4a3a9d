//! What readers see: immutable snapshots that a pod's task publishes after each change.
//!
//! List, Status and Stats read these and nothing else, so they never wait for a slow operation.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use spec::{ContainerRequest, SandboxRequest};
use types::{ContainerId, ImageId, SandboxId, Timestamp};

use super::image_volumes::ImageVolume;
use super::layout::Layout;
use super::phase::{ContainerPhase, SandboxPhase};
use super::record::{ContainerRecord, ExitReason, SandboxRecord};

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
    /// The images that are mounted, in the order of the request.
    pub image_volumes: Vec<ImageVolume>,
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
    /// Made of the above when somebody first asks.
    pub shown: Shown,
}

/// What an edge shows of a view in its own form. The view never changes, so it is made once. A copy of a view makes its own.
#[derive(Debug, Default)]
pub struct Shown(OnceLock<Box<[u8]>>);

impl Clone for Shown {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Shown {
    /// What was made, now or earlier. There is one form only.
    pub fn bytes(&self, make: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.0.get_or_init(|| make().into_boxed_slice())
    }
}

impl SandboxView {
    /// What readers see of a sandbox with this record; nothing before it is made.
    fn of(record: &SandboxRecord) -> Option<Self> {
        if record.phase == SandboxPhase::Creating {
            return None;
        }
        let ready = record.phase == SandboxPhase::Ready;
        Some(Self {
            id: record.id.clone(),
            request: Arc::clone(&record.request),
            state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
            created_at: record.created_at,
            ips: if ready { record.ips.clone() } else { Vec::new() },
            network: record.network.clone(),
            netns: record.netns.clone(),
            netns_closed: !ready && record.netns.is_some(),
            pid: record.pause_pid.filter(|_| ready),
            handler: record.handler.clone(),
            cgroup: record.cgroup.clone(),
        })
    }
}

impl ContainerState {
    fn of(record: &ContainerRecord) -> Self {
        match record.phase {
            ContainerPhase::Creating | ContainerPhase::Created | ContainerPhase::Starting => Self::Created,
            ContainerPhase::Running => Self::Running,
            ContainerPhase::Exited => Self::Exited,
            ContainerPhase::Removing if record.started_at.is_set() || record.exit.is_some() => Self::Exited,
            ContainerPhase::Removing => Self::Created,
        }
    }
}

impl ContainerView {
    /// What readers see of a container with this record; nothing before it is made.
    fn of(record: &ContainerRecord, layout: &Layout) -> Option<Self> {
        if record.phase == ContainerPhase::Creating {
            return None;
        }
        let state = ContainerState::of(record);
        let exit = record.exit.as_ref();
        Some(Self {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            request: Arc::clone(&record.request),
            state,
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: exit.map_or(Timestamp::UNSET, |exit| exit.finished_at),
            exit_code: exit.map_or(0, |exit| exit.code),
            reason: exit.map_or("", |exit| ExitReason::word(exit.reason)),
            message: exit.map_or_else(String::new, |exit| exit.message.clone()),
            image: record.image.clone(),
            image_ref: record.image_ref.clone(),
            image_name: record.image_name.clone(),
            image_volumes: record.image_volumes.clone(),
            log_path: record.log_path.clone(),
            pid: record.pid.filter(|_| state == ContainerState::Running),
            user: record.user.clone(),
            stop_signal: record.stop_signal,
            bundle: layout.bundle(record.id.as_str()),
            cgroup: record.cgroup.clone(),
            shown: Shown::default(),
        })
    }

    /// Its name for people.
    #[must_use]
    pub fn display(&self) -> String {
        format!("container {:?}", self.request.name())
    }
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
    /// What readers see of a pod with these records.
    pub(super) fn of<'a>(
        sandbox: &SandboxRecord,
        containers: impl Iterator<Item = &'a ContainerRecord>,
        layout: &Layout,
    ) -> Self {
        let views = containers.filter_map(|record| ContainerView::of(record, layout));
        let mut containers: Vec<_> = views.map(Arc::new).collect();
        containers.sort_by_key(|container| container.created_at);
        Self { sandbox: SandboxView::of(sandbox).map(Arc::new), containers }
    }

    /// The container with this id.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<ContainerView>> {
        self.containers.iter().find(|container| container.id == *id)
    }
}
