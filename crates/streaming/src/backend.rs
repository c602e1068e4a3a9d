//! What a session needs of the program around it.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};
use types::{ContainerId, SandboxId};

/// The reading end of something.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// The writing end of something. Shutting it down closes it for its reader.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Which streams a client of exec or attach wants. Checked before a URL is given out: at least one, and no stderr with a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// The client will send input.
    pub stdin: bool,
    /// The client reads standard output.
    pub stdout: bool,
    /// The client reads standard error.
    pub stderr: bool,
    /// The process has a terminal.
    pub tty: bool,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Where.
    pub container: ContainerId,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// With which streams.
    pub streams: Streams,
}

/// A running container to be attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// Which.
    pub container: ContainerId,
    /// To which streams. `tty` says what the container has.
    pub streams: Streams,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The near side of a process that a session belongs to. What was not asked for is `None`; with a terminal all its output is
/// `stdout`.
pub struct Process {
    /// To the process. Shutting it down (or dropping it) tells the process that nothing more comes.
    pub stdin: Option<Writer>,
    /// From the process; ends when it and all that hold the stream have closed it.
    pub stdout: Option<Reader>,
    /// From the process.
    pub stderr: Option<Reader>,
    /// Everything that is not bytes. Dropping it ends the session: an exec is killed with all it has started, an attached client
    /// leaves.
    pub control: Box<dyn Control>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// Commands to a session's process.
#[async_trait::async_trait]
pub trait Control: Send + Sync {
    /// Sets the size of its terminal; nothing without one.
    async fn resize(&self, size: Size);

    /// Waits for its end; of an exec, or of the container that is attached to. Safe to cancel and to call again.
    async fn ended(&mut self) -> End;
}

/// How a process has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With this code; 128 + signal when a signal ended it.
    Exited(i32),
    /// The process is gone, or was killed, for a reason that is to be told: its container has ended, the server stops.
    Lost(String),
}

/// Why a session cannot begin. The text is shown to the user who asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The container, pod or its state does not allow it any more.
    #[error("{0}")]
    Unavailable(String),
    /// It was tried and did not work (no such program, refused connection).
    #[error("{0}")]
    Failed(String),
}

/// Where sessions lead.
#[async_trait::async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Starts a command. `size` is the terminal's first size when the client told it before.
    ///
    /// # Errors
    /// When the container does not run or the command cannot be started.
    async fn exec(&self, exec: Exec, size: Option<Size>) -> Result<Process, BackendError>;

    /// Attaches to a container's own process.
    ///
    /// # Errors
    /// When the container does not run.
    async fn attach(&self, attach: Attach) -> Result<Process, BackendError>;

    /// Connects to a port of a pod's loopback: IPv4 first, then IPv6, in the pod's network namespace or the node's.
    ///
    /// # Errors
    /// When the pod is gone or nobody listens.
    async fn connect(&self, sandbox: SandboxId, port: u16) -> Result<tokio::net::TcpStream, BackendError>;
}
