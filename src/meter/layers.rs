//! How much disk containers take.
//!
//! Counted is what a container alone has on the node's disk: its writable layer, and beside it the directories of volumes that its
//! image declares. Those are bind mounts, so nothing of them is in the layer and nothing counts twice. Both count, since kubelet
//! evicts pods by the sum of their writable layers, logs and the volumes that it knows, and these volumes it does not know: left
//! out, a pod could fill the disk through them and be found by nobody.
//!
//! It takes a walk, which may take long, so no call does one: a task walks in the background, and new containers first as soon as
//! somebody waits for them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stats::{StatsError, TreeUsage};
use tokio::sync::{Notify, watch};
use types::{ContainerId, Timestamp};

use super::{REST, on_thread};
use crate::pod::Pods;
use crate::pod::view::{ContainerState, ContainerView, PodView};

/// What a container took of the disk when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSize {
    /// When that was.
    pub at: Timestamp,
    /// What it took.
    pub usage: TreeUsage,
}

/// Sizes of all containers.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    pods: Pods,
    known: Arc<Mutex<HashMap<ContainerId, Layer>>>,
    /// Somebody waits for a container that was not walked yet.
    wanted: Arc<Notify>,
    /// How many rounds there were.
    rounds: watch::Sender<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Layer {
    /// `None` when it could not be walked.
    size: Option<LayerSize>,
    due: Instant,
}

impl Layers {
    pub(super) fn new(pods: Pods) -> Self {
        let (known, wanted) = (Arc::default(), Arc::default());
        Self { pods, known, wanted, rounds: watch::Sender::new(0) }
    }

    /// The container's, if it was walked.
    pub(super) fn size(&self, id: &ContainerId) -> Option<LayerSize> {
        self.known().get(id).and_then(|layer| layer.size)
    }

    /// Waits until all running containers of these pods were looked at once, but no longer than `patience`.
    pub(super) async fn ready(&self, pods: &[Arc<PodView>], patience: Duration) {
        let looked_at = || {
            let known = self.known();
            let mut running = pods.iter().flat_map(|pod| &pod.containers).filter(|it| runs(it));
            running.all(|container| known.contains_key(&container.id))
        };
        if looked_at() {
            return;
        }
        let mut rounds = self.rounds.subscribe();
        self.wanted.notify_one();
        let in_time = tokio::time::timeout(patience, rounds.wait_for(|_| looked_at())).await;
        if in_time.is_err() {
            tracing::debug!("not every container's layer has been looked at yet");
        }
    }

    /// Walks every now and then, and when somebody waits. Never ends.
    pub(super) async fn keep_walking(&self, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let only_new = tokio::select! {
                _ = ticks.tick() => false,
                () = self.wanted.notified() => true,
            };
            let layers = self.clone();
            on_thread(move || layers.walk_round(only_new)).await;
            self.rounds.send_modify(|rounds| *rounds += 1);
        }
    }

    /// Walks the layers whose turn it is, those of new containers alone if told so, and forgets those that are gone.
    fn walk_round(&self, only_new: bool) {
        let pods = self.pods.list();
        let containers: Vec<_> = pods.iter().flat_map(|pod| &pod.containers).collect();
        let there: HashSet<&ContainerId> = containers.iter().map(|container| &container.id).collect();
        self.known().retain(|id, _| there.contains(id));
        for container in containers {
            let known = self.known().get(&container.id).copied();
            if known.is_none_or(|layer| !only_new && layer.is_due(container)) {
                self.walk(&container.id, known);
            }
        }
    }

    fn walk(&self, id: &ContainerId, known: Option<Layer>) {
        let (began, at) = (Instant::now(), Timestamp::now());
        let found = on_disk(&self.pods.layout().layers().join(id.as_str()));
        let found = found
            .inspect_err(|error| tracing::debug!(error = types::error::chain(error), "no size of a layer"));
        let size = found.ok().map(|usage| LayerSize { at, usage });
        let due = Instant::now() + (began.elapsed() * REST).max(super::EVERY / 2);
        let size = size.or(known.and_then(|layer| layer.size));
        self.known().insert(id.clone(), Layer { size, due });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ContainerId, Layer>> {
        // Nothing is done under the lock that could leave it half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer {
    fn is_due(&self, container: &ContainerView) -> bool {
        // Nobody writes into the layer of an ended container any more.
        let settled = !runs(container) && self.size.is_some_and(|size| size.at > container.finished_at);
        !settled && Instant::now() >= self.due
    }
}

fn runs(container: &ContainerView) -> bool {
    container.state == ContainerState::Running
}

/// What lies beneath a container's directory, but for what the overlay keeps for itself.
fn on_disk(directory: &Path) -> Result<TreeUsage, StatsError> {
    let layer = stats::tree(&directory.join("upper"))?;
    match stats::tree(&directory.join("volumes")) {
        Ok(volumes) => Ok(TreeUsage {
            bytes: layer.bytes.saturating_add(volumes.bytes),
            inodes: layer.inodes.saturating_add(volumes.inodes),
        }),
        Err(StatsError::Gone { .. }) => Ok(layer),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn volumes_that_the_image_declares_count_and_the_work_directory_does_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("file"), vec![1; 50_000]).unwrap();
        }
        let blocks = |name: &str| dir.path().join(name).metadata().unwrap().blocks() * 512;
        let layer = blocks("upper") + blocks("upper/file");
        assert_eq!(on_disk(dir.path()).unwrap(), TreeUsage { bytes: layer, inodes: 2 });

        std::fs::create_dir_all(dir.path().join("volumes/0")).unwrap();
        std::fs::write(dir.path().join("volumes/0/file"), vec![1; 100_000]).unwrap();
        let volumes = blocks("volumes") + blocks("volumes/0") + blocks("volumes/0/file");
        assert_eq!(on_disk(dir.path()).unwrap(), TreeUsage { bytes: layer + volumes, inodes: 5 });
    }

    #[test]
    fn a_container_without_a_layer_has_no_size() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(on_disk(&dir.path().join("gone")), Err(StatsError::Gone { .. })));
    }
}
