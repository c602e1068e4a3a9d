//! One request to the admin endpoint, and its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout;

use super::board::Board;
use super::collect;
use super::status::Phase;
use crate::logging::{Filter, LoggingError};
use crate::metrics;

/// The largest body that is read.
const BODY: usize = 2048;
/// How long it may take to come.
const BODY_TIME: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How long the workers of the daemon may take for a task that does nothing, and a reader for locks that are never held for long.
const PATIENCE: Duration = Duration::from_secs(2);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Which way a client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// By the socket: root.
    Socket,
    /// Over the network: anybody.
    Tcp,
}

type Reply = Response<Full<Bytes>>;

/// Answers whatever it is.
pub(super) async fn answer(door: Door, board: &Arc<Board>, request: Request<Incoming>) -> Reply {
    let allowed = match (door, request.uri().path()) {
        (_, "/healthz" | "/metrics") | (Door::Socket, "/status") => &[Method::GET, Method::HEAD][..],
        (Door::Socket, "/log-level") => &[Method::GET, Method::HEAD, Method::PUT],
        _ => return reply(StatusCode::NOT_FOUND, TEXT, "there is no such page\n".to_owned()),
    };
    if !allowed.contains(request.method()) {
        return refuse_method(allowed);
    }
    match request.uri().path() {
        "/healthz" => health(board).await,
        "/metrics" => metrics(board).await,
        "/status" => status(board, request.uri().query()).await,
        _ if request.method() == Method::PUT => set_level(board, request.into_body()).await,
        _ => json(&board.logging.level()),
    }
}

fn refuse_method(allowed: &[Method]) -> Reply {
    let names = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let text = format!("only {names} are allowed here\n");
    let mut reply = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    if let Ok(names) = HeaderValue::from_str(&names) {
        reply.headers_mut().insert(ALLOW, names);
    }
    reply
}

/// Whether the daemon works at all; whether it is ready for pods tells the CRI.
async fn health(board: &Arc<Board>) -> Reply {
    match latency(board).await {
        Some(_) => reply(StatusCode::OK, TEXT, format!("ok: {}\n", board.phase().word())),
        None if board.phase() == Phase::Stopping => {
            reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n".to_owned())
        }
        None => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the daemon's workers are stuck\n".to_owned()),
    }
}

/// How long the workers took to run a task that does nothing; none: too long.
async fn latency(board: &Board) -> Option<Duration> {
    let begun = Instant::now();
    let ran = timeout(PATIENCE, board.workers.spawn(async {})).await;
    ran.is_ok_and(|ran| ran.is_ok()).then(|| begun.elapsed())
}

async fn metrics(board: &Arc<Board>) -> Reply {
    let metrics = board.metrics.clone();
    match patiently(move || metrics.render()).await {
        Some(text) => reply(StatusCode::OK, metrics::CONTENT_TYPE, text),
        None => stuck(),
    }
}

async fn status(board: &Arc<Board>, query: Option<&str>) -> Reply {
    let details = query.is_some_and(|query| query.split('&').any(|word| word == "pods" || word == "pods=1"));
    let latency = latency(board).await;
    let source = Arc::clone(board);
    match patiently(move || collect::status(&source, latency, details)).await {
        Some(status) => json(&status),
        None => stuck(),
    }
}

/// Reads what is behind locks, which a daemon that is stuck may hold for ever.
async fn patiently<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    timeout(PATIENCE, tokio::task::spawn_blocking(read)).await.ok()?.ok()
}

fn stuck() -> Reply {
    let text = "a lock of the daemon is not given back\n".to_owned();
    reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}

async fn set_level(board: &Board, body: Incoming) -> Reply {
    let bytes = match timeout(BODY_TIME, Limited::new(body, BODY).collect()).await {
        Err(_) => return reply(StatusCode::REQUEST_TIMEOUT, TEXT, "the body did not come\n".to_owned()),
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return reply(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "that is too long for a level\n".to_owned());
        }
        Ok(Err(_)) => {
            return reply(StatusCode::BAD_REQUEST, TEXT, "the body did not come as a whole\n".to_owned());
        }
    };
    let filter = std::str::from_utf8(&bytes).map_err(|_| "that is no text".to_owned());
    match filter.and_then(|text| text.parse::<Filter>().map_err(|error| error.to_string())) {
        Err(error) => reply(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
        Ok(filter) => match change_level(board, filter) {
            Ok(()) => json(&board.logging.level()),
            Err(error) => {
                let error = types::error::chain(&error);
                reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n"))
            }
        },
    }
}

/// The log tells of it, by the one level or by the other.
fn change_level(board: &Board, filter: Filter) -> Result<(), LoggingError> {
    let (before, level) = (board.logging.level().level, filter.to_string());
    let tell = || tracing::info!(before, level, "log level set until the next reload or restart");
    let is_heard = tracing::enabled!(tracing::Level::INFO);
    if is_heard {
        tell();
    }
    board.logging.set(filter)?;
    if !is_heard {
        tell();
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(text) => reply(StatusCode::OK, JSON, text + "\n"),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn reply(status: StatusCode, media_type: &'static str, text: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
