//! Facts about processes, read from `/proc`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::Result;

/// The one child that a process of ours has: how the process behind `unshare` or `nsenter` is found.
pub(crate) fn only_child(parent: u32) -> Result<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mut children = text.split_whitespace();
    match (children.next(), children.next()) {
        (Some(child), None) => child.parse().with_context(|| format!("a process id in {path}")),
        _ => bail!("process {parent} has not exactly one child: {text:?}"),
    }
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result {
    let raw = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{pid} is not a process id"))?;
    kill_process(raw, signal).with_context(|| format!("signalling process {pid}"))
}

/// The identity of a namespace of a process; `None` once it has ended.
pub(crate) fn namespace(pid: u32, kind: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

/// What the open file descriptors of a process refer to, sorted.
pub(crate) fn descriptors(pid: u32) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed between the listing and the look at it.
        if let Ok(target) = std::fs::read_link(entry?.path()) {
            targets.push(target.display().to_string());
        }
    }
    targets.sort();
    Ok(targets)
}

/// All processes under a `/proc`: id and command line (a zombie's or kernel thread's name stands in brackets).
pub(crate) fn list(proc_dir: &Path) -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc_dir).with_context(|| format!("listing {}", proc_dir.display()))? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Gone since the listing: then it is no process any more.
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut line = String::from_utf8_lossy(&raw).replace('\0', " ").trim_end().to_owned();
        if line.is_empty() {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            line = format!("[{}]", name.trim_end());
        }
        found.push((pid, line));
    }
    Ok(found)
}
