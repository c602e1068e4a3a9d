//! The side of whoever asks: `crimson status` and `crimson log-level`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::SOCKET;
use super::status::Status;
use crate::logging::LogLevel;

/// How long an answer may take: it is made of what is in memory.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const BODY: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves there.
    #[error("no crimson daemon answers on {}", .0.display())]
    NoDaemon(PathBuf),
    /// The socket cannot be connected to.
    #[error("connecting to {}", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// The daemon does not answer in time.
    #[error("the daemon on {} has not answered within {} s", .0.display(), PATIENCE.as_secs())]
    Late(PathBuf),
    /// What comes back is no answer.
    #[error("the daemon on {} gives no answer that can be read", .0.display())]
    Answer(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers that it will not.
    #[error("{0}")]
    Refused(String),
}

/// The admin socket of one daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the daemon on this state directory.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self { socket: state.join(SOCKET) }
    }

    /// What it is doing, as it was sent and as it is understood; each pod with `pods`.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn status(&self, pods: bool) -> Result<(String, Status), ClientError> {
        let text = self.ask(Method::GET, if pods { "/status?pods" } else { "/status" }, "")?;
        let status = self.read(&text)?;
        Ok((text, status))
    }

    /// How much it logs.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn log_level(&self) -> Result<LogLevel, ClientError> {
        self.read(&self.ask(Method::GET, "/log-level", "")?)
    }

    /// Has it log this much until the next reload or restart.
    ///
    /// # Errors
    /// When no answer comes, or it cannot be done.
    pub fn set_log_level(&self, level: &str) -> Result<LogLevel, ClientError> {
        self.read(&self.ask(Method::PUT, "/log-level", level)?)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, text: &str) -> Result<T, ClientError> {
        serde_json::from_str(text).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Answer(self.socket.clone(), error.into())
    }

    fn ask(&self, method: Method, page: &str, body: &str) -> Result<String, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ClientError::Connect(self.socket.clone(), error))?;
        let (code, text) = runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, self.exchange(method, page, body)).await {
                Ok(answer) => answer,
                Err(_) => Err(ClientError::Late(self.socket.clone())),
            }
        })?;
        if code.is_success() { Ok(text) } else { Err(ClientError::Refused(text.trim_end().to_owned())) }
    }

    async fn exchange(
        &self,
        method: Method,
        page: &str,
        body: &str,
    ) -> Result<(StatusCode, String), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_connected(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreadable(error))?;
        // It ends with the request, and what failed shows there.
        let connection = tokio::spawn(connection);
        let body = Full::new(Bytes::from(body.to_owned()));
        let request = Request::builder().method(method).uri(page).header(HOST, "crimson").body(body);
        let request = request.map_err(|error| self.unreadable(error))?;
        let answer = sender.send_request(request).await.map_err(|error| self.unreadable(error))?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), BODY).collect().await;
        let body = body.map_err(|error| self.unreadable(error))?.to_bytes();
        connection.abort();
        Ok((code, String::from_utf8_lossy(&body).into_owned()))
    }

    fn not_connected(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon(self.socket.clone())
            }
            _ => ClientError::Connect(self.socket.clone(), error),
        }
    }
}

impl LogLevel {
    /// As `crimson log-level` prints it.
    #[must_use]
    pub fn report(&self) -> String {
        if self.level == self.configured {
            format!("{}\n", self.level)
        } else {
            format!(
                "{}\nuntil the next reload or restart; the configuration says {}\n",
                self.level, self.configured
            )
        }
    }
}
