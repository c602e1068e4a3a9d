//! Where the sessions of users lead: a command, a container's own process, a port of a pod.
//!
//! The server of sessions ([`streaming`]) knows clients and transports; here are the pods. Before a client gets a URL it is asked
//! whether the container runs or the pod is ready, and when the client has come, once more.
//!
//! Promises: what a session has started ends with it; nothing that a client does or leaves undone makes a container wait.

mod attach;
mod exec;
mod forward;

use streaming::backend::{Attach, BackendError, Exec, Process, Size};
use tokio::net::TcpStream;
use types::{ContainerId, SandboxId};

use super::Pods;
use super::error::{PodError, SharedError};

impl Pods {
    /// The running container that a session wants to use for `verb`.
    ///
    /// # Errors
    /// When there is none, or it does not run.
    pub async fn session_in(&self, id: &str, verb: &'static str) -> Result<ContainerId, SharedError> {
        Ok(self.use_container(id, verb).await?.0.id.clone())
    }

    /// The ready sandbox whose ports a session wants to reach.
    ///
    /// # Errors
    /// When there is none, or it is not ready.
    pub fn session_to(&self, id: &str) -> Result<SandboxId, SharedError> {
        Ok(self.reachable(id)?.id.clone())
    }
}

#[async_trait::async_trait]
impl streaming::Backend for Pods {
    async fn exec(&self, exec: Exec, size: Option<Size>) -> Result<Process, BackendError> {
        exec::begin(self, exec, size).await.map_err(|error| told(&error))
    }

    async fn attach(&self, attach: Attach) -> Result<Process, BackendError> {
        attach::begin(self, attach).await.map_err(|error| told(&error))
    }

    async fn connect(&self, sandbox: SandboxId, port: u16) -> Result<TcpStream, BackendError> {
        forward::connect(self, &sandbox, port).await.map_err(|error| told(&error))
    }
}

/// The failure as its user reads it.
fn told(error: &PodError) -> BackendError {
    let text = types::error::chain(error);
    match error {
        PodError::Step { .. } | PodError::Spec(_) => BackendError::Failed(text),
        _ => BackendError::Unavailable(text),
    }
}
