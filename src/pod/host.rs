//! The host's kernel as the pod verbs need it, and a fake of it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use spec::UserNamespace;
use sys::userns::IdMaps;
use types::SandboxId;

use super::error::StepError;
use super::strays::children;
use super::userns;

/// Namespaces and mounts of the host. All calls block and are idempotent where their name says remove.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// Makes a network namespace that lives on at `path`; with `maps` it belongs to a user namespace with these maps, which lives as
    /// long.
    ///
    /// # Errors
    /// The kernel's refusal; nothing is left at `path` then.
    fn create_netns(&self, path: &Path, maps: Option<&IdMaps>) -> Result<(), StepError>;

    /// Removes what [`Host::create_netns`] made.
    ///
    /// # Errors
    /// The kernel's refusal; a missing namespace is none.
    fn remove_netns(&self, path: &Path) -> Result<(), StepError>;

    /// A socket for each address of a loopback, IPv4 and then IPv6, in the namespace at `netns` or in the node's own. They wait for
    /// nobody.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A kernel that lacks a family refuses its socket alone.
    fn loopback_sockets(&self, netns: Option<&Path>) -> Result<Sockets, StepError>;

    /// Mounts a tmpfs for the pod's shared memory, which belongs to the pod's root.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn mount_shm(&self, path: &Path, bytes: u64, pod: Option<UserNamespace>) -> Result<(), StepError>;

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

    /// Every file in `dir` at which a namespace is bound, or may have been.
    ///
    /// # Errors
    /// When the directory cannot be read; a missing one has none.
    fn namespaces(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError>;

    /// Every process that is a monitor with its socket beneath `pods`, and whose.
    ///
    /// # Errors
    /// When processes cannot be listed.
    fn monitors(&self, pods: &Path) -> Result<Vec<(i32, SandboxId)>, StepError>;

    /// Kills a process if it is that monitor.
    ///
    /// # Errors
    /// The kernel's refusal; a process that is gone, or another one, is none.
    fn end_monitor(&self, pods: &Path, pid: i32, sandbox: &SandboxId) -> Result<(), StepError>;
}

/// What [`Host::loopback_sockets`] gives.
pub type Sockets = [std::io::Result<OwnedFd>; 2];

/// Makes them in the calling thread's namespace.
fn loopback_sockets() -> Sockets {
    [AddressFamily::INET, AddressFamily::INET6].map(|family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, SocketType::STREAM, flags, None)?)
    })
}

/// The real kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel;

impl Host for Kernel {
    fn create_netns(&self, path: &Path, maps: Option<&IdMaps>) -> Result<(), StepError> {
        // Else the first `ip netns add` on the host would cover the namespace, and it could not be removed.
        path.parent().map_or(Ok(()), sys::netns::share)?;
        match maps {
            Some(maps) => Ok(sys::netns::create_owned(path, maps)?),
            None => Ok(sys::netns::create(path)?),
        }
    }

    fn remove_netns(&self, path: &Path) -> Result<(), StepError> {
        Ok(sys::netns::remove(path)?)
    }

    fn loopback_sockets(&self, netns: Option<&Path>) -> Result<Sockets, StepError> {
        Ok(netns.map_or_else(|| Ok(loopback_sockets()), |path| sys::netns::run_in(path, loopback_sockets))?)
    }

    fn mount_shm(&self, path: &Path, bytes: u64, pod: Option<UserNamespace>) -> Result<(), StepError> {
        sys::atomic::create_dir_all(path, 0o755)?;
        sys::mount::tmpfs(path, bytes, 0o1777)?;
        userns::give(path, pod)
    }

    fn unmount(&self, path: &Path) -> Result<(), StepError> {
        Ok(sys::mount::unmount(path)?)
    }

    fn mounts_beneath(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError> {
        let mounts = sys::mount::list()?;
        let beneath = mounts.into_iter().map(|mount| mount.mount_point);
        Ok(beneath.filter(|point| point.starts_with(dir) && point != dir).collect())
    }

    fn namespaces(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError> {
        children(dir)
    }

    fn monitors(&self, pods: &Path) -> Result<Vec<(i32, SandboxId)>, StepError> {
        let processes = children(Path::new("/proc"))?;
        let pids = processes.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
        Ok(pids.filter_map(|pid| Some((pid, monitor_of(pid, pods)?))).collect())
    }

    fn end_monitor(&self, pods: &Path, pid: i32, sandbox: &SandboxId) -> Result<(), StepError> {
        // Held before the process is looked at, so that it is the same one that is killed.
        let Ok(process) = sys::pidfd::PidFd::open(pid) else { return Ok(()) };
        if monitor_of(pid, pods).as_ref() != Some(sandbox) {
            return Ok(());
        }
        let what = || format!("killing monitor {pid}");
        process.signal(SIGKILL).map_err(StepError::io(what()))?;
        process.wait_ended(Some(KILL_WAIT)).map(drop).map_err(StepError::io(what()))
    }
}

const SIGKILL: i32 = 9;
/// How long a killed process may take to end.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// The sandbox whose monitor this process is, by its arguments.
fn monitor_of(pid: i32, pods: &Path) -> Option<SandboxId> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    sandbox_of(&line, pods)
}

fn sandbox_of(line: &[u8], pods: &Path) -> Option<SandboxId> {
    let words: Vec<&str> =
        line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let value = |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1));
    let sandbox = SandboxId::parse(value("--sandbox")?).ok()?;
    let is_ours = Path::new(value("--socket")?).parent() == Some(&pods.join(sandbox.as_str()));
    is_ours.then_some(sandbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_is_known_by_its_arguments() {
        let id = SandboxId::from_random([7; 32]);
        let line = format!(
            "/usr/lib/crimson-monitor\0serve\0--sandbox\0{id}\0--socket\0/run/c/pods/{id}/monitor.sock\0"
        );
        assert_eq!(sandbox_of(line.as_bytes(), Path::new("/run/c/pods")), Some(id));
        assert_eq!(sandbox_of(line.as_bytes(), Path::new("/run/other/pods")), None);
        assert_eq!(sandbox_of(b"sleep\x001000\0", Path::new("/run/c/pods")), None);
    }
}

/// A kernel in memory, for tests of lifecycles.
#[cfg(test)]
pub(super) mod fake {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use spec::UserNamespace;
    use sys::userns::IdMaps;
    use types::SandboxId;

    use super::{Host, Sockets, StepError};

    /// Remembers what exists.
    #[derive(Debug, Default)]
    pub(in super::super) struct FakeHost {
        netns: Mutex<BTreeSet<PathBuf>>,
        /// Maps of the user namespaces that were made.
        pub(in super::super) owned: Mutex<Vec<IdMaps>>,
        mounts: Mutex<BTreeSet<PathBuf>>,
        /// Monitors as processes, which the tests put here.
        pub(in super::super) processes: Mutex<Vec<(i32, SandboxId)>>,
    }

    impl FakeHost {
        /// Everything that exists: empty when nothing leaked.
        pub(in super::super) fn left(&self) -> Vec<PathBuf> {
            let (netns, mounts) = (self.netns.lock().unwrap(), self.mounts.lock().unwrap());
            netns.iter().chain(mounts.iter()).cloned().collect()
        }
    }

    impl Host for FakeHost {
        fn create_netns(&self, path: &Path, maps: Option<&IdMaps>) -> Result<(), StepError> {
            assert!(self.netns.lock().unwrap().insert(path.to_owned()), "{} exists", path.display());
            self.owned.lock().unwrap().extend(maps.copied());
            Ok(())
        }

        fn remove_netns(&self, path: &Path) -> Result<(), StepError> {
            self.netns.lock().unwrap().remove(path);
            Ok(())
        }

        fn loopback_sockets(&self, netns: Option<&Path>) -> Result<Sockets, StepError> {
            assert!(netns.is_none_or(|path| self.netns.lock().unwrap().contains(path)), "{netns:?}");
            Ok(super::loopback_sockets())
        }

        fn mount_shm(&self, path: &Path, _: u64, _: Option<UserNamespace>) -> Result<(), StepError> {
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

        fn namespaces(&self, dir: &Path) -> Result<Vec<PathBuf>, StepError> {
            let netns = self.netns.lock().unwrap();
            Ok(netns.iter().filter(|path| path.parent() == Some(dir)).cloned().collect())
        }

        fn monitors(&self, _: &Path) -> Result<Vec<(i32, SandboxId)>, StepError> {
            Ok(self.processes.lock().unwrap().clone())
        }

        fn end_monitor(&self, _: &Path, pid: i32, _: &SandboxId) -> Result<(), StepError> {
            self.processes.lock().unwrap().retain(|(other, _)| *other != pid);
            Ok(())
        }
    }
}
