//! A connection over a `SOCK_SEQPACKET` socket: requests out, and one task that hands replies to their callers and events
//! to the queue. The task ends, and with it everything that waits, when the socket does or the last caller is gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use types::{ContainerId, ExecId, SandboxId, Timestamp};

use super::{CALL_SLACK, Connection, Created, EVENT_QUEUE, Monitor, QUICK_CALL, StartedExec};
use crate::codec::{self, MESSAGE_LIMIT};
use crate::error::MonitorError;
use crate::message::{
    AttachRequest, ContainerState, CreateRequest, Event, ExecRequest, Refusal, RefusalKind, Reply, Request,
};
use crate::{DELETE_TIMEOUT, START_TIMEOUT, Versions};

type Answer = (Reply, Vec<OwnedFd>);
type Socket = AsyncFd<OwnedFd>;

/// Who waits for which reply; `None` once the connection is lost.
#[derive(Debug)]
struct Pending(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

#[derive(Debug)]
struct Link {
    socket: Arc<Socket>,
    pending: Arc<Pending>,
    next_seq: AtomicU64,
    reader: AbortHandle,
}

/// Makes a connection of a connected socket: greets and checks who answers.
pub(super) async fn establish(socket: OwnedFd, sandbox: &SandboxId) -> Result<Connection, MonitorError> {
    let socket = Arc::new(watch(socket).map_err(MonitorError::Socket)?);
    let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let reader = tokio::spawn(read_all(socket.clone(), pending.clone(), sender)).abort_handle();
    let link = Link { socket, pending, next_seq: AtomicU64::new(1), reader };
    let pid = link.greet(sandbox).await?;
    Ok(Connection { monitor: Arc::new(link), events, pid })
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what makes it so, a descriptor that changes, an `OwnedFd` cannot do"
)]
fn watch(socket: OwnedFd) -> io::Result<Socket> {
    AsyncFd::new(socket)
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, seq: u64) -> Result<oneshot::Receiver<Answer>, MonitorError> {
        let (sender, receiver) = oneshot::channel();
        self.lock().as_mut().ok_or(MonitorError::Lost)?.insert(seq, sender);
        Ok(receiver)
    }

    fn take(&self, seq: u64) -> Option<oneshot::Sender<Answer>> {
        self.lock().as_mut()?.remove(&seq)
    }

    fn close(&self) {
        *self.lock() = None;
    }
}

/// Forgets the reply that nobody waits for any more, also when the caller's future is dropped half-way.
struct Forget<'a>(&'a Pending, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.take(self.1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read_all(socket: Arc<Socket>, pending: Arc<Pending>, events: mpsc::Sender<Event>) {
    while let Ok((bytes, fds)) = socket.async_io(Interest::READABLE, receive).await {
        if bytes.is_empty() || !dispatch(&bytes, fds, &pending, &events) {
            break;
        }
    }
    pending.close();
}

thread_local! {
    /// Shared by the connections of all pods: a buffer for the largest message in each would outweigh the pods' own state.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(MESSAGE_LIMIT, 0);
        let (len, fds) = sys::fdpass::recv(socket.as_fd(), buffer, 1)?;
        Ok((buffer.get(..len).unwrap_or_default().to_vec(), fds))
    })
}

/// Hands one message to whom it concerns; false when the connection is no longer of use.
fn dispatch(bytes: &[u8], fds: Vec<OwnedFd>, pending: &Pending, events: &mpsc::Sender<Event>) -> bool {
    let Ok(seq) = codec::decode_seq(bytes) else { return false };
    if seq == 0 {
        // An event of a kind that only a newer monitor knows is skipped; a full queue gives the connection up.
        let Ok(event) = codec::decode::<Event>(bytes) else { return true };
        return !matches!(events.try_send(event.body), Err(mpsc::error::TrySendError::Full(_)));
    }
    // An answer of a kind that only a newer monitor knows fails the one call.
    let reply = codec::decode::<Reply>(bytes).map_or_else(
        |error| Reply::Refused(Refusal::new(RefusalKind::Unknown, types::error::chain(&error))),
        |envelope| envelope.body,
    );
    if let Some(waiting) = pending.take(seq) {
        // A caller that has gone takes its answer, and the descriptors in it, with it.
        drop(waiting.send((reply, fds)));
    }
    true
}

impl Link {
    async fn greet(&self, expected: &SandboxId) -> Result<i32, MonitorError> {
        let ours = Versions::OURS;
        let hello = Request::Hello { version: ours.newest, oldest: ours.oldest };
        let speaks = |version| ours.agree(Versions { oldest: version, newest: version }).is_some();
        match self.ask("hello", QUICK_CALL, &hello, &[]).await?.0 {
            Reply::Hello { version, pid, sandbox } if speaks(version) && sandbox == *expected => Ok(pid),
            Reply::Hello { version, sandbox, .. } => Err(MonitorError::Foreign(format!(
                "it serves sandbox {sandbox} with protocol version {version}"
            ))),
            _ => Err(MonitorError::Unexpected("hello")),
        }
    }

    async fn ask(
        &self,
        call: &'static str,
        after: Duration,
        request: &Request,
        fds: &[OwnedFd],
    ) -> Result<Answer, MonitorError> {
        let asked = tokio::time::timeout(after, self.exchange(request, fds)).await;
        match asked.unwrap_or(Err(MonitorError::TimedOut { call, after }))? {
            (Reply::Refused(refusal), _) => Err(MonitorError::Refused(refusal)),
            answer => Ok(answer),
        }
    }

    async fn exchange(&self, request: &Request, fds: &[OwnedFd]) -> Result<Answer, MonitorError> {
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        let bytes = codec::encode(seq, request).map_err(MonitorError::Codec)?;
        let answer = self.pending.register(seq)?;
        let _forget = Forget(&self.pending, seq);
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.socket
            .async_io(Interest::WRITABLE, |fd| sys::fdpass::send(fd.as_fd(), &bytes, &borrowed))
            .await
            .map_err(lost_or_socket)?;
        answer.await.map_err(|_| MonitorError::Lost)
    }

    async fn done(&self, call: &'static str, after: Duration, request: &Request) -> Result<(), MonitorError> {
        match self.ask(call, after, request, &[]).await?.0 {
            Reply::Done => Ok(()),
            _ => Err(MonitorError::Unexpected(call)),
        }
    }
}

fn lost_or_socket(error: io::Error) -> MonitorError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
            MonitorError::Lost
        }
        _ => MonitorError::Socket(error),
    }
}

fn allowed(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms) + DELETE_TIMEOUT + CALL_SLACK
}

#[async_trait]
impl Monitor for Link {
    async fn create(&self, request: CreateRequest) -> Result<Created, MonitorError> {
        let after = allowed(request.timeout_ms);
        match self.ask("create", after, &Request::Create(Box::new(request)), &[]).await?.0 {
            Reply::Created { pid, mount_us } => Ok(Created { pid, mount: Duration::from_micros(mount_us) }),
            _ => Err(MonitorError::Unexpected("create")),
        }
    }

    async fn start(&self, container: &ContainerId) -> Result<Timestamp, MonitorError> {
        let request = Request::Start { container: container.clone() };
        match self.ask("start", START_TIMEOUT + CALL_SLACK, &request, &[]).await?.0 {
            Reply::Started { started_at } => Ok(started_at),
            _ => Err(MonitorError::Unexpected("start")),
        }
    }

    async fn signal(&self, container: &ContainerId, signal: i32, all: bool) -> Result<(), MonitorError> {
        self.done("signal", QUICK_CALL, &Request::Signal { container: container.clone(), signal, all }).await
    }

    async fn exec(&self, request: ExecRequest, stdio: Vec<OwnedFd>) -> Result<StartedExec, MonitorError> {
        let after = allowed(request.timeout_ms);
        let (reply, mut fds) = self.ask("exec", after, &Request::Exec(request), &stdio).await?;
        match reply {
            Reply::ExecStarted { pid } => Ok(StartedExec { pid, terminal: fds.pop() }),
            _ => Err(MonitorError::Unexpected("exec")),
        }
    }

    async fn kill_exec(&self, exec: &ExecId) -> Result<(), MonitorError> {
        self.done("kill exec", QUICK_CALL, &Request::KillExec { exec: exec.clone() }).await
    }

    async fn attach(
        &self,
        request: AttachRequest,
        outputs: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, MonitorError> {
        let (reply, mut fds) = self.ask("attach", QUICK_CALL, &Request::Attach(request), &outputs).await?;
        match reply {
            Reply::Attached { .. } => Ok(fds.pop()),
            _ => Err(MonitorError::Unexpected("attach")),
        }
    }

    async fn close_stdin(&self, session: &ExecId) -> Result<(), MonitorError> {
        self.done("close stdin", QUICK_CALL, &Request::CloseStdin { session: session.clone() }).await
    }

    async fn detach(&self, session: &ExecId) -> Result<(), MonitorError> {
        self.done("detach", QUICK_CALL, &Request::Detach { session: session.clone() }).await
    }

    async fn resize(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        width: u16,
        height: u16,
    ) -> Result<(), MonitorError> {
        let request = Request::Resize { container: container.clone(), exec: exec.cloned(), width, height };
        self.done("resize", QUICK_CALL, &request).await
    }

    async fn reopen_log(&self, container: &ContainerId) -> Result<(), MonitorError> {
        self.done("reopen log", QUICK_CALL, &Request::ReopenLog { container: container.clone() }).await
    }

    async fn delete(&self, container: &ContainerId) -> Result<(), MonitorError> {
        let request = Request::Delete { container: container.clone() };
        self.done("delete", DELETE_TIMEOUT + CALL_SLACK + CALL_SLACK, &request).await
    }

    async fn list(&self) -> Result<Vec<ContainerState>, MonitorError> {
        match self.ask("list", QUICK_CALL, &Request::List, &[]).await?.0 {
            Reply::List(states) => Ok(states),
            _ => Err(MonitorError::Unexpected("list")),
        }
    }

    async fn shutdown(&self) -> Result<(), MonitorError> {
        self.done("shutdown", QUICK_CALL, &Request::Shutdown).await
    }
}
