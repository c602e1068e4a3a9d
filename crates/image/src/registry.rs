//! Talks to registries: manifests and blobs of one repository, for one pull.
//!
//! Promises:
//! * What is returned has the digest that was asked for.
//! * Credentials go to the registry itself and to the token server it names, never to a mirror or a redirect's target.
//!   A mirror gets those that the machine's own configuration has for the mirror.
//! * Servers are tried in their order. A mirror costs a pull [`host`]'s patience at most; a server that asks to be left
//!   alone for a while is, and how often all are tried has an end.
//! * What `hosts.toml` wants to be sent in headers goes to that server alone, a proxy's password to that proxy alone.
//! * When all fail, the error is that of the registry itself, and its refusal rather than an unreachable server.
//! * A blob goes on where it stopped when the connection is cut, as long as every attempt brings something.

mod answer;
mod blob;
mod challenge;
mod client;
mod connect;
mod host;
mod proxy;
mod rounds;
mod tls;
mod token;
mod tokens;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use types::Digest;

use crate::auth::Credentials;
use crate::error::ImageError;
use crate::hosts::Endpoint;
use crate::reference::Reference;
pub(crate) use blob::Sink;
use host::Host;
use proxy::Proxies;
use rounds::Rounds;
use tls::Roots;
use tokens::Tokens;
pub(crate) use upload::Payload;

/// Rounds over all servers for a manifest.
const MANIFEST_ROUNDS: u32 = 3;

/// What all pulls have in common: this machine's authorities, the proxies that the environment names, and what token
/// servers granted.
#[derive(Debug)]
pub(crate) struct Environment {
    roots: Roots,
    proxies: Arc<Proxies>,
    tokens: Tokens,
    /// Bytes of blobs that have come.
    received: AtomicU64,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        let proxies = Arc::new(Proxies::from_environment());
        Self { roots: Roots::default(), proxies, tokens: Tokens::default(), received: AtomicU64::new(0) }
    }

    /// Bytes of blobs that have come over the network.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// One pull's view of a repository.
#[derive(Debug)]
pub(crate) struct Session {
    reference: Reference,
    hosts: Vec<Host>,
    environment: Arc<Environment>,
    /// How long nothing may come of a server.
    progress: Duration,
    /// A blob has come.
    has_served: AtomicBool,
}

/// Why one server did not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    Unauthenticated(String),
    Denied(String),
    NotFound,
    /// No connection, or no answer over it.
    Unreachable(String),
    /// The connection broke.
    Unavailable(String),
    /// It refuses for the moment, and may have said for how long.
    Busy {
        detail: String,
        after: Option<Duration>,
    },
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
            Self::Unreachable(_) | Self::Unavailable(_) | Self::Busy { .. } => Weight::OfRegistry,
            Self::Protocol(_) | Self::Corrupt(_) => Weight::OfRegistry,
        }
    }

    /// Whether there was no answer.
    fn is_of_transport(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unavailable(_))
    }
}

impl Session {
    /// `credentials` gives those for a server, by its authority and whether it is the registry itself.
    pub(crate) fn new(
        reference: &Reference,
        endpoints: Vec<Endpoint>,
        credentials: impl Fn(&str, bool) -> Credentials,
        environment: &Arc<Environment>,
        progress: Duration,
    ) -> Result<Self, ImageError> {
        let host = |endpoint: Endpoint| {
            let credentials = credentials(&endpoint.authority, endpoint.is_registry);
            Host::new(reference, endpoint, credentials, environment, progress)
        };
        let hosts = endpoints.into_iter().map(host).collect::<Result<_, _>>()?;
        let (reference, environment) = (reference.clone(), Arc::clone(environment));
        Ok(Self { reference, hosts, environment, progress, has_served: AtomicBool::new(false) })
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
        let mut rounds = Rounds::new(MANIFEST_ROUNDS, false);
        loop {
            for host in self.hosts.iter().filter(|host| capable(&host.endpoint) && host.is_alive()) {
                match host.manifest(&self.reference, selector, digest).await {
                    Ok(found) => return Ok(found),
                    Err(failure) => rounds.note(host, failure),
                }
            }
            if !rounds.go_on(false).await {
                return Err(self.worst_error(rounds.worst, "manifest"));
            }
        }
    }

    fn worst_error(&self, worst: Worst<'_>, what: &str) -> ImageError {
        let error = |(_, host, failure): (_, &Host, _)| self.error(&host.endpoint.authority, what, failure);
        worst.0.map_or_else(|| self.no_host(), error)
    }

    fn error(&self, host: &str, what: &str, failure: Failure) -> ImageError {
        let (reference, host) = (self.reference.to_string(), host.to_owned());
        let what = what.to_owned();
        match failure {
            Failure::Unauthenticated(detail) => ImageError::Unauthenticated { reference, host, detail },
            Failure::Denied(detail) => ImageError::Denied { reference, host, detail },
            Failure::NotFound => ImageError::NotFound { reference, host, what },
            Failure::Unreachable(detail) | Failure::Unavailable(detail) | Failure::Busy { detail, .. } => {
                ImageError::Unavailable { reference, host, detail }
            }
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
