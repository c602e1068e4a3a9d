//! Control groups in memory, for the tests of those who use them: they record what was asked and fail on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::driver::{CgroupDriver, DriverKind, SavedLimits};
use crate::error::CgroupError;
use crate::name;
use crate::property::Limits;

/// One call of [`CgroupDriver`] that changes something or may fail, with what it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is a method of the trait and documented there")]
pub enum Call {
    EnsureParent(Option<String>),
    RemoveParentIfEmpty(String),
    Processes(String),
    KillAll(String),
    Remove(String),
    Release(String),
    ForgetEnded,
    AnnounceLimits(String, Limits),
    SaveLimits(String),
    RestoreLimits(String),
    MakeRoom(String, Limits),
    SetHugepages(String, Limits),
    SetOomScore(String, i32, i32),
}

/// The method a fault is set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is a method of the trait and documented there")]
pub enum Method {
    EnsureParent,
    RemoveParentIfEmpty,
    Processes,
    KillAll,
    Remove,
    Release,
    ForgetEnded,
    AnnounceLimits,
    SaveLimits,
    RestoreLimits,
    MakeRoom,
    SetHugepages,
    SetOomScore,
}

/// Groups that exist in memory only. Names obey the same rules as those of the real drivers.
#[derive(Debug)]
pub struct FakeCgroups {
    kind: DriverKind,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    /// How often each method shall still fail.
    faults: BTreeMap<Method, usize>,
    parents: BTreeSet<String>,
    processes: BTreeMap<String, Vec<i32>>,
}

impl FakeCgroups {
    /// No groups, and nothing fails.
    #[must_use]
    pub fn new(kind: DriverKind) -> Self {
        Self { kind, state: Mutex::default() }
    }

    /// Lets the next `times` calls of `method` fail without any effect.
    pub fn fail(&self, method: Method, times: usize) {
        self.state().faults.insert(method, times);
    }

    /// Makes a group as an OCI runtime does, with these processes.
    pub fn add(&self, oci_path: &str, pids: &[i32]) {
        self.state().processes.insert(oci_path.to_owned(), pids.to_owned());
    }

    /// What was called so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Every group and parent there is: empty when nothing leaked.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let state = self.state();
        state.parents.iter().chain(state.processes.keys()).cloned().collect()
    }

    /// A test that panicked with the lock held must not hide its message behind another's.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(&self, method: Method, call: Call) -> Result<MutexGuard<'_, State>, CgroupError> {
        let mut state = self.state();
        state.calls.push(call);
        match state.faults.get_mut(&method) {
            Some(times) if *times > 0 => {
                *times -= 1;
                Err(CgroupError::step("pretend to", Path::new("/fake"), io::Error::other("told to fail")))
            }
            _ => Ok(state),
        }
    }
}

#[async_trait]
impl CgroupDriver for FakeCgroups {
    fn kind(&self) -> DriverKind {
        self.kind
    }

    fn oci_path(&self, parent: Option<&str>, id: &str) -> Result<String, CgroupError> {
        name::oci_path(self.kind, parent, id)
    }

    fn directories(&self, oci_path: &str) -> Vec<PathBuf> {
        let exists = self.state().processes.contains_key(oci_path);
        let path = name::relative(self.kind, oci_path).ok().filter(|_| exists);
        path.map(|path| Path::new("/fake").join(path)).into_iter().collect()
    }

    fn groups(&self) -> Result<Vec<(String, String)>, CgroupError> {
        let paths: Vec<String> = self.state().processes.keys().cloned().collect();
        let path = |path: &String| name::named(self.kind, &name::relative(self.kind, path).ok()?);
        Ok(paths.iter().filter_map(path).collect())
    }

    fn missing_parents(&self, parent: Option<&str>) -> Result<Vec<String>, CgroupError> {
        let parent = name::parent(self.kind, parent)?;
        let ours = self.kind == DriverKind::Cgroupfs && !self.state().parents.contains(&parent);
        Ok(if ours { vec![parent] } else { Vec::new() })
    }

    fn ensure_parent(&self, parent: Option<&str>) -> Result<(), CgroupError> {
        let missing = self.missing_parents(parent)?;
        self.called(Method::EnsureParent, Call::EnsureParent(parent.map(str::to_owned)))?
            .parents
            .extend(missing);
        Ok(())
    }

    async fn remove_parent_if_empty(&self, parent: &str) -> Result<bool, CgroupError> {
        let name = name::parent(self.kind, Some(parent))?;
        let mut state =
            self.called(Method::RemoveParentIfEmpty, Call::RemoveParentIfEmpty(parent.to_owned()))?;
        let inside = format!("{name}/");
        let used = state.processes.keys().chain(&state.parents).any(|group| group.starts_with(&inside));
        if !used {
            state.parents.remove(&name);
        }
        Ok(!used)
    }

    fn processes(&self, oci_path: &str) -> Result<Vec<i32>, CgroupError> {
        let state = self.called(Method::Processes, Call::Processes(oci_path.to_owned()))?;
        Ok(state.processes.get(oci_path).cloned().unwrap_or_default())
    }

    fn kill_all(&self, oci_path: &str) -> Result<(), CgroupError> {
        let mut state = self.called(Method::KillAll, Call::KillAll(oci_path.to_owned()))?;
        state.processes.entry(oci_path.to_owned()).and_modify(Vec::clear);
        Ok(())
    }

    fn remove(&self, oci_path: &str) -> Result<(), CgroupError> {
        let mut state = self.called(Method::Remove, Call::Remove(oci_path.to_owned()))?;
        if state.processes.get(oci_path).is_some_and(|pids| !pids.is_empty()) {
            return Err(CgroupError::step("remove cgroup", Path::new(oci_path), io::ErrorKind::ResourceBusy));
        }
        state.processes.remove(oci_path);
        Ok(())
    }

    async fn release(&self, oci_path: &str) -> Result<(), CgroupError> {
        self.called(Method::Release, Call::Release(oci_path.to_owned())).map(drop)
    }

    async fn forget_ended(&self) -> Result<usize, CgroupError> {
        self.called(Method::ForgetEnded, Call::ForgetEnded).map(|_| 0)
    }

    async fn announce_limits(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let call = Call::AnnounceLimits(oci_path.to_owned(), limits.clone());
        self.called(Method::AnnounceLimits, call).map(drop)
    }

    async fn save_limits(&self, oci_path: &str, _others: &[String]) -> Result<SavedLimits, CgroupError> {
        self.called(Method::SaveLimits, Call::SaveLimits(oci_path.to_owned())).map(|_| SavedLimits::default())
    }

    async fn restore_limits(&self, oci_path: &str, _saved: &SavedLimits) -> Result<(), CgroupError> {
        self.called(Method::RestoreLimits, Call::RestoreLimits(oci_path.to_owned())).map(drop)
    }

    fn make_room(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError> {
        self.called(Method::MakeRoom, Call::MakeRoom(oci_path.to_owned(), limits.clone())).map(drop)
    }

    fn set_hugepages(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError> {
        self.called(Method::SetHugepages, Call::SetHugepages(oci_path.to_owned(), limits.clone())).map(drop)
    }

    fn set_oom_score(&self, oci_path: &str, from: i32, to: i32) -> Result<(), CgroupError> {
        self.called(Method::SetOomScore, Call::SetOomScore(oci_path.to_owned(), from, to)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_behaves_like_the_real_ones_and_remembers() {
        let groups = FakeCgroups::new(DriverKind::Cgroupfs);
        let path = groups.oci_path(Some("/pod"), "c").unwrap();
        assert_eq!(groups.missing_parents(Some("/pod")).unwrap(), ["/pod"]);
        groups.ensure_parent(Some("/pod")).unwrap();
        assert!(groups.missing_parents(Some("/pod")).unwrap().is_empty());
        groups.add(&path, &[7, 9]);
        assert_eq!(groups.directories(&path), [Path::new("/fake/pod/c")]);
        assert!(groups.remove(&path).is_err(), "processes are still in it");
        assert!(!groups.remove_parent_if_empty("/pod").await.unwrap());
        groups.kill_all(&path).unwrap();
        groups.remove(&path).unwrap();
        groups.remove(&path).unwrap();
        assert!(groups.remove_parent_if_empty("/pod").await.unwrap());
        assert!(groups.left().is_empty());
        assert_eq!(groups.calls()[0], Call::EnsureParent(Some("/pod".to_owned())));
        assert!(groups.oci_path(Some("a.slice"), "c").is_err());
    }

    #[test]
    fn faults_are_used_up() {
        let groups = FakeCgroups::new(DriverKind::Systemd);
        groups.fail(Method::KillAll, 1);
        assert!(groups.kill_all("x").is_err());
        groups.kill_all("x").unwrap();
        assert_eq!(groups.calls().len(), 2);
    }
}
