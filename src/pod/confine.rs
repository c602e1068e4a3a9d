//! What confines a pod and its containers: AppArmor's profile, SELinux's labels and the labels of files.
//!
//! A profile is made sure of each time one is about to be used. A pod's level, its pair of categories, is in its record from the
//! first moment, so that it survives restarts; it belongs to no other living pod, and is free again when the pod is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use spec::apparmor::Profile;
use spec::selinux::{self, SelinuxLabels};
use spec::{ContainerRequest, NodeFacts, ResolvedMount, SandboxRequest};
use types::SandboxId;

use super::confinement::{Confinement, ConfinementError};
use super::error::StepError;
use super::record::{SandboxRecord, blocking};
use super::shared::Shared;

/// What was made sure of.
#[derive(Debug, Default)]
pub(super) struct Confined {
    /// The default AppArmor profile, if it is to be used and is there.
    default_profile: Option<String>,
    /// Labels, where SELinux is on.
    pub(super) labels: Option<SelinuxLabels>,
}

impl Confined {
    /// The node's offers with what was made sure of.
    pub(super) fn facts(&self, node: &NodeFacts) -> NodeFacts {
        NodeFacts { apparmor_default: self.default_profile.clone(), ..node.clone() }
    }
}

/// The levels of living pods.
#[derive(Debug, Default)]
pub(super) struct Levels(Mutex<BTreeMap<SandboxId, String>>);

impl Levels {
    /// The level for a new pod: the one that its request names, else one that no other has; none where SELinux is off.
    pub(super) fn assign(
        &self,
        confinement: &dyn Confinement,
        range: u32,
        id: &SandboxId,
        request: &SandboxRequest,
    ) -> Result<Option<String>, ConfinementError> {
        if !confinement.selinux().is_some_and(selinux::Contexts::has_levels) {
            return Ok(None);
        }
        let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let level = match request.selinux_level() {
            Some(level) => level.to_owned(),
            None => {
                let taken: BTreeSet<String> = levels.values().cloned().collect();
                let seed = u64::from_le_bytes(sys::random::bytes());
                selinux::choose_level(range, &taken, seed).ok_or(ConfinementError::NoLevel)?
            }
        };
        levels.insert(id.clone(), level.clone());
        Ok(Some(level))
    }

    /// Notes the level of a pod of an earlier run.
    pub(super) fn remember(&self, record: &SandboxRecord) {
        if let Some(level) = &record.selinux_level {
            let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            levels.insert(record.id.clone(), level.clone());
        }
    }

    /// Every level that a pod has.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().values().cloned().collect()
    }

    /// Frees the level of a pod that is no more.
    pub(super) fn forget(&self, id: &SandboxId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Makes sure of what confines a pod's pause process, and labels the pod's own files.
pub(super) async fn pod(
    shared: &Shared,
    record: &SandboxRecord,
    facts: NodeFacts,
    files: Vec<PathBuf>,
) -> Result<Confined, StepError> {
    let confinement = Arc::clone(&shared.drivers.confinement);
    let (request, level) = (Arc::clone(&record.request), record.selinux_level.clone().unwrap_or_default());
    let pause = shared.layout().pause_rootfs();
    blocking(move || {
        let confinement = &*confinement;
        let profile = request.apparmor_profile();
        let default_profile = default_profile(confinement, &facts, &profile, request.privileged())?;
        let Some(contexts) = confinement.selinux().filter(|_| facts.selinux) else {
            return Ok(Confined { default_profile, labels: None });
        };
        let labels = request.selinux_labels(contexts, &level);
        check(confinement, &labels)?;
        files.iter().try_for_each(|file| confinement.relabel(file, &labels.mount))?;
        // One for all pods, and nobody can change it.
        confinement.relabel(&pause, &contexts.shared_file())?;
        Ok(Confined { default_profile, labels: Some(labels) })
    })
    .await
}

/// Makes sure of what confines a container, and labels what its mounts show if they ask for it.
pub(super) async fn container(
    shared: &Shared,
    sandbox: &SandboxRecord,
    request: &Arc<ContainerRequest>,
    facts: NodeFacts,
    mounts: &[ResolvedMount],
    pod_files: Vec<PathBuf>,
) -> Result<Confined, StepError> {
    let confinement = Arc::clone(&shared.drivers.confinement);
    let request = Arc::clone(request);
    let (pod, level) = (Arc::clone(&sandbox.request), sandbox.selinux_level.clone().unwrap_or_default());
    let flagged =
        mounts.iter().filter(|mount| mount.request.selinux_relabel && mount.request.image.is_none());
    let flagged: Vec<PathBuf> = flagged.map(|mount| mount.source.clone()).collect();
    blocking(move || {
        let confinement = &*confinement;
        let profile = request.apparmor_profile();
        let default_profile = default_profile(confinement, &facts, &profile, request.privileged())?;
        let Some(contexts) = confinement.selinux().filter(|_| facts.selinux) else {
            return Ok(Confined { default_profile, labels: None });
        };
        let labels = request.selinux_labels(&pod, contexts, &level);
        check(confinement, &labels)?;
        flagged.iter().try_for_each(|source| confinement.relabel(source, &labels.mount))?;
        // A container with a level of its own could not read what has the pod's.
        if labels.mount != pod.selinux_labels(contexts, &level).mount {
            let shared = contexts.shared_file();
            pod_files.iter().try_for_each(|file| confinement.relabel(file, &shared))?;
        }
        Ok(Confined { default_profile, labels: Some(labels) })
    })
    .await
}

/// The default profile, if it is wanted; a profile of the node must be there. What AppArmor cannot do because it is off is
/// refused where the request becomes a spec.
fn default_profile(
    confinement: &dyn Confinement,
    facts: &NodeFacts,
    profile: &Profile,
    privileged: bool,
) -> Result<Option<String>, ConfinementError> {
    if !facts.apparmor {
        return Ok(None);
    }
    if let Some(name) = profile.localhost() {
        confinement.require_profile(name)?;
    }
    if !profile.wants_default(privileged) {
        return Ok(None);
    }
    match (confinement.default_profile(), profile) {
        (Ok(name), _) => Ok(Some(name)),
        (Err(error), Profile::RuntimeDefault) => Err(error),
        (Err(error), _) => {
            tracing::debug!(
                error = types::error::chain(&error),
                "a process runs without an AppArmor profile"
            );
            Ok(None)
        }
    }
}

fn check(confinement: &dyn Confinement, labels: &SelinuxLabels) -> Result<(), ConfinementError> {
    confinement.check_label(&labels.process)?;
    confinement.check_label(&labels.mount)
}
