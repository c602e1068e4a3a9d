//! Parent cgroups that this server made because nobody else had, as happens without kubelet.
//!
//! Written down before they are made and removed when the last pod has left them. cgroups do not outlive a reboot, so the
//! list lies in the volatile directory.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cgroup::CgroupDriver;

use super::error::StepError;

/// The list, in memory and on disk. All calls block.
#[derive(Debug)]
pub(super) struct Parents {
    file: PathBuf,
    made: Mutex<BTreeSet<String>>,
}

impl Parents {
    /// Reads what an earlier run wrote.
    pub(super) fn open(file: PathBuf) -> Self {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let made = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { file, made: Mutex::new(made) }
    }

    /// Makes the parent if it is missing.
    pub(super) fn ensure(&self, cgroups: &dyn CgroupDriver, parent: Option<&str>) -> Result<(), StepError> {
        // Held throughout: a collection must not remove what a pod is about to use.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = cgroups.missing_parents(parent)?;
        if !missing.is_empty() {
            let before = made.len();
            made.extend(missing);
            if made.len() != before {
                self.save(&made)?;
            }
        }
        Ok(cgroups.ensure_parent(parent)?)
    }

    /// Removes those that are empty now, innermost first.
    pub(super) fn collect(&self, cgroups: &dyn CgroupDriver) -> Result<(), StepError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let before = made.len();
        let mut innermost_first: Vec<String> = made.iter().cloned().collect();
        innermost_first.sort_by_key(|parent| std::cmp::Reverse(parent.matches('/').count()));
        for parent in innermost_first {
            if cgroups.remove_parent_if_empty(&parent)? {
                made.remove(&parent);
            }
        }
        if made.len() == before { Ok(()) } else { self.save(&made) }
    }

    fn save(&self, made: &BTreeSet<String>) -> Result<(), StepError> {
        let bytes = serde_json::to_vec(made)
            .map_err(|error| StepError::Io { what: "encoding cgroups".to_owned(), source: error.into() })?;
        Ok(sys::atomic::write(&self.file, &bytes, 0o600)?)
    }
}
