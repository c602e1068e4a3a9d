//! Credentials of the machine: files in the format of Docker's `config.json`.
//!
//! They are for pulls that bring none of their own. Of several files the first that has an entry for the registry counts;
//! of several entries the one that names the most of the image's path, and a whole host name rather than a pattern.
//!
//! Promises: a file that cannot be used is named in the log, without anything of what is in it, and fails no pull. Programs
//! that a file wants to be asked for credentials are not run.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Auth, Credentials, canonical};

/// Everything that the machine's files say, as they are now.
#[derive(Debug, Default)]
pub(crate) struct AuthFiles(Vec<AuthFile>);

#[derive(Debug)]
struct AuthFile {
    path: PathBuf,
    entries: Vec<Entry>,
    /// Registries, and `*`, whose credentials a program would know.
    helped: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    host: String,
    /// What an image's repository has to begin with.
    path: Vec<String>,
    auth: Auth,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    auths: HashMap<String, RawEntry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
struct RawEntry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl AuthFiles {
    /// Reads what is there; files that do not exist are as good as empty ones.
    pub(crate) fn read(paths: &[PathBuf]) -> Self {
        let read = |path: &PathBuf| match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(op = "pull", path = %path.display(), %error, "credentials cannot be read");
                None
            }
            Ok(bytes) => AuthFile::parse(path, &bytes),
        };
        Self(paths.iter().filter_map(read).collect())
    }

    /// The credentials for a repository of the server `host`.
    pub(crate) fn find(&self, host: &str, repository: &str) -> Credentials {
        let host = canonical(host);
        let found = self.0.iter().find_map(|file| file.find(&host, repository));
        found.unwrap_or(Credentials::Anonymous)
    }
}

impl AuthFile {
    fn parse(path: &Path, bytes: &[u8]) -> Option<Self> {
        let raw: Raw = match serde_json::from_slice(bytes) {
            Ok(raw) => raw,
            Err(error) => {
                // The error's own text may quote a password.
                let (line, column) = (error.line(), error.column());
                tracing::warn!(op = "pull", path = %path.display(), line, column, "credentials cannot be understood");
                return None;
            }
        };
        let any = Some("*".to_owned()).filter(|_| !raw.creds_store.is_empty());
        let helped = raw.cred_helpers.into_keys().map(|host| canonical(&host)).chain(any).collect();
        let entries = raw.auths.into_iter().map(|(key, entry)| Entry::new(&key, entry)).collect();
        Some(Self { path: path.to_owned(), entries, helped })
    }

    fn find(&self, host: &str, repository: &str) -> Option<Credentials> {
        let fitting = self.entries.iter().filter(|entry| entry.covers(host, repository));
        let best =
            fitting.max_by_key(|entry| (entry.path.len(), !entry.host.contains('*'), entry.host.len()));
        let Some(best) = best else {
            if self.helped.iter().any(|helped| helped == "*" || helped == host) {
                let path = self.path.display();
                tracing::warn!(op = "pull", %path, server = host, "a credential helper is configured and is not run");
            }
            return None;
        };
        let credentials = best.auth.for_registry(host);
        let credentials = credentials.inspect_err(|error| {
            tracing::warn!(op = "pull", path = %self.path.display(), server = host, %error, "credentials are malformed");
        });
        credentials.ok().filter(|credentials| *credentials != Credentials::Anonymous)
    }
}

impl Entry {
    /// `host`, `host:port`, `host/path`, and all of them as URLs, `https://index.docker.io/v1/` being the best known.
    fn new(key: &str, raw: RawEntry) -> Self {
        let place = key.split_once("://").map_or(key, |(_, rest)| rest);
        let (host, path) = place.split_once('/').unwrap_or((place, ""));
        let path = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
        let mut path: Vec<String> = path.collect();
        if path.first().is_some_and(|version| version == "v1" || version == "v2") {
            path.remove(0);
        }
        let RawEntry { username, password, auth, identitytoken, registrytoken } = raw;
        let auth = Auth {
            username,
            password,
            auth,
            identity_token: identitytoken,
            registry_token: registrytoken,
            server_address: String::new(),
        };
        Self { host: canonical(host), path, auth }
    }

    fn covers(&self, host: &str, repository: &str) -> bool {
        let mut parts = repository.split('/');
        fits(&self.host, host) && self.path.iter().all(|part| parts.next() == Some(part))
    }
}

/// Whether a host is meant, in which `*` stands for what is between two dots, or a part of it, as for kubelet.
fn fits(pattern: &str, host: &str) -> bool {
    let split = |text| -> (Vec<&str>, &str) {
        let (names, port) = str::split_once(text, ':').unwrap_or((text, ""));
        (names.split('.').collect(), port)
    };
    let ((names, port), (labels, actual_port)) = (split(pattern), split(host));
    port == actual_port
        && names.len() == labels.len()
        && names.iter().zip(labels).all(|(name, label)| crate::pinned::matches(name, label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(content: &serde_json::Value) -> AuthFiles {
        AuthFiles(AuthFile::parse(Path::new("/c"), content.to_string().as_bytes()).into_iter().collect())
    }

    fn user(files: &AuthFiles, host: &str, repository: &str) -> Option<String> {
        match files.find(host, repository) {
            Credentials::Basic { username, .. } => Some(username),
            Credentials::Anonymous => None,
            other => Some(format!("{other:?}")),
        }
    }

    fn named(user: &str) -> serde_json::Value {
        json!({"username": user, "password": "hunter2"})
    }

    #[test]
    fn keys_are_hosts_paths_and_urls() {
        let files = file(&json!({"auths": {
            "https://index.docker.io/v1/": named("hub"),
            "r.example": named("host"),
            "r.example/team": named("team"),
            "https://r.example/team/app": named("app"),
            "http://p.example:5000/v2/": named("port"),
            "*.cloud.example": named("any"),
            "one.cloud.example": named("one"),
        }}));
        for (host, repository, expected) in [
            ("docker.io", "library/busybox", Some("hub")),
            ("r.example", "other/app", Some("host")),
            ("R.example", "team/other", Some("team")),
            ("r.example", "teams/other", Some("host")),
            ("r.example", "team/app", Some("app")),
            ("r.example:443", "team/app/sub", Some("app")),
            ("r.example:5000", "team/app", None),
            ("p.example:5000", "a", Some("port")),
            ("p.example", "a", None),
            ("two.cloud.example", "a", Some("any")),
            ("one.cloud.example", "a", Some("one")),
            ("a.b.cloud.example", "a", None),
            ("cloud.example", "a", None),
            ("two.cloud.example:5000", "a", None),
        ] {
            assert_eq!(user(&files, host, repository).as_deref(), expected, "{host}/{repository}");
        }
    }

    #[test]
    fn all_forms_of_credentials_are_read() {
        let files = file(&json!({"auths": {
            "auth.example": {"auth": "dTpw"},
            "identity.example": {"auth": "dTpw", "identitytoken": "t"},
            "registry.example": {"registrytoken": "t"},
            "empty.example": {},
            "bad.example": {"auth": "%%"},
        }, "HttpHeaders": {"a": "b"}, "credHelpers": {"helped.example": "x"}, "credsStore": "y"}));
        let user = |host| user(&files, host, "a");
        assert_eq!(user("auth.example").as_deref(), Some("u"));
        assert_eq!(user("identity.example").as_deref(), Some("Identity"));
        assert_eq!(user("registry.example").as_deref(), Some("Bearer"));
        for without in ["empty.example", "bad.example", "helped.example", "unknown.example"] {
            assert_eq!(user(without), None, "{without}");
        }
    }

    #[test]
    fn the_first_file_with_an_entry_counts_and_broken_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, content: String| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let entries = |user| json!({"auths": {"r.example": named(user)}}).to_string();
        let paths = [
            directory.path().join("missing"),
            write("broken", "{\"auths\": \"hunter2\"}".to_owned()),
            write("other", json!({"auths": {"other.example": named("x")}}).to_string()),
            write("first", entries("first")),
            write("second", entries("second")),
        ];
        let files = AuthFiles::read(&paths);
        assert_eq!(user(&files, "r.example", "a").as_deref(), Some("first"));
        assert!(!format!("{files:?}").contains("hunter2"));
    }
}
