//! Single-use tokens: what a URL holds instead of a request.
//!
//! A token stands for one request, is good for [`LIFETIME`] and for one connection. At most [`MOST`] wait at a time. Pure: the
//! time and the secret come from outside.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

/// How long a token waits for its client.
pub(crate) const LIFETIME: Duration = Duration::from_secs(60);
/// How many may wait.
pub(crate) const MOST: usize = 1000;
/// 192 random bits, which are 32 characters without padding.
pub(crate) type Secret = [u8; 24];

/// [`MOST`] tokens wait already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The requests that wait for their clients.
#[derive(Debug)]
pub(crate) struct Tokens<T> {
    waiting: HashMap<String, (Instant, T)>,
}

impl<T> Tokens<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: HashMap::new() }
    }

    /// Keeps a request and names it.
    pub(crate) fn issue(&mut self, now: Instant, secret: Secret, request: T) -> Result<String, Full> {
        self.forget_old(now);
        if self.waiting.len() >= MOST {
            return Err(Full);
        }
        let token = URL_SAFE_NO_PAD.encode(secret);
        self.waiting.insert(token.clone(), (now + LIFETIME, request));
        Ok(token)
    }

    /// The request that a token names: once, and in time.
    pub(crate) fn redeem(&mut self, now: Instant, token: &str) -> Option<T> {
        self.forget_old(now);
        self.waiting.remove(token).map(|(_, request)| request)
    }

    fn forget_old(&mut self, now: Instant) {
        self.waiting.retain(|_, (until, _)| now < *until);
    }
}

#[cfg(test)]
mod tests;
