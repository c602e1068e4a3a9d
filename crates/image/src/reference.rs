//! Image references as people and kubelet write them, normalised the way Docker's names are.
//!
//! Promise: a [`Reference`] always has a registry, a repository and exactly one of tag or digest. A missing registry is
//! `docker.io`, a single-component Docker Hub name is under `library/`, a missing tag is `latest`, and of a reference
//! with tag *and* digest only the digest counts.

use std::fmt;

use types::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: Box<str>,
    repository: Box<str>,
    selector: Selector,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Selector {
    Tag(Box<str>),
    Digest(Digest),
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is nothing to parse.
    #[error("the reference is empty")]
    Empty,
    /// The registry part is not `host[:port]`.
    #[error("{0:?} is not a registry host")]
    Registry(String),
    /// A component of the repository has characters it must not have.
    #[error(
        "{0:?} is not a repository name: components are lowercase letters and digits, joined by '.', '_', '__' or '-'"
    )]
    Repository(String),
    /// The name is longer than registries accept.
    #[error("the name is longer than {MAX_NAME} characters")]
    TooLong,
    /// The part after the last `:` is not a tag.
    #[error("{0:?} is not a tag")]
    Tag(String),
    /// The part after `@` is not a digest.
    #[error("the digest is malformed")]
    Digest(#[source] DigestError),
    /// 64 hexadecimal characters name an image id, never a repository.
    #[error("64 hexadecimal characters are an image id, not a name")]
    LooksLikeId,
}

impl Reference {
    /// Parses and normalises `text`.
    ///
    /// # Errors
    /// [`ReferenceError`] says which part is malformed.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = split_digest(text)?;
        let (name, tag) = split_tag(rest)?;
        if digest.is_none() && tag.is_none() && is_hex64(name) {
            return Err(ReferenceError::LooksLikeId);
        }
        let (registry, repository) = split_registry(name)?;
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        let selector = match digest {
            Some(digest) => Selector::Digest(digest),
            None => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).into()),
        };
        Ok(Self { registry: registry.into(), repository: repository.into(), selector })
    }

    /// The registry as the name says it, `docker.io` or `host[:port]`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, when the reference is not by digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.selector {
            Selector::Tag(tag) => Some(tag),
            Selector::Digest(_) => None,
        }
    }

    /// The digest, when the reference is by digest.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match &self.selector {
            Selector::Tag(_) => None,
            Selector::Digest(digest) => Some(digest),
        }
    }

    /// `registry/repository:tag`, what CRI lists as a repo tag.
    #[must_use]
    pub fn repo_tag(&self) -> Option<String> {
        self.tag().map(|tag| format!("{}/{}:{tag}", self.registry, self.repository))
    }

    /// `registry/repository@digest`, what CRI lists as a repo digest.
    #[must_use]
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }

    /// The last part of the manifest's path: the tag or the digest.
    #[must_use]
    pub fn selector(&self) -> &str {
        match &self.selector {
            Selector::Tag(tag) => tag,
            Selector::Digest(digest) => digest.as_str(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Selector::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

impl std::str::FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceError> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((name, digest)) => Ok((name, Some(digest.parse().map_err(ReferenceError::Digest)?))),
    }
}

/// A colon starts a tag only behind the last slash; before it, it starts a port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>), ReferenceError> {
    let last_slash = text.rfind('/').map_or(0, |at| at + 1);
    let (_, last) = text.split_at(last_slash);
    let Some(colon) = last.rfind(':') else {
        return Ok((text, None));
    };
    let (name, tag) = text.split_at(last_slash + colon);
    let tag = tag.trim_start_matches(':');
    if is_tag(tag) { Ok((name, Some(tag))) } else { Err(ReferenceError::Tag(tag.to_owned())) }
}

fn split_registry(name: &str) -> Result<(&str, String), ReferenceError> {
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if names_a_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !is_host(registry) {
        return Err(ReferenceError::Registry(registry.to_owned()));
    }
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if !path.split('/').all(is_component) {
        return Err(ReferenceError::Repository(path.to_owned()));
    }
    let implied_library = registry == DEFAULT_REGISTRY && !path.contains('/');
    Ok((registry, if implied_library { format!("library/{path}") } else { path.to_owned() }))
}

/// Docker's rule: the first component is a host when it could not be a user name.
fn names_a_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, port)) => {
            let good = !inside.is_empty() && inside.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            return good && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Alphanumeric runs joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = Vec::new();
    let mut seen_word = false;
    for byte in component.bytes() {
        if is_word(byte) {
            let joined = seen_word && is_separator(&separator);
            if !separator.is_empty() && !joined {
                return false;
            }
            separator.clear();
            seen_word = true;
        } else {
            separator.push(byte);
        }
    }
    seen_word && separator.is_empty()
}

fn is_separator(bytes: &[u8]) -> bool {
    matches!(bytes, b"." | b"_" | b"__") || bytes.iter().all(|&b| b == b'-')
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let first_is_word = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first_is_word
        && tag.len() <= MAX_TAG
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("127.0.0.1:5000/x__y/z-a--b.c:T_1", "127.0.0.1:5000/x__y/z-a--b.c:T_1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[fe80::1]/x", "[fe80::1]/x:latest"),
            ("MyHost/x", "MyHost/x:latest"),
        ];
        for (text, expected) in cases {
            assert_eq!(Reference::parse(text).map(|r| r.to_string()).as_deref(), Ok(expected), "{text}");
        }
        let both = Reference::parse(&format!("busybox:1@{digest}")).unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!((both.tag(), both.repo_tag()), (None, None));
    }

    #[test]
    fn refuses_what_no_registry_would_take() {
        let id = "0a".repeat(32);
        let long = "a/".repeat(200) + "a";
        let bad = [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "UPPER",
            "a//b",
            "a:",
            "a:-x",
            "a b",
            "a:b c",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a@",
            "a@sha256:1",
            "a@md5:00",
            "host:/x",
            "ho_st.x/a",
            "localhost:99999/a",
            "[::1/a",
            "[]/a",
            "http://a/b",
            "a:b:c",
            "é",
            "../etc",
            "a/../b",
            &id,
            &long,
            "Ünï/x",
            "a:\u{e9}",
        ];
        for text in bad {
            assert!(Reference::parse(text).is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn limits_are_exact() {
        let longest = format!("r.example/{}", "a".repeat(MAX_NAME - "r.example/".len()));
        assert!(Reference::parse(&longest).is_ok());
        assert_eq!(Reference::parse(&format!("{longest}a")), Err(ReferenceError::TooLong));
        let tag = "t".repeat(MAX_TAG);
        assert_eq!(Reference::parse(&format!("a:{tag}")).unwrap().tag(), Some(tag.as_str()));
        assert!(matches!(Reference::parse(&format!("a:{tag}t")), Err(ReferenceError::Tag(_))));
    }

    #[test]
    fn a_digest_counts_and_the_tag_beside_it_must_still_be_one() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let plain = Reference::parse(&format!("localhost:5000/x@{digest}")).unwrap();
        assert_eq!(Reference::parse(&format!("localhost:5000/x:1@{digest}")), Ok(plain.clone()));
        assert_eq!((plain.registry(), plain.repository()), ("localhost:5000", "x"));
        assert_eq!(plain.repo_digest(plain.digest().unwrap()), plain.to_string());
        for bad in ["x:-@", "x@sha256:zz", "x@@", "@", "X@"] {
            assert!(Reference::parse(&format!("{bad}{digest}")).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_the_grammar_allows_is_taken_apart_rightly(
            host in "([A-Za-z0-9]{1,8}\\.[a-z]{2,5}|localhost|[a-z]{1,5}:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}(/[a-z0-9]{1,6}){0,2}",
            tag in "([A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let first = path.split('/').next().unwrap_or_default();
            // Without a host the first component must not look like one.
            proptest::prop_assume!(!(host.is_empty() && path.contains('/') && names_a_host(first)));
            let name = if host.is_empty() { path.clone() } else { format!("{host}/{path}") };
            let text = if tag.is_empty() { name } else { format!("{name}:{tag}") };
            let reference = Reference::parse(&text).map_err(|error| {
                proptest::test_runner::TestCaseError::fail(format!("{text}: {error}"))
            })?;
            proptest::prop_assert_eq!(reference.tag(), Some(if tag.is_empty() { "latest" } else { &tag }));
            let registry = if host.is_empty() { "docker.io" } else { &host };
            proptest::prop_assert_eq!(reference.registry(), registry);
            let in_library = registry == "docker.io" && !path.contains('/');
            let repository = if in_library { format!("library/{path}") } else { path };
            proptest::prop_assert_eq!(reference.repository(), repository);
        }

        #[test]
        fn never_panics_and_printing_is_stable(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                let printed = reference.to_string();
                proptest::prop_assert_eq!(Reference::parse(&printed), Ok(reference));
            }
        }
    }
}
