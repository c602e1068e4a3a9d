//! Tokens that servers have granted, kept from one pull to the next.
//!
//! Promises: a token is used for the server, the repository and the credentials it was granted for; it is dropped a
//! while before it expires and when it is refused. Credentials are known here by their hash only.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use types::Digest;

use crate::auth::Credentials;
use crate::hosts::Endpoint;

/// What the specification lets a token live when the server does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const MAX_LIFE: Duration = Duration::from_secs(3600);
const MAX_TOKENS: usize = 1000;

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Purpose {
    server: String,
    repository: String,
    credentials: Digest,
}

#[derive(Debug)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<Purpose, Token>>);

impl Purpose {
    pub(super) fn new(endpoint: &Endpoint, repository: &str, credentials: &Credentials) -> Self {
        let Endpoint { tls, authority, prefix, .. } = endpoint;
        Self {
            server: format!("{tls} {authority} {prefix}"),
            repository: repository.to_owned(),
            credentials: credentials.fingerprint(),
        }
    }
}

impl Tokens {
    pub(super) fn get(&self, purpose: &Purpose) -> Option<HeaderValue> {
        let tokens = self.lock();
        let token = tokens.get(purpose).filter(|token| token.until > Instant::now());
        token.map(|token| token.header.clone())
    }

    /// Keeps a token for nine tenths of the time that the server gives it.
    pub(super) fn put(&self, purpose: &Purpose, header: &HeaderValue, life: Option<Duration>) {
        let life = life.unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
        let now = Instant::now();
        let mut tokens = self.lock();
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, token| token.until > now);
        }
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.insert(purpose.clone(), Token { header: header.clone(), until: now + life - life / 10 });
    }

    /// Forgets a token that was refused, unless a better one has come.
    pub(super) fn refused(&self, purpose: &Purpose, header: &HeaderValue) {
        let mut tokens = self.lock();
        if tokens.get(purpose).is_some_and(|token| token.header == header) {
            tokens.remove(purpose);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Purpose, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(server: &str, repository: &str, password: &str) -> Purpose {
        let credentials = Credentials::Basic { username: "u".into(), password: password.into() };
        Purpose::new(&Endpoint::foreign(server), repository, &credentials)
    }

    #[test]
    fn a_token_serves_its_purpose_only() {
        let (tokens, header) = (Tokens::default(), HeaderValue::from_static("Bearer x"));
        let mine = purpose("s", "r", "p");
        tokens.put(&mine, &header, None);
        assert_eq!(tokens.get(&mine), Some(header.clone()));
        for other in [purpose("t", "r", "p"), purpose("s", "q", "p"), purpose("s", "r", "o")] {
            assert_eq!(tokens.get(&other), None);
        }
        tokens.refused(&mine, &HeaderValue::from_static("Bearer older"));
        assert!(tokens.get(&mine).is_some());
        tokens.refused(&mine, &header);
        assert_eq!(tokens.get(&mine), None);
    }

    #[test]
    fn a_token_that_expires_at_once_is_not_used() {
        let (tokens, header) = (Tokens::default(), HeaderValue::from_static("Bearer x"));
        tokens.put(&purpose("s", "r", "p"), &header, Some(Duration::ZERO));
        assert_eq!(tokens.get(&purpose("s", "r", "p")), None);
    }

    #[test]
    fn there_is_an_end_to_them_and_no_secret_in_them() {
        let (tokens, header) = (Tokens::default(), HeaderValue::from_static("Bearer x"));
        for n in 0..MAX_TOKENS + 10 {
            tokens.put(&purpose("s", &n.to_string(), "hunter2"), &header, None);
        }
        assert!(tokens.lock().len() <= MAX_TOKENS);
        assert!(!format!("{:?}", purpose("s", "r", "hunter2")).contains("hunter2"));
    }
}
