//! Threads that enter a namespace and end there.
//!
//! A thread that has changed a namespace is never given back to other code: it runs one closure and ends.

#![allow(
    unsafe_code,
    reason = "unshare is unsafe in rustix because of CLONE_FILES, which is never asked for here"
)]

use std::io;
use std::thread::{Builder, scope};

use rustix::thread::UnshareFlags;

/// Runs `work` on a fresh thread and hands back its result; `None` when it panicked.
pub(crate) fn run<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<Option<T>> {
    scope(|threads| {
        let thread =
            Builder::new().name(name.to_owned()).stack_size(256 * 1024).spawn_scoped(threads, work)?;
        Ok(thread.join().ok())
    })
}

/// Gives the calling thread namespaces of its own.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptor tables stay shared");
    // SAFETY: without CLONE_FILES every thread goes on seeing the same descriptor table.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
