//! The runtime's commands while they run. A command is a child with a deadline; its end is noticed by the reaper like any
//! other, so the monitor goes on with its other work meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use monitor_api::{ExecRequest, Refusal, RefusalKind};
use runtime::error_text;
use rustix::fs::MemfdFlags;
use sys::spawn::Program;
use types::{ContainerId, ExecId};

use crate::connections::Asker;
use crate::console::Console;
use crate::exec_group::Group;
use crate::stdio::ChildStdio;
use crate::tree;

const SIGKILL: i32 = 9;
/// The most that is read of a runtime's log.
const LOG_LIMIT: u64 = 64 * 1024;

/// A command under way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) container: ContainerId,
    pub(crate) purpose: Purpose,
    pub(crate) deadline: Instant,
    /// It was killed at its deadline, or because its result is no longer wanted.
    pub(crate) killed: Option<Killed>,
    log: PathBuf,
    complaints: Option<File>,
}

/// What a command is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Create {
        asker: Asker,
        pid_file: PathBuf,
        console: Option<Console>,
    },
    /// Removes what a failed create may have left; then the refusal goes out.
    CleanUp {
        asker: Asker,
        refusal: Refusal,
    },
    Start {
        asker: Asker,
        begun: types::Timestamp,
    },
    Exec {
        asker: Asker,
        request: ExecRequest,
        pid_file: PathBuf,
        console: Option<Console>,
        group: Option<Group>,
    },
    /// Asks the runtime for its help on `exec`, before the first one.
    Help {
        asker: Asker,
        request: ExecRequest,
        fds: Vec<OwnedFd>,
        text: File,
    },
    Delete,
}

impl Purpose {
    /// Whether this starts that exec.
    pub(crate) fn is_exec(&self, exec: &ExecId) -> bool {
        matches!(self, Self::Exec { request, .. } | Self::Help { request, .. } if request.exec == *exec)
    }
}

/// Why a command was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Killed {
    TimedOut,
    Unwanted,
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    pub(crate) program: &'a Path,
    pub(crate) args: Vec<OsString>,
    pub(crate) directory: &'a Path,
    pub(crate) log: PathBuf,
    /// The command's streams; without them its complaints are kept to explain a failure.
    pub(crate) stdio: Option<ChildStdio>,
    pub(crate) limit: Duration,
}

/// The commands under way, by process id.
pub(crate) type Jobs = BTreeMap<i32, Job>;

/// Starts a command and tells its process id. When it cannot be started, its purpose is dropped and the refusal is for the caller to tell.
pub(crate) fn start(
    jobs: &mut Jobs,
    container: &ContainerId,
    order: Order<'_>,
    purpose: Purpose,
) -> Result<i32, Refusal> {
    let (pid, log, complaints, deadline) =
        spawn(order).map_err(|message| Refusal::new(RefusalKind::RuntimeFailed, message))?;
    jobs.insert(pid, Job { container: container.clone(), purpose, deadline, killed: None, log, complaints });
    Ok(pid)
}

fn spawn(order: Order<'_>) -> Result<(i32, PathBuf, Option<File>, Instant), String> {
    // What an earlier command wrote is no explanation of this one.
    fs::remove_file(&order.log).ok();
    let program = Program::new(order.program, order.directory)
        .args(&order.args)
        .inherit_env(["PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"])
        .own_process_group();
    let (program, complaints) = match order.stdio {
        Some(stdio) => (with_stdio(program, stdio), None),
        None => {
            let file = complaints_file().map_err(|error| format!("make a file in memory: {error}"))?;
            let copy = file.try_clone().map_err(|error| format!("duplicate a descriptor: {error}"))?;
            (program.stderr(OwnedFd::from(copy)), Some(file))
        }
    };
    let child = program.start().map_err(|error| types::error::chain(&error))?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    Ok((pid, order.log, complaints, Instant::now() + order.limit))
}

fn with_stdio(mut program: Program, stdio: ChildStdio) -> Program {
    if let Some(stdin) = stdio.stdin {
        program = program.stdin(stdin);
    }
    if let Some(stdout) = stdio.stdout {
        program = program.stdout(stdout);
    }
    if let Some(stderr) = stdio.stderr {
        program = program.stderr(stderr);
    }
    program
}

/// A file in memory.
pub(crate) fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn complaints_file() -> std::io::Result<File> {
    memory_file("runtime-stderr")
}

impl Job {
    /// Ends the command with all that it started; its end is noticed as usual.
    pub(crate) fn kill(&mut self, pid: i32, why: Killed) {
        if self.killed.is_none() {
            self.killed = Some(why);
            tree::kill(pid);
            // Helpers whose parent is gone are still of the group.
            sys::process::kill_group(pid, SIGKILL).ok();
        }
    }

    /// Whether its process, or one that it left, may turn out to be a container's or an exec's.
    pub(crate) fn launches(&self) -> bool {
        matches!(self.purpose, Purpose::Create { .. } | Purpose::Exec { .. })
    }

    /// The command's outcome; its log is removed. `printed` is what it wrote to streams that it did not own.
    pub(crate) fn outcome(&mut self, status: ExitStatus, printed: &[u8]) -> Result<(), Refusal> {
        let log = read_bounded(File::open(&self.log));
        fs::remove_file(&self.log).ok();
        match self.killed {
            Some(Killed::TimedOut) => {
                let message = "the OCI runtime did not end in time and was killed";
                return Err(Refusal::new(RefusalKind::RuntimeTimedOut, message));
            }
            Some(Killed::Unwanted) => {
                return Err(Refusal::new(
                    RefusalKind::InvalidState,
                    "it is no longer wanted and was given up",
                ));
            }
            None if status.success() => return Ok(()),
            None => {}
        }
        let complaints = self.complaints.take().map(|mut file| read_bounded(file.rewind().map(|()| file)));
        let text = error_text(&log)
            .or_else(|| error_text(&complaints.unwrap_or_default()))
            .or_else(|| error_text(printed))
            .unwrap_or_else(|| format!("the OCI runtime ended with {status}"));
        Err(Refusal::new(RefusalKind::RuntimeFailed, text))
    }
}

/// What is in a file, up to a limit.
pub(crate) fn read_bounded(file: std::io::Result<File>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = file {
        // What could be read explains as much as there is.
        file.take(LOG_LIMIT).read_to_end(&mut bytes).ok();
    }
    bytes
}
