//! One HTTP request, for probes of pods and for pushing images. Blocking: run it with `Machine::in_network`.

use anyhow::Context;
use ureq::Agent;
use ureq::http::{Request, StatusCode};

use crate::Result;

/// Status and body of an answer.
#[derive(Debug, Clone)]
pub struct HttpReply {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Fetches a page; any status is an answer.
pub fn http_get(url: &str) -> Result<HttpReply> {
    let mut reply = agent().get(url).call().with_context(|| format!("GET {url}"))?;
    Ok(HttpReply { status: reply.status().as_u16(), body: reply.body_mut().read_to_string()? })
}

/// Pushes blobs and manifests into a registry without authentication.
#[derive(Debug)]
pub(crate) struct Push {
    agent: Agent,
    base: String,
}

impl Push {
    /// `base` is `http://host:port/v2/name`.
    pub(crate) fn new(base: String) -> Self {
        Self { agent: agent(), base }
    }

    pub(crate) fn blob(&self, digest: &str, bytes: &[u8]) -> Result {
        let url = format!("{}/blobs/uploads/", self.base);
        let begun = self.agent.post(&url).send_empty().with_context(|| format!("POST {url}"))?;
        let location = begun.headers().get("location").context("an upload without location")?.to_str()?;
        let joint = if location.contains('?') { '&' } else { '?' };
        self.put(&format!("{location}{joint}digest={digest}"), "application/octet-stream", bytes)
    }

    pub(crate) fn manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Result {
        self.put(&format!("{}/manifests/{reference}", self.base), media_type, bytes)
    }

    fn put(&self, url: &str, media_type: &str, bytes: &[u8]) -> Result {
        let request = Request::put(url).header("content-type", media_type).body(bytes)?;
        let mut reply = self.agent.run(request).with_context(|| format!("PUT {url}"))?;
        if reply.status() != StatusCode::CREATED {
            anyhow::bail!("PUT {url}: {}: {}", reply.status(), reply.body_mut().read_to_string()?);
        }
        Ok(())
    }
}

fn agent() -> Agent {
    let config =
        Agent::config_builder().http_status_as_error(false).timeout_global(Some(crate::patience(30)));
    config.build().into()
}
