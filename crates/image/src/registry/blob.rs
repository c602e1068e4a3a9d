//! Blobs, streamed to whoever wants them, resumed by range after a cut.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::sync::mpsc;

use super::{Failure, Host, Session, Worst, answer};
use crate::error::ImageError;
use crate::manifest::Descriptor;
use crate::reference::Reference;

/// Rounds over all servers without a single new byte, before a blob is given up.
const ROUNDS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// Where a blob's bytes go.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    /// To a blocking thread that unpacks them.
    Channel(&'a mpsc::Sender<Bytes>),
    /// Into memory.
    Memory(&'a mut Vec<u8>),
}

/// How an attempt at a blob ended without failure.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    /// Nobody wants the rest: the unpacking failed and will say why.
    Unwanted,
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
        self.blob(descriptor, Sink::Memory(&mut bytes)).await?;
        let actual = crate::hash::digest_of(&bytes);
        if actual == descriptor.digest {
            return Ok(bytes);
        }
        Err(corrupt(format!("it has the digest {actual}, not {}", descriptor.digest)))
    }

    /// Streams a blob. Its digest is for the receiver to verify; its length is that of the descriptor at most.
    pub(crate) async fn blob(&self, descriptor: &Descriptor, mut sink: Sink<'_>) -> Result<(), ImageError> {
        let mut offset = 0;
        let mut worst = Worst::default();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE * 3_u32.pow(round - 1)).await;
            }
            let mut may_recover = false;
            for host in self.hosts.iter().filter(|host| host.endpoint.pull && host.is_alive()) {
                let failure = match host.whole_blob(&self.reference, descriptor, &mut offset, &mut sink).await
                {
                    Ok(_) => return Ok(()),
                    Err(failure) => failure,
                };
                may_recover |= matches!(failure, Failure::Unavailable(_));
                worst.note(host, failure);
            }
            if !may_recover {
                break;
            }
        }
        Err(self.worst_error(worst, &format!("blob {}", descriptor.digest)))
    }
}

impl Host {
    /// Goes on at `offset` until the blob is whole, as long as each attempt brings something.
    async fn whole_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: &mut u64,
        sink: &mut Sink<'_>,
    ) -> Result<End, Failure> {
        loop {
            let before = *offset;
            match self.part_of_blob(reference, descriptor, offset, sink).await {
                Err(Failure::Unavailable(detail)) if *offset > before => {
                    tracing::debug!(
                        op = "pull",
                        error = detail,
                        offset = *offset,
                        "a download goes on after a cut"
                    );
                }
                result => return result,
            }
        }
    }

    async fn part_of_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: &mut u64,
        sink: &mut Sink<'_>,
    ) -> Result<End, Failure> {
        if *offset >= descriptor.size {
            return Ok(End::Whole);
        }
        let response = self.get(reference, "blobs", descriptor.digest.as_str(), None, *offset).await?;
        // A server that does not know ranges sends everything again.
        let mut skip = match response.status() {
            StatusCode::OK => *offset,
            StatusCode::PARTIAL_CONTENT => 0,
            _ => return Err(answer::failure(response).await),
        };
        let mut body = response.into_body();
        while let Some(mut chunk) = answer::next_chunk(&mut body).await? {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            drop(chunk.split_to(skipped));
            *offset += chunk.len() as u64;
            if *offset > descriptor.size {
                return Err(Failure::Corrupt(format!(
                    "it is longer than the {} bytes announced",
                    descriptor.size
                )));
            }
            if !chunk.is_empty() && !sink.put(chunk).await {
                return Ok(End::Unwanted);
            }
        }
        if *offset < descriptor.size {
            return Err(Failure::Unavailable("the connection was closed early".to_owned()));
        }
        Ok(End::Whole)
    }
}

impl Sink<'_> {
    /// Whether more is wanted.
    async fn put(&mut self, chunk: Bytes) -> bool {
        match self {
            Self::Channel(sender) => sender.send(chunk).await.is_ok(),
            Self::Memory(bytes) => {
                bytes.extend_from_slice(&chunk);
                true
            }
        }
    }
}
