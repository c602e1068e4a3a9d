//! When processes were seen dead by a thread that does nothing but wait for that.
//!
//! A container's last act is a little before its death, on a busy machine not so little: its cgroup has a small share of the
//! processors. The thread is a bystander with no more means than the monitor has, so the truth lies between the two.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::trial::now;
use crate::{Cri, Result};

/// Processes to be watched, by the ids of their containers.
#[derive(Debug, Default)]
pub(super) struct Mortals(Vec<(String, OwnedFd)>);

/// The watching thread.
#[derive(Debug)]
pub(super) struct Watch(JoinHandle<BTreeMap<String, i64>>);

impl Mortals {
    /// Adds the first process of a container, unless it has ended already.
    pub(super) async fn add(&mut self, cri: &Cri, id: &str) -> Result {
        let Ok(pid) = cri.container_pid(id).await else { return Ok(()) };
        if let Some(fd) = host_pid(id, pid)?.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
            self.0.push((id.to_owned(), fd));
        }
        Ok(())
    }

    /// Begins to watch.
    pub(super) fn watch(self) -> Result<Watch> {
        let thread = std::thread::Builder::new().name("deaths".to_owned()).spawn(move || see_all(self.0))?;
        Ok(Watch(thread))
    }
}

impl Watch {
    /// The moments, when all have ended.
    pub(super) fn moments(self) -> Result<BTreeMap<String, i64>> {
        self.0.join().map_err(|_| anyhow!("the thread that watches has panicked"))
    }
}

/// Waits until all have ended, or for long in vain.
fn see_all(mut alive: Vec<(String, OwnedFd)>) -> BTreeMap<String, i64> {
    let mut seen = BTreeMap::new();
    let limit = Timespec { tv_sec: 300, tv_nsec: 0 };
    while !alive.is_empty() {
        let mut fds: Vec<_> = alive.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
        let ready = poll(&mut fds, Some(&limit));
        let now = now();
        match ready {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let dead: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (gone, left): (Vec<_>, Vec<_>) = alive.into_iter().zip(dead).partition(|(_, dead)| *dead);
        seen.extend(gone.into_iter().map(|((id, _), _)| (id, now)));
        alive = left.into_iter().map(|(one, _)| one).collect();
    }
    seen
}

/// The process that the machine numbers so and that is in the container's cgroup, as the host numbers it.
fn host_pid(container: &str, pid: u32) -> Result<Option<Pid>> {
    for entry in fs::read_dir("/proc").context("listing processes")?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if !read("cgroup").contains(container) {
            continue;
        }
        let status = read("status");
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        if numbers.split_whitespace().any(|it| it.parse() == Ok(pid)) {
            return Ok(Pid::from_raw(number));
        }
    }
    Ok(None)
}
