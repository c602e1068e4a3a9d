//! What a daemon and its monitors hold while nobody asks them for anything, and that they hold no more after work.

use std::path::Path;

use anyhow::Context;

use super::{Footprint, until};
use crate::{Node, Result};

/// Descriptors, threads, memory, processes and volatile files at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub(crate) daemon: Footprint,
    pub(crate) monitor: Footprint,
    processes: usize,
    files: Vec<String>,
}

impl Held {
    /// What a node holds now.
    pub fn by(node: &Node) -> Result<Self> {
        let machine = node.machine();
        // Its process id is known as the host numbers it.
        let daemon = Footprint::of(Path::new("/proc"), node.pid().context("the daemon runs")?)?;
        let (proc, monitors) = (machine.path(Path::new("/proc")), node.monitors()?);
        let mut monitor = Footprint { descriptors: 0, threads: 0, resident_kib: 0 };
        for pid in monitors {
            // Its pod may have been removed meanwhile.
            let Ok(one) = Footprint::of(&proc, pid) else { continue };
            monitor.descriptors += one.descriptors;
            monitor.threads += one.threads;
            monitor.resident_kib = monitor.resident_kib.max(one.resident_kib);
        }
        let mut files = Vec::new();
        list(&machine.path(&node.state()), &mut files);
        files.sort();
        Ok(Self { daemon, monitor, processes: machine.processes()?.len(), files })
    }

    /// Waits until nothing is held that was not then but memory, and threads that a runtime keeps for the next work.
    pub async fn comes_back(&self, node: &Node) -> Result {
        let left = || Self::by(node).map(|now| self.more_in(&now));
        let settled = until("nothing of the work is left", 60, || async { Ok(left()?.is_none()) }).await;
        settled.with_context(|| left().ok().flatten().unwrap_or_default())
    }

    /// By how many KiB the daemon has grown since.
    pub fn growth_kib(&self, node: &Node) -> Result<u64> {
        Ok(Self::by(node)?.daemon.resident_kib.saturating_sub(self.daemon.resident_kib))
    }

    fn more_in(&self, now: &Self) -> Option<String> {
        let new: Vec<&String> = now.files.iter().filter(|file| !self.files.contains(file)).collect();
        let same = now.daemon.descriptors <= self.daemon.descriptors
            && now.monitor.descriptors <= self.monitor.descriptors
            && now.monitor.threads <= self.monitor.threads
            && now.processes <= self.processes
            && new.is_empty();
        (!same).then(|| {
            format!(
                "daemon {:?} became {:?}, monitors {:?} became {:?}, {} processes became {}, new files {new:?}",
                self.daemon, now.daemon, self.monitor, now.monitor, self.processes, now.processes
            )
        })
    }
}

fn list(dir: &Path, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "rootfs" {
            list(&entry.path(), found);
        }
    }
}
