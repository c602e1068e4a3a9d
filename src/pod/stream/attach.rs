//! Sessions with a container's own process.
//!
//! The monitor copies the container's output into our pipes as far as they have room, and hands out the container's stdin. It tells
//! nobody that a session has ended: the container's end shows in its pod's view, and its own in the loss of the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use monitor_api::{AttachRequest, Monitor, MonitorError, RefusalKind};
use streaming::backend::{Attach, Control, End, Process, Reader, Size, Writer};
use tokio::io::AsyncWrite;
use tokio::sync::{oneshot, watch};
use types::ExecId;

use super::super::Pods;
use super::super::actor::{ExecExit, Message, PodHandle};
use super::super::error::{PodError, SharedError, StepError};
use super::super::pipes::{self, WriteEnd};
use super::super::shared::Shared;
use super::super::steps::Steps;
use super::super::view::{ContainerState, ContainerView, PodView};
use crate::tasks::Task;

/// The verbs, in errors and logs.
const VERB: &str = "attach to";
const CLOSE: &str = "close stdin of";
const LEAVE: &str = "detach from";

/// An attached client.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    handle: PodHandle,
    monitor: Arc<dyn Monitor>,
    id: ExecId,
    container: Arc<ContainerView>,
    task: Task,
}

/// Ends the session, also one that is only about to begin.
#[derive(Debug)]
struct Leash(Arc<Session>);

impl Drop for Leash {
    fn drop(&mut self) {
        let session = Arc::clone(&self.0);
        self.0.shared.operations.spawn(async move { session.leave().await });
    }
}

/// Attaches the client.
pub(super) async fn begin(pods: &Pods, attach: Attach) -> Result<Process, SharedError> {
    let (container, handle, monitor) = pods.use_container(attach.container.as_str(), "attach to").await?;
    let (shared, id) = (Arc::clone(&pods.shared), ExecId::from_random(sys::random::bytes()));
    let owner = container.id.to_string();
    let task = shared.in_flight.session(VERB, container.display(), id.to_string(), owner);
    let session = Arc::new(Session { shared, handle, monitor, id, container, task });
    session.begin(&attach).await.map_err(Arc::new)
}

impl Session {
    async fn begin(self: &Arc<Self>, attach: &Attach) -> Result<Process, PodError> {
        let steps = Steps::of(&self.shared, &self.task);
        let leash = Leash(Arc::clone(self));
        let (told, lost) = oneshot::channel();
        self.handle.tell(Message::Watch(self.id.clone(), told)).await;
        let streams = attach.streams;
        let begun = async {
            let (stdout, far_stdout) = streams.stdout.then(pipes::to_read).transpose()?.unzip();
            let (stderr, far_stderr) = streams.stderr.then(pipes::to_read).transpose()?.unzip();
            let request = AttachRequest {
                session: self.id.clone(),
                container: self.container.id.clone(),
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr,
            };
            let far = [far_stdout, far_stderr].into_iter().flatten().collect();
            let stdin = self.monitor.attach(request, far).await?.map(WriteEnd::new).transpose()?;
            Ok::<_, StepError>((stdin, stdout, stderr))
        };
        let (stdin, stdout, stderr) = steps.run("attach", begun).await?;
        let attached = Attached { leash, pod: self.handle.watch(), end: Watched::Waiting(lost) };
        Ok(Process {
            stdin: streams.stdin.then(|| self.input(stdin)),
            stdout: stdout.map(|end| -> Reader { Box::new(end) }),
            stderr: stderr.map(|end| -> Reader { Box::new(end) }),
            control: Box::new(attached),
        })
    }

    /// What is sent to a container without stdin goes nowhere, as with other servers.
    fn input(self: &Arc<Self>, stdin: Option<WriteEnd>) -> Writer {
        match stdin {
            Some(end) => Box::new(Input { end, session: Some(Arc::clone(self)) }),
            None => Box::new(tokio::io::sink()),
        }
    }

    async fn close_stdin(&self) {
        let close = async {
            match self.monitor.close_stdin(&self.id).await {
                // It has left, or its container has ended, which closes its stdin too.
                Err(MonitorError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => Ok(()),
                closed => closed,
            }
        };
        self.steps(CLOSE).attempt("close stdin", close).await;
    }

    async fn leave(&self) {
        self.steps(LEAVE).attempt("detach", self.monitor.detach(&self.id)).await;
        self.handle.tell(Message::Forget(self.id.clone())).await;
    }

    fn steps(&self, verb: &'static str) -> Steps<'_> {
        Steps::new(&self.shared, verb, self.container.display(), self.id.as_str())
    }
}

/// A container's stdin. Closing it tells the monitor, for which that may be the end of the container's stdin.
#[derive(Debug)]
struct Input {
    end: WriteEnd,
    /// Until it is closed.
    session: Option<Arc<Session>>,
}

impl Input {
    fn tell(&mut self) {
        if let Some(session) = self.session.take() {
            let shared = Arc::clone(&session.shared);
            shared.operations.spawn(async move { session.close_stdin().await });
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.tell();
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.end).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let closed = std::task::ready!(Pin::new(&mut self.end).poll_shutdown(context));
        self.tell();
        Poll::Ready(closed)
    }
}

/// A client with its container.
#[derive(Debug)]
struct Attached {
    leash: Leash,
    pod: watch::Receiver<Arc<PodView>>,
    end: Watched,
}

/// How much is known of the end.
#[derive(Debug)]
enum Watched {
    /// The connection to the monitor is there.
    Waiting(oneshot::Receiver<ExecExit>),
    Known(End),
}

#[async_trait]
impl Control for Attached {
    async fn resize(&self, size: Size) {
        let session = &self.leash.0;
        let resized = session.monitor.resize(&session.container.id, None, size.width, size.height).await;
        if let Err(error) = resized {
            tracing::debug!(error = types::error::chain(&error), "a terminal keeps its size");
        }
    }

    /// The session is over when the container is; with which code tells the container's status.
    async fn ended(&mut self) -> End {
        let lost = match &mut self.end {
            Watched::Known(end) => return end.clone(),
            Watched::Waiting(lost) => lost,
        };
        let container = &self.leash.0.container;
        let runs = |pod: &PodView| {
            pod.container(&container.id).is_some_and(|it| it.state == ContainerState::Running)
        };
        // Neither wait loses anything: the view stays, and the loss is kept before anything else is awaited.
        let end = tokio::select! {
            biased;
            _ = self.pod.wait_for(|pod| !runs(pod)) => End::Exited(0),
            _ = lost => End::Lost(format!("the monitor of {} is gone", container.display())),
        };
        self.end = Watched::Known(end.clone());
        end
    }
}
