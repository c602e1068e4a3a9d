//! One server of a registry, for one pull: what it is asked, as whom, and how long it may take.
//!
//! A mirror has others behind it. What it makes a pull wait for nothing (connections that do not come about, answers
//! and bytes that do not come) is added up, and when that is [`MIRROR_PATIENCE`] it is not asked any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE};
use hyper::{Response, StatusCode, body::Incoming};
use tokio::sync::Mutex;
use types::Digest;

use super::client::Client;
use super::tokens::Purpose;
use super::{Environment, Failure, answer, token};
use crate::auth::Credentials;
use crate::error::ImageError;
use crate::hosts::Endpoint;
use crate::manifest;
use crate::reference::Reference;

/// What a mirror may cost a pull in all before it is passed over.
const MIRROR_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Host {
    pub(super) endpoint: Endpoint,
    pub(super) client: Client,
    pub(super) credentials: Credentials,
    pub(super) environment: Arc<Environment>,
    /// What tokens of this server are for.
    pub(super) purpose: Purpose,
    /// The header that the server accepted last. Held while a new one is fetched, so that parallel layers fetch one.
    pub(super) authorization: Mutex<Option<HeaderValue>>,
    /// How long nothing may come of it.
    progress: Duration,
    /// Milliseconds that this mirror cost.
    lost: AtomicU64,
    /// Is not asked any more.
    is_dead: AtomicBool,
    /// `?ns=<registry>`, by which a mirror of several registries knows which one is meant.
    query: String,
    /// The one URL that this server is asked for, of a layer that registries must not distribute.
    fixed: Option<String>,
}

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    /// `manifests` or `blobs`.
    pub(super) kind: &'static str,
    /// A tag or digest.
    pub(super) selector: &'a str,
    pub(super) accept: Option<&'static str>,
    /// Where to begin.
    pub(super) offset: u64,
}

impl Host {
    pub(super) fn new(
        reference: &Reference,
        endpoint: Endpoint,
        credentials: Credentials,
        environment: &Arc<Environment>,
        progress: Duration,
    ) -> Result<Self, ImageError> {
        let purpose = Purpose::new(&endpoint, reference.repository(), &credentials);
        let authorization = match &credentials {
            Credentials::Bearer(token) => token::bearer(token),
            _ => environment.tokens.get(&purpose),
        };
        let query =
            if endpoint.is_registry { String::new() } else { format!("?ns={}", reference.registry()) };
        Ok(Self {
            client: Client::new(&endpoint.trust, environment)?,
            environment: Arc::clone(environment),
            endpoint,
            credentials,
            purpose,
            authorization: Mutex::new(authorization),
            progress,
            lost: AtomicU64::new(0),
            is_dead: AtomicBool::new(false),
            query,
            fixed: None,
        })
    }

    /// The server of a URL that a manifest names. It is nobody's registry, and told nothing of us.
    pub(super) fn of_url(
        reference: &Reference,
        url: &str,
        environment: &Arc<Environment>,
        progress: Duration,
    ) -> Result<Self, Failure> {
        let place = url.strip_prefix("https://").and_then(|rest| rest.split(['/', '?', '#']).next());
        let authority = place.filter(|place| !place.is_empty() && !place.contains('@'));
        let Some(authority) = authority else {
            return Err(Failure::Protocol(format!(
                "the layer is to be had at {url:?} only, which is not HTTPS"
            )));
        };
        let endpoint = Endpoint::foreign(authority);
        let host = Self::new(reference, endpoint, Credentials::Anonymous, environment, progress);
        let host = host.map_err(|error| Failure::Protocol(types::error::chain(&error)))?;
        Ok(Self { fixed: Some(url.to_owned()), ..host })
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.is_dead.load(Ordering::Relaxed)
    }

    /// All others have failed: what this one cost is forgotten.
    pub(super) fn revive(&self) {
        self.lost.store(0, Ordering::Relaxed);
        self.is_dead.store(false, Ordering::Relaxed);
    }

    /// How long to wait for something to come.
    pub(super) fn patience(&self) -> Duration {
        if self.endpoint.is_registry || self.fixed.is_some() {
            return self.progress;
        }
        let lost = Duration::from_millis(self.lost.load(Ordering::Relaxed));
        MIRROR_PATIENCE.saturating_sub(lost).max(Duration::from_millis(1)).min(self.progress)
    }

    /// Adds a wait that brought nothing to what this mirror cost.
    pub(super) fn charge(&self, since: Instant) {
        if self.endpoint.is_registry {
            return;
        }
        let spent = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let lost = self.lost.fetch_add(spent, Ordering::Relaxed).saturating_add(spent);
        if Duration::from_millis(lost) >= MIRROR_PATIENCE {
            self.is_dead.store(true, Ordering::Relaxed);
        }
    }

    /// What precedes the repository in every address.
    pub(super) fn base(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.endpoint.authority, self.endpoint.prefix)
    }

    fn scheme(&self) -> &'static str {
        if self.endpoint.tls { "https" } else { "http" }
    }

    /// `<host>/v2/<repository>/<kind>/<selector>`
    fn url(&self, reference: &Reference, question: Question<'_>) -> String {
        if let Some(url) = &self.fixed {
            return url.clone();
        }
        let Endpoint { authority, prefix, .. } = &self.endpoint;
        let (scheme, repository, query) = (self.scheme(), reference.repository(), &self.query);
        let Question { kind, selector, .. } = question;
        format!("{scheme}://{authority}{prefix}/{repository}/{kind}/{selector}{query}")
    }

    pub(super) async fn manifest(
        &self,
        reference: &Reference,
        selector: &str,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), Failure> {
        let accept = Some(manifest::ACCEPT);
        let question = Question { kind: "manifests", selector, accept, offset: 0 };
        let response = self.get(reference, question).await?;
        if response.status() != StatusCode::OK {
            return Err(answer::failure(response).await);
        }
        let announced = answer::content_digest(&response);
        let bytes = answer::collect(response, manifest::MAX_MANIFEST, self.patience()).await?;
        let actual = crate::hash::digest_of(&bytes);
        match digest.or(announced.as_ref()) {
            Some(expected) if *expected != actual => {
                Err(Failure::Corrupt(format!("it has the digest {actual}, not {expected}")))
            }
            _ => Ok((actual, bytes)),
        }
    }

    /// Asks, and proves who we are when the server wants to know.
    pub(super) async fn get(
        &self,
        reference: &Reference,
        question: Question<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let url = &self.url(reference, question);
        let send =
            |used: Option<HeaderValue>| async move { self.get_once(url, question, used.as_ref()).await };
        self.proven(reference, self.fixed.is_none(), send).await
    }

    /// Sends a request as what the server accepted last. One that wants to know who we are is told, if it may be, and gets
    /// the request again; what it then refuses is forgotten.
    pub(super) async fn proven<F>(
        &self,
        reference: &Reference,
        may_prove: bool,
        send: impl Fn(Option<HeaderValue>) -> F,
    ) -> Result<Response<Incoming>, Failure>
    where
        F: Future<Output = Result<Response<Incoming>, Failure>>,
    {
        let used = self.authorization.lock().await.clone();
        let response = send(used.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !may_prove {
            return Ok(response);
        }
        let fresh = self.authenticate(reference, response, used).await?;
        let response = send(Some(fresh.clone())).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.refused(&fresh).await;
            return Err(answer::failure(response).await);
        }
        Ok(response)
    }

    async fn get_once(
        &self,
        url: &str,
        question: Question<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut headers = self.endpoint.headers.clone();
        if let Some(accept) = question.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        let offset = Some(question.offset).filter(|offset| *offset > 0);
        if let Some(range) = offset.and_then(|offset| format!("bytes={offset}-").parse().ok()) {
            headers.insert(RANGE, range);
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        self.in_time(self.client.follow(url, headers)).await
    }

    /// The answer to a request, if it begins in time. A mirror that cannot be asked is not asked again.
    pub(super) async fn in_time<T>(
        &self,
        asking: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let (limit, since) = (self.patience(), Instant::now());
        let failure = match tokio::time::timeout(limit, asking).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Unreachable(format!("no answer within {} s", limit.as_secs_f32().round())),
        };
        self.charge(since);
        if failure.is_of_transport() && !self.endpoint.is_registry {
            self.is_dead.store(true, Ordering::Relaxed);
        }
        Err(failure)
    }
}
