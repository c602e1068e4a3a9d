//! One command of a runtime, run to its end or its deadline.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use rustix::fs::MemfdFlags;
use sys::pidfd::PidFd;
use sys::spawn::Program;

use super::{KILL, ProbeError};
use crate::{RuntimeCommand, error_text};

/// The most that is read of what a runtime prints.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// What a command is for, in the words "failed to …", and its bounds.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) name: &'static str,
    pub(super) deadline: Instant,
    pub(super) log: Option<&'a Path>,
}

impl Step<'_> {
    pub(super) fn new(name: &'static str, deadline: Instant) -> Self {
        Self { name, deadline, log: None }
    }
}

/// Runs the command; what it printed. Its output goes to files in memory, so that neither a flood nor a grandchild that keeps
/// the descriptor can hold us up.
pub(super) fn run(
    runtime: &RuntimeCommand,
    args: &[OsString],
    step: Step<'_>,
) -> Result<Vec<u8>, ProbeError> {
    let (mut printed, mut complaints) = (memory_file()?, memory_file()?);
    let program = Program::new(&runtime.path, Path::new("/"))
        .args(args)
        .inherit_env(["PATH"])
        .stdout(duplicate(&printed)?)
        .stderr(duplicate(&complaints)?)
        .own_process_group();
    let mut child =
        program.start().map_err(|source| ProbeError::Run { path: runtime.path.clone(), source })?;
    if !ends_in_time(&mut child, step.deadline)? {
        return Err(ProbeError::TimedOut { path: runtime.path.clone(), step: step.name });
    }
    let status = child.wait().map_err(ProbeError::Watch)?;
    if status.success() {
        return read(&mut printed);
    }
    let log = step.log.and_then(|log| std::fs::read(log).ok()).unwrap_or_default();
    let complaints = read(&mut complaints)?;
    let message = error_text(&log).or_else(|| error_text(&complaints)).unwrap_or_else(|| status.to_string());
    Err(ProbeError::Failed { path: runtime.path.clone(), step: step.name, message })
}

fn ends_in_time(child: &mut Child, deadline: Instant) -> Result<bool, ProbeError> {
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = PidFd::open(pid).and_then(|child| child.wait_ended(Some(left)));
    if matches!(ended, Ok(true)) {
        return Ok(true);
    }
    // The runtime's helpers are of its process group.
    sys::process::kill_group(pid, KILL).map_err(ProbeError::Watch)?;
    child.wait().map_err(ProbeError::Watch)?;
    ended.map_err(ProbeError::Watch)
}

fn memory_file() -> Result<File, ProbeError> {
    let file = rustix::fs::memfd_create("runtime-output", MemfdFlags::CLOEXEC);
    file.map(File::from).map_err(|error| ProbeError::Watch(error.into()))
}

fn duplicate(file: &File) -> Result<std::os::fd::OwnedFd, ProbeError> {
    file.try_clone().map(Into::into).map_err(ProbeError::Watch)
}

fn read(file: &mut File) -> Result<Vec<u8>, ProbeError> {
    let mut bytes = Vec::new();
    file.rewind().map_err(ProbeError::Watch)?;
    file.take(OUTPUT_LIMIT).read_to_end(&mut bytes).map_err(ProbeError::Watch)?;
    Ok(bytes)
}
