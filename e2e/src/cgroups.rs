//! The cgroups of one run: `/crimson-e2e-<token>` in every hierarchy, or `crimsone2e<token>.slice` with the systemd driver,
//! parent of all its pods as the kubelet's `kubepods` is.
//!
//! The value removes them again when dropped, deepest first, after killing what still runs inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;

use crate::{CgroupDriver, Result, process};

/// The run's subtree in every cgroup hierarchy of the host.
#[derive(Debug)]
pub(crate) struct Cgroups {
    driver: CgroupDriver,
    /// The name of the run's own cgroup, of a slice without its ending.
    stem: String,
    hierarchies: Vec<PathBuf>,
}

impl Cgroups {
    /// Creates the run's parent cgroup wherever the host allows it.
    pub(crate) fn create(token: &str) -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
        let driver = CgroupDriver::asked_for();
        let stem = match driver {
            CgroupDriver::Cgroupfs => format!("crimson-e2e-{token}"),
            CgroupDriver::Systemd => format!("crimsone2e{token}"),
        };
        let cgroups = Self { driver, stem, hierarchies: hierarchies(&table) };
        match driver {
            CgroupDriver::Cgroupfs => cgroups.make_directories()?,
            CgroupDriver::Systemd => drop(systemctl(&["start", &format!("{}.slice", cgroups.stem)])?),
        }
        Ok(cgroups)
    }

    fn make_directories(&self) -> Result {
        for (hierarchy, parent) in self.hierarchies.iter().zip(self.directories()) {
            fs::create_dir_all(&parent).with_context(|| format!("creating cgroup {}", parent.display()))?;
            delegate(hierarchy, &parent);
        }
        Ok(())
    }

    /// The run's own cgroup in each hierarchy.
    fn directories(&self) -> Vec<PathBuf> {
        let name = match self.driver {
            CgroupDriver::Cgroupfs => self.stem.clone(),
            CgroupDriver::Systemd => format!("{}.slice", self.stem),
        };
        self.hierarchies.iter().map(|hierarchy| hierarchy.join(&name)).collect()
    }

    /// The value of `cgroup_parent` for a pod of this run.
    pub(crate) fn pod_parent(&self, uid: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("/{}/pod{uid}", self.stem),
            // A dash in the name of a slice leads one slice deeper.
            CgroupDriver::Systemd => format!("{}-pod{}.slice", self.stem, uid.replace('-', "_")),
        }
    }

    /// Every cgroup of this host that belongs to the run or names one of the given ids, as paths; a pod's own parent does
    /// not count, since it is the kubelet's to remove. A slice that nobody but the daemon had made does.
    pub(crate) fn of_run(&self, ids: &[String]) -> Vec<String> {
        let depth = if self.driver == CgroupDriver::Cgroupfs { 2 } else { 1 };
        let mut found = Vec::new();
        for (hierarchy, mine) in self.hierarchies.iter().zip(self.directories()) {
            walk(hierarchy, &mut |dir| {
                let in_run = dir.strip_prefix(&mine).is_ok_and(|rest| rest.components().count() >= depth);
                let text = dir.to_string_lossy();
                if in_run || ids.iter().any(|id| text.contains(id.as_str())) {
                    found.push(text.into_owned());
                }
            });
        }
        found
    }

    /// Every unit that systemd has loaded for the run or for one of the given ids, but for the run's own slice.
    pub(crate) fn units_of_run(&self, ids: &[String]) -> Result<Vec<String>> {
        if self.driver == CgroupDriver::Cgroupfs {
            return Ok(Vec::new());
        }
        let listed = systemctl(&["list-units", "--all", "--full", "--plain", "--no-legend"])?;
        let own = format!("{}.slice", self.stem);
        let of_run = |unit: &&str| {
            *unit != own && (unit.contains(&self.stem) || ids.iter().any(|id| unit.contains(id.as_str())))
        };
        Ok(listed
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(of_run)
            .map(str::to_owned)
            .collect())
    }

    /// Whether a process is in a cgroup of the run.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&self.stem))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in self.directories() {
            remove(&directory);
        }
        if self.driver == CgroupDriver::Systemd {
            // Nothing runs in it any more; systemd need not be waited for.
            drop(systemctl(&["stop", "--no-block", &format!("{}.slice", self.stem)]));
        }
    }
}

fn systemctl(args: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(args).output().context("running systemctl")?;
    ensure!(output.status.success(), "systemctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The mount points of all cgroup file systems, from a mount table.
fn hierarchies(table: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        if matches!(right.split(' ').next(), Some("cgroup" | "cgroup2"))
            && !found.iter().any(|it| it == Path::new(point))
        {
            found.push(PathBuf::from(point));
        }
    }
    found
}

/// Version 2: gives the controllers to the run's subtree. Version 1: the cpuset of a new cgroup starts empty. Neither
/// concerns every host, and a daemon that misses a controller says so itself.
fn delegate(hierarchy: &Path, parent: &Path) {
    if let Ok(controllers) = fs::read_to_string(hierarchy.join("cgroup.controllers")) {
        for controller in controllers.split_whitespace() {
            for dir in [hierarchy, parent] {
                drop(fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")));
            }
        }
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
            drop(fs::write(parent.join(file), value));
        }
    }
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path());
            walk(&entry.path(), visit);
        }
    }
}

/// Kills what runs in a subtree and removes it, within half a minute.
fn remove(parent: &Path) {
    let mut dirs = vec![parent.to_owned()];
    walk(parent, &mut |dir| dirs.push(dir.to_owned()));
    let deadline = Instant::now() + Duration::from_secs(30);
    for dir in dirs.iter().rev() {
        while fs::remove_dir(dir).is_err() && fs::metadata(dir).is_ok() && Instant::now() < deadline {
            let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0) {
                drop(process::signal(pid, Signal::KILL));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_once_each() {
        let table = "1 0 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     2 1 0:2 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     3 1 0:2 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     4 1 0:3 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        let expected = [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")];
        assert_eq!(hierarchies(table), expected);
    }
}
