//! The directories of groups, in all hierarchies at once.
//!
//! A path here is relative and the same below every hierarchy. A directory that is missing where it is looked for never is
//! an error: runtimes make groups in some hierarchies only, and whatever is being removed may go at any moment.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::CgroupError;
use crate::mounts::{Mount, Mounts};

mod kill;
mod limits;

pub(crate) use limits::{Contents, restore};

/// How long a directory may stay busy with processes that are ending.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Tree {
    mounts: Mounts,
}

impl Tree {
    pub(crate) fn new(mounts: Mounts) -> Self {
        Self { mounts }
    }

    /// The directories of `path` that exist.
    pub(crate) fn existing(&self, path: &Path) -> Vec<PathBuf> {
        self.mounts.iter().map(|mount| mount.path.join(path)).filter(|directory| directory.is_dir()).collect()
    }

    /// Of `path` and what it lies in, the groups that no hierarchy has, outermost first.
    pub(crate) fn missing(&self, path: &Path) -> Vec<PathBuf> {
        let of_path = path.ancestors().filter(|group| !group.as_os_str().is_empty());
        let mut missing: Vec<PathBuf> =
            of_path.take_while(|group| self.existing(group).is_empty()).map(Path::to_owned).collect();
        missing.reverse();
        missing
    }

    /// What `known` makes of the paths of all groups in all hierarchies, each once; it is not asked about groups in those it
    /// knows.
    pub(crate) fn named<T: Ord>(&self, known: impl Fn(&Path) -> Option<T>) -> Result<Vec<T>, CgroupError> {
        let mut found = BTreeSet::new();
        for mount in self.mounts.iter() {
            let mut waiting = vec![mount.path.clone()];
            while let Some(directory) = waiting.pop() {
                let path = directory.strip_prefix(&mount.path).unwrap_or(&directory);
                match known(path) {
                    Some(name) => drop(found.insert(name)),
                    None => waiting.extend(inside(&directory)?),
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Makes the group in every hierarchy.
    pub(crate) fn make(&self, path: &Path) -> Result<(), CgroupError> {
        self.mounts.iter().try_for_each(|mount| make_in(mount, path))
    }

    /// The processes of the group and the groups in it, in ascending order.
    pub(crate) fn processes(&self, path: &Path) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in
            self.existing(path).iter().map(|top| groups(top)).collect::<Result<Vec<_>, _>>()?.concat()
        {
            pids.extend(listed(&directory.join("cgroup.procs"))?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Removes the group with all groups in it from every hierarchy.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), CgroupError> {
        let deadline = Instant::now() + REMOVE_LIMIT;
        let answers: Vec<_> =
            self.existing(path).iter().map(|top| remove_with_children(top, deadline)).collect();
        answers.into_iter().collect()
    }

    /// Whether no hierarchy has a process or a group in this one.
    pub(crate) fn is_empty(&self, path: &Path) -> Result<bool, CgroupError> {
        let inside = self.existing(path).iter().any(|group| has_children(group));
        Ok(!inside && self.processes(path)?.is_empty())
    }

    /// Removes the group from every hierarchy where nothing is in it; says whether none has it any more.
    pub(crate) fn remove_if_empty(&self, path: &Path) -> Result<bool, CgroupError> {
        for directory in self.existing(path) {
            match rustix::fs::rmdir(&directory) {
                Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(error) => return Err(CgroupError::step("remove cgroup", &directory, error)),
            }
        }
        Ok(self.existing(path).is_empty())
    }
}

fn make_in(mount: &Mount, path: &Path) -> Result<(), CgroupError> {
    let directory = mount.path.join(path);
    match std::fs::create_dir(&directory) {
        Ok(()) if mount.controllers.iter().any(|name| name == "cpuset") => inherit_cpuset(&directory),
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(CgroupError::step("make cgroup", &directory, error)),
    }
}

/// A new v1 cpuset has no processors and no memory, and takes no process until it has.
fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherited = match std::fs::read(parent.join(file)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(CgroupError::step("read", &parent.join(file), error)),
        };
        let own = directory.join(file);
        std::fs::write(&own, inherited).map_err(|e| CgroupError::step("write", &own, e))?;
    }
    Ok(())
}

/// `top` and every group in it, each before those it contains.
fn groups(top: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = vec![top.to_owned()];
    let mut at = 0;
    while let Some(directory) = found.get(at).cloned() {
        found.extend(inside(&directory)?);
        at += 1;
    }
    Ok(found)
}

/// The groups right in this one.
fn inside(group: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |e| CgroupError::step("read cgroup", group, e);
    let mut found = Vec::new();
    match std::fs::read_dir(group) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    found.push(entry.path());
                }
            }
        }
        Err(error) if is_gone(&error) => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(found)
}

/// The pids in a `cgroup.procs` file.
fn listed(file: &Path) -> Result<Vec<i32>, CgroupError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()),
        // A threaded group of v2 refuses; its processes are listed by the group they belong to.
        Err(error) if is_gone(&error) || error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            Ok(Vec::new())
        }
        Err(error) => Err(CgroupError::step("read", file, error)),
    }
}

/// A file of a group that is removed while it is open answers with the second.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Groups made in it meanwhile are found in another pass.
fn remove_with_children(top: &Path, deadline: Instant) -> Result<(), CgroupError> {
    loop {
        match groups(top)?.iter().rev().try_for_each(|group| remove_one(group, deadline)) {
            Err(Errno::BUSY) if Instant::now() < deadline => {}
            answer => return answer.map_err(|e| CgroupError::step("remove cgroup", top, e)),
        }
    }
}

/// A group stays busy for a moment after its last process has ended.
fn remove_one(group: &Path, deadline: Instant) -> Result<(), Errno> {
    let mut pause = Duration::from_micros(200);
    loop {
        match rustix::fs::rmdir(group) {
            Err(Errno::BUSY) if Instant::now() < deadline && !has_children(group) => sleep(pause),
            Err(Errno::NOENT) => return Ok(()),
            answer => return answer,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn has_children(group: &Path) -> bool {
    groups(group).is_ok_and(|groups| groups.len() > 1)
}

#[cfg(test)]
mod tests;
