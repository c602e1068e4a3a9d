//! Monitors that live in memory: the daemon's lifecycle code runs against them in unit tests, with a fault at any call.
//!
//! A fake container starts, stops and dies as the test says: SIGKILL and SIGTERM end it at once (the latter unless
//! [`FakeMonitors::ignore_sigterm`] was called), [`FakeMonitors::exit`] ends it with a code. As with the real monitor, the exit file is
//! written before the event is sent, a lost connection leaves the containers alive, and a new one finds them by
//! [`Monitor::list`].
//!
//! A fake exec does nothing with its streams until the test takes them by [`FakeMonitors::take_streams`]: it is the program then. The
//! same goes for what an attached client's container would print.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use tokio::sync::mpsc;
use types::{ContainerId, ExecId, SandboxId, Timestamp};

use crate::client::{Connection, Created, EVENT_QUEUE, Monitor, Monitors, QUICK_CALL, StartedExec};
use crate::error::MonitorError;
use crate::message::{
    AttachRequest, ContainerState, CreateRequest, Event, ExecRequest, ExitRecord, Phase, Refusal, RefusalKind,
};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// A call that can be recorded, or made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Call {
    Spawn,
    Connect,
    Create,
    Start,
    Signal,
    Exec,
    KillExec,
    Attach,
    CloseStdin,
    Detach,
    Resize,
    ReopenLog,
    Delete,
    List,
    Shutdown,
}

/// What goes wrong at a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The monitor refuses; nothing is done.
    Refuse(Refusal),
    /// Nothing is done and no answer comes until the call's deadline.
    Hang,
    /// At [`Call::Create`]: it goes on past the call's deadline. The container is there, is not listed, and goes by
    /// [`Call::Delete`] only.
    Linger,
    /// It is done, but the connection is lost before the answer.
    LoseAnswer,
    /// The monitor dies before it is done, its containers with it.
    Die,
}

/// Shared by all clones.
#[derive(Debug, Clone, Default)]
pub struct FakeMonitors(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    pods: BTreeMap<SandboxId, Pod>,
    faults: VecDeque<(Call, Fault)>,
    calls: Vec<(Call, String)>,
    sizes: Vec<(Option<ExecId>, u16, u16)>,
    next_pid: i32,
}

#[derive(Debug, Default)]
struct Pod {
    pid: i32,
    connections: Vec<mpsc::Sender<Event>>,
    containers: BTreeMap<ContainerId, Container>,
    execs: BTreeMap<ExecId, Session>,
    sessions: BTreeMap<ExecId, Session>,
}

/// An exec or an attached client; its streams close with it.
#[derive(Debug)]
struct Session {
    container: ContainerId,
    streams: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Container {
    request: CreateRequest,
    state: ContainerState,
    ignores_sigterm: bool,
    /// Its `create` has not ended yet.
    lingers: bool,
}

impl FakeMonitors {
    /// No monitors yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next call of this kind meets this fault; faults of one kind are met in the order given.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.lock().faults.push_back((call, fault));
    }

    /// Ends a container with this exit code. Returns whether there was one to end.
    pub fn exit(&self, container: &ContainerId, code: i32) -> bool {
        self.lock().end(container, code, None)
    }

    /// Ends a container as the kernel's OOM killer does.
    pub fn oom_kill(&self, container: &ContainerId) -> bool {
        self.lock().end_with(container, 128 + SIGKILL, Some(SIGKILL), true)
    }

    /// Ends an exec. Returns whether there was one to end.
    pub fn exit_exec(&self, exec: &ExecId, exit_code: i32) -> bool {
        self.lock().end_exec(exec, exit_code, None)
    }

    /// Ends an exec as somebody's `kill -9` does.
    pub fn kill_exec(&self, exec: &ExecId) -> bool {
        self.lock().end_exec(exec, 128 + SIGKILL, Some(SIGKILL))
    }

    /// The far ends of the streams of an exec, in the order stdin, stdout, stderr, or the program's side of its terminal; of an
    /// attached client those of its pipes, and after them that of the container's stdin. They can be taken once.
    #[must_use]
    pub fn take_streams(&self, session: &ExecId) -> Vec<OwnedFd> {
        let mut world = self.lock();
        let mut all = world.pods.values_mut().flat_map(|pod| pod.execs.iter_mut().chain(&mut pod.sessions));
        all.find(|(id, _)| *id == session).map(|(_, it)| std::mem::take(&mut it.streams)).unwrap_or_default()
    }

    /// The execs that run and the clients that are attached.
    #[must_use]
    pub fn sessions(&self) -> Vec<ExecId> {
        let world = self.lock();
        world.pods.values().flat_map(|pod| pod.execs.keys().chain(pod.sessions.keys()).cloned()).collect()
    }

    /// The sizes that terminals were given, each with its exec unless it is a container's own.
    #[must_use]
    pub fn sizes(&self) -> Vec<(Option<ExecId>, u16, u16)> {
        self.lock().sizes.clone()
    }

    /// The container no longer ends at SIGTERM.
    pub fn ignore_sigterm(&self, container: &ContainerId) {
        if let Some(container) = self.lock().container(container) {
            container.ignores_sigterm = true;
        }
    }

    /// The monitor loses lines of a container's log, and says so to who is connected.
    pub fn drop_log_lines(&self, container: &ContainerId, lines: u64) {
        self.lock().drop_log_lines(container, lines);
    }

    /// Closes every connection to the sandbox's monitor, which stays alive, and ends what was begun on them.
    pub fn lose(&self, sandbox: &SandboxId) {
        if let Some(pod) = self.lock().pods.get_mut(sandbox) {
            pod.connections.clear();
            pod.execs.clear();
            pod.sessions.clear();
        }
    }

    /// The monitor is gone, and its containers without a trace.
    pub fn die(&self, sandbox: &SandboxId) {
        self.lock().pods.remove(sandbox);
    }

    /// Every call so far, with the id of the sandbox, container or exec that it was about.
    #[must_use]
    pub fn calls(&self) -> Vec<(Call, String)> {
        self.lock().calls.clone()
    }

    /// The containers that exist, of all pods.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerState> {
        self.lock().pods.values().flat_map(|pod| pod.containers.values().map(|c| c.state.clone())).collect()
    }

    /// What a container was made from.
    #[must_use]
    pub fn request(&self, container: &ContainerId) -> Option<CreateRequest> {
        self.lock().container(container).map(|container| container.request.clone())
    }

    /// The sandboxes whose monitor is alive.
    #[must_use]
    pub fn alive(&self) -> Vec<SandboxId> {
        self.lock().pods.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(&self, sandbox: &SandboxId) -> Option<Connection> {
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let mut world = self.lock();
        let pod = world.pods.get_mut(sandbox)?;
        pod.connections.push(sender.clone());
        let monitor =
            FakeMonitor { monitors: self.clone(), sandbox: sandbox.clone(), events: sender.downgrade() };
        Some(Connection { monitor: Arc::new(monitor), events, pid: pod.pid })
    }

    /// Records a call and performs it, or the fault that is due.
    async fn perform<T: Send>(
        &self,
        (call, name, sandbox): (Call, &'static str, &SandboxId),
        about: &str,
        action: impl FnOnce(&mut World) -> Result<T, MonitorError> + Send,
    ) -> Result<T, MonitorError> {
        let fault = self.lock().record(call, about);
        match fault {
            None => action(&mut self.lock()),
            Some(Fault::Refuse(refusal)) => Err(MonitorError::Refused(refusal)),
            Some(Fault::Hang) => {
                tokio::time::sleep(QUICK_CALL).await;
                Err(MonitorError::TimedOut { call: name, after: QUICK_CALL })
            }
            Some(Fault::Linger) => {
                drop(action(&mut self.lock()));
                self.lock().linger(about);
                tokio::time::sleep(QUICK_CALL).await;
                Err(MonitorError::TimedOut { call: name, after: QUICK_CALL })
            }
            Some(Fault::LoseAnswer) => {
                drop(action(&mut self.lock()));
                self.lose(sandbox);
                Err(MonitorError::Lost)
            }
            Some(Fault::Die) => {
                self.die(sandbox);
                Err(MonitorError::Lost)
            }
        }
    }
}

impl World {
    fn record(&mut self, call: Call, about: &str) -> Option<Fault> {
        self.calls.push((call, about.to_owned()));
        let due = self.faults.iter().position(|(at, _)| *at == call)?;
        self.faults.remove(due).map(|(_, fault)| fault)
    }

    fn new_pid(&mut self) -> i32 {
        self.next_pid += 1;
        1000 + self.next_pid
    }

    fn pod(&mut self, sandbox: &SandboxId) -> Result<&mut Pod, MonitorError> {
        self.pods.get_mut(sandbox).ok_or(MonitorError::Lost)
    }

    fn container(&mut self, id: &ContainerId) -> Option<&mut Container> {
        self.pods.values_mut().find_map(|pod| pod.containers.get_mut(id))
    }

    fn linger(&mut self, id: &str) {
        let containers = self.pods.values_mut().flat_map(|pod| pod.containers.values_mut());
        containers.filter(|it| it.request.container.as_str() == id).for_each(|it| it.lingers = true);
    }

    fn end(&mut self, id: &ContainerId, code: i32, signal: Option<i32>) -> bool {
        self.end_with(id, code, signal, false)
    }

    fn end_with(&mut self, id: &ContainerId, exit_code: i32, signal: Option<i32>, oom_killed: bool) -> bool {
        let Some(pod) = self.pods.values_mut().find(|pod| pod.containers.contains_key(id)) else {
            return false;
        };
        let Some(container) = pod.containers.get_mut(id) else { return false };
        if container.state.phase == Phase::Exited {
            return false;
        }
        let record = ExitRecord {
            version: ExitRecord::VERSION,
            container: id.clone(),
            exit_code,
            signal,
            finished_at: Timestamp::now(),
            started_at: container.state.started_at,
            oom_killed,
        };
        pod.sessions.retain(|_, session| session.container != *id);
        container.state.phase = Phase::Exited;
        container.state.pid = None;
        container.state.exit = Some(record.clone());
        // A test that never made the directory does not look at the file either.
        drop(record.to_json().map(|json| std::fs::write(&container.request.exit_file, json)));
        pod.kill_execs_of(id);
        pod.tell(&Event::Exited(record));
        true
    }

    fn drop_log_lines(&mut self, id: &ContainerId, lines: u64) {
        let mut pods = self.pods.values_mut();
        let Some(pod) = pods.find(|pod| pod.containers.contains_key(id)) else { return };
        let Some(container) = pod.containers.get_mut(id) else { return };
        container.state.dropped_log_lines += lines;
        let lines = container.state.dropped_log_lines;
        if !pod.connections.is_empty() {
            container.state.dropped_log_lines_told = Some(lines);
            pod.tell(&Event::LogLinesDropped { container: id.clone(), lines });
        }
    }

    fn list(&mut self, sandbox: &SandboxId) -> Result<Vec<ContainerState>, MonitorError> {
        let listed = |container: &mut Container| {
            let state = container.state.clone();
            container.state.dropped_log_lines_told = Some(state.dropped_log_lines);
            state
        };
        let containers = self.pod(sandbox)?.containers.values_mut();
        Ok(containers.filter(|container| !container.lingers).map(listed).collect())
    }

    fn end_exec(&mut self, exec: &ExecId, exit_code: i32, signal: Option<i32>) -> bool {
        let Some(pod) = self.pods.values_mut().find(|pod| pod.execs.contains_key(exec)) else { return false };
        pod.execs.remove(exec);
        pod.tell(&Event::ExecExited { exec: exec.clone(), exit_code, signal });
        true
    }

    fn create(&mut self, sandbox: &SandboxId, request: CreateRequest) -> Result<i32, MonitorError> {
        let pid = self.new_pid();
        let pod = self.pod(sandbox)?;
        if pod.containers.contains_key(&request.container) {
            return Err(refused(
                RefusalKind::InvalidState,
                format!("container {} exists", request.container),
            ));
        }
        let state = ContainerState {
            container: request.container.clone(),
            pid: Some(pid),
            phase: Phase::Created,
            exit: None,
            dropped_log_lines: 0,
            dropped_log_lines_told: Some(0),
            started_at: Timestamp::UNSET,
        };
        let container = Container { state, ignores_sigterm: false, lingers: false, request };
        pod.containers.insert(container.request.container.clone(), container);
        Ok(pid)
    }

    fn start(&mut self, id: &ContainerId) -> Result<Timestamp, MonitorError> {
        let container = self.container(id).ok_or_else(|| unknown(id))?;
        if container.state.phase != Phase::Created {
            return Err(refused(
                RefusalKind::InvalidState,
                format!("container {id} is not in the created state"),
            ));
        }
        container.state.phase = Phase::Running;
        container.state.started_at = Timestamp::now();
        Ok(container.state.started_at)
    }

    fn signal(&mut self, id: &ContainerId, signal: i32) -> Result<(), MonitorError> {
        let container = self.container(id).ok_or_else(|| unknown(id))?;
        if signal == SIGKILL || (signal == SIGTERM && !container.ignores_sigterm) {
            self.end(id, 128 + signal, Some(signal));
        }
        Ok(())
    }

    fn exec(
        &mut self,
        sandbox: &SandboxId,
        request: ExecRequest,
        mut streams: Vec<OwnedFd>,
    ) -> Result<StartedExec, MonitorError> {
        let pid = self.new_pid();
        let pod = self.pod(sandbox)?;
        let container = pod.containers.get(&request.container).ok_or_else(|| unknown(&request.container))?;
        if container.state.phase != Phase::Running {
            let message = format!("container {} is not running", request.container);
            return Err(refused(RefusalKind::InvalidState, message));
        }
        let mut terminal = None;
        if request.terminal {
            let (master, user) = open_terminal().map_err(MonitorError::Socket)?;
            (terminal, streams) = (Some(master), vec![user]);
        }
        pod.execs.insert(request.exec, Session { container: request.container, streams });
        Ok(StartedExec { pid, terminal })
    }

    fn attach(
        &mut self,
        sandbox: &SandboxId,
        request: AttachRequest,
        mut streams: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, MonitorError> {
        let pod = self.pod(sandbox)?;
        let container = pod.containers.get(&request.container).ok_or_else(|| unknown(&request.container))?;
        if container.state.phase == Phase::Exited {
            let message = format!("container {} is not running", request.container);
            return Err(refused(RefusalKind::InvalidState, message));
        }
        let mut stdin = None;
        if request.stdin && container.request.stdin {
            // What a test starts meanwhile must not keep it open.
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| MonitorError::Socket(error.into()))?;
            streams.push(reader);
            stdin = Some(writer);
        }
        pod.sessions.insert(request.session, Session { container: request.container, streams });
        Ok(stdin)
    }

    fn delete(&mut self, sandbox: &SandboxId, id: &ContainerId) -> Result<(), MonitorError> {
        self.end(id, 128 + SIGKILL, Some(SIGKILL));
        self.pod(sandbox)?.containers.remove(id);
        Ok(())
    }

    fn shutdown(&mut self, sandbox: &SandboxId) -> Result<(), MonitorError> {
        if !self.pod(sandbox)?.containers.is_empty() {
            return Err(refused(RefusalKind::InvalidState, "the monitor has containers"));
        }
        self.pods.remove(sandbox);
        Ok(())
    }
}

impl Pod {
    fn kill_execs_of(&mut self, container: &ContainerId) {
        let execs = self.execs.extract_if(.., |_, exec| exec.container == *container);
        let killed: Vec<ExecId> = execs.map(|(exec, _)| exec).collect();
        for exec in killed {
            self.tell(&Event::ExecExited { exec, exit_code: 128 + SIGKILL, signal: Some(SIGKILL) });
        }
    }

    fn tell(&mut self, event: &Event) {
        self.connections.retain(|connection| connection.try_send(event.clone()).is_ok());
    }
}

/// A terminal: its master, and the side of a program.
fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok((master, rustix::fs::open(name, flags, Mode::empty())?))
}

fn refused(kind: RefusalKind, message: impl Into<String>) -> MonitorError {
    MonitorError::Refused(Refusal::new(kind, message))
}

fn unknown(id: &ContainerId) -> MonitorError {
    refused(RefusalKind::NotFound, format!("container {id} is not known to the pod's monitor"))
}

#[async_trait]
impl Monitors for FakeMonitors {
    async fn spawn(&self, sandbox: &SandboxId) -> Result<Connection, MonitorError> {
        self.perform((Call::Spawn, "spawn", sandbox), sandbox.as_str(), |world| {
            let pid = world.new_pid();
            world.pods.entry(sandbox.clone()).or_insert_with(|| Pod { pid, ..Pod::default() });
            Ok(())
        })
        .await?;
        self.attach(sandbox).ok_or(MonitorError::Lost)
    }

    async fn connect(&self, sandbox: &SandboxId) -> Result<Option<Connection>, MonitorError> {
        self.perform((Call::Connect, "connect", sandbox), sandbox.as_str(), |_| Ok(())).await?;
        Ok(self.attach(sandbox))
    }
}

/// One connection; what is asked through it after it was lost fails.
#[derive(Debug)]
struct FakeMonitor {
    monitors: FakeMonitors,
    sandbox: SandboxId,
    events: mpsc::WeakSender<Event>,
}

impl FakeMonitor {
    async fn perform<T: Send>(
        &self,
        call: Call,
        name: &'static str,
        about: &str,
        action: impl FnOnce(&mut World) -> Result<T, MonitorError> + Send,
    ) -> Result<T, MonitorError> {
        if self.events.upgrade().is_none() {
            return Err(MonitorError::Lost);
        }
        self.monitors.perform((call, name, &self.sandbox), about, action).await
    }
}

#[async_trait]
impl Monitor for FakeMonitor {
    async fn create(&self, request: CreateRequest) -> Result<Created, MonitorError> {
        let about = request.container.as_str().to_owned();
        let create = |world: &mut World| world.create(&self.sandbox, request);
        let pid = self.perform(Call::Create, "create", &about, create).await?;
        Ok(Created { pid, mount: Duration::ZERO })
    }

    async fn start(&self, container: &ContainerId) -> Result<Timestamp, MonitorError> {
        self.perform(Call::Start, "start", container.as_str(), |world| world.start(container)).await
    }

    async fn signal(&self, container: &ContainerId, signal: i32, _all: bool) -> Result<(), MonitorError> {
        self.perform(Call::Signal, "signal", container.as_str(), |world| world.signal(container, signal))
            .await
    }

    async fn exec(&self, request: ExecRequest, stdio: Vec<OwnedFd>) -> Result<StartedExec, MonitorError> {
        let about = request.exec.as_str().to_owned();
        self.perform(Call::Exec, "exec", &about, |world| world.exec(&self.sandbox, request, stdio)).await
    }

    async fn kill_exec(&self, exec: &ExecId) -> Result<(), MonitorError> {
        self.perform(Call::KillExec, "kill exec", exec.as_str(), |world| {
            world.end_exec(exec, 128 + SIGKILL, Some(SIGKILL));
            Ok(())
        })
        .await
    }

    async fn attach(
        &self,
        request: AttachRequest,
        outputs: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, MonitorError> {
        let about = request.session.as_str().to_owned();
        let attach = |world: &mut World| world.attach(&self.sandbox, request, outputs);
        self.perform(Call::Attach, "attach", &about, attach).await
    }

    async fn close_stdin(&self, session: &ExecId) -> Result<(), MonitorError> {
        self.perform(Call::CloseStdin, "close stdin", session.as_str(), |world| {
            let known = world.pod(&self.sandbox)?.sessions.contains_key(session);
            known.then_some(()).ok_or_else(|| refused(RefusalKind::NotFound, "the session is not known"))
        })
        .await
    }

    async fn detach(&self, session: &ExecId) -> Result<(), MonitorError> {
        self.perform(Call::Detach, "detach", session.as_str(), |world| {
            world.pod(&self.sandbox)?.sessions.remove(session);
            Ok(())
        })
        .await
    }

    async fn resize(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        width: u16,
        height: u16,
    ) -> Result<(), MonitorError> {
        self.perform(Call::Resize, "resize", container.as_str(), |world| {
            world.sizes.push((exec.cloned(), width, height));
            world.container(container).map(|_| ()).ok_or_else(|| unknown(container))
        })
        .await
    }

    async fn reopen_log(&self, container: &ContainerId) -> Result<(), MonitorError> {
        self.perform(Call::ReopenLog, "reopen log", container.as_str(), |world| {
            world.container(container).map(|_| ()).ok_or_else(|| unknown(container))
        })
        .await
    }

    async fn delete(&self, container: &ContainerId) -> Result<(), MonitorError> {
        let sandbox = &self.sandbox;
        self.perform(Call::Delete, "delete", container.as_str(), |world| world.delete(sandbox, container))
            .await
    }

    async fn list(&self) -> Result<Vec<ContainerState>, MonitorError> {
        self.perform(Call::List, "list", self.sandbox.as_str(), |world| world.list(&self.sandbox)).await
    }

    async fn shutdown(&self) -> Result<(), MonitorError> {
        self.perform(Call::Shutdown, "shutdown", self.sandbox.as_str(), |world| world.shutdown(&self.sandbox))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RuntimeCommand;

    fn request(container: &ContainerId, dir: &std::path::Path) -> CreateRequest {
        CreateRequest {
            container: container.clone(),
            bundle: dir.to_owned(),
            rootfs: None,
            images: Vec::new(),
            user_namespace: None,
            runtime: RuntimeCommand { path: "/bin/false".into(), root: dir.into(), systemd_cgroup: false },
            log: None,
            terminal: false,
            stdin: false,
            stdin_once: false,
            exit_file: dir.join("exit"),
            timeout_ms: 1000,
        }
    }

    fn ids() -> (SandboxId, ContainerId) {
        (SandboxId::from_random([1; 32]), ContainerId::from_random([2; 32]))
    }

    #[tokio::test]
    async fn a_fake_container_lives_and_dies_as_told() {
        let dir = tempfile::tempdir().unwrap();
        let (sandbox, container) = ids();
        let monitors = FakeMonitors::new();
        assert!(monitors.connect(&sandbox).await.unwrap().is_none());
        let mut connection = monitors.spawn(&sandbox).await.unwrap();
        connection.monitor.create(request(&container, dir.path())).await.unwrap();
        connection.monitor.start(&container).await.unwrap();
        assert!(monitors.exit(&container, 7));
        let Some(Event::Exited(record)) = connection.events.recv().await else { panic!("no exit") };
        assert_eq!(record.exit_code, 7);
        assert_eq!(ExitRecord::from_json(&std::fs::read(dir.path().join("exit")).unwrap()).unwrap(), record);
        connection.monitor.delete(&container).await.unwrap();
        assert!(connection.monitor.list().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_work_done_and_the_connection_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (sandbox, container) = ids();
        let monitors = FakeMonitors::new();
        let mut connection = monitors.spawn(&sandbox).await.unwrap();
        monitors.inject(Call::Create, Fault::LoseAnswer);
        let lost = connection.monitor.create(request(&container, dir.path())).await;
        assert!(matches!(lost, Err(MonitorError::Lost)), "{lost:?}");
        assert!(connection.events.recv().await.is_none());
        assert!(matches!(connection.monitor.list().await, Err(MonitorError::Lost)));
        let again = monitors.connect(&sandbox).await.unwrap().unwrap();
        assert_eq!(again.monitor.list().await.unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_call_ends_at_its_deadline() {
        let (sandbox, _) = ids();
        let monitors = FakeMonitors::new();
        let connection = monitors.spawn(&sandbox).await.unwrap();
        monitors.inject(Call::List, Fault::Hang);
        assert!(matches!(connection.monitor.list().await, Err(MonitorError::TimedOut { call: "list", .. })));
    }
}
