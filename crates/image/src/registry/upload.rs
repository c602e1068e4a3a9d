//! Uploads: what a push asks of the registry itself. Mirrors take nothing.
//!
//! A blob goes up in one request when it is small, else in pieces, each within a time that fits its length. A server that
//! is busy or loses the connection gets the whole blob again, a few times.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::{Method, Response, StatusCode};
use types::Digest;

use super::host::Host;
use super::{Failure, Session, answer};
use crate::error::ImageError;

/// Registries that want pieces of a least length want 5 MiB.
const PIECE: u64 = 8 << 20;
/// The slowest line that a piece must get through in time, in bytes per second.
const SLOWEST: u64 = 32 << 10;
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// A blob to upload.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Bytes(Bytes),
    /// The file's first bytes, as many as the number says.
    File(Arc<File>, u64),
}

impl Payload {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    async fn piece(&self, offset: u64, len: u64) -> Result<Bytes, Failure> {
        let failed = |detail: String| Failure::Protocol(format!("the blob cannot be read: {detail}"));
        let len = usize::try_from(len).map_err(|error| failed(error.to_string()))?;
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset).map_err(|error| failed(error.to_string()))?;
                Ok(bytes.slice(start..start + len))
            }
            Self::File(file, _) => {
                let file = Arc::clone(file);
                let read = move || {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
                };
                let bytes =
                    tokio::task::spawn_blocking(read).await.map_err(|error| failed(error.to_string()))?;
                bytes.map(Bytes::from).map_err(|error| failed(error.to_string()))
            }
        }
    }
}

impl Session {
    /// Whether the repository has this blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, ImageError> {
        let host = self.registry()?;
        let url = self.place(host, "blobs", digest.as_str());
        let answer = host.ask_often(self, Method::HEAD, &url, HeaderMap::new(), Bytes::new()).await;
        match answer {
            Ok(answer) => Ok(answer.status() == StatusCode::OK),
            Err(Failure::NotFound) => Ok(false),
            Err(failure) => Err(self.error(&host.endpoint.authority, &format!("blob {digest}"), failure)),
        }
    }

    /// Takes the blob over from another repository of the registry, if it can be had there.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str) -> Result<bool, ImageError> {
        let host = self.registry()?;
        let url = format!("{}?mount={}&from={from}", self.place(host, "blobs", "uploads/"), escaped(digest));
        let answer = host.ask_often(self, Method::POST, &url, HeaderMap::new(), Bytes::new()).await;
        match answer {
            Ok(answer) if answer.status() == StatusCode::CREATED => Ok(true),
            Ok(answer) => {
                // It wants the bytes instead; whether they are needed at all is not known yet.
                if let Ok(url) = next_url(&url, &answer) {
                    drop(host.ask(self, Method::DELETE, &url, HeaderMap::new(), Bytes::new()).await);
                }
                Ok(false)
            }
            // We may not read there, or it is gone.
            Err(
                Failure::NotFound | Failure::Denied(_) | Failure::Unauthenticated(_) | Failure::Protocol(_),
            ) => Ok(false),
            Err(failure) => Err(self.error(&host.endpoint.authority, &format!("blob {digest}"), failure)),
        }
    }

    /// Uploads a blob.
    pub(crate) async fn upload(&self, digest: &Digest, payload: &Payload) -> Result<(), ImageError> {
        let host = self.registry()?;
        let mut attempt = 1;
        loop {
            let failure = match host.upload_once(self, digest, payload).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if attempt == ATTEMPTS || !may_pass(&failure) {
                return Err(self.error(&host.endpoint.authority, &format!("blob {digest}"), failure));
            }
            tokio::time::sleep(PAUSE * 3_u32.pow(attempt)).await;
            attempt += 1;
        }
    }

    /// Puts a manifest under the reference's tag or digest.
    pub(crate) async fn put_manifest(
        &self,
        media_type: &str,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        let host = self.registry()?;
        let failed = |failure| self.error(&host.endpoint.authority, "manifest", failure);
        let url = self.place(host, "manifests", self.reference.selector());
        let headers = content_type(media_type).map_err(failed)?;
        let body = Bytes::copy_from_slice(bytes);
        let answer = host.ask_often(self, Method::PUT, &url, headers, body).await.map_err(failed)?;
        match answer::content_digest(&answer) {
            Some(theirs) if theirs != *digest => {
                Err(failed(Failure::Corrupt(format!("the registry made {theirs} of {digest}"))))
            }
            _ => Ok(()),
        }
    }

    fn registry(&self) -> Result<&Host, ImageError> {
        let registry = self.hosts.iter().find(|host| host.endpoint.is_registry);
        registry.ok_or_else(|| self.no_host())
    }

    fn place(&self, host: &Host, kind: &str, selector: &str) -> String {
        let (base, repository) = (host.base(), self.reference.repository());
        format!("{base}/{repository}/{kind}/{selector}")
    }
}

impl Host {
    async fn upload_once(
        &self,
        session: &Session,
        digest: &Digest,
        payload: &Payload,
    ) -> Result<(), Failure> {
        let start = session.place(self, "blobs", "uploads/");
        let begun = self.ask(session, Method::POST, &start, HeaderMap::new(), Bytes::new()).await?;
        let mut url = next_url(&start, &begun)?;
        let mut last = Bytes::new();
        if payload.len() <= PIECE {
            last = payload.piece(0, payload.len()).await?;
        } else {
            url = self.pieces(session, url, payload).await?;
        }
        let separator = if url.contains('?') { '&' } else { '?' };
        let end = format!("{url}{separator}digest={}", escaped(digest));
        let headers = content_type("application/octet-stream")?;
        self.ask(session, Method::PUT, &end, headers, last).await.map(drop)
    }

    /// Sends all of it; the address that ends the upload comes with the last answer.
    async fn pieces(&self, session: &Session, mut url: String, payload: &Payload) -> Result<String, Failure> {
        let mut offset = 0;
        while offset < payload.len() {
            let len = PIECE.min(payload.len() - offset);
            let mut headers = content_type("application/octet-stream")?;
            let range = format!("{offset}-{}", offset + len - 1);
            headers.insert(CONTENT_RANGE, value(&range)?);
            let piece = payload.piece(offset, len).await?;
            let answer = self.ask(session, Method::PATCH, &url, headers, piece).await?;
            url = next_url(&url, &answer)?;
            offset += len;
        }
        Ok(url)
    }

    /// As [`Host::ask`], again while the server is busy or out of reach.
    async fn ask_often(
        &self,
        session: &Session,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut attempt = 1;
        loop {
            match self.ask(session, method.clone(), url, headers.clone(), body.clone()).await {
                Err(failure) if attempt < ATTEMPTS && may_pass(&failure) => {
                    tokio::time::sleep(PAUSE * 3_u32.pow(attempt)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// One request, proving who we are when the server wants to know. What is no success is a failure.
    async fn ask(
        &self,
        session: &Session,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let (method, headers, body) = (&method, &headers, &body);
        let send = |used: Option<HeaderValue>| async move {
            self.ask_as(used.as_ref(), method, url, headers, body).await
        };
        let answer = self.proven(&session.reference, self.is_own(url), send).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(answer::failure(answer).await) }
    }

    async fn ask_as(
        &self,
        authorization: Option<&HeaderValue>,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut sent = HeaderMap::new();
        // An upload may go on at another server, which is told nothing that is not its own.
        if self.is_own(url) {
            sent = self.endpoint.headers.clone();
            sent.extend(authorization.map(|authorization| (AUTHORIZATION, authorization.clone())));
        }
        sent.extend(headers.clone());
        let limit = self.patience() + Duration::from_secs(body.len() as u64 / SLOWEST);
        let asking = self.client.ask(method.clone(), url, sent, body.clone());
        let answer = tokio::time::timeout(limit, asking).await;
        answer
            .unwrap_or_else(|_| Err(Failure::Unavailable(format!("no answer within {} s", limit.as_secs()))))
    }

    fn is_own(&self, url: &str) -> bool {
        super::client::is_same_origin(&self.base(), url)
    }
}

/// Whether the same may succeed later.
fn may_pass(failure: &Failure) -> bool {
    matches!(failure, Failure::Unreachable(_) | Failure::Unavailable(_) | Failure::Busy { .. })
}

fn next_url(url: &str, answer: &Response<Incoming>) -> Result<String, Failure> {
    let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| Failure::Protocol("an upload that leads nowhere".to_owned()))?;
    super::client::target(url, location)
}

fn content_type(media_type: &str) -> Result<HeaderMap, Failure> {
    Ok(HeaderMap::from_iter([(CONTENT_TYPE, value(media_type)?)]))
}

fn value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text).map_err(|_| Failure::Protocol(format!("{text:?} cannot be sent")))
}

fn escaped(digest: &Digest) -> String {
    format!("sha256%3A{}", digest.hex())
}
