//! The HTTP server: URLs for sessions, and the connections of their clients.
//!
//! A URL is good for one connection within a minute. The listener comes from outside; who may reach it is its owner's
//! decision, the token is the only proof a client gives (with [`TlsFiles::client_ca`], also a certificate).
//!
//! Life of a connection: accepted → (TLS) → one HTTP request → refused with a reason, or upgraded: a session in a task of its
//! own. When [`Server::serve`] is told to stop, it accepts no more, tells running sessions to end and returns when the last
//! connection is closed, after [`FAREWELL`] at the latest.

mod connection;
mod line;
mod route;
mod upgrade;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{ErrorKind, Kind, SandboxId};

use crate::backend::{Attach, Backend, Exec, Streams};
use crate::session::Bounds;
use crate::tls::{Tls, TlsError, TlsFiles};
use crate::token::{Full, Tokens};

/// How long sessions may take to say good-bye when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// Connections that have no session yet, beyond those that have one.
const STRANGERS: usize = 64;

/// How the server is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Host and port of the URLs: what the listener is bound to, or what clients reach it by.
    pub authority: String,
    /// Plain HTTP without it.
    pub tls: Option<TlsFiles>,
    /// How long a session lives in which no byte moves.
    pub idle: Duration,
    /// How long a client may take to open the streams of its session.
    pub creation: Duration,
    /// How many sessions may run at a time. Beyond it clients are told to come later.
    pub sessions: usize,
}

impl Config {
    /// Plain HTTP; four hours of silence, half a minute to open streams, 4096 sessions.
    pub fn new(authority: impl Into<String>) -> Self {
        Self {
            authority: authority.into(),
            tls: None,
            idle: Duration::from_secs(4 * 60 * 60),
            creation: Duration::from_secs(30),
            sessions: 4096,
        }
    }
}

/// Why no URL can be given out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UrlError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// Too many clients have been given one and have not come yet.
    #[error("too many streaming requests wait for their clients, try again in a minute")]
    Exhausted,
}

impl Kind for UrlError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Exhausted => ErrorKind::ResourceExhausted,
        }
    }
}

/// What a token stands for.
#[derive(Debug)]
pub(crate) enum Request {
    Exec(Exec),
    Attach(Attach),
    PortForward { sandbox: SandboxId, ports: Vec<u16> },
}

impl Request {
    fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// Gives out URLs and serves those who follow them. Clones are the same server.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    config: Config,
    tls: Option<Tls>,
    backend: Arc<dyn Backend>,
    tokens: Mutex<Tokens<Request>>,
    sessions: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Tells sessions to end.
    stop: CancellationToken,
    /// Closes what is still open after the farewell.
    cut: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the TLS files if there are any; nothing is served before [`Self::serve`].
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(config: Config, backend: Arc<dyn Backend>) -> Result<Self, TlsError> {
        let tls = config.tls.clone().map(Tls::new).transpose()?;
        Ok(Self(Arc::new(Inner {
            tls,
            backend,
            tokens: Mutex::new(Tokens::new()),
            strangers: Arc::new(Semaphore::new(config.sessions + STRANGERS)),
            sessions: Arc::new(Semaphore::new(config.sessions)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            config,
        })))
    }

    /// A URL that runs a command once.
    ///
    /// # Errors
    /// When the streams make no sense, the command is empty, or too many URLs wait for their clients.
    pub fn exec_url(&self, exec: Exec) -> Result<String, UrlError> {
        check(exec.streams)?;
        if exec.command.is_empty() {
            return Err(UrlError::Invalid("a command is required"));
        }
        self.url(Request::Exec(exec))
    }

    /// A URL that attaches once.
    ///
    /// # Errors
    /// When the streams make no sense, or too many URLs wait for their clients.
    pub fn attach_url(&self, attach: Attach) -> Result<String, UrlError> {
        check(attach.streams)?;
        self.url(Request::Attach(attach))
    }

    /// A URL that forwards connections for one client. SPDY clients name the ports themselves; `ports` are for those of
    /// the older WebSocket form and may be empty.
    ///
    /// # Errors
    /// When a port is 0, or too many URLs wait for their clients.
    pub fn port_forward_url(&self, sandbox: SandboxId, ports: Vec<u16>) -> Result<String, UrlError> {
        if ports.contains(&0) {
            return Err(UrlError::Invalid("port 0 cannot be forwarded"));
        }
        self.url(Request::PortForward { sandbox, ports })
    }

    fn url(&self, request: Request) -> Result<String, UrlError> {
        let kind = request.kind();
        let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens
            .issue(Instant::now(), sys::random::bytes(), request)
            .map_err(|Full| UrlError::Exhausted)?;
        let scheme = if self.0.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}/{kind}/{token}", self.0.config.authority))
    }

    /// How many sessions run.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.config.sessions.saturating_sub(self.0.sessions.available_permits())
    }

    /// Reads the TLS files again, for connections to come. Nothing without TLS.
    ///
    /// # Errors
    /// When they cannot be used; then those read before stay in force.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.0.tls.as_ref().map_or(Ok(()), Tls::reload)
    }

    /// Serves clients until `stop` and returns when all sessions have ended. Once.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.accept(&listener) => {}
        }
        drop(listener);
        self.0.stop.cancel();
        self.0.tasks.close();
        if timeout(FAREWELL, self.0.tasks.wait()).await.is_err() {
            self.0.cut.cancel();
            self.0.tasks.wait().await;
        }
    }

    async fn accept(&self, listener: &TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.0.strangers).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let serving = connection::serve(self.clone(), stream, permit);
                    self.0.tasks.spawn(serving);
                }
                Err(error) => {
                    tracing::warn!(op = "streaming", error = %error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { idle: self.0.config.idle, stop: self.0.stop.clone() }
    }
}

fn check(streams: Streams) -> Result<(), UrlError> {
    let Streams { stdin, stdout, stderr, tty } = streams;
    if tty && stderr {
        return Err(UrlError::Invalid("tty and stderr cannot both be true"));
    }
    if !(stdin || stdout || stderr) {
        return Err(UrlError::Invalid("one of stdin, stdout, or stderr must be set"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
