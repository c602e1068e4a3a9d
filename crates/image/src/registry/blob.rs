//! Blobs, streamed to whoever wants them, resumed by range after a cut.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use hyper::header::{CONTENT_RANGE, HeaderMap};
use hyper::{Response, StatusCode, body::Incoming};
use tokio::sync::mpsc;

use super::host::{Host, Question};
use super::rounds::Rounds;
use super::{Environment, Failure, Session, Worst, answer};
use crate::error::ImageError;
use crate::manifest::Descriptor;
use crate::pull::PartWriter;
use crate::reference::Reference;

/// Rounds over all servers without a single new byte, before a blob is given up.
const ROUNDS: u32 = 4;
/// The same when the pull has got something already: an outage of half a minute is no reason to begin anew.
const ROUNDS_HALFWAY: u32 = 8;
/// Attempts at a blob: some, and more for each of these many bytes. A server that cuts more often than that is broken.
const ATTEMPTS: u64 = 64;
const BYTES_PER_ATTEMPT: u64 = 256 << 10;

/// Where a blob's bytes go.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    /// To a file that the unpacking reads; called on a thread that may block.
    Part(&'a PartWriter),
    /// To a blocking thread that unpacks them.
    Channel(&'a mpsc::Sender<Bytes>),
    /// Into memory.
    Memory(&'a mut Vec<u8>),
}

/// How an attempt at a blob ended without failure.
#[derive(Debug)]
enum End {
    Whole,
    /// What came could not be written.
    Unwritten(io::Error),
    /// Nobody wants the rest: the unpacking failed and will say why.
    Unwanted,
}

/// One blob on its way.
struct Download<'a> {
    reference: &'a Reference,
    environment: &'a Environment,
    blob: &'a Descriptor,
    sink: Sink<'a>,
    /// Bytes that are there.
    offset: u64,
    /// Where that number is shown.
    shown: Option<&'a AtomicU64>,
    attempts_left: u64,
}

impl Session {
    /// A small blob, verified.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let what = format!("blob {}", descriptor.digest);
        let corrupt = |detail| ImageError::Corrupt { reference: self.reference.to_string(), what, detail };
        if descriptor.size > limit {
            return Err(corrupt(format!("{} bytes are more than the {limit} allowed", descriptor.size)));
        }
        let mut bytes = Vec::new();
        self.blob(descriptor, Sink::Memory(&mut bytes), None).await?;
        let actual = crate::hash::digest_of(&bytes);
        if actual == descriptor.digest {
            return Ok(bytes);
        }
        Err(corrupt(format!("it has the digest {actual}, not {}", descriptor.digest)))
    }

    /// Streams a blob, behind what its sink holds already. Its digest is for the receiver to verify; its length is that
    /// of the descriptor at most. How much is there is shown in `shown`.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        sink: Sink<'_>,
        shown: Option<&AtomicU64>,
    ) -> Result<(), ImageError> {
        let mut download = Download::new(self, descriptor, sink, shown);
        let what = format!("blob {}", descriptor.digest);
        let mut rounds = Rounds::new(ROUNDS, true);
        loop {
            let before = download.offset;
            for host in self.hosts.iter().filter(|host| host.endpoint.pull && host.is_alive()) {
                match download.from(host).await {
                    Ok(end) => {
                        self.has_served.store(true, Ordering::Relaxed);
                        return end.result(&what);
                    }
                    Err(failure) => rounds.note(host, failure),
                }
            }
            let has_come_on = download.offset > before;
            if self.has_served.load(Ordering::Relaxed) {
                rounds.allow(ROUNDS_HALFWAY);
            }
            if !download.may_try() || !rounds.go_on(has_come_on).await {
                break;
            }
            if rounds.is_desperate() {
                self.hosts.iter().for_each(Host::revive);
            }
        }
        if descriptor.urls.is_empty() || !rounds.worst.is_not_found() {
            return Err(self.worst_error(rounds.worst, &what));
        }
        self.foreign_blob(&mut download, &what).await
    }

    /// A layer that registries must not distribute comes from where its owner offers it.
    async fn foreign_blob(&self, download: &mut Download<'_>, what: &str) -> Result<(), ImageError> {
        let mut last = Failure::NotFound;
        for url in &download.blob.urls {
            let from = match Host::of_url(&self.reference, url, &self.environment, self.progress) {
                Ok(host) => download.from(&host).await,
                Err(failure) => Err(failure),
            };
            match from {
                Ok(end) => return end.result(what),
                Err(failure) => last = failure,
            }
        }
        let place = download.blob.urls.first().map_or("", String::as_str);
        Err(self.error(place, what, last))
    }
}

impl End {
    fn result(self, what: &str) -> Result<(), ImageError> {
        match self {
            Self::Whole | Self::Unwanted => Ok(()),
            Self::Unwritten(error) => Err(ImageError::store(format!("keeping {what}"), error)),
        }
    }
}

impl Worst<'_> {
    fn is_not_found(&self) -> bool {
        matches!(self.0, Some((_, _, Failure::NotFound)))
    }
}

impl<'a> Download<'a> {
    fn new(session: &'a Session, blob: &'a Descriptor, sink: Sink<'a>, shown: Option<&'a AtomicU64>) -> Self {
        let (offset, attempts_left) = (sink.held(), ATTEMPTS + blob.size / BYTES_PER_ATTEMPT);
        let (reference, environment) = (&session.reference, &*session.environment);
        let download = Self { reference, environment, blob, sink, offset, shown, attempts_left };
        download.show();
        download
    }

    fn show(&self) {
        if let Some(shown) = self.shown {
            shown.store(self.offset, Ordering::Relaxed);
        }
    }

    fn may_try(&self) -> bool {
        self.attempts_left > 0
    }

    /// Goes on until the blob is whole, as long as each attempt brings something.
    async fn from(&mut self, host: &Host) -> Result<End, Failure> {
        loop {
            let before = self.offset;
            self.attempts_left = self.attempts_left.saturating_sub(1);
            match self.attempt(host).await {
                Err(Failure::Unavailable(detail)) if self.offset > before && self.may_try() => {
                    let offset = self.offset;
                    tracing::debug!(op = "pull", error = detail, offset, "a download goes on after a cut");
                }
                result => return result,
            }
        }
    }

    async fn attempt(&mut self, host: &Host) -> Result<End, Failure> {
        if self.offset >= self.blob.size {
            return Ok(End::Whole);
        }
        let selector = self.blob.digest.as_str();
        let question = Question { kind: "blobs", selector, accept: None, offset: self.offset };
        let response = host.get(self.reference, question).await?;
        // A server that does not know ranges sends everything again.
        let skip = match response.status() {
            StatusCode::OK => self.offset,
            StatusCode::PARTIAL_CONTENT => self.overlap(response.headers())?,
            _ => return Err(answer::failure(response).await),
        };
        self.take(host, response, skip).await
    }

    /// How much of a partial answer is there already.
    fn overlap(&self, headers: &HeaderMap) -> Result<u64, Failure> {
        let Some(range) = headers.get(CONTENT_RANGE) else { return Ok(0) };
        let start = range.to_str().ok().and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
        let overlap = start.and_then(|start| self.offset.checked_sub(start.trim().parse().ok()?));
        overlap.ok_or_else(|| Failure::Protocol("it sent another range than it was asked for".to_owned()))
    }

    async fn take(
        &mut self,
        host: &Host,
        response: Response<Incoming>,
        mut skip: u64,
    ) -> Result<End, Failure> {
        let mut body = response.into_body();
        loop {
            let since = Instant::now();
            let next = answer::next_chunk(&mut body, host.patience()).await;
            let Some(mut chunk) = next.inspect_err(|_| host.charge(since))? else { break };
            self.environment.count_received(chunk.len());
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            drop(chunk.split_to(skipped));
            self.offset += chunk.len() as u64;
            self.show();
            if self.offset > self.blob.size {
                let announced = self.blob.size;
                return Err(Failure::Corrupt(format!("it is longer than the {announced} bytes announced")));
            }
            match self.sink.put(chunk).await {
                Ok(true) => {}
                Ok(false) => return Ok(End::Unwanted),
                Err(error) => return Ok(End::Unwritten(error)),
            }
        }
        if self.offset < self.blob.size {
            return Err(Failure::Unavailable("the connection was closed early".to_owned()));
        }
        Ok(End::Whole)
    }
}

impl Sink<'_> {
    /// Bytes that are there before the download.
    fn held(&self) -> u64 {
        match self {
            Self::Part(writer) => writer.len(),
            Self::Channel(_) => 0,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Whether more is wanted.
    async fn put(&mut self, chunk: Bytes) -> io::Result<bool> {
        match self {
            _ if chunk.is_empty() => Ok(true),
            Self::Part(writer) => writer.put(&chunk),
            Self::Channel(sender) => Ok(sender.send(chunk).await.is_ok()),
            Self::Memory(bytes) => {
                bytes.extend_from_slice(&chunk);
                Ok(true)
            }
        }
    }
}
