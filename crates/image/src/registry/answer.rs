//! Reads servers' answers: bodies within bounds, errors in the servers' own words.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Response, StatusCode};
use serde::Deserialize;
use types::Digest;

use super::Failure;

/// A body that brings nothing for this long counts as cut.
const STALL: Duration = Duration::from_secs(30);
const MAX_ERROR_BODY: u64 = 64 << 10;
const MAX_DETAIL: usize = 200;

/// The next bytes of a body; `None` at its end.
pub(super) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = match tokio::time::timeout(STALL, body.frame()).await {
            Err(_) => return Err(Failure::Unavailable(format!("nothing came for {} s", STALL.as_secs()))),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Failure::Unavailable(types::error::chain(&error))),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers are of no use here.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// A whole body of at most `limit` bytes.
pub(super) async fn collect(response: Response<Incoming>, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(&mut body).await? {
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            return Err(Failure::Protocol(format!("the answer is longer than {limit} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What an answer that is no success means.
pub(super) async fn failure(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = collect(response, MAX_ERROR_BODY).await.unwrap_or_default();
    let detail = detail(status, &body);
    match status {
        StatusCode::UNAUTHORIZED => Failure::Unauthenticated(detail),
        StatusCode::FORBIDDEN => Failure::Denied(detail),
        StatusCode::NOT_FOUND => Failure::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Failure::Unavailable(detail),
        status if status.is_server_error() => Failure::Unavailable(detail),
        _ => Failure::Protocol(detail),
    }
}

/// The status with the distribution protocol's error message, if the body has one.
fn detail(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Option<Errors> = serde_json::from_slice(body).ok();
    let Some(first) = errors.and_then(|errors| errors.errors.into_iter().next()) else {
        return status.to_string();
    };
    let words = format!("{status}: {} {}", first.code, first.message);
    words.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect::<String>().trim_end().to_owned()
}

/// The digest that the server says a manifest has.
pub(super) fn content_digest(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_kept_short_and_clean() {
        let body =
            format!("{{\"errors\":[{{\"code\":\"DENIED\",\"message\":\"no\\n{}\"}}]}}", "x".repeat(500));
        let text = detail(StatusCode::FORBIDDEN, body.as_bytes());
        assert!(text.starts_with("403 Forbidden: DENIED no"), "{text}");
        assert!(text.len() <= MAX_DETAIL && !text.contains('\n'));
        assert_eq!(detail(StatusCode::BAD_GATEWAY, b"<html>"), "502 Bad Gateway");
    }
}
