//! The real `crimson-monitor` with the real runc, driven through the daemon's client. Every test ends with
//! [`pod::Pod::finish`], which proves that no process, mount, cgroup or file is left.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod attach;
mod exec;
mod failures;
mod lifecycle;
mod logs;
mod memory;
mod oom;
mod pod;
mod recovery;
mod strangers;
