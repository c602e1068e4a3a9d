//! Create, start, signal, reopen and delete: what a daemon asks of a container, up to the runtime's command and on from its
//! end. See [`crate::container`] for the stages.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use monitor_api::{CreateRequest, DELETE_TIMEOUT, Refusal, RefusalKind, Reply, START_TIMEOUT};
use runtime::{Create, RuntimeCommand};
use types::{ContainerId, Timestamp};

use crate::args::Launch;
use crate::cgroup::Cgroup;
use crate::connections::Asker;
use crate::console::Console;
use crate::container::{Container, Deletion, Stage};
use crate::job::{self, Job, Killed, Order, Purpose};
use crate::launch;
use crate::server::{Answer, Monitor};
use crate::stdio::{ChildStdio, Log, Streams};

const SIGKILL: i32 = 9;

/// How long a container's processes may take to die of SIGKILL before the runtime is asked to delete it anyway, or their
/// container's end is told without theirs.
pub(crate) const KILL_GRACE: Duration = Duration::from_secs(10);

/// What the system said, as the daemon is told.
pub(crate) fn io_refusal(what: &str, error: &io::Error) -> Refusal {
    Refusal::new(RefusalKind::Io, format!("{what}: {error}"))
}

fn not_found(id: &ContainerId) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("container {id} is not known to the pod's monitor"))
}

fn invalid_state(id: &ContainerId, state: &str) -> Refusal {
    Refusal::new(RefusalKind::InvalidState, format!("container {id} {state}"))
}

impl Monitor {
    /// A container that must be known.
    pub(crate) fn known(&mut self, id: &ContainerId) -> Result<&mut Container, Refusal> {
        self.containers.get_mut(id).ok_or_else(|| not_found(id))
    }

    pub(crate) fn create(&mut self, asker: Asker, request: &CreateRequest) -> Answer {
        if self.containers.contains_key(&request.container) {
            return Err(invalid_state(&request.container, "exists"));
        }
        let (streams, stdio) = open_streams(request)?;
        if let (Some(stdio), Some(userns)) = (&stdio, &request.user_namespace) {
            stdio.give_to((userns.uid, userns.gid))?;
        }
        let console = open_console(request)?;
        let pid_file = request.bundle.join("init.pid");
        self.next_key = self.next_key.wrapping_add(1);
        let container = new_container(self.next_key, request, streams);
        let log = container.log_file("create");
        let create = Create {
            id: container.id.as_str(),
            bundle: &container.bundle,
            pid_file: &pid_file,
            console_socket: None,
            log: &log,
        };
        let console_path = console.as_ref().map(Console::path);
        let args = container.runtime.create(&Create { console_socket: console_path.as_deref(), ..create });
        let order = through_launch(request, &container, args, &log, stdio);
        job::start(&mut self.jobs, &container.id, order, Purpose::Create { asker, pid_file, console })?;
        self.containers.insert(container.id.clone(), container);
        Ok(None)
    }

    /// The runtime's `create` has ended.
    pub(crate) fn create_ended(
        &mut self,
        (asker, id): (Asker, &ContainerId),
        outcome: Result<(), Refusal>,
        pid_file: &Path,
        console: Option<Console>,
    ) {
        let adopted = outcome.and_then(|()| self.adopt(id, pid_file, console));
        let mount_us =
            self.containers.get(id).map(|container| launch::take_mount_time(&container.log_file("create")));
        remove_pid_file(pid_file);
        match adopted {
            Ok(pid) => {
                self.reply(asker, &Reply::Created { pid, mount_us: mount_us.unwrap_or(0) }, None);
                if let Some(end) = self.unclaimed.remove(&pid) {
                    self.init_ended(id, end);
                }
                self.advance_deletion(id);
            }
            Err(refusal) => self.clean_up(asker, id, refusal),
        }
    }

    /// Takes the init in that the runtime has left.
    fn adopt(&mut self, id: &ContainerId, pid_file: &Path, console: Option<Console>) -> Result<i32, Refusal> {
        let pid = read_pid(pid_file)?;
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        if let Some(console) = console {
            let master = console.take_master().and_then(|master| container.streams.set_master(master));
            master.map_err(|error| io_refusal("take the container's terminal", &error))?;
        }
        container.cgroup = Cgroup::of_init(pid, &self.hierarchies);
        container.cgroup.watch(&self.poller, container.key);
        let watched = container.streams.watch(&self.poller, container.key);
        watched.map_err(|error| io_refusal("watch the container's output", &error))?;
        container.pid = Some(pid);
        container.stage = Stage::Created;
        Ok(pid)
    }

    /// After a failed create: the runtime removes what it may have left, then the refusal goes out.
    fn clean_up(&mut self, asker: Asker, id: &ContainerId, refusal: Refusal) {
        let Some(container) = self.containers.get(id) else { return };
        let order = delete_order(container);
        let purpose = Purpose::CleanUp { asker, refusal: refusal.clone() };
        if job::start(&mut self.jobs, id, order, purpose).is_err() {
            self.cleaned_up(asker, id, refusal);
        }
    }

    pub(crate) fn cleaned_up(&mut self, asker: Asker, id: &ContainerId, refusal: Refusal) {
        let deletion = self.containers.remove(id).and_then(|container| container.deletion);
        self.reply(asker, &Reply::Refused(refusal), None);
        for asker in deletion.map(|deletion| deletion.askers).unwrap_or_default() {
            self.reply(asker, &Reply::Done, None);
        }
    }

    pub(crate) fn start(&mut self, asker: Asker, id: &ContainerId) -> Answer {
        let container = self.known(id)?;
        if !matches!(container.stage, Stage::Created) || container.starting || container.deletion.is_some() {
            return Err(invalid_state(id, "is not in the created state"));
        }
        let log = container.log_file("start");
        let (runtime, bundle) = (container.runtime.clone(), container.bundle.clone());
        let order = Order {
            program: &runtime.path,
            args: runtime.start(id.as_str(), &log),
            directory: &bundle,
            log,
            stdio: None,
            limit: START_TIMEOUT,
        };
        job::start(&mut self.jobs, id, order, Purpose::Start { asker, begun: Timestamp::now() })?;
        self.known(id)?.starting = true;
        Ok(None)
    }

    /// The runtime's `start` has ended.
    pub(crate) fn start_ended(
        &mut self,
        (asker, id): (Asker, &ContainerId),
        outcome: Result<(), Refusal>,
        begun: Timestamp,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.reply(asker, &Reply::Refused(not_found(id)), None);
        };
        container.starting = false;
        let early_end = container.early_end.take();
        let reply = match outcome {
            Ok(()) => {
                // A program that has ended already began before it ended.
                let started_at = if early_end.is_some() { begun } else { Timestamp::now() };
                container.started_at = started_at;
                container.stage = Stage::Running;
                Reply::Started { started_at }
            }
            Err(refusal) => Reply::Refused(refusal),
        };
        self.reply(asker, &reply, None);
        if let Some(end) = early_end {
            self.init_ended(id, end);
        }
    }

    pub(crate) fn signal(&mut self, id: &ContainerId, signal: i32, all: bool) -> Answer {
        let container = self.known(id)?;
        if matches!(container.stage, Stage::Creating) {
            return Err(invalid_state(id, "is not created yet"));
        }
        let Some(pid) = container.pid else { return Ok(Some(Reply::Done)) };
        if all && container.cgroup.is_known() {
            if signal == SIGKILL {
                container.cgroup.kill();
            } else {
                container.cgroup.signal(signal);
            }
        }
        // An init that was not waited for is there to be signalled, so a failure is the signal's fault.
        let all_reached = all && container.cgroup.is_known() && signal != SIGKILL;
        if !all_reached {
            let sent = sys::process::kill(pid, signal);
            sent.map_err(|error| io_refusal(&format!("send signal {signal}"), &error))?;
        }
        Ok(Some(Reply::Done))
    }

    pub(crate) fn reopen_log(&mut self, id: &ContainerId) -> Answer {
        let container = self.known(id)?;
        if matches!(container.stage, Stage::Creating | Stage::Exited(_)) {
            return Err(invalid_state(id, "is not running, so its log is not reopened"));
        }
        let reopened = container.streams.reopen_log();
        reopened.map_err(|error| io_refusal("open the container's log", &error))?;
        Ok(Some(Reply::Done))
    }

    pub(crate) fn delete(&mut self, asker: Asker, id: &ContainerId) -> Answer {
        let Some(container) = self.containers.get_mut(id) else { return Ok(Some(Reply::Done)) };
        let force_at = Instant::now() + KILL_GRACE;
        let fresh = || Deletion { askers: Vec::new(), force_at, under_way: false };
        container.deletion.get_or_insert_with(fresh).askers.push(asker);
        self.advance_deletion(id);
        Ok(None)
    }

    /// Does what a deletion that was asked for needs next, if it was.
    pub(crate) fn advance_deletion(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let Some(deletion) = container.deletion.as_ref().filter(|deletion| !deletion.under_way) else {
            return;
        };
        let patient = Instant::now() < deletion.force_at;
        match &container.stage {
            Stage::Creating => self.give_up_create(id),
            Stage::Created | Stage::Running if patient => kill(container),
            Stage::Draining(_) if patient => {}
            _ => self.run_delete(id),
        }
    }

    fn give_up_create(&mut self, id: &ContainerId) {
        let create = |job: &Job| job.container == *id && matches!(job.purpose, Purpose::Create { .. });
        if let Some((pid, job)) = self.jobs.iter_mut().find(|(_, job)| create(job)) {
            job.kill(*pid, Killed::Unwanted);
        }
    }

    fn run_delete(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(deletion) = &mut container.deletion {
            deletion.under_way = true;
        }
        let started = job::start(&mut self.jobs, id, delete_order(container), Purpose::Delete);
        if let Err(refusal) = started {
            self.delete_ended(id, Err(refusal));
        }
    }

    /// The runtime's `delete` has ended.
    pub(crate) fn delete_ended(&mut self, id: &ContainerId, outcome: Result<(), Refusal>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let askers = container.deletion.take().map(|deletion| deletion.askers).unwrap_or_default();
        let reply = match outcome {
            Ok(()) => {
                self.kill_execs_of(id);
                self.forget_groups_of(id);
                if let Some(container) = self.containers.remove(id) {
                    self.onlookers.container_ended(container.key, &self.poller);
                }
                Reply::Done
            }
            Err(refusal) => Reply::Refused(refusal),
        };
        for asker in askers {
            self.reply(asker, &reply, None);
        }
    }
}

/// Ends a container's processes; that they have ended is noticed later.
fn kill(container: &Container) {
    container.cgroup.kill();
    if let Some(pid) = container.pid {
        // It was not waited for, so it is there.
        sys::process::kill(pid, SIGKILL).ok();
    }
}

fn new_container(key: u32, request: &CreateRequest, streams: Streams) -> Container {
    let runtime = RuntimeCommand {
        path: request.runtime.path.clone(),
        root: request.runtime.root.clone(),
        systemd_cgroup: request.runtime.systemd_cgroup,
    };
    Container {
        id: request.container.clone(),
        key,
        bundle: request.bundle.clone(),
        runtime,
        exit_file: request.exit_file.clone(),
        streams,
        drops_told: 0,
        stdin_once: request.stdin_once,
        owner: request.user_namespace.as_ref().map(|userns| (userns.uid, userns.gid)),
        stage: Stage::Creating,
        pid: None,
        cgroup: Cgroup::default(),
        started_at: Timestamp::UNSET,
        starting: false,
        early_end: None,
        deletion: None,
    }
}

fn open_streams(request: &CreateRequest) -> Result<(Streams, Option<ChildStdio>), Refusal> {
    let open = |path: &PathBuf| {
        let log = Log::open(path);
        log.map_err(|error| io_refusal(&format!("open the container's log {}", path.display()), &error))
    };
    let log = request.log.as_ref().map(open).transpose()?;
    if request.terminal {
        return Ok((Streams::terminal(log), None));
    }
    let pipes = Streams::pipes(request.stdin, log);
    let (streams, child) = pipes.map_err(|error| io_refusal("make the container's pipes", &error))?;
    Ok((streams, Some(child)))
}

fn open_console(request: &CreateRequest) -> Result<Option<Console>, Refusal> {
    if !request.terminal {
        return Ok(None);
    }
    let console = Console::listen(&request.bundle, "console.sock".to_owned());
    console.map(Some).map_err(|error| io_refusal("make the socket for the container's terminal", &error))
}

/// The runtime's `create`, by way of [`crate::launch`] when there is something to mount first.
fn through_launch<'a>(
    request: &CreateRequest,
    container: &'a Container,
    args: Vec<std::ffi::OsString>,
    log: &Path,
    stdio: Option<ChildStdio>,
) -> Order<'a> {
    let limit = Duration::from_millis(request.timeout_ms);
    let order = Order {
        program: &container.runtime.path,
        args,
        directory: &container.bundle,
        log: log.to_owned(),
        stdio,
        limit,
    };
    let (rootfs, userns) = (request.rootfs.as_ref(), request.user_namespace.as_ref());
    if rootfs.is_none() && userns.is_none() {
        return order;
    }
    let launch = Launch {
        log: log.to_owned(),
        target: container.bundle.join("rootfs"),
        lowers: rootfs.map(|rootfs| rootfs.lowers.clone()).unwrap_or_default(),
        upper: rootfs.and_then(|rootfs| rootfs.upper.clone()),
        work: rootfs.and_then(|rootfs| rootfs.work.clone()),
        readonly: rootfs.is_some_and(|rootfs| rootfs.readonly),
        userns: userns.map(|userns| userns.path.clone()),
        bind_userns: userns.and_then(|userns| userns.bind.clone()),
        volumes: userns.map(|userns| userns.volumes.clone()).unwrap_or_default(),
        images: request.images.clone(),
        program: std::iter::once(container.runtime.path.clone().into()).chain(order.args).collect(),
    };
    // The program that runs, even if the file it came from has been replaced by an upgrade.
    Order { program: Path::new("/proc/self/exe"), args: launch.to_args(), ..order }
}

fn delete_order(container: &Container) -> Order<'_> {
    let log = container.log_file("delete");
    Order {
        program: &container.runtime.path,
        args: container.runtime.delete(container.id.as_str(), &log),
        directory: Path::new("/"),
        log,
        stdio: None,
        limit: DELETE_TIMEOUT,
    }
}

/// Removes the file by which the runtime told a process id, and the hidden one that runc makes first: a runc that was killed
/// between the two leaves it, and the next one would refuse to write over it.
pub(crate) fn remove_pid_file(file: &Path) {
    fs::remove_file(file).ok();
    if let Some(name) = file.file_name() {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        fs::remove_file(file.with_file_name(hidden)).ok();
    }
}

/// The process id that the runtime has left.
pub(crate) fn read_pid(file: &Path) -> Result<i32, Refusal> {
    let text = fs::read_to_string(file).map_err(|error| io_refusal("read the runtime's pid file", &error))?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| Refusal::new(RefusalKind::RuntimeFailed, "the OCI runtime left no process id"))
}
