//! Credentials of one pull, in the forms CRI hands them over, and those of the machine, in [`files`].
//!
//! Promise: secrets never appear in `Debug` output, and credentials that name a server are used for no other.

mod files;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use types::Digest;

pub(crate) use files::AuthFiles;

/// Credentials as kubelet sends them; empty fields are absent.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User name, together with `password`.
    pub username: String,
    /// Password of `username`.
    pub password: String,
    /// `user:password` in base64, the form docker's config file stores.
    pub auth: String,
    /// The registry these credentials are for; empty means the one the reference names.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token for the registry itself.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// What the registry client proves its identity with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Basic { username: String, password: String },
    Identity { username: String, token: String },
    Bearer(String),
}

impl Credentials {
    /// Tells credentials apart without knowing them.
    pub(crate) fn fingerprint(&self) -> Digest {
        let (kind, first, second) = match self {
            Self::Anonymous => ("anonymous", "", ""),
            Self::Basic { username, password } => ("basic", username.as_str(), password.as_str()),
            Self::Identity { username, token } => ("identity", username.as_str(), token.as_str()),
            Self::Bearer(token) => ("bearer", "", token.as_str()),
        };
        crate::hash::digest_of(format!("{kind}\0{}\0{first}{second}", first.len()).as_bytes())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic",
            Self::Identity { .. } => "Identity",
            Self::Bearer(_) => "Bearer",
        })
    }
}

/// The `auth` field is not base64 of `user:password`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the auth field is not base64 of user:password")]
pub struct AuthError;

impl Auth {
    /// The credentials to use at the registry a reference names; anonymous when they belong to another server.
    pub(crate) fn for_registry(&self, registry: &str) -> Result<Credentials, AuthError> {
        if !self.server_address.is_empty() && !same_registry(&self.server_address, registry) {
            tracing::debug!(op = "pull", "credentials are for another server and are not used");
            return Ok(Credentials::Anonymous);
        }
        if !self.registry_token.is_empty() {
            return Ok(Credentials::Bearer(self.registry_token.clone()));
        }
        if !self.identity_token.is_empty() {
            let (username, token) = (self.username.clone(), self.identity_token.clone());
            return Ok(Credentials::Identity { username, token });
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Ok(from_pair(self.username.clone(), self.password.clone()));
        }
        if self.auth.is_empty() { Ok(Credentials::Anonymous) } else { decode(&self.auth) }
    }
}

/// A password without a user name is an identity token, as in containerd.
fn from_pair(username: String, password: String) -> Credentials {
    if username.is_empty() {
        return Credentials::Identity { username, token: password };
    }
    Credentials::Basic { username, password }
}

fn decode(auth: &str) -> Result<Credentials, AuthError> {
    let trimmed = auth.trim();
    let bytes =
        STANDARD.decode(trimmed).or_else(|_| STANDARD_NO_PAD.decode(trimmed)).map_err(|_| AuthError)?;
    let text = String::from_utf8(bytes).map_err(|_| AuthError)?;
    let (username, password) = text.split_once(':').ok_or(AuthError)?;
    Ok(from_pair(username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Whether a server address (`host`, `host:port`, `https://host/v1/`) names this registry.
fn same_registry(address: &str, registry: &str) -> bool {
    let without_scheme = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = without_scheme.split('/').next().unwrap_or_default();
    canonical(host) == canonical(registry)
}

fn canonical(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.trim_end_matches(":443").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.into(), password: password.into() }
    }

    #[test]
    fn every_form_is_understood() {
        let cases = [
            (Auth::default(), Credentials::Anonymous),
            (Auth { username: "u".into(), password: "p".into(), ..Auth::default() }, basic("u", "p")),
            (Auth { auth: "dTpwOnE=".into(), ..Auth::default() }, basic("u", "p:q")),
            (Auth { auth: "dTpwOnE".into(), ..Auth::default() }, basic("u", "p:q")),
            (
                Auth { identity_token: "t".into(), ..Auth::default() },
                Credentials::Identity { username: String::new(), token: "t".into() },
            ),
            (Auth { registry_token: "t".into(), ..Auth::default() }, Credentials::Bearer("t".into())),
        ];
        for (auth, expected) in cases {
            assert_eq!(auth.for_registry("r.example"), Ok(expected));
        }
        assert_eq!(Auth { auth: "%%%".into(), ..Auth::default() }.for_registry("r"), Err(AuthError));
    }

    #[test]
    fn credentials_of_another_server_are_not_used() {
        let auth = |address: &str| Auth {
            username: "u".into(),
            password: "p".into(),
            server_address: address.into(),
            ..Auth::default()
        };
        for (address, registry, used) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("r.example:5000", "r.example:5000", true),
            ("https://R.example/some/path", "r.example", true),
            ("r.example", "r.example:5000", false),
            ("evil.example", "r.example", false),
        ] {
            let got = auth(address).for_registry(registry).unwrap();
            assert_eq!(got != Credentials::Anonymous, used, "{address} for {registry}");
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        let auth = Auth {
            username: "u".into(),
            password: "hunter2".into(),
            auth: "hunter2".into(),
            identity_token: "hunter2".into(),
            registry_token: "hunter2".into(),
            ..Auth::default()
        };
        assert!(!format!("{auth:?}{:?}", auth.for_registry("r").unwrap()).contains("hunter2"));
    }
}
