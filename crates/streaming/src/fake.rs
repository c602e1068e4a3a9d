//! Processes, containers and clients that exist only in memory, for tests.

use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{ContainerId, SandboxId};

use crate::backend::{Attach, Backend, BackendError, Control, End, Exec, Process, Size, Streams};
use crate::channels::{Channels, StatusForm};
use crate::websocket::Peer;

/// What a pipe between a session and a process holds.
pub(crate) const PIPE: usize = 4096;

pub(crate) fn streams(names: &str) -> Streams {
    Streams {
        stdin: names.contains('i'),
        stdout: names.contains('o'),
        stderr: names.contains('e'),
        tty: names.contains('t'),
    }
}

/// A port that nobody listens at. Nobody else is given it as long as the socket is held.
pub(crate) fn closed_port() -> (u16, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

pub(crate) fn container() -> ContainerId {
    ContainerId::from_random([7; 32])
}

pub(crate) fn sandbox() -> SandboxId {
    SandboxId::from_random([8; 32])
}

pub(crate) fn exec(program: &str, names: &str) -> Exec {
    Exec { container: container(), command: vec![program.to_owned()], streams: streams(names) }
}

pub(crate) fn attach(names: &str) -> Attach {
    Attach { container: container(), streams: streams(names) }
}

/// The far side of a process: what a test does in its place.
pub(crate) struct Far {
    pub(crate) size: Option<Size>,
    pub(crate) stdin: Option<DuplexStream>,
    pub(crate) stdout: Option<DuplexStream>,
    pub(crate) stderr: Option<DuplexStream>,
    pub(crate) sizes: mpsc::Receiver<Size>,
    end: watch::Sender<Option<End>>,
    /// Resolves when the session has let go of the process.
    pub(crate) released: CancellationToken,
}

impl Far {
    /// The process ends; its streams are as they are.
    pub(crate) fn end(&self, end: End) {
        self.end.send_replace(Some(end));
    }

    /// The process ends and nobody holds its streams.
    pub(crate) fn exit(mut self, code: i32) {
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
        self.end(End::Exited(code));
    }
}

struct FakeControl {
    sizes: mpsc::Sender<Size>,
    end: watch::Receiver<Option<End>>,
    _released: DropGuard,
}

#[async_trait::async_trait]
impl Control for FakeControl {
    async fn resize(&self, size: Size) {
        self.sizes.send(size).await.ok();
    }

    async fn ended(&mut self) -> End {
        match self.end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap(),
            Err(_) => End::Lost("its test has left it".to_owned()),
        }
    }
}

fn process(streams: Streams, size: Option<Size>) -> (Process, Far) {
    let pipe = |wanted: bool| wanted.then(|| duplex(PIPE)).unzip();
    let ((stdin, far_stdin), (stdout, far_stdout), (stderr, far_stderr)) =
        (pipe(streams.stdin), pipe(streams.stdout), pipe(streams.stderr));
    let (tell_size, sizes) = mpsc::channel(16);
    let (end, ended) = watch::channel(None);
    let released = CancellationToken::new();
    let control = FakeControl { sizes: tell_size, end: ended, _released: released.clone().drop_guard() };
    let process = Process {
        stdin: stdin.map(|stream| Box::new(stream) as _),
        stdout: stdout.map(|stream| Box::new(stream) as _),
        stderr: stderr.map(|stream| Box::new(stream) as _),
        control: Box::new(control),
    };
    let far = Far { size, stdin: far_stdin, stdout: far_stdout, stderr: far_stderr, sizes, end, released };
    (process, far)
}

/// Starts a process for everything but the program `missing`; connects to ports of this machine.
struct FakeBackend {
    started: mpsc::Sender<Far>,
}

/// A backend, and its processes in the order of their start.
pub(crate) fn backend() -> (Arc<dyn Backend>, mpsc::Receiver<Far>) {
    let (started, processes) = mpsc::channel(16);
    (Arc::new(FakeBackend { started }), processes)
}

impl FakeBackend {
    fn start(&self, streams: Streams, size: Option<Size>) -> Process {
        let (process, far) = process(streams, size);
        drop(self.started.try_send(far));
        process
    }
}

#[async_trait::async_trait]
impl Backend for FakeBackend {
    async fn exec(&self, exec: Exec, size: Option<Size>) -> Result<Process, BackendError> {
        if exec.command == ["missing"] {
            return Err(BackendError::Failed("no such program".to_owned()));
        }
        Ok(self.start(exec.streams, size))
    }

    async fn attach(&self, attach: Attach) -> Result<Process, BackendError> {
        Ok(self.start(attach.streams, None))
    }

    async fn connect(&self, _: SandboxId, port: u16) -> Result<TcpStream, BackendError> {
        let connected = TcpStream::connect(("127.0.0.1", port)).await;
        connected.map_err(|error| BackendError::Failed(error.to_string()))
    }
}

/// The near side of channels: what a test does in the client's place.
pub(crate) struct Client {
    pub(crate) stdin: Option<DuplexStream>,
    pub(crate) stdout: Option<DuplexStream>,
    pub(crate) stderr: Option<DuplexStream>,
    pub(crate) resize: Option<DuplexStream>,
    pub(crate) error: DuplexStream,
    pub(crate) gone: CancellationToken,
}

/// Channels that hold `room` bytes each.
pub(crate) fn channels(names: &str, status: StatusForm, room: usize) -> (Channels, Client) {
    let pipe = |name: char| names.contains(name).then(|| duplex(room)).unzip();
    let ((stdin, client_stdin), (stdout, client_stdout)) = (pipe('i'), pipe('o'));
    let ((stderr, client_stderr), (resize, client_resize)) = (pipe('e'), pipe('t'));
    let (error, client_error) = duplex(PIPE);
    let gone = CancellationToken::new();
    let channels = Channels {
        stdin: stdin.map(|stream| Box::new(stream) as _),
        stdout: stdout.map(|stream| Box::new(stream) as _),
        stderr: stderr.map(|stream| Box::new(stream) as _),
        resize: resize.map(|stream| Box::new(stream) as _),
        error: Box::new(error),
        status,
        gone: gone.clone(),
    };
    let client = Client {
        stdin: client_stdin,
        stdout: client_stdout,
        stderr: client_stderr,
        resize: client_resize,
        error: client_error,
        gone,
    };
    (channels, client)
}

impl Peer for DuplexStream {
    fn has_hung_up(&self) -> bool {
        false
    }
}
