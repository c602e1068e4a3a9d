//! The daemon's side of the protocol: two traits, so that a pod's lifecycle runs in a unit test against [`crate::fake`],
//! and their real form, [`ProcessMonitors`].
//!
//! Every call has a deadline. A call that fails with [`MonitorError::Lost`] or [`MonitorError::TimedOut`] may have been done:
//! the daemon connects again and asks with [`Monitor::list`].

mod birthplace;
mod link;
mod process;

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use types::{ContainerId, ExecId, SandboxId, Timestamp};

pub use process::{PlacedMonitors, ProcessMonitors};

use crate::error::MonitorError;
use crate::message::{AttachRequest, ContainerState, CreateRequest, Event, ExecRequest};

/// How long a call may take that makes the monitor run no other program.
pub const QUICK_CALL: Duration = Duration::from_secs(10);

/// What a call may take beyond the time that the monitor itself allows the runtime.
pub const CALL_SLACK: Duration = Duration::from_secs(10);

/// How many events may wait for the daemon before the connection is given up.
pub const EVENT_QUEUE: usize = 1024;

/// An exec that has begun.
#[derive(Debug)]
pub struct StartedExec {
    /// The process.
    pub pid: i32,
    /// The master of its terminal, when one was asked for.
    pub terminal: Option<OwnedFd>,
}

/// A container that has been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Its init process.
    pub pid: i32,
    /// How much of the time went into mounting its root filesystem.
    pub mount: Duration,
}

/// One pod's monitor. See [`crate::Request`] for what each call means.
#[async_trait]
pub trait Monitor: Send + Sync + Debug {
    /// Makes a container.
    async fn create(&self, request: CreateRequest) -> Result<Created, MonitorError>;
    /// Starts a created container; when its program began.
    async fn start(&self, container: &ContainerId) -> Result<Timestamp, MonitorError>;
    /// Signals the init, or the whole cgroup.
    async fn signal(&self, container: &ContainerId, signal: i32, all: bool) -> Result<(), MonitorError>;
    /// Runs a process. `stdio` holds the descriptors that the request names, in the order stdin, stdout, stderr. Its end may
    /// reach the event queue before this returns, so whoever waits for it has to be registered first.
    async fn exec(&self, request: ExecRequest, stdio: Vec<OwnedFd>) -> Result<StartedExec, MonitorError>;
    /// Kills an exec's tree.
    async fn kill_exec(&self, exec: &ExecId) -> Result<(), MonitorError>;
    /// Attaches a client. `outputs` holds the descriptors that the request names, in the order stdout, stderr. What comes back is
    /// the container's stdin, when it was asked for and is open.
    async fn attach(
        &self,
        request: AttachRequest,
        outputs: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, MonitorError>;
    /// Ends a client's input.
    async fn close_stdin(&self, session: &ExecId) -> Result<(), MonitorError>;
    /// Ends a session.
    async fn detach(&self, session: &ExecId) -> Result<(), MonitorError>;
    /// Sets a terminal's size, of an exec or of the container.
    async fn resize(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        width: u16,
        height: u16,
    ) -> Result<(), MonitorError>;
    /// Begins a new log file.
    async fn reopen_log(&self, container: &ContainerId) -> Result<(), MonitorError>;
    /// Kills, deletes and forgets a container.
    async fn delete(&self, container: &ContainerId) -> Result<(), MonitorError>;
    /// All containers.
    async fn list(&self) -> Result<Vec<ContainerState>, MonitorError>;
    /// Ends the monitor, which must have no container.
    async fn shutdown(&self) -> Result<(), MonitorError>;
}

/// Where pods' monitors come from.
#[async_trait]
pub trait Monitors: Send + Sync + Debug {
    /// Starts the sandbox's monitor; joins the one that is alive, if any.
    async fn spawn(&self, sandbox: &SandboxId) -> Result<Connection, MonitorError>;
    /// Connects to the sandbox's monitor; `None` when none is alive.
    async fn connect(&self, sandbox: &SandboxId) -> Result<Option<Connection>, MonitorError>;
}

/// A connection to a monitor. Dropping every clone of `monitor` closes it, which ends the execs begun through it.
#[derive(Debug)]
pub struct Connection {
    /// To ask.
    pub monitor: Arc<dyn Monitor>,
    /// What is told unasked. Its end means that the connection is lost.
    pub events: mpsc::Receiver<Event>,
    /// The monitor's process id.
    pub pid: i32,
}
