//! Messages to bytes and back.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::message::Envelope;

/// The size no message exceeds.
pub const MESSAGE_LIMIT: usize = 64 * 1024;

/// Why bytes are not a message, or a message not bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not JSON, or JSON of another shape.
    #[error("malformed monitor message")]
    Malformed(#[source] serde_json::Error),
    /// Longer than [`MESSAGE_LIMIT`]; holds the length.
    #[error("monitor message of {0} bytes exceeds {MESSAGE_LIMIT}")]
    TooLong(usize),
    /// A record of a form that is not known here.
    #[error("record version {0} is not known")]
    Version(u32),
}

/// The bytes of a message.
///
/// # Errors
/// [`CodecError::TooLong`] past the limit; [`CodecError::Malformed`] for a path that is not UTF-8.
pub fn encode<T: Serialize>(seq: u64, body: &T) -> Result<Vec<u8>, CodecError> {
    #[derive(Serialize)]
    struct Borrowed<'a, T> {
        seq: u64,
        body: &'a T,
    }
    let bytes = serde_json::to_vec(&Borrowed { seq, body }).map_err(CodecError::Malformed)?;
    if bytes.len() > MESSAGE_LIMIT { Err(CodecError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// The message in these bytes.
///
/// # Errors
/// [`CodecError::Malformed`] when it is not one of `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Envelope<T>, CodecError> {
    serde_json::from_slice(bytes).map_err(CodecError::Malformed)
}

/// The `seq` of a message whose body may be of any, even an unknown, kind.
///
/// # Errors
/// [`CodecError::Malformed`] when it is no envelope.
pub fn decode_seq(bytes: &[u8]) -> Result<u64, CodecError> {
    #[derive(Deserialize)]
    struct Any {
        seq: u64,
        #[serde(rename = "body")]
        _body: IgnoredAny,
    }
    serde_json::from_slice::<Any>(bytes).map(|any| any.seq).map_err(CodecError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Event, Refusal, RefusalKind, Reply, Request};

    #[test]
    fn a_message_survives_the_journey() {
        let request = Request::Hello { version: crate::VERSION, oldest: 1 };
        let bytes = encode(7, &request).unwrap();
        assert_eq!(decode::<Request>(&bytes).unwrap(), Envelope { seq: 7, body: request });
    }

    #[test]
    fn fields_of_a_newer_peer_are_ignored_and_missing_ones_defaulted() {
        let exec = "ab".repeat(32);
        let text = format!(
            r#"{{"seq":0,"new":1,"body":{{"ExecExited":{{"exec":"{exec}","exit_code":3,"colour":"red"}}}}}}"#
        );
        let event = decode::<Event>(text.as_bytes()).unwrap().body;
        assert!(matches!(event, Event::ExecExited { exit_code: 3, signal: None, .. }), "{event:?}");
    }

    #[test]
    fn the_seq_of_an_unknown_request_is_still_found() {
        let text = br#"{"seq":9,"body":{"Teleport":{"to":"moon"}}}"#;
        assert!(decode::<Request>(text).is_err());
        assert_eq!(decode_seq(text).unwrap(), 9);
    }

    #[test]
    fn a_refusal_of_a_newer_class_is_understood_as_a_refusal() {
        let text = br#"{"seq":1,"body":{"Refused":{"kind":"TooHot","message":"melting"}}}"#;
        let reply = decode::<Reply>(text).unwrap().body;
        assert_eq!(reply, Reply::Refused(Refusal::new(RefusalKind::Unknown, "melting")));
    }

    #[test]
    fn an_oversized_message_is_refused_when_it_is_made() {
        let reply = Reply::Refused(Refusal::new(RefusalKind::Io, "x".repeat(MESSAGE_LIMIT)));
        assert!(matches!(encode(1, &reply), Err(CodecError::TooLong(_))));
    }
}
