//! Reads servers' answers: bodies within bounds, errors in the servers' own words.

use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Deserialize;
use types::Digest;

use super::Failure;

const MAX_ERROR_BODY: u64 = 64 << 10;
const MAX_DETAIL: usize = 200;
/// How long to wait for words about a refusal.
const ERROR_PATIENCE: Duration = Duration::from_secs(5);

/// The next bytes of a body; `None` at its end. One that brings nothing for as long as `patience` counts as cut.
pub(super) async fn next_chunk(body: &mut Incoming, patience: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Err(_) => {
                let seconds = patience.as_secs_f32().round();
                return Err(Failure::Unavailable(format!("nothing came for {seconds} s")));
            }
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
pub(super) async fn collect(
    response: Response<Incoming>,
    limit: u64,
    patience: Duration,
) -> Result<Vec<u8>, Failure> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(&mut body, patience).await? {
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
    let after = retry_after(response.headers(), SystemTime::now());
    let body = collect(response, MAX_ERROR_BODY, ERROR_PATIENCE).await.unwrap_or_default();
    let mut detail = detail(status, &body);
    if let Some(after) = after {
        detail.push_str(&format!(" (try again in {} s)", after.as_secs()));
    }
    match status {
        StatusCode::UNAUTHORIZED => Failure::Unauthenticated(detail),
        StatusCode::FORBIDDEN => Failure::Denied(detail),
        StatusCode::NOT_FOUND => Failure::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Failure::Busy { detail, after },
        status if status.is_server_error() => Failure::Busy { detail, after },
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

/// `Retry-After`: a number of seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The digest that the server says a manifest has.
pub(super) fn content_digest(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_say_in_two_ways_when_to_come_again() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now).map(|after| after.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:40:37 GMT"), Some(0));
        assert_eq!((after("-1"), after("soon"), after("")), (None, None, None));
    }

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
