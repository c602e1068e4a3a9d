//! Processes that a daemon runs in a container, with its own descriptors as their streams.
//!
//! An exec belongs to the connection it was asked on: when that closes, nobody reads its output or waits for its end any
//! more, so it is killed. Being killed means all that it has started ([`crate::exec_group`]), and its end is told when all of that
//! is dead. What an exec leaves that ends by itself goes on, as the container's.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use monitor_api::{Event, ExecRequest, Refusal, RefusalKind, Reply};
use runtime::Exec as ExecCommand;
use rustix::termios::{Winsize, tcsetwinsize};
use types::{ContainerId, ExecId};

use crate::connections::Asker;
use crate::console::Console;
use crate::container::{Container, End, Stage};
use crate::exec_group::{self, Group};
use crate::job::{self, Killed, Order, Purpose};
use crate::lifecycle::{io_refusal, read_pid, remove_pid_file};
use crate::server::{Answer, Monitor};
use crate::stdio::ChildStdio;
use crate::tree;

const SIGKILL: i32 = 9;
/// How long the runtime may take to print its help.
const HELP_LIMIT: Duration = Duration::from_secs(5);
/// How long a killed exec's end is held back for what it has started, and how often that is looked at.
const ENDING_LIMIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// An exec that runs.
#[derive(Debug)]
pub(crate) struct Exec {
    pid: i32,
    container: ContainerId,
    connection: u32,
    /// Our copy of its terminal's master, for its size.
    terminal: Option<OwnedFd>,
    group: Option<Group>,
    killed: bool,
}

impl Exec {
    fn kill(&mut self) {
        self.killed = true;
        match &self.group {
            Some(group) => {
                group.kill();
                // It was not waited for, so it is there, wherever the runtime has put it.
                sys::process::kill(self.pid, SIGKILL).ok();
            }
            None => tree::kill(self.pid),
        }
    }
}

/// The time between the end of a killed exec's process and that of the last process that it started.
#[derive(Debug)]
pub(crate) struct Ending {
    event: Option<Event>,
    group: Group,
    until: Instant,
    look: Instant,
}

impl Ending {
    /// When to look at it again.
    pub(crate) fn look(&self) -> Instant {
        self.look
    }
}

impl Monitor {
    pub(crate) fn exec(&mut self, asker: Asker, request: ExecRequest, fds: Vec<OwnedFd>) -> Answer {
        self.refuse_known_exec(&request.exec)?;
        let container = self.known(&request.container)?;
        if !matches!(container.stage, Stage::Running)
            || container.pid.is_none()
            || container.deletion.is_some()
        {
            let message = format!("container {} is not running", container.id);
            return Err(Refusal::new(RefusalKind::InvalidState, message));
        }
        let (program, grouped) = (container.runtime.path.clone(), container.cgroup.execs().is_some());
        match self.runs_in_groups.get(&program) {
            None if grouped => self.ask_for_help(asker, request, fds),
            able => {
                let able = able.copied().unwrap_or(false);
                self.begin_exec(asker, request, fds, able)
            }
        }
    }

    /// Whether the runtime knows the option for the cgroup is found out once.
    fn ask_for_help(&mut self, asker: Asker, request: ExecRequest, fds: Vec<OwnedFd>) -> Answer {
        let made = job::memory_file("runtime-help").and_then(|text| Ok((text.try_clone()?, text)));
        let (copy, text) = made.map_err(|error| io_refusal("make a file in memory", &error))?;
        let container = self.known(&request.container)?;
        let log = container.log_file(&format!("exec-{}", request.exec));
        let (program, directory) = (container.runtime.path.clone(), container.bundle.clone());
        let stdio = ChildStdio { stdout: Some(copy.into()), ..ChildStdio::default() };
        let order = Order {
            program: &program,
            args: vec!["exec".into(), "--help".into()],
            directory: &directory,
            log,
            stdio: Some(stdio),
            limit: HELP_LIMIT,
        };
        let id = request.container.clone();
        job::start(&mut self.jobs, &id, order, Purpose::Help { asker, request, fds, text })?;
        Ok(None)
    }

    /// The runtime has printed its help.
    pub(crate) fn help_read(
        &mut self,
        (asker, request): (Asker, ExecRequest),
        outcome: Result<(), Refusal>,
        fds: Vec<OwnedFd>,
        mut text: File,
    ) {
        let answer = match outcome {
            Err(refusal) if refusal.kind == RefusalKind::InvalidState => Err(refusal),
            _ => {
                let help = job::read_bounded(text.rewind().map(|()| text));
                let container = self.containers.get(&request.container);
                if let Some((container, place)) = container.and_then(|it| Some((it, it.cgroup.execs()?))) {
                    let offered = exec_group::is_offered(&help, place);
                    self.runs_in_groups.insert(container.runtime.path.clone(), offered);
                }
                self.exec(asker, request, fds)
            }
        };
        self.answer(asker, answer);
    }

    fn begin_exec(
        &mut self,
        asker: Asker,
        request: ExecRequest,
        fds: Vec<OwnedFd>,
        in_group: bool,
    ) -> Answer {
        let stdio = stdio_of(&request, fds)?;
        let container = self.known(&request.container)?;
        if let (Some(stdio), Some(owner)) = (&stdio, container.owner) {
            stdio.give_to(owner)?;
        }
        let console = open_console(&request, container)?;
        let console_path = console.as_ref().map(Console::path);
        let group = if in_group { container.cgroup.exec_group(&request.exec) } else { None };
        let pid_file = container.bundle.join(format!("exec-{}.pid", request.exec));
        let log = container.log_file(&format!("exec-{}", request.exec));
        let args = container.runtime.exec(&ExecCommand {
            id: container.id.as_str(),
            process: &request.process,
            pid_file: &pid_file,
            console_socket: console_path.as_deref(),
            log: &log,
        });
        let args = in_cgroup(args, group.as_ref());
        let (program, directory) = (container.runtime.path.clone(), container.bundle.clone());
        let limit = Duration::from_millis(request.timeout_ms);
        let order = Order { program: &program, args, directory: &directory, log, stdio, limit };
        let id = request.container.clone();
        let init = container.pid;
        let purpose = Purpose::Exec { asker, request, pid_file, console, group };
        let runtime = job::start(&mut self.jobs, &id, order, purpose)?;
        init.into_iter().for_each(|init| share_oom_score(init, runtime));
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
        (console, group): (Option<Console>, Option<Group>),
    ) {
        let begun = match outcome {
            Ok(()) => self.adopt_exec(asker, &request, pid_file, (console, group)),
            Err(refusal) => {
                self.end_group(group, true, None);
                Err(refusal)
            }
        };
        remove_pid_file(pid_file);
        match begun {
            Ok((pid, terminal)) => {
                self.reply(asker, &Reply::ExecStarted { pid }, terminal);
                if let Some(end) = self.unclaimed.remove(&pid) {
                    self.exec_ended(&request.exec, end);
                } else if !self.connections.is_open(asker.connection) {
                    self.execs.get_mut(&request.exec).into_iter().for_each(Exec::kill);
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
        (console, group): (Option<Console>, Option<Group>),
    ) -> Result<(i32, Option<OwnedFd>), Refusal> {
        let pid = read_pid(pid_file)?;
        let master =
            console.map(|console| console.take_master().and_then(|fd| Ok((fd.try_clone()?, fd)))).transpose();
        let master = match master {
            Ok(master) => master,
            Err(error) => {
                tree::kill(pid);
                self.end_group(group, true, None);
                return Err(io_refusal("take the exec's terminal", &error));
            }
        };
        let (terminal, theirs) = master.unzip();
        let (container, connection) = (request.container.clone(), asker.connection);
        let exec = Exec { pid, container, connection, terminal, group, killed: false };
        self.execs.insert(request.exec.clone(), exec);
        Ok((pid, theirs))
    }

    /// An exec's process was reaped.
    pub(crate) fn exec_ended(&mut self, id: &ExecId, end: End) {
        let Some(exec) = self.execs.remove(id) else { return };
        let event = Event::ExecExited { exec: id.clone(), exit_code: end.code(), signal: end.signal() };
        self.end_group(exec.group, exec.killed, Some(event));
    }

    /// The process is gone: deals with what it has started, and tells its end.
    fn end_group(&mut self, group: Option<Group>, killed: bool, event: Option<Event>) {
        match group {
            Some(group) if killed && group.kill() => {
                let now = Instant::now();
                let ending = Ending { event, group, until: now + ENDING_LIMIT, look: now + LOOK_EVERY };
                return self.ending.push(ending);
            }
            Some(group) => self.release(group),
            None => {}
        }
        if let Some(event) = event {
            self.connections.tell(&self.poller, &event);
        }
    }

    fn release(&mut self, group: Group) {
        if !group.release() {
            self.left.push(group);
        }
        self.left.retain(|group| !group.release());
    }

    /// Looks at execs that were killed and have something left.
    pub(crate) fn advance_endings(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(ending) = self.ending.get_mut(at) {
            if ending.look > now {
                at += 1;
            } else if ending.group.kill() && now < ending.until {
                ending.look = now + LOOK_EVERY;
                at += 1;
            } else {
                let Ending { event, group, .. } = self.ending.swap_remove(at);
                self.release(group);
                event.iter().for_each(|event| self.connections.tell(&self.poller, event));
            }
        }
    }

    /// The exec whose process this is.
    pub(crate) fn exec_with_pid(&self, pid: i32) -> Option<ExecId> {
        self.execs.iter().find(|(_, exec)| exec.pid == pid).map(|(id, _)| id.clone())
    }

    pub(crate) fn kill_exec(&mut self, exec: &ExecId) -> Answer {
        self.execs.get_mut(exec).into_iter().for_each(Exec::kill);
        for (pid, job) in self.jobs.iter_mut().filter(|(_, job)| job.purpose.is_exec(exec)) {
            job.kill(*pid, Killed::Unwanted);
        }
        Ok(Some(Reply::Done))
    }

    pub(crate) fn kill_execs_of(&mut self, container: &ContainerId) {
        self.execs.values_mut().filter(|exec| exec.container == *container).for_each(Exec::kill);
    }

    /// The container's cgroups are gone, and those of its execs with them.
    pub(crate) fn forget_groups_of(&mut self, container: &ContainerId) {
        let place = self.containers.get(container).and_then(|it| it.cgroup.execs().cloned());
        self.left.retain(|group| !group.is_of(place.as_ref()));
    }

    /// Ends what was begun on connections that are gone.
    pub(crate) fn drop_execs_of_closed(&mut self) {
        for connection in self.connections.take_closed() {
            self.execs.values_mut().filter(|exec| exec.connection == connection).for_each(Exec::kill);
            self.end_sessions_of_connection(connection);
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

/// Gives a runtime's `exec` the container's `oom_score_adj`: crun, unlike runc, lets what it runs inherit that, and ours would spare
/// it. Both processes are there, since neither was waited for; lowering it may not be permitted.
fn share_oom_score(init: i32, runtime: i32) {
    let score = |pid: i32| format!("/proc/{pid}/oom_score_adj");
    if let Ok(text) = fs::read(score(init)) {
        fs::write(score(runtime), text).ok();
    }
}

/// The runtime's arguments with the exec's cgroup. Options stand before the container's id, which is last.
fn in_cgroup(mut args: Vec<OsString>, group: Option<&Group>) -> Vec<OsString> {
    if let Some(group) = group {
        let before_id = args.len().saturating_sub(1);
        args.splice(before_id..before_id, [exec_group::OPTION.into(), group.argument()]);
    }
    args
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
