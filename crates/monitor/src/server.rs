//! The loop: waits for daemons, output, ended children and deadlines, and hands each to whom it concerns.
//!
//! All state is in [`Monitor`]; one thread owns it. Verbs stand in [`crate::lifecycle`], [`crate::exit`] and
//! [`crate::exec`]; here is what they share.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crilog::Stream;
use monitor_api::codec::{self, MESSAGE_LIMIT};
use monitor_api::{Refusal, RefusalKind, Reply, Request, Versions};
use sys::signals::{self, Signals};
use types::{ContainerId, ExecId, SandboxId, Timestamp};

use crate::args::Serve;
use crate::attach::Onlookers;
use crate::cgroup::Hierarchies;
use crate::connections::{Asker, Connections};
use crate::container::{Container, End, Stage};
use crate::drops::Drops;
use crate::exec::{Ending, Exec};
use crate::exec_group::Group;
use crate::job::{Job, Jobs, Killed, Purpose};
use crate::listener::Listener;
use crate::place;
use crate::poller::{Poller, Ready, Source};
use crate::report;
use crate::stdio::Pumped;

/// A reply; `None` when it comes later.
pub(crate) type Answer = Result<Option<Reply>, Refusal>;

/// Buffers read from a stream before others have their turn.
const ROUNDS: u32 = 4;

/// More than is ever used of it: so large that the allocator gives it a mapping of its own, in which only the pages that
/// were written to take memory.
const BUFFER_LEN: usize = 160 * 1024;

/// After a turn that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Everything.
#[derive(Debug)]
pub(crate) struct Monitor {
    sandbox: SandboxId,
    files: [PathBuf; 2],
    pub(crate) poller: Poller,
    signals: Signals,
    listener: Listener,
    pub(crate) connections: Connections,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) execs: BTreeMap<ExecId, Exec>,
    /// Execs that have ended but for what they started.
    pub(crate) ending: Vec<Ending>,
    /// Cgroups of ended execs that the container would not take the members of.
    pub(crate) left: Vec<Group>,
    /// Whether a runtime, by its path, can be told the cgroup of an exec.
    pub(crate) runs_in_groups: BTreeMap<PathBuf, bool>,
    pub(crate) onlookers: Onlookers,
    pub(crate) jobs: Jobs,
    /// Children that ended while a runtime command was under way that may tell whose they were.
    pub(crate) unclaimed: BTreeMap<i32, End>,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) drops: Drops,
    /// For messages and output alike.
    pub(crate) buffer: Vec<u8>,
    pub(crate) next_key: u32,
    /// SIGTERM has come: the end waits for that of the last process only.
    told_to_end: bool,
    finished: bool,
}

/// Serves until told to end.
pub(crate) fn run(serve: Serve) -> io::Result<()> {
    let mut monitor = Monitor::new(serve)?;
    while !monitor.finished {
        // A pod whose monitor has ended is lost, so nothing that goes wrong on the way is a reason to end.
        if let Err(error) = monitor.turn() {
            report::failure("the monitor goes on after", &error);
            std::thread::sleep(PAUSE);
        }
    }
    monitor.files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    Ok(())
}

impl Monitor {
    fn new(serve: Serve) -> io::Result<Self> {
        place::enter_cgroups(&serve.cgroups);
        place::ask_to_be_spared();
        sys::process::close_inherited_on_exec()?;
        // A session of its own: what ends the daemon's terminal or process group does not end the pod. It fails for a group's
        // leader, who has what is wanted already.
        rustix::process::setsid().ok();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        sys::process::set_subreaper(true)?;
        let caught = [signals::CHILD, signals::TERMINATE, signals::INTERRUPT, signals::HANGUP];
        let signals = Signals::catch(&caught)?;
        let poller = Poller::new()?;
        poller.add(&signals, Source::Signals)?;
        let listener = Listener::take(&poller)?;
        write_pid_file(&serve)?;
        Ok(Self {
            sandbox: serve.sandbox,
            files: [serve.socket, serve.pid_file],
            poller,
            signals,
            listener,
            connections: Connections::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            ending: Vec::new(),
            left: Vec::new(),
            runs_in_groups: BTreeMap::new(),
            onlookers: Onlookers::default(),
            jobs: Jobs::new(),
            unclaimed: BTreeMap::new(),
            hierarchies: Hierarchies::read(),
            drops: Drops::default(),
            buffer: vec![0; BUFFER_LEN],
            next_key: 0,
            told_to_end: false,
            finished: false,
        })
    }

    fn turn(&mut self) -> io::Result<()> {
        let limit = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        for ready in self.poller.wait(limit.map(round_up))? {
            self.handle(ready)?;
        }
        self.end_sessions_over();
        self.drop_execs_of_closed();
        self.meet_deadlines(Instant::now());
        self.finished |= self.told_to_end && self.is_idle();
        Ok(())
    }

    /// Whether nothing runs whose end would have to be recorded. What has ended is on disk.
    fn is_idle(&self) -> bool {
        let mut containers = self.containers.values();
        self.jobs.values().next().is_none() && containers.all(|it| matches!(it.stage, Stage::Exited(_)))
    }

    fn handle(&mut self, ready: Ready) -> io::Result<()> {
        match ready.source {
            Source::Signals => self.take_signals(),
            Source::Listener => {
                self.accept();
                Ok(())
            }
            Source::Connection(key) => {
                if ready.writable {
                    self.connections.flush(&self.poller, key);
                }
                if ready.readable {
                    self.receive(key);
                }
                Ok(())
            }
            Source::Output(key, stream) => {
                self.pump(key, stream);
                Ok(())
            }
            Source::Onlooker(key, stream) => {
                self.onlooker_ready(key, stream, ready);
                Ok(())
            }
            Source::OomKills(key) => {
                let found = self.containers.values().find(|container| container.key == key);
                let id = found.map(|container| container.id.clone());
                id.into_iter().for_each(|id| self.look_for_oom_kill(&id));
                Ok(())
            }
        }
    }

    fn accept(&mut self) {
        let Some(socket) = self.listener.accept(&self.poller) else { return };
        if let Err(error) = self.connections.add(socket, &self.poller) {
            report::failure("a connection is closed", &error);
        }
    }

    fn receive(&mut self, key: u32) {
        let room = self.buffer.get_mut(..MESSAGE_LIMIT).unwrap_or_default();
        let Some((len, fds)) = self.connections.receive(key, room) else { return };
        let message = self.buffer.get(..len).unwrap_or_default();
        match codec::decode::<Request>(message) {
            Ok(request) => {
                let asker = Asker { connection: key, seq: request.seq };
                let answer = self.perform(asker, request.body, fds);
                self.answer(asker, answer);
            }
            Err(error) => match codec::decode_seq(message) {
                Ok(seq) => {
                    let refusal = Refusal::new(RefusalKind::Unsupported, types::error::chain(&error));
                    self.answer(Asker { connection: key, seq }, Err(refusal));
                }
                Err(_) => self.connections.close(key),
            },
        }
    }

    fn perform(&mut self, asker: Asker, request: Request, fds: Vec<OwnedFd>) -> Answer {
        match request {
            Request::Hello { version, oldest } => self.greet(Versions { oldest, newest: version }),
            Request::Create(request) => self.create(asker, &request),
            Request::Start { container } => self.start(asker, &container),
            Request::Signal { container, signal, all } => self.signal(&container, signal, all),
            Request::Exec(request) => self.exec(asker, request, fds),
            Request::KillExec { exec } => self.kill_exec(&exec),
            Request::Attach(request) => self.attach(asker, &request, fds),
            Request::CloseStdin { session } => self.close_stdin(&session),
            Request::Detach { session } => self.detach(&session),
            Request::Resize { container, exec, width, height } => {
                self.resize(&container, exec.as_ref(), width, height)
            }
            Request::ReopenLog { container } => self.reopen_log(&container),
            Request::Delete { container } => self.delete(asker, &container),
            Request::List => Ok(Some(Reply::List(self.list()))),
            Request::Shutdown => self.shut_down(),
        }
    }

    fn greet(&self, theirs: Versions) -> Answer {
        let version = Versions::OURS.agree(theirs).ok_or_else(|| {
            let message = format!("the pod's monitor speaks protocol {}, not {theirs}", Versions::OURS);
            Refusal::new(RefusalKind::Unsupported, message)
        })?;
        Ok(Some(Reply::Hello { version, pid: own_pid(), sandbox: self.sandbox.clone() }))
    }

    fn shut_down(&mut self) -> Answer {
        // One that has ended may stay known, because the runtime could not delete it: nothing of it needs a monitor.
        if self.containers.values().any(Container::lives) {
            return Err(Refusal::new(RefusalKind::InvalidState, "the pod's monitor still has containers"));
        }
        self.finished = true;
        Ok(Some(Reply::Done))
    }

    pub(crate) fn answer(&mut self, asker: Asker, answer: Answer) {
        match answer {
            Ok(Some(reply)) => self.reply(asker, &reply, None),
            Ok(None) => {}
            Err(refusal) => self.reply(asker, &Reply::Refused(refusal), None),
        }
    }

    pub(crate) fn reply(&mut self, asker: Asker, reply: &Reply, fd: Option<OwnedFd>) {
        self.connections.reply(&self.poller, asker, reply, fd);
    }

    fn pump(&mut self, key: u32, stream: Stream) {
        let Some(container) = self.containers.values_mut().find(|container| container.key == key) else {
            return;
        };
        let onlookers = &mut self.onlookers;
        let look_on = &mut |stream, bytes: &[u8]| onlookers.give(key, stream, bytes);
        let pumped = container.streams.pump(stream, &mut self.buffer, ROUNDS, look_on);
        if pumped == Pumped::Ended && matches!(container.stage, Stage::Draining(_)) {
            let id = container.id.clone();
            self.advance_drain(&id);
        }
        self.onlookers.settle(&self.poller);
        self.look_for_drops(key);
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            match signal {
                signals::CHILD => self.reap()?,
                // A host that shuts down tells everybody, and waits for us.
                signals::TERMINATE => self.told_to_end = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes every child that has ended, orphans that nobody knows included.
    fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, status)) = sys::process::wait_any_nonblocking()? {
            self.child_ended(pid, End { status, at: Timestamp::now() });
        }
        if !self.jobs.values().any(Job::launches) {
            self.unclaimed.clear();
        }
        Ok(())
    }

    fn child_ended(&mut self, pid: i32, end: End) {
        if let Some(job) = self.jobs.remove(&pid) {
            return self.job_ended(job, end);
        }
        let container = self.containers.values().find(|container| container.pid == Some(pid));
        if let Some(id) = container.map(|container| container.id.clone()) {
            return self.init_ended(&id, end);
        }
        if let Some(exec) = self.exec_with_pid(pid) {
            return self.exec_ended(&exec, end);
        }
        if self.jobs.values().any(Job::launches) {
            self.unclaimed.insert(pid, end);
        }
    }

    fn job_ended(&mut self, mut job: Job, end: End) {
        let mut printed = [0; 4096];
        let creating = matches!(job.purpose, Purpose::Create { .. }) && !end.status.success();
        let streams = self
            .containers
            .get_mut(&job.container)
            .filter(|_| creating)
            .map(|container| &mut container.streams);
        let len = streams.map_or(0, |streams| streams.read_stderr(&mut printed));
        let outcome = job.outcome(end.status, printed.get(..len).unwrap_or_default());
        let id = &job.container;
        match job.purpose {
            Purpose::Create { asker, pid_file, console } => {
                self.create_ended((asker, id), outcome, &pid_file, console)
            }
            Purpose::CleanUp { asker, refusal } => self.cleaned_up(asker, id, refusal),
            Purpose::Start { asker, begun } => self.start_ended((asker, id), outcome, begun),
            Purpose::Exec { asker, request, pid_file, console, group } => {
                self.exec_begun((asker, request), outcome, &pid_file, (console, group));
            }
            Purpose::Help { asker, request, fds, text } => {
                self.help_read((asker, request), outcome, fds, text);
            }
            Purpose::Delete => self.delete_ended(id, outcome),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter(|job| job.killed.is_none()).map(|job| job.deadline);
        let looks = self.containers.values().filter_map(look_at);
        let endings = self.ending.iter().map(Ending::look);
        let others =
            self.listener.deadline().into_iter().chain(self.onlookers.deadline()).chain(self.drops.due());
        jobs.chain(looks).chain(endings).chain(others).min()
    }

    fn meet_deadlines(&mut self, now: Instant) {
        for (pid, job) in self.jobs.iter_mut().filter(|(_, job)| job.deadline <= now) {
            job.kill(*pid, Killed::TimedOut);
        }
        let due = self.containers.values().filter(|container| look_at(container).is_some_and(|at| at <= now));
        let due: Vec<ContainerId> = due.map(|container| container.id.clone()).collect();
        for id in due {
            self.advance_drain(&id);
            self.advance_deletion(&id);
        }
        self.advance_endings(now);
        self.listener.resume(&self.poller, now);
        self.onlookers.part(now);
        self.tell_drops(now);
    }
}

/// When a container wants to be looked at.
fn look_at(container: &Container) -> Option<Instant> {
    let drain = match &container.stage {
        Stage::Draining(draining) => Some(draining.look),
        _ => None,
    };
    let deletion = container.deletion.as_ref().filter(|deletion| !deletion.under_way);
    let force =
        deletion.filter(|_| !matches!(container.stage, Stage::Creating)).map(|deletion| deletion.force_at);
    drain.into_iter().chain(force).min()
}

/// So that the wait does not end a fraction too early, only to wait again.
fn round_up(limit: Duration) -> Duration {
    limit + Duration::from_micros(50)
}

fn write_pid_file(serve: &Serve) -> io::Result<()> {
    let pid = own_pid();
    let text = format!("{pid} {}\n", sys::pidfd::start_time(pid)?);
    sys::atomic::write(&serve.pid_file, text.as_bytes(), 0o600).map_err(io::Error::other)
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or_default()
}
