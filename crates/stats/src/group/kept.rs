//! Files that stay open.
//!
//! Two fifths of the time that a group's figures take would go into opening and closing files. Those that each reading needs are
//! kept, as far as the process can spare descriptors. The kernel holds a page for every one that was read.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What [`super::Group::read`] reads, of either kind of hierarchy.
const OFTEN: [&str; 15] = [
    "cpu.pressure",
    "cpu.stat",
    "cpuacct.usage",
    "io.pressure",
    "memory.current",
    "memory.limit_in_bytes",
    "memory.max",
    "memory.memsw.limit_in_bytes",
    "memory.memsw.usage_in_bytes",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "memory.usage_in_bytes",
    "pids.current",
];

/// How many files all groups together may keep open.
#[derive(Debug)]
pub struct Allowance(AtomicUsize);

impl Allowance {
    /// So many.
    #[must_use]
    pub fn of(files: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(files)))
    }

    fn take(self: &Arc<Self>) -> Option<Share> {
        let left = self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        left.is_ok().then(|| Share(Arc::clone(self)))
    }
}

/// One file's part of an allowance, given back with it.
#[derive(Debug)]
struct Share(Arc<Allowance>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Relaxed);
    }
}

/// The open files of one directory; none without an allowance.
#[derive(Debug, Default)]
pub(super) struct Kept {
    allowance: Option<Arc<Allowance>>,
    files: Mutex<Vec<File>>,
}

#[derive(Debug)]
struct File {
    name: &'static str,
    fd: OwnedFd,
    _share: Share,
}

impl Kept {
    pub(super) fn within(allowance: &Arc<Allowance>) -> Self {
        Self { allowance: Some(Arc::clone(allowance)), files: Mutex::default() }
    }

    /// What `read` makes of the file of this name. `None` when it is not open, or cannot be read any more: its controller may have
    /// gone and come back, so it is closed then.
    pub(super) fn read<T>(
        &self,
        name: &str,
        read: impl FnOnce(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Option<T> {
        let mut files = self.files();
        let index = files.iter().position(|file| file.name == name)?;
        let found = read(&files.get(index)?.fd).ok();
        if found.is_none() {
            files.swap_remove(index);
        }
        found
    }

    /// Keeps a file that was read, if it is one of those that are read often.
    pub(super) fn keep(&self, name: &str, fd: OwnedFd) {
        let Some(allowance) = &self.allowance else { return };
        let Some(name) = OFTEN.into_iter().find(|often| *often == name) else { return };
        let mut files = self.files();
        // Somebody else may have opened it meanwhile.
        if files.iter().all(|file| file.name != name)
            && let Some(share) = allowance.take()
        {
            files.push(File { name, fd, _share: share });
        }
    }

    fn files(&self) -> MutexGuard<'_, Vec<File>> {
        // Nothing is done under the lock that could leave it half done.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
