//! Talks to registries: manifests and blobs of one repository, for one pull.
//!
//! Promises:
//! * What is returned has the digest that was asked for.
//! * Credentials go to the registry itself and to the token server it names, never to a mirror or a redirect's target.
//! * A server that cannot be reached is asked once per pull; the others are tried in their order.
//! * What `hosts.toml` wants to be sent in headers goes to that server alone, a proxy's password to that proxy alone.
//! * When all fail, the error is that of the registry itself, and its refusal rather than an unreachable server.
//! * A blob goes on where it stopped when the connection is cut, as long as every attempt brings something.

mod answer;
mod blob;
mod challenge;
mod client;
mod connect;
mod proxy;
mod tls;
mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER};
use hyper::{Response, StatusCode, body::Incoming};
use tokio::sync::Mutex;
use types::Digest;

use crate::auth::Credentials;
use crate::error::ImageError;
use crate::hosts::Endpoint;
use crate::manifest;
use crate::reference::Reference;
pub(crate) use blob::Sink;
use client::Client;
use proxy::Proxies;
use tls::Roots;

/// Attempts at a request that the server refuses for the moment (429, 5xx), and the pause before the second.
const BUSY_ATTEMPTS: u32 = 3;
const BUSY_PAUSE: Duration = Duration::from_millis(250);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a server may take to begin its answer; a mirror has others behind it.
const ANSWER_TIME: Duration = Duration::from_secs(30);
const MIRROR_ANSWER_TIME: Duration = Duration::from_secs(10);

/// What all pulls have in common: this machine's authorities, and the proxies that the environment names.
#[derive(Debug)]
pub(crate) struct Environment {
    roots: Roots,
    proxies: Arc<Proxies>,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        Self { roots: Roots::default(), proxies: Arc::new(Proxies::from_environment()) }
    }
}

/// One pull's view of a repository.
#[derive(Debug)]
pub(crate) struct Session {
    reference: Reference,
    hosts: Vec<Host>,
}

#[derive(Debug)]
struct Host {
    endpoint: Endpoint,
    client: Client,
    credentials: Credentials,
    /// The header that the server accepted last. Held while a new one is fetched, so that parallel layers fetch one.
    authorization: Mutex<Option<HeaderValue>>,
    /// Could not be reached during this pull.
    is_dead: AtomicBool,
    /// `?ns=<registry>`, by which a mirror of several registries knows which one is meant.
    query: String,
}

/// Why one server did not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    Unauthenticated(String),
    Denied(String),
    NotFound,
    Unavailable(String),
    Protocol(String),
    Corrupt(String),
}

/// The failure to report when no server served: the most decisive, the latest of several.
#[derive(Debug, Default)]
struct Worst<'a>(Option<(Weight, &'a Host, Failure)>);

/// How much a failure tells about the image, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// A mirror may fail for reasons of its own.
    OfMirror,
    OfRegistry,
    /// The registry was reached and said no.
    Decisive,
}

impl<'a> Worst<'a> {
    fn note(&mut self, host: &'a Host, failure: Failure) {
        let server = &host.endpoint.authority;
        tracing::debug!(op = "pull", server, error = ?failure, "a server does not serve");
        let weight = failure.weight(host.endpoint.is_registry);
        if self.0.as_ref().is_none_or(|(known, ..)| *known <= weight) {
            self.0 = Some((weight, host, failure));
        }
    }
}

impl Failure {
    fn weight(&self, is_registry: bool) -> Weight {
        match self {
            _ if !is_registry => Weight::OfMirror,
            Self::Unauthenticated(_) | Self::Denied(_) | Self::NotFound => Weight::Decisive,
            Self::Unavailable(_) | Self::Protocol(_) | Self::Corrupt(_) => Weight::OfRegistry,
        }
    }
}

impl Session {
    pub(crate) fn new(
        reference: &Reference,
        endpoints: Vec<Endpoint>,
        credentials: &Credentials,
        environment: &Environment,
    ) -> Result<Self, ImageError> {
        let host = |endpoint| Host::new(reference, endpoint, credentials, environment);
        let hosts = endpoints.into_iter().map(host);
        Ok(Self { reference: reference.clone(), hosts: hosts.collect::<Result<_, _>>()? })
    }

    /// The manifest or index that the reference names, and its digest.
    pub(crate) async fn resolve(&self) -> Result<(Digest, Vec<u8>), ImageError> {
        match self.reference.digest() {
            Some(digest) => Ok((digest.clone(), self.manifest(digest).await?)),
            None => self.first_manifest(self.reference.selector(), None, |endpoint| endpoint.resolve).await,
        }
    }

    /// The manifest with this digest.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let found = self.first_manifest(digest.as_str(), Some(digest), |endpoint| endpoint.pull).await?;
        Ok(found.1)
    }

    async fn first_manifest(
        &self,
        selector: &str,
        digest: Option<&Digest>,
        capable: impl Fn(&Endpoint) -> bool,
    ) -> Result<(Digest, Vec<u8>), ImageError> {
        let mut worst = Worst::default();
        for host in self.hosts.iter().filter(|host| capable(&host.endpoint) && host.is_alive()) {
            match host.manifest(&self.reference, selector, digest).await {
                Ok(found) => return Ok(found),
                Err(failure) => worst.note(host, failure),
            }
        }
        Err(self.worst_error(worst, "manifest"))
    }

    fn worst_error(&self, worst: Worst<'_>, what: &str) -> ImageError {
        let error = |(_, host, failure)| self.error(host, what, failure);
        worst.0.map_or_else(|| self.no_host(), error)
    }

    fn error(&self, host: &Host, what: &str, failure: Failure) -> ImageError {
        let (reference, host) = (self.reference.to_string(), host.endpoint.authority.clone());
        let what = what.to_owned();
        match failure {
            Failure::Unauthenticated(detail) => ImageError::Unauthenticated { reference, host, detail },
            Failure::Denied(detail) => ImageError::Denied { reference, host, detail },
            Failure::NotFound => ImageError::NotFound { reference, host, what },
            Failure::Unavailable(detail) => ImageError::Unavailable { reference, host, detail },
            Failure::Protocol(detail) => ImageError::Protocol { reference, host, detail },
            Failure::Corrupt(detail) => ImageError::Corrupt { reference, what, detail },
        }
    }

    /// Every server failed before in this pull, or none has the capability.
    fn no_host(&self) -> ImageError {
        ImageError::Unavailable {
            reference: self.reference.to_string(),
            host: self.reference.registry().to_owned(),
            detail: "no configured server can be used".to_owned(),
        }
    }
}

impl Host {
    fn new(
        reference: &Reference,
        endpoint: Endpoint,
        credentials: &Credentials,
        environment: &Environment,
    ) -> Result<Self, ImageError> {
        let credentials = if endpoint.is_registry { credentials.clone() } else { Credentials::Anonymous };
        let authorization = match &credentials {
            Credentials::Bearer(token) => token::bearer(token),
            _ => None,
        };
        let query =
            if endpoint.is_registry { String::new() } else { format!("?ns={}", reference.registry()) };
        Ok(Self {
            client: Client::new(&endpoint.trust, environment)?,
            endpoint,
            credentials,
            authorization: Mutex::new(authorization),
            is_dead: AtomicBool::new(false),
            query,
        })
    }

    fn is_alive(&self) -> bool {
        !self.is_dead.load(Ordering::Relaxed)
    }

    fn scheme(&self) -> &'static str {
        if self.endpoint.tls { "https" } else { "http" }
    }

    /// `<host>/v2/<repository>/<kind>/<selector>`
    fn url(&self, reference: &Reference, kind: &str, selector: &str) -> String {
        let Endpoint { authority, prefix, .. } = &self.endpoint;
        let (scheme, repository, query) = (self.scheme(), reference.repository(), &self.query);
        format!("{scheme}://{authority}{prefix}/{repository}/{kind}/{selector}{query}")
    }

    async fn manifest(
        &self,
        reference: &Reference,
        selector: &str,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), Failure> {
        let response = self.get(reference, "manifests", selector, Some(manifest::ACCEPT), 0).await?;
        if response.status() != StatusCode::OK {
            return Err(answer::failure(response).await);
        }
        let announced = answer::content_digest(&response);
        let bytes = answer::collect(response, manifest::MAX_MANIFEST).await?;
        let actual = crate::hash::digest_of(&bytes);
        match digest.or(announced.as_ref()) {
            Some(expected) if *expected != actual => {
                Err(Failure::Corrupt(format!("it has the digest {actual}, not {expected}")))
            }
            _ => Ok((actual, bytes)),
        }
    }

    /// Asks, proves who we are when the server wants to know, and asks again while it is busy.
    async fn get(
        &self,
        reference: &Reference,
        kind: &str,
        selector: &str,
        accept: Option<&'static str>,
        offset: u64,
    ) -> Result<Response<Incoming>, Failure> {
        let url = self.url(reference, kind, selector);
        let mut pause = BUSY_PAUSE;
        for attempt in 1.. {
            let response = self.get_authorized(reference, &url, accept, offset).await?;
            if attempt == BUSY_ATTEMPTS || !is_busy(response.status()) {
                return Ok(response);
            }
            tokio::time::sleep(retry_after(&response).unwrap_or(pause).min(BUSY_PAUSE_MAX)).await;
            pause *= 4;
        }
        Err(Failure::Protocol("no attempt was made".to_owned()))
    }

    async fn get_authorized(
        &self,
        reference: &Reference,
        url: &str,
        accept: Option<&'static str>,
        offset: u64,
    ) -> Result<Response<Incoming>, Failure> {
        let used = self.authorization.lock().await.clone();
        let response = self.get_once(url, accept, offset, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let fresh = self.authenticate(reference, response, used).await?;
        let response = self.get_once(url, accept, offset, Some(&fresh)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(answer::failure(response).await);
        }
        Ok(response)
    }

    async fn get_once(
        &self,
        url: &str,
        accept: Option<&'static str>,
        offset: u64,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut headers = self.endpoint.headers.clone();
        if let Some(accept) = accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(range) =
            (offset > 0).then(|| format!("bytes={offset}-")).and_then(|range| range.parse().ok())
        {
            headers.insert(RANGE, range);
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let limit = if self.endpoint.is_registry { ANSWER_TIME } else { MIRROR_ANSWER_TIME };
        let failure = match tokio::time::timeout(limit, self.client.follow(url, headers)).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Unavailable(format!("no answer within {} s", limit.as_secs())),
        };
        if matches!(failure, Failure::Unavailable(_)) && !self.endpoint.is_registry {
            self.is_dead.store(true, Ordering::Relaxed);
        }
        Err(failure)
    }
}

fn is_busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
