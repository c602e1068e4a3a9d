//! Clearing the host after a run that used it directly and may have failed half-way. Only things that bear the run's own
//! names are touched; each step is tried whatever the others did, and what is gone already is no failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::process;

/// Ends and removes everything that lies under the run's directory or is named by one of its ids or by its bridge.
pub(crate) fn clear(dir: &Path, bridge: &str, names: &[String]) {
    let dir = dir.display().to_string();
    for (pid, line) in process::list(Path::new("/proc")).unwrap_or_default() {
        if pid != std::process::id() && line.contains(&dir) {
            // Gone by itself meanwhile, or of another user: neither is ours to report here.
            drop(process::signal(pid, Signal::KILL));
        }
    }
    let namespaces: Vec<PathBuf> = names.iter().map(|name| Path::new("/run/netns").join(name)).collect();
    for point in mount_points().into_iter().rev() {
        if point.starts_with(&dir) || namespaces.contains(&point) {
            unmount(&point, UnmountFlags::DETACH).ok();
        }
    }
    for namespace in namespaces {
        drop(std::fs::remove_file(namespace));
    }
    let delete = ["link", "delete", bridge];
    drop(Command::new("ip").args(delete).stdout(Stdio::null()).stderr(Stdio::null()).status());
}

fn mount_points() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}
