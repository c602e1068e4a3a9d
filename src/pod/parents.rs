//! Parent cgroups that this server made because nobody else had, as happens without kubelet.
//!
//! Written down before they are made and removed when the last pod has left them. cgroups do not outlive a reboot, so the
//! list lies in the volatile directory. A parent that a living pod asked for stays although nothing is in it yet: with the
//! systemd driver its removal would take along what is starting there at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use cgroup::CgroupDriver;
use tokio::sync::Mutex;
use types::{ErrorKind, Kind as _, SandboxId};

use super::error::StepError;
use super::record::{SandboxRecord, blocking};

/// The list, in memory and on disk.
#[derive(Debug)]
pub(super) struct Parents {
    /// Held throughout: a collection must not remove what a pod is about to use.
    list: Arc<Mutex<List>>,
}

#[derive(Debug)]
struct List {
    file: PathBuf,
    made: BTreeSet<String>,
    /// The pause containers' cgroups of the pods that were started in this run of the server.
    users: BTreeMap<SandboxId, String>,
}

impl Parents {
    /// Reads what an earlier run wrote; blocks.
    pub(super) fn open(file: PathBuf) -> Self {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let made = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { list: Arc::new(Mutex::new(List { file, made, users: BTreeMap::new() })) }
    }

    /// Makes the parent of the pod if it is missing, and keeps it until the pod is collected.
    pub(super) async fn ensure(
        &self,
        cgroups: &Arc<dyn CgroupDriver>,
        pod: &SandboxRecord,
    ) -> Result<(), StepError> {
        let mut list = Arc::clone(&self.list).lock_owned().await;
        list.users.insert(pod.id.clone(), pod.cgroup.clone());
        let (cgroups, parent) = (Arc::clone(cgroups), pod.request.cgroup_parent().map(str::to_owned));
        blocking(move || {
            list.note(cgroups.missing_parents(parent.as_deref())?)?;
            Ok(cgroups.ensure_parent(parent.as_deref())?)
        })
        .await
    }

    /// Removes those that are empty now, innermost first. What cannot be asked for now is asked for at the next removal.
    pub(super) async fn collect(&self, cgroups: &dyn CgroupDriver, pod: &SandboxId) -> Result<(), StepError> {
        let mut list = Arc::clone(&self.list).lock_owned().await;
        list.users.remove(pod);
        let before = list.made.len();
        for parent in list.unused() {
            match cgroups.remove_parent_if_empty(&parent).await {
                Ok(true) => drop(list.made.remove(&parent)),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    let error = types::error::chain(&error);
                    tracing::warn!(parent, error, "a parent cgroup stays until the next pod is removed");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if list.made.len() == before { Ok(()) } else { blocking(move || list.save()).await }
    }
}

impl List {
    fn note(&mut self, missing: Vec<String>) -> Result<(), StepError> {
        let before = self.made.len();
        self.made.extend(missing);
        if self.made.len() == before { Ok(()) } else { self.save() }
    }

    /// The parents that no pod asked for, innermost first.
    fn unused(&self) -> Vec<String> {
        let used = |parent: &String| self.users.values().any(|cgroup| lies_in(cgroup, parent));
        let mut unused: Vec<String> = self.made.iter().filter(|parent| !used(parent)).cloned().collect();
        unused.sort_by_key(|parent| std::cmp::Reverse(parent.matches(['/', '-']).count()));
        unused
    }

    fn save(&self) -> Result<(), StepError> {
        let bytes = serde_json::to_vec(&self.made)
            .map_err(|error| StepError::Io { what: "encoding cgroups".to_owned(), source: error.into() })?;
        Ok(sys::atomic::write(&self.file, &bytes, 0o600)?)
    }
}

/// Whether the cgroup of a container (`/a/b/id`, or `a-b.slice:crimson:id`) lies in `parent` (`/a`, or `a.slice`).
fn lies_in(cgroup: &str, parent: &str) -> bool {
    let (inside, parent, separator) = match (cgroup.split_once(".slice:"), parent.strip_suffix(".slice")) {
        (Some((slice, _)), Some(parent)) => (slice, parent, '-'),
        _ => (cgroup, parent, '/'),
    };
    inside.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_cgroup_lies() {
        for (cgroup, parent) in [
            ("/a/b/id", "/a"),
            ("/a/b/id", "/a/b"),
            ("a-b.slice:crimson:id", "a.slice"),
            ("a-b.slice:crimson:id", "a-b.slice"),
        ] {
            assert!(lies_in(cgroup, parent), "{cgroup} in {parent}");
        }
        for (cgroup, parent) in [
            ("/a/b/id", "/a/bb"),
            ("/ab/id", "/a"),
            ("a-b.slice:crimson:id", "a-b-c.slice"),
            ("ab.slice:crimson:id", "a.slice"),
        ] {
            assert!(!lies_in(cgroup, parent), "{cgroup} in {parent}");
        }
    }

    #[test]
    fn unused_ones_go_innermost_first() {
        let made = ["a.slice", "a-b.slice", "a-b-c.slice", "d.slice", "d-e.slice"];
        let users = [(SandboxId::from_random([1; 32]), "d.slice:crimson:x".to_owned())];
        let list = List { file: PathBuf::new(), made: made.map(str::to_owned).into(), users: users.into() };
        assert_eq!(list.unused(), ["a-b-c.slice", "a-b.slice", "d-e.slice", "a.slice"]);
    }
}
