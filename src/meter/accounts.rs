//! All that is known of every pod at once, for monitoring.
//!
//! Everything is read when it is asked for, through the descriptors that are kept anyway. Two things are not, and say when they
//! were found out: sizes on disk, which come from the background, and the census of a container's processes, which is repeated only
//! after a hundred times as long as it took.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use stats::{Account, Census, Filesystem, Interface};
use types::Timestamp;

use super::{LayerSize, Meter, Metered, Place, REST, network, on_thread, shared_out};
use crate::pod::view::{ContainerState, ContainerView, PodView, SandboxState, SandboxView};

/// How long is waited for the first look at what new containers have on disk.
const PATIENCE: Duration = Duration::from_millis(250);

/// What all pods use, in every detail.
#[derive(Debug, Default)]
pub struct Accounts {
    /// The file system that writable layers are on.
    pub filesystem: Option<Filesystem>,
    /// Each pod that is up.
    pub pods: Vec<PodAccount>,
}

/// What a pod uses.
#[derive(Debug)]
pub struct PodAccount {
    /// Which.
    pub sandbox: Arc<SandboxView>,
    /// Its group's; `None` where it has no group of its own.
    pub account: Option<Account>,
    /// Interfaces of its network; none with the node's.
    pub network: Vec<Interface>,
    /// Its running containers, without those that have just vanished.
    pub containers: Vec<ContainerAccount>,
}

/// What a container uses.
#[derive(Debug)]
pub struct ContainerAccount {
    /// Which.
    pub container: Arc<ContainerView>,
    /// Its group's.
    pub account: Account,
    /// Its processes.
    pub counted: Option<Counted>,
    /// How many files its first process may have open.
    pub open_files_limit: Option<u64>,
    /// Its part of the disk, once that was looked at.
    pub layer: Option<LayerSize>,
}

/// A census, and when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// `None`: now.
    pub at: Option<Timestamp>,
    /// What was found.
    pub census: Census,
}

/// The last census of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    at: Timestamp,
    census: Census,
    due: Instant,
}

impl Meter {
    /// Of all pods that are up.
    pub async fn accounts(self: &Arc<Self>) -> Accounts {
        // This period's end may come before the answer's.
        self.large_answers.store(2, Relaxed);
        let pods = self.pods.list();
        self.layers.ready(&pods, PATIENCE).await;
        let (asked, meter) = (Arc::clone(self), Arc::clone(self));
        let filesystem = on_thread(move || asked.filesystem()).await;
        Accounts { filesystem, pods: shared_out(pods, move |pod| meter.pod_account(&pod)).await }
    }

    fn filesystem(&self) -> Option<Filesystem> {
        let found = Filesystem::of(&self.layers());
        found.inspect_err(|error| tracing::debug!(error = types::error::chain(error), "no file system")).ok()
    }

    fn pod_account(&self, pod: &PodView) -> Option<PodAccount> {
        let sandbox = Arc::clone(pod.sandbox.as_ref().filter(|it| it.state == SandboxState::Ready)?);
        let own_group = sandbox.request.cgroup_parent().is_some();
        let account = own_group.then(|| self.account(Place::PodOf(&sandbox.cgroup))).flatten();
        let network = network(&sandbox).unwrap_or_default();
        let containers = pod.containers.iter().filter_map(|it| self.container_account(it)).collect();
        Some(PodAccount { account: account.map(|(account, _)| account), network, containers, sandbox })
    }

    fn container_account(&self, container: &Arc<ContainerView>) -> Option<ContainerAccount> {
        let pid = container.pid.filter(|_| container.state == ContainerState::Running)?;
        let (account, metered) = self.account(Place::Own(&container.cgroup))?;
        Some(ContainerAccount {
            account,
            counted: metered.census(),
            open_files_limit: stats::open_files_limit(pid),
            layer: self.layers.size(&container.id),
            container: Arc::clone(container),
        })
    }

    fn account(&self, place: Place<'_>) -> Option<(Account, Arc<Metered>)> {
        let name = place.name();
        let read = self.metered(&name, place).and_then(|metered| Ok((metered.group.account()?, metered)));
        read.inspect_err(|error| self.unreadable(&name, error)).ok()
    }
}

impl Metered {
    /// A new census, or the last one as long as a new one would cost too much.
    fn census(&self) -> Option<Counted> {
        let mut kept = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.filter(|kept| Instant::now() < kept.due) {
            return Some(Counted { at: Some(kept.at), census: kept.census });
        }
        let (began, at) = (Instant::now(), Timestamp::now());
        let census = self.group.census();
        let census = census.inspect_err(|error| {
            tracing::debug!(error = types::error::chain(error), "processes were not counted");
        });
        let census = census.ok()?;
        *kept = Some(Kept { at, census, due: Instant::now() + began.elapsed() * REST });
        Some(Counted { at: None, census })
    }
}
