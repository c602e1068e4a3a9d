//! Which protocol a client is upgraded to.

use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Method, StatusCode};
use types::SandboxId;

use super::Request;
use super::route::Refusal;
use crate::backend::{Attach, Exec};
use crate::spdy::{self, Kind, NegotiationError, Version};
use crate::websocket::{self, Protocol, handshake};

const SPDY: &str = "SPDY/3.1";
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What begins after the upgrade.
#[derive(Debug)]
pub(super) enum Session {
    Exec(Exec, Remote),
    Attach(Attach, Remote),
    Forward(SandboxId, Forwarding),
}

/// What carries a remote command.
#[derive(Debug)]
pub(super) enum Remote {
    Spdy(Version),
    WebSocket(Protocol),
}

/// What carries forwarded connections.
#[derive(Debug)]
pub(super) enum Forwarding {
    Spdy,
    /// SPDY inside a WebSocket's messages.
    Tunnel,
    WebSocket(Protocol, Vec<u16>),
}

/// The session and the headers of the response, or why there is none.
pub(super) fn negotiate(
    method: &Method,
    headers: &HeaderMap,
    request: Request,
) -> Result<(Session, HeaderMap), Box<Refusal>> {
    if mentions(headers, &UPGRADE, "websocket") && mentions(headers, &CONNECTION, "upgrade") {
        by_websocket(method, headers, request)
    } else {
        by_spdy(headers, request)
    }
}

fn by_websocket(
    method: &Method,
    headers: &HeaderMap,
    request: Request,
) -> Result<(Session, HeaderMap), Box<Refusal>> {
    let kind = if matches!(request, Request::PortForward { .. }) { Kind::Forward } else { Kind::Command };
    let agreed = handshake::negotiate(method, headers, kind).map_err(|error| {
        let status = match &error {
            handshake::HandshakeError::Protocol { .. } => StatusCode::FORBIDDEN,
            handshake::HandshakeError::Request(_) => StatusCode::BAD_REQUEST,
        };
        Refusal::new(status, error.to_string()).header(handshake::VERSION, "13")
    })?;
    let session = match request {
        Request::Exec(exec) => Session::Exec(exec, Remote::WebSocket(agreed.protocol)),
        Request::Attach(attach) => Session::Attach(attach, Remote::WebSocket(agreed.protocol)),
        Request::PortForward { sandbox, .. } if agreed.protocol == Protocol::Tunnel => {
            Session::Forward(sandbox, Forwarding::Tunnel)
        }
        Request::PortForward { sandbox, ports } => {
            websocket::check_ports(agreed.protocol, &ports)
                .map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, why))?;
            Session::Forward(sandbox, Forwarding::WebSocket(agreed.protocol, ports))
        }
    };
    Ok((session, agreed.headers))
}

fn by_spdy(headers: &HeaderMap, request: Request) -> Result<(Session, HeaderMap), Box<Refusal>> {
    if !mentions(headers, &UPGRADE, SPDY) || !mentions(headers, &CONNECTION, "upgrade") {
        let reason =
            "unable to upgrade: the headers Connection and Upgrade ask for neither SPDY/3.1 nor WebSocket";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
    }
    let kind = if matches!(request, Request::PortForward { .. }) { Kind::Forward } else { Kind::Command };
    let offered: Vec<&str> =
        headers.get_all(VERSION).iter().filter_map(|value| value.to_str().ok()).collect();
    let version = spdy::negotiate(&offered, kind).map_err(|error| refuse_version(&error, kind))?;
    let session = match request {
        Request::Exec(exec) => Session::Exec(exec, Remote::Spdy(version)),
        Request::Attach(attach) => Session::Attach(attach, Remote::Spdy(version)),
        Request::PortForward { sandbox, .. } => Session::Forward(sandbox, Forwarding::Spdy),
    };
    let mut response = HeaderMap::new();
    response.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.insert(UPGRADE, HeaderValue::from_static(SPDY));
    response.insert(VERSION, HeaderValue::from_static(version.name()));
    Ok((session, response))
}

fn refuse_version(error: &NegotiationError, kind: Kind) -> Box<Refusal> {
    match error {
        NegotiationError::Missing => Refusal::new(StatusCode::BAD_REQUEST, error.to_string()),
        NegotiationError::Unknown { .. } => kind
            .accepted()
            .iter()
            .fold(Refusal::new(StatusCode::FORBIDDEN, error.to_string()), |refusal, version| {
                refusal.header(ACCEPTED, version.name())
            }),
    }
}

/// Whether one of a header's values has `word` in its list, in any case of letters.
fn mentions(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(word))
}
