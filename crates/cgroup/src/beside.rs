//! A group in the one that this server was started in, for programs that it starts and that belong to no pod.
//!
//! Whoever started the server has put it into a group and, if it is systemd, delegated what lies in there. The group made here
//! keeps such programs apart from the server itself and is theirs from birth as far as the kernel allows: with v1 a thread may
//! live in another group than its process, so one that has entered starts all of them there. With v2 a program enters by itself.
//! A move makes the kernel wait for all processors, 5 to 10 ms, which is why the thread is preferred and why there is one group for all.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sys::mount::MountEntry;

use crate::error::CgroupError;
use crate::mounts;

/// The v1 controllers that tell what a program takes; others would only change how it is treated.
const ACCOUNTS: [&str; 2] = ["memory", "pids"];

/// A group beside the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Its v1 directories, which a thread enters by writing 0 to `tasks`.
    pub by_thread: Vec<PathBuf>,
    /// Its v2 directory, which a process enters by writing 0 to `cgroup.procs`. The kernel has no controllers work on it, nor does
    /// anybody here, so processes may be in the group that it lies in, too.
    pub by_process: Vec<PathBuf>,
}

impl Beside {
    /// Makes the group, or finds it made.
    ///
    /// # Errors
    /// [`CgroupError`] when the kernel refuses, or when it cannot be said which group the server is in.
    pub fn make(name: &str) -> Result<Self, CgroupError> {
        let group = Self::of_this_process(name)?;
        for directory in group.directories() {
            match std::fs::create_dir(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::step("make cgroup", directory, error));
                }
                _ => {}
            }
        }
        Ok(group)
    }

    fn of_this_process(name: &str) -> Result<Self, CgroupError> {
        let memberships = Path::new("/proc/self/cgroup");
        let text = std::fs::read_to_string(memberships)
            .map_err(|error| CgroupError::step("read", memberships, error))?;
        let table = sys::mount::list().map_err(CgroupError::Mounts)?;
        Ok(Self::of(&text, &table, Path::new(mounts::DEFAULT_ROOT), name))
    }

    /// The group `name` in those that `memberships`, in the form of `/proc/<pid>/cgroup`, tells of.
    fn of(memberships: &str, table: &[MountEntry], root: &Path, name: &str) -> Self {
        let lines: Vec<(&str, &str)> =
            memberships.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
        let find = |wanted: &dyn Fn(&str) -> bool| {
            let (controllers, path) = lines.iter().find(|(controllers, _)| wanted(controllers))?;
            Some(directory(controllers, path, table, root)?.join(name))
        };
        let accounted = |account: &str| find(&|names| names.split(',').any(|name| name == account));
        let mut by_thread: Vec<PathBuf> = ACCOUNTS.iter().filter_map(|account| accounted(account)).collect();
        by_thread.dedup();
        let by_process =
            if by_thread.is_empty() { find(&str::is_empty).into_iter().collect() } else { Vec::new() };
        Self { by_thread, by_process }
    }

    /// Removes the group where nothing is in it.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the kernel refuses for another reason than that it is in use, or gone.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for directory in self.directories() {
            match rustix::fs::rmdir(directory) {
                Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(error) => return Err(CgroupError::step("remove cgroup", directory, error)),
            }
        }
        Ok(())
    }

    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.by_thread.iter().chain(&self.by_process)
    }
}

/// Where the group `path` of the hierarchy with these controllers is to be seen.
fn directory(controllers: &str, path: &str, table: &[MountEntry], root: &Path) -> Option<PathBuf> {
    let first = controllers.split(',').next().unwrap_or_default();
    let shows = |entry: &&MountEntry| match entry.fstype.as_str() {
        "cgroup2" => first.is_empty(),
        "cgroup" => !first.is_empty() && entry.options.split(',').any(|option| option == first),
        _ => false,
    };
    let mount = table.iter().filter(|entry| entry.mount_point.starts_with(root)).find(shows)?;
    // Of a hierarchy that is mounted from some group on, only what lies in it can be seen.
    let inside = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(mount.mount_point.join(inside))
}

#[cfg(test)]
mod tests {
    use sys::mount::Propagation;

    use super::*;

    fn entry(point: &str, fstype: &str, root: &str, options: &str) -> MountEntry {
        MountEntry {
            id: 1,
            parent: 0,
            root: root.into(),
            mount_point: point.into(),
            fstype: fstype.into(),
            source: fstype.into(),
            options: options.into(),
            propagation: Propagation::Shared,
        }
    }

    fn of(memberships: &str, table: &[MountEntry]) -> Beside {
        Beside::of(memberships, table, Path::new("/sys/fs/cgroup"), "monitors")
    }

    #[test]
    fn it_lies_in_the_servers_own_group() {
        let unified = [entry("/sys/fs/cgroup", "cgroup2", "/", "rw")];
        let service = of("0::/system.slice/crimson.service\n", &unified);
        assert_eq!(
            service.by_process,
            [PathBuf::from("/sys/fs/cgroup/system.slice/crimson.service/monitors")]
        );
        assert!(service.by_thread.is_empty());
    }

    #[test]
    fn with_v1_controllers_it_is_where_they_count() {
        let table = [
            entry("/sys/fs/cgroup/unified", "cgroup2", "/", "rw"),
            entry("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "/", "rw,cpu,cpuacct"),
            entry("/sys/fs/cgroup/memory", "cgroup", "/docker/1", "rw,memory"),
            entry("/sys/fs/cgroup/pids", "cgroup", "/", "rw,pids"),
        ];
        let found = of("5:cpu,cpuacct:/a\n4:memory:/docker/1/b\n3:pids:/a\n0::/a\n", &table);
        let expected = ["/sys/fs/cgroup/memory/b/monitors", "/sys/fs/cgroup/pids/a/monitors"];
        assert_eq!(found.by_thread, expected.map(PathBuf::from));
        assert!(found.by_process.is_empty());
        let elsewhere = of("4:memory:/c\n", &table);
        assert_eq!(elsewhere, Beside::default(), "what is not mounted cannot be used");
    }

    #[test]
    fn it_is_made_once_and_removed_when_empty() {
        let name = format!("crimson-test-beside-{}", types::id::hex(&sys::random::bytes::<8>()));
        let group = Beside::make(&name).unwrap();
        assert_eq!(Beside::make(&name).unwrap(), group);
        let directories: Vec<&PathBuf> = group.directories().collect();
        assert!(!directories.is_empty() && directories.iter().all(|it| it.is_dir()));
        group.remove().unwrap();
        group.remove().unwrap();
        assert!(directories.iter().all(|it| !it.is_dir()));
    }
}
