//! Processes that a daemon runs in a container, with its own descriptors as their streams.
//!
//! An exec belongs to the connection it was asked on: when that closes, nobody reads its output or waits for its end any
//! more, so it is killed.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use monitor_api::{Event, ExecRequest, Refusal, RefusalKind, Reply};
use runtime::Exec as ExecCommand;
use rustix::termios::{Winsize, tcsetwinsize};
use types::{ContainerId, ExecId};

use crate::connections::Asker;
use crate::console::Console;
use crate::container::{Container, End, Stage};
use crate::job::{self, Killed, Order, Purpose};
use crate::lifecycle::{io_refusal, read_pid};
use crate::server::{Answer, Monitor};
use crate::stdio::ChildStdio;
use crate::tree;

/// An exec that runs.
#[derive(Debug)]
pub(crate) struct Exec {
    pid: i32,
    container: ContainerId,
    connection: u32,
    /// Our copy of its terminal's master, for its size.
    terminal: Option<OwnedFd>,
}

impl Monitor {
    pub(crate) fn exec(&mut self, asker: Asker, request: ExecRequest, fds: Vec<OwnedFd>) -> Answer {
        self.refuse_known_exec(&request.exec)?;
        let stdio = stdio_of(&request, fds)?;
        let container = self.known(&request.container)?;
        if !matches!(container.stage, Stage::Running)
            || container.pid.is_none()
            || container.deletion.is_some()
        {
            let message = format!("container {} is not running", container.id);
            return Err(Refusal::new(RefusalKind::InvalidState, message));
        }
        let console = open_console(&request, container)?;
        let console_path = console.as_ref().map(Console::path);
        let pid_file = container.bundle.join(format!("exec-{}.pid", request.exec));
        let log = container.log_file(&format!("exec-{}", request.exec));
        let args = container.runtime.exec(&ExecCommand {
            id: container.id.as_str(),
            process: &request.process,
            pid_file: &pid_file,
            console_socket: console_path.as_deref(),
            log: &log,
        });
        let (program, directory) = (container.runtime.path.clone(), container.bundle.clone());
        let limit = Duration::from_millis(request.timeout_ms);
        let order = Order { program: &program, args, directory: &directory, log, stdio, limit };
        let id = request.container.clone();
        job::start(&mut self.jobs, &id, order, Purpose::Exec { asker, request, pid_file, console })?;
        Ok(None)
    }

    fn refuse_known_exec(&self, exec: &ExecId) -> Result<(), Refusal> {
        let starting = self.jobs.values().any(|job| job.purpose.is_exec(exec));
        if starting || self.execs.contains_key(exec) {
            return Err(Refusal::new(RefusalKind::InvalidState, format!("exec {exec} exists")));
        }
        Ok(())
    }

    /// The runtime's `exec` has ended, and the process runs, detached.
    pub(crate) fn exec_begun(
        &mut self,
        (asker, request): (Asker, ExecRequest),
        outcome: Result<(), Refusal>,
        pid_file: &Path,
        console: Option<Console>,
    ) {
        let begun = outcome.and_then(|()| self.adopt_exec(asker, &request, pid_file, console));
        fs::remove_file(pid_file).ok();
        match begun {
            Ok((pid, terminal)) => {
                self.reply(asker, &Reply::ExecStarted { pid }, terminal);
                if let Some(end) = self.unclaimed.remove(&pid) {
                    self.exec_ended(&request.exec, end);
                } else if !self.connections.is_open(asker.connection) {
                    tree::kill(pid);
                }
            }
            Err(refusal) => self.reply(asker, &Reply::Refused(refusal), None),
        }
    }

    /// Takes the process in; its pid, and the terminal for the daemon.
    fn adopt_exec(
        &mut self,
        asker: Asker,
        request: &ExecRequest,
        pid_file: &Path,
        console: Option<Console>,
    ) -> Result<(i32, Option<OwnedFd>), Refusal> {
        let pid = read_pid(pid_file)?;
        let master =
            console.map(|console| console.take_master().and_then(|fd| Ok((fd.try_clone()?, fd)))).transpose();
        let master = master.map_err(|error| {
            tree::kill(pid);
            io_refusal("take the exec's terminal", &error)
        })?;
        let (terminal, theirs) = master.unzip();
        let (container, connection) = (request.container.clone(), asker.connection);
        self.execs.insert(request.exec.clone(), Exec { pid, container, connection, terminal });
        Ok((pid, theirs))
    }

    /// An exec's process was reaped.
    pub(crate) fn exec_ended(&mut self, exec: &ExecId, end: End) {
        if self.execs.remove(exec).is_some() {
            let event = Event::ExecExited { exec: exec.clone(), exit_code: end.code(), signal: end.signal() };
            self.connections.tell(&self.poller, &event);
        }
    }

    /// The exec whose process this is.
    pub(crate) fn exec_with_pid(&self, pid: i32) -> Option<ExecId> {
        self.execs.iter().find(|(_, exec)| exec.pid == pid).map(|(id, _)| id.clone())
    }

    pub(crate) fn kill_exec(&mut self, exec: &ExecId) -> Answer {
        if let Some(exec) = self.execs.get(exec) {
            tree::kill(exec.pid);
        }
        for (pid, job) in self.jobs.iter_mut().filter(|(_, job)| job.purpose.is_exec(exec)) {
            job.kill(*pid, Killed::Unwanted);
        }
        Ok(Some(Reply::Done))
    }

    pub(crate) fn kill_execs_of(&mut self, container: &ContainerId) {
        self.execs.values().filter(|exec| exec.container == *container).for_each(|exec| tree::kill(exec.pid));
    }

    /// Ends what was begun on connections that are gone.
    pub(crate) fn drop_execs_of_closed(&mut self) {
        for connection in self.connections.take_closed() {
            self.execs
                .values()
                .filter(|exec| exec.connection == connection)
                .for_each(|exec| tree::kill(exec.pid));
        }
    }

    pub(crate) fn resize(
        &mut self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        width: u16,
        height: u16,
    ) -> Answer {
        let terminal = match exec {
            Some(exec) => self.execs.get(exec).and_then(|exec| exec.terminal.as_ref()).map(AsFd::as_fd),
            None => self.known(id)?.streams.master(),
        };
        let none = || Refusal::new(RefusalKind::NotFound, "there is no such terminal");
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        let resized = tcsetwinsize(terminal.ok_or_else(none)?, size);
        resized.map_err(|error| io_refusal("resize the terminal", &error.into()))?;
        Ok(Some(Reply::Done))
    }
}

/// The streams that came with the request, by their names.
fn stdio_of(request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<Option<ChildStdio>, Refusal> {
    if request.terminal {
        return Ok(None);
    }
    let named = [request.stdin, request.stdout, request.stderr];
    if named.iter().filter(|named| **named).count() != fds.len() {
        return Err(Refusal::new(RefusalKind::Io, "the descriptors of the exec's streams did not arrive"));
    }
    let mut fds = VecDeque::from(fds);
    let [stdin, stdout, stderr] = named.map(|named| if named { fds.pop_front() } else { None });
    Ok(Some(ChildStdio { stdin, stdout, stderr }))
}

fn open_console(request: &ExecRequest, container: &Container) -> Result<Option<Console>, Refusal> {
    if !request.terminal {
        return Ok(None);
    }
    let console = Console::listen(&container.bundle, format!("exec-{}.sock", request.exec.short()));
    console.map(Some).map_err(|error| io_refusal("make the socket for the exec's terminal", &error))
}
