//! The host's kernel as the pod verbs need it, and a fake of it.

use std::path::{Path, PathBuf};

use super::error::StepError;

/// Namespaces and mounts of the host. All calls block and are idempotent where their name says remove.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// Makes a network namespace that lives on at `path`.
    ///
    /// # Errors
    /// The kernel's refusal; nothing is left at `path` then.
    fn create_netns(&self, path: &Path) -> Result<(), StepError>;

    /// Removes what [`Host::create_netns`] made.
    ///
    /// # Errors
    /// The kernel's refusal; a missing namespace is none.
    fn remove_netns(&self, path: &Path) -> Result<(), StepError>;

    /// Mounts a tmpfs for the pod's shared memory.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn mount_shm(&self, path: &Path, bytes: u64) -> Result<(), StepError>;

    /// Unmounts whatever is mounted at `path`.
    ///
    /// # Errors
    /// The kernel's refusal; nothing mounted there is none.
    fn unmount(&self, path: &Path) -> Result<(), StepError>;

    /// Every mount point beneath `dir`.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    fn mounts_beneath(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError>;
}

/// The real kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel;

impl Host for Kernel {
    fn create_netns(&self, path: &Path) -> Result<(), StepError> {
        Ok(sys::netns::create(path)?)
    }

    fn remove_netns(&self, path: &Path) -> Result<(), StepError> {
        Ok(sys::netns::remove(path)?)
    }

    fn mount_shm(&self, path: &Path, bytes: u64) -> Result<(), StepError> {
        sys::atomic::create_dir_all(path, 0o755)?;
        Ok(sys::mount::tmpfs(path, bytes, 0o1777)?)
    }

    fn unmount(&self, path: &Path) -> Result<(), StepError> {
        Ok(sys::mount::unmount(path)?)
    }

    fn mounts_beneath(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError> {
        let mounts = sys::mount::list()?;
        let beneath = mounts.into_iter().map(|mount| mount.mount_point);
        Ok(beneath.filter(|point| point.starts_with(dir) && point != dir).collect())
    }
}

/// A kernel in memory, for tests of lifecycles.
#[cfg(test)]
pub(super) mod fake {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use super::{Host, StepError};

    /// Remembers what exists.
    #[derive(Debug, Default)]
    pub(in super::super) struct FakeHost {
        netns: Mutex<BTreeSet<PathBuf>>,
        mounts: Mutex<BTreeSet<PathBuf>>,
    }

    impl FakeHost {
        /// Everything that exists: empty when nothing leaked.
        pub(in super::super) fn left(&self) -> Vec<PathBuf> {
            let (netns, mounts) = (self.netns.lock().unwrap(), self.mounts.lock().unwrap());
            netns.iter().chain(mounts.iter()).cloned().collect()
        }
    }

    impl Host for FakeHost {
        fn create_netns(&self, path: &Path) -> Result<(), StepError> {
            assert!(self.netns.lock().unwrap().insert(path.to_owned()), "{} exists", path.display());
            Ok(())
        }

        fn remove_netns(&self, path: &Path) -> Result<(), StepError> {
            self.netns.lock().unwrap().remove(path);
            Ok(())
        }

        fn mount_shm(&self, path: &Path, _: u64) -> Result<(), StepError> {
            std::fs::create_dir_all(path).unwrap();
            self.mounts.lock().unwrap().insert(path.to_owned());
            Ok(())
        }

        fn unmount(&self, path: &Path) -> Result<(), StepError> {
            self.mounts.lock().unwrap().remove(path);
            Ok(())
        }

        fn mounts_beneath(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError> {
            let mounts = self.mounts.lock().unwrap();
            Ok(mounts.iter().filter(|mount| mount.starts_with(dir) && *mount != dir).cloned().collect())
        }
    }
}
