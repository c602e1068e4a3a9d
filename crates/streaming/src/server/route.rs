//! What a request is answered: a refusal with a reason, or the switch to a session's protocol.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::line::{Handle, Line};
use super::upgrade::{self, Forwarding, Remote, Session};
use super::{Request, Server};
use crate::backend::Streams;
use crate::channels::{Channels, Forwards};
use crate::session::{self, Farewell};
use crate::{spdy, websocket};

/// Forwarded connections of one client at a time.
const PAIRS: usize = 2048;

/// Why a request does not become a session. The reason is for the client.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: String,
    pub(super) headers: HeaderMap,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Box<Self> {
        Box::new(Self { status, reason: reason.into(), headers: HeaderMap::new() })
    }

    pub(super) fn header(mut self: Box<Self>, name: HeaderName, value: &'static str) -> Box<Self> {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn not_found() -> Box<Self> {
        Self::new(StatusCode::NOT_FOUND, "no such session, or its URL was used before")
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.reason + "\n"));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Decides about a request; what it leads to goes on in a task of its own.
pub(super) fn answer(
    server: &Server,
    handle: &Handle,
    request: hyper::Request<Incoming>,
) -> Response<Full<Bytes>> {
    admit(server, handle, request).unwrap_or_else(|refusal| {
        tracing::debug!(
            op = "streaming",
            status = refusal.status.as_u16(),
            reason = refusal.reason,
            "refused"
        );
        refusal.into_response()
    })
}

fn admit(
    server: &Server,
    handle: &Handle,
    request: hyper::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Box<Refusal>> {
    let (kind, token) = split(request.uri().path()).ok_or_else(Refusal::not_found)?;
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "GET or POST is expected");
        return Err(refusal.header(ALLOW, "GET, POST"));
    }
    let place = Arc::clone(&server.0.sessions).try_acquire_owned().map_err(|_| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many sessions run, try again later")
            .header(RETRY_AFTER, "10")
    })?;
    let asked = redeem(server, token).filter(|asked| asked.kind() == kind).ok_or_else(Refusal::not_found)?;
    let (session, headers) = upgrade::negotiate(request.method(), request.headers(), asked)?;
    let upgrading = hyper::upgrade::on(request);
    server.0.tasks.spawn(run(server.clone(), handle.clone(), session, upgrading, place));
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok(response)
}

/// `/exec/TOKEN` and the like.
fn split(path: &str) -> Option<(&str, &str)> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    matches!(kind, "exec" | "attach" | "portforward").then_some((kind, token))
}

fn redeem(server: &Server, token: &str) -> Option<Request> {
    let mut tokens = server.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
    tokens.redeem(Instant::now(), token)
}

/// A session from its upgrade until its connection is closed.
async fn run(
    server: Server,
    handle: Handle,
    session: Session,
    upgrading: OnUpgrade,
    _place: OwnedSemaphorePermit,
) {
    let Some(line) = upgraded(upgrading).await else { return };
    let linger = match serve(&server, session, line).await {
        Farewell::Told => server.0.config.idle,
        Farewell::Left => Duration::from_secs(1),
    };
    if timeout(linger, handle.closed.cancelled()).await.is_err() {
        handle.cut.cancel();
    }
}

async fn upgraded(upgrading: OnUpgrade) -> Option<Line> {
    match upgrading.await.map(|upgraded| upgraded.downcast::<TokioIo<Line>>()) {
        Ok(Ok(parts)) => Some(parts.io.into_inner().with_ahead(parts.read_buf)),
        // Never: every connection of this server is a line.
        Ok(Err(_)) => None,
        Err(error) => {
            tracing::debug!(op = "streaming", error = %error, "a client left before its session began");
            None
        }
    }
}

async fn serve(server: &Server, session: Session, line: Line) -> Farewell {
    let bounds = server.bounds();
    match session {
        Session::Exec(exec, transport) => match channels(server, line, transport, exec.streams).await {
            Some(channels) => session::exec(&*server.0.backend, exec, channels, &bounds).await,
            None => Farewell::Left,
        },
        Session::Attach(attach, transport) => match channels(server, line, transport, attach.streams).await {
            Some(channels) => session::attach(&*server.0.backend, attach, channels, &bounds).await,
            None => Farewell::Left,
        },
        Session::Forward(sandbox, transport) => {
            let forwards = forwards(server, line, transport).await;
            session::forward(&server.0.backend, sandbox, forwards, &bounds).await
        }
    }
}

async fn channels(server: &Server, line: Line, transport: Remote, streams: Streams) -> Option<Channels> {
    let version = match transport {
        Remote::WebSocket(protocol) => return Some(websocket::remote_command(line, protocol, streams)),
        Remote::Spdy(version) => version,
    };
    let opened = tokio::select! {
        opened = spdy::remote_command(line, version, streams, limits(server)) => opened,
        () = server.0.stop.cancelled() => return None,
    };
    opened
        .inspect_err(
            |error| tracing::debug!(op = "streaming", error = %types::error::chain(error), "no session"),
        )
        .ok()
}

async fn forwards(server: &Server, line: Line, transport: Forwarding) -> Forwards {
    match transport {
        Forwarding::Spdy => spdy::forwards(line, limits(server)),
        Forwarding::Tunnel => spdy::forwards(websocket::Tunnel::new(line).await, limits(server)),
        Forwarding::WebSocket(protocol, ports) => websocket::forwards(line, protocol, &ports),
    }
}

fn limits(server: &Server) -> spdy::Limits {
    // The session ends first, and can say so.
    let idle = server.0.config.idle.saturating_add(Duration::from_secs(10));
    spdy::Limits { creation: server.0.config.creation, idle, pairs: PAIRS }
}
