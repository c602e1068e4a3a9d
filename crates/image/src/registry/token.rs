//! Answers to challenges: Basic directly, Bearer by way of the token server the registry names.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode, Uri};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::host::Host;
use super::{Failure, answer};
use crate::auth::Credentials;
use crate::hosts::is_loopback;
use crate::reference::Reference;

const MAX_TOKEN_ANSWER: u64 = 1 << 20;
const CLIENT_ID: &str = "crimson";

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    /// A number of seconds; of what servers send in its place nothing is made.
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Host {
    /// The header that answers a refusal. `used` is what was refused: another layer may have found better meanwhile.
    pub(super) async fn authenticate(
        &self,
        reference: &Reference,
        refused: Response<Incoming>,
        used: Option<HeaderValue>,
    ) -> Result<HeaderValue, Failure> {
        let mut known = self.authorization.lock().await;
        if let Some(better) = known.as_ref().filter(|known| Some(*known) != used.as_ref()) {
            return Ok(better.clone());
        }
        let challenge = challenge::choose(refused.headers());
        let Some(challenge) = challenge.filter(|_| !matches!(self.credentials, Credentials::Bearer(_)))
        else {
            return Err(answer::failure(refused).await);
        };
        let fresh = match challenge {
            Challenge::Basic => match basic(&self.credentials) {
                Some(header) => header,
                None => return Err(answer::failure(refused).await),
            },
            Challenge::Bearer { realm, service, scope } => {
                if let Some(refused) = &used {
                    self.environment.tokens.refused(&self.purpose, refused);
                }
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", reference.repository()));
                let (token, life) = self.token(&realm, service.as_deref(), &scope).await?;
                self.environment.tokens.put(&self.purpose, &token, life);
                token
            }
        };
        *known = Some(fresh.clone());
        Ok(fresh)
    }

    /// What was granted a moment ago is refused: nobody is to try it again.
    pub(super) async fn refused(&self, header: &HeaderValue) {
        self.environment.tokens.refused(&self.purpose, header);
        let mut known = self.authorization.lock().await;
        if known.as_ref() == Some(header) {
            *known = None;
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<(HeaderValue, Option<Duration>), Failure> {
        self.check_realm(realm)?;
        let asking = async {
            match &self.credentials {
                Credentials::Identity { username, token } => {
                    let form = refresh_form(username, token, service, scope);
                    self.client.post_form(realm, form).await
                }
                credentials => {
                    self.client
                        .follow(&token_url(realm, credentials, service, scope), header_of(credentials))
                        .await
                }
            }
        };
        let response = self.in_time(asking).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let bytes = answer::collect(response, MAX_TOKEN_ANSWER, self.patience()).await?;
        let parsed: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| Failure::Protocol("the token server's answer holds no token".to_owned()))?;
        let token = if parsed.token.is_empty() { parsed.access_token } else { parsed.token };
        let life = parsed.expires_in.as_u64().map(Duration::from_secs);
        let header = bearer(&token).map(|header| (header, life));
        header.ok_or_else(|| Failure::Protocol("the token server's answer holds no token".to_owned()))
    }

    /// Secrets travel to a token server over TLS, within this machine, or to the very server that they are for anyway.
    fn check_realm(&self, realm: &str) -> Result<(), Failure> {
        let uri: Option<Uri> = realm.parse().ok();
        let authority = uri.as_ref().and_then(|uri| uri.authority());
        let local = authority.is_some_and(|authority| is_loopback(authority.as_str()));
        let is_itself = !self.endpoint.tls
            && authority.is_some_and(|it| it.as_str().eq_ignore_ascii_case(&self.endpoint.authority));
        match uri.as_ref().and_then(|uri| uri.scheme_str()) {
            Some("https") => Ok(()),
            Some("http") if local || is_itself || self.credentials == Credentials::Anonymous => Ok(()),
            Some("http") => Err(Failure::Protocol("the token server has no HTTPS".to_owned())),
            _ => Err(Failure::Protocol("the token server's address is not a URL".to_owned())),
        }
    }
}

/// A token server's 400 and 401 both mean that the credentials are not good.
async fn refusal(response: Response<Incoming>) -> Failure {
    let is_bad_request = response.status() == StatusCode::BAD_REQUEST;
    match answer::failure(response).await {
        Failure::Protocol(detail) if is_bad_request => Failure::Unauthenticated(detail),
        Failure::NotFound => Failure::Protocol("the token server does not exist".to_owned()),
        Failure::Denied(detail) => Failure::Unauthenticated(detail),
        other => other,
    }
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}")).filter(|_| !token.is_empty())
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let Credentials::Basic { username, password } = credentials else { return None };
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn header_of(credentials: &Credentials) -> HeaderMap {
    basic(credentials).map(|value| (AUTHORIZATION, value)).into_iter().collect()
}

fn token_url(realm: &str, credentials: &Credentials, service: Option<&str>, scope: &str) -> String {
    let account = match credentials {
        Credentials::Basic { username, .. } => Some(username.as_str()),
        _ => None,
    };
    let query = form(&[("service", service), ("scope", Some(scope)), ("account", account)]);
    format!("{realm}{}{query}", if realm.contains('?') { '&' } else { '?' })
}

fn refresh_form(username: &str, token: &str, service: Option<&str>, scope: &str) -> String {
    form(&[
        ("grant_type", Some("refresh_token")),
        ("service", service),
        ("client_id", Some(CLIENT_ID)),
        ("scope", Some(scope)),
        ("username", Some(username).filter(|name| !name.is_empty())),
        ("refresh_token", Some(token)),
    ])
}

fn form(fields: &[(&str, Option<&str>)]) -> String {
    let present =
        fields.iter().filter_map(|(key, value)| value.map(|value| format!("{key}={}", encode(value))));
    present.collect::<Vec<_>>().join("&")
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_to_token_servers_are_encoded() {
        let user = Credentials::Basic { username: "a&b".into(), password: "p".into() };
        assert_eq!(
            token_url("https://t/x?y=1", &user, Some("s t"), "repository:a/b:pull"),
            "https://t/x?y=1&service=s%20t&scope=repository%3Aa%2Fb%3Apull&account=a%26b"
        );
        assert_eq!(token_url("https://t", &Credentials::Anonymous, None, "s"), "https://t?scope=s");
        let form = refresh_form("", "tok+en", Some("s"), "x");
        assert_eq!(
            form,
            "grant_type=refresh_token&service=s&client_id=crimson&scope=x&refresh_token=tok%2Ben"
        );
    }

    #[test]
    fn secrets_do_not_show_in_headers() {
        let user = Credentials::Basic { username: "u".into(), password: "hunter2".into() };
        let shown = format!("{:?} {:?}", basic(&user), bearer("hunter2"));
        assert!(!shown.contains("hunter2") && !shown.contains("dTpodW50ZXIy"), "{shown}");
        assert_eq!(bearer(""), None);
        assert_eq!(bearer("a\nb"), None);
    }
}
