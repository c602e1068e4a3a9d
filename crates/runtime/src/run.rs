//! One command of a runtime, run to its end or its deadline.
//!
//! The command gets PATH and nothing else of our environment, has a process group of its own and is ended with it when its
//! time is up. Everything here blocks.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use rustix::fs::MemfdFlags;
use sys::pidfd::PidFd;
use sys::spawn::Program;

use types::{ErrorKind, Kind};

use crate::{RuntimeCommand, error_text};

pub(crate) const KILL: i32 = 9;

/// The most that is read of what a runtime prints.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// Why a runtime cannot be used, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It could not be started.
    #[error("OCI runtime {} cannot be run", path.display())]
    Run {
        /// The runtime.
        path: PathBuf,
        /// Why.
        #[source]
        source: sys::spawn::SpawnError,
    },
    /// It reported an error.
    #[error("OCI runtime {} failed to {step}: {message}", path.display())]
    Failed {
        /// The runtime.
        path: PathBuf,
        /// What it was to do.
        step: &'static str,
        /// Its own words.
        message: String,
    },
    /// It did not end.
    #[error("OCI runtime {} did not {step} in time", path.display())]
    TimedOut {
        /// The runtime.
        path: PathBuf,
        /// What it was to do.
        step: &'static str,
    },
    /// The host did not let us try.
    #[error("preparing to run an OCI runtime")]
    Prepare(#[source] sys::FileError),
    /// The host did not let us try.
    #[error("watching an OCI runtime")]
    Watch(#[source] std::io::Error),
}

impl Kind for RuntimeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Run { .. } | Self::Failed { .. } => ErrorKind::FailedPrecondition,
            Self::TimedOut { .. } => ErrorKind::DeadlineExceeded,
            Self::Prepare(_) | Self::Watch(_) => ErrorKind::Internal,
        }
    }
}

/// What a command is for, in the words "failed to …", and its bounds.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) name: &'static str,
    pub(crate) deadline: Instant,
    pub(crate) log: Option<&'a Path>,
}

impl Step<'_> {
    pub(crate) fn new(name: &'static str, deadline: Instant) -> Self {
        Self { name, deadline, log: None }
    }
}

/// Runs the command; what it printed. Its output goes to files in memory, so that neither a flood nor a grandchild that keeps
/// the descriptor can hold us up.
pub(crate) fn run(
    runtime: &RuntimeCommand,
    args: &[OsString],
    step: Step<'_>,
) -> Result<Vec<u8>, RuntimeError> {
    let (mut printed, mut complaints) = (memory_file()?, memory_file()?);
    let program = Program::new(&runtime.path, Path::new("/"))
        .args(args)
        .inherit_env(["PATH"])
        .stdout(duplicate(&printed)?)
        .stderr(duplicate(&complaints)?)
        .own_process_group();
    let mut child =
        program.start().map_err(|source| RuntimeError::Run { path: runtime.path.clone(), source })?;
    if !ends_in_time(&mut child, step.deadline)? {
        return Err(RuntimeError::TimedOut { path: runtime.path.clone(), step: step.name });
    }
    let status = child.wait().map_err(RuntimeError::Watch)?;
    if status.success() {
        return read(&mut printed);
    }
    let log = step.log.and_then(|log| std::fs::read(log).ok()).unwrap_or_default();
    let complaints = read(&mut complaints)?;
    let message = error_text(&log).or_else(|| error_text(&complaints)).unwrap_or_else(|| status.to_string());
    Err(RuntimeError::Failed { path: runtime.path.clone(), step: step.name, message })
}

fn ends_in_time(child: &mut Child, deadline: Instant) -> Result<bool, RuntimeError> {
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = PidFd::open(pid).and_then(|child| child.wait_ended(Some(left)));
    if matches!(ended, Ok(true)) {
        return Ok(true);
    }
    // The runtime's helpers are of its process group.
    sys::process::kill_group(pid, KILL).map_err(RuntimeError::Watch)?;
    child.wait().map_err(RuntimeError::Watch)?;
    ended.map_err(RuntimeError::Watch)
}

fn memory_file() -> Result<File, RuntimeError> {
    let file = rustix::fs::memfd_create("runtime-output", MemfdFlags::CLOEXEC);
    file.map(File::from).map_err(|error| RuntimeError::Watch(error.into()))
}

fn duplicate(file: &File) -> Result<std::os::fd::OwnedFd, RuntimeError> {
    file.try_clone().map(Into::into).map_err(RuntimeError::Watch)
}

fn read(file: &mut File) -> Result<Vec<u8>, RuntimeError> {
    let mut bytes = Vec::new();
    file.rewind().map_err(RuntimeError::Watch)?;
    file.take(OUTPUT_LIMIT).read_to_end(&mut bytes).map_err(RuntimeError::Watch)?;
    Ok(bytes)
}
