//! The opening handshake, as a pure function of a request's headers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use ring::digest;

use super::message::Protocol;
use crate::spdy::Kind;

/// Tells a client which version is spoken.
pub(crate) const VERSION: HeaderName = SEC_WEBSOCKET_VERSION;

/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What is spoken, and the headers of the response that say so.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) protocol: Protocol,
    pub(crate) headers: HeaderMap,
}

/// Why there is no WebSocket. The text is for the client.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// No opening handshake of RFC 6455.
    #[error("unable to upgrade: {0}")]
    Request(&'static str),
    /// None of the client's subprotocols is spoken here.
    #[error("unable to upgrade: the client speaks {offered}, the server {accepted}")]
    Protocol {
        /// What the client offered.
        offered: String,
        /// What would have been accepted.
        accepted: String,
    },
}

/// Subprotocols of exec and attach.
const COMMAND: [(&str, Protocol); 5] = [
    ("v5.channel.k8s.io", Protocol::BinaryV5),
    ("v4.channel.k8s.io", Protocol::BinaryV4),
    ("v4.base64.channel.k8s.io", Protocol::Base64V4),
    ("channel.k8s.io", Protocol::Binary),
    ("base64.channel.k8s.io", Protocol::Base64),
];

/// Subprotocols of port-forward.
const FORWARD: [(&str, Protocol); 3] = [
    ("SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
    ("v4.channel.k8s.io", Protocol::BinaryV4),
    ("v4.base64.channel.k8s.io", Protocol::Base64V4),
];

/// Agrees on a subprotocol: the client's first that is spoken here, or bytes when it names none.
pub(crate) fn negotiate(method: &Method, headers: &HeaderMap, kind: Kind) -> Result<Agreed, HandshakeError> {
    if method != Method::GET {
        return Err(HandshakeError::Request("a WebSocket is asked for with GET"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::Request("version 13 of WebSocket is expected"));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16))
        .ok_or(HandshakeError::Request("the header Sec-WebSocket-Key is missing or no 16 bytes in base64"))?;
    let (name, protocol) = choose(headers, kind)?;
    let mut response = HeaderMap::new();
    response.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.insert(SEC_WEBSOCKET_ACCEPT, accept(key)?);
    if let Some(name) = name {
        response.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok(Agreed { protocol, headers: response })
}

fn choose(headers: &HeaderMap, kind: Kind) -> Result<(Option<&'static str>, Protocol), HandshakeError> {
    let known: &[(&'static str, Protocol)] = match kind {
        Kind::Command => &COMMAND,
        Kind::Forward => &FORWARD,
    };
    let offered: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if offered.is_empty() {
        return Ok((None, Protocol::Binary));
    }
    let spoken = offered.iter().find_map(|name| known.iter().find(|(known, _)| known == name));
    spoken.map(|(name, protocol)| (Some(*name), *protocol)).ok_or_else(|| HandshakeError::Protocol {
        offered: offered.join(", "),
        accepted: known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })
}

fn accept(key: &HeaderValue) -> Result<HeaderValue, HandshakeError> {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    HeaderValue::from_str(&STANDARD.encode(hash.finish()))
        .map_err(|_| HandshakeError::Request("the header Sec-WebSocket-Key is unusable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(protocols: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        headers
    }

    fn agreed(kind: Kind, protocols: &[&'static str]) -> Option<(Protocol, Option<String>)> {
        let agreed = negotiate(&Method::GET, &request(protocols), kind).ok()?;
        let name = agreed.headers.get(SEC_WEBSOCKET_PROTOCOL).map(|name| name.to_str().unwrap().to_owned());
        Some((agreed.protocol, name))
    }

    #[test]
    fn the_key_of_the_standard_is_answered_as_there() {
        let agreed = negotiate(&Method::GET, &request(&[]), Kind::Command).unwrap();
        assert_eq!(agreed.headers[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(agreed.protocol, Protocol::Binary);
        assert!(!agreed.headers.contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn the_clients_order_decides() {
        let name = |name: &str| Some(name.to_owned());
        let both = ["v9.channel.k8s.io, v4.base64.channel.k8s.io", "v5.channel.k8s.io"];
        assert_eq!(
            agreed(Kind::Command, &both),
            Some((Protocol::Base64V4, name("v4.base64.channel.k8s.io")))
        );
        assert_eq!(
            agreed(Kind::Forward, &["SPDY/3.1+portforward.k8s.io"]),
            Some((Protocol::Tunnel, name("SPDY/3.1+portforward.k8s.io")))
        );
        for (protocol, spoken) in COMMAND {
            assert_eq!(agreed(Kind::Command, &[protocol]), Some((spoken, name(protocol))));
        }
    }

    #[test]
    fn unknown_subprotocols_are_named_with_the_known() {
        for (kind, offered) in [(Kind::Command, "binary.k8s.io"), (Kind::Forward, "v5.channel.k8s.io")] {
            let error = negotiate(&Method::GET, &request(&[offered]), kind).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, HandshakeError::Protocol { .. }));
            assert!(text.contains(offered) && text.contains("v4.channel.k8s.io"), "{text}");
        }
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        let refused = |method, headers: &HeaderMap| {
            matches!(negotiate(&method, headers, Kind::Command), Err(HandshakeError::Request(_)))
        };
        assert!(refused(Method::POST, &request(&[])));
        for (name, value) in
            [(SEC_WEBSOCKET_VERSION, "8"), (SEC_WEBSOCKET_KEY, "short"), (SEC_WEBSOCKET_KEY, "")]
        {
            let mut headers = request(&[]);
            headers.insert(&name, HeaderValue::from_static(value));
            assert!(refused(Method::GET, &headers), "{name}: {value}");
            headers.remove(&name);
            assert!(refused(Method::GET, &headers), "no {name}");
        }
    }
}
