//! The kinds of values a setting can have, each refusing at parse time what could not be used.
//!
//! Promises: a value of a type from here is valid by itself, whether it came from a file or a flag, and is written back
//! as it would be read. What two values mean together is checked in `resolve`.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a text or number is not a value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A path that depends on the working directory or climbs.
    #[error("{0:?} is not an absolute path without \"..\"")]
    Path(String),
    /// A number outside its range.
    #[error("{value} is outside the range {min} to {max}")]
    Range {
        /// The number.
        value: i64,
        /// The smallest that is allowed.
        min: i64,
        /// The largest that is allowed.
        max: i64,
    },
    /// An address that is not `HOST:PORT`.
    #[error("{0:?} is not of the form HOST:PORT, with an IPv6 address in brackets")]
    Listen(String),
    /// An endpoint that is not one of a collector.
    #[error("{0:?} is not of the form HOST:PORT, http://HOST:PORT or https://HOST:PORT")]
    Collector(String),
    /// An address that is not `IP:PORT`.
    #[error("{0:?} is not of the form IP:PORT, with an IPv6 address in brackets")]
    Socket(String),
    /// A limit that is not `NAME=SOFT:HARD`.
    #[error(
        "{0:?} is not of the form NAME=SOFT:HARD, with the name of a resource limit and SOFT not above HARD"
    )]
    Ulimit(String),
    /// A seccomp profile that no request could name either.
    #[error("{0:?} is not \"runtime/default\", \"unconfined\", or \"localhost/\" with an absolute path")]
    Seccomp(String),
    /// A handler that is not `NAME=PATH`.
    #[error("{0:?} is not of the form NAME=PATH")]
    Handler(String),
    /// A handler name that a RuntimeClass could not carry.
    #[error(
        "{0:?} is not a handler name: up to 63 lowercase letters, digits and \"-\", a letter or digit at both ends"
    )]
    HandlerName(String),
}

/// An absolute path without `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    pub(super) fn literal(path: &str) -> Self {
        Self(PathBuf::from(path))
    }

    /// The path.
    #[must_use]
    pub fn into_path(self) -> PathBuf {
        self.0
    }
}

impl FromStr for AbsolutePath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let path = Path::new(text);
        let climbs = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || climbs || text.contains('\0') {
            return Err(ValueError::Path(text.to_owned()));
        }
        // Taken apart and put together again, so that `//`, `/./` and a slash at the end make no difference later.
        Ok(Self(path.components().collect()))
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

/// An absolute path, or the empty text for none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OptionalPath(Option<AbsolutePath>);

impl OptionalPath {
    /// The path, if there is one.
    #[must_use]
    pub fn into_path(self) -> Option<PathBuf> {
        self.0.map(AbsolutePath::into_path)
    }
}

impl FromStr for OptionalPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|path| Self(Some(path))) }
    }
}

impl TryFrom<String> for OptionalPath {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<OptionalPath> for String {
    fn from(path: OptionalPath) -> String {
        path.into_path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// Where to listen: `HOST:PORT`, the host being a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress(String);

impl ListenAddress {
    pub(super) fn literal(address: &str) -> Self {
        Self(address.to_owned())
    }
}

impl FromStr for ListenAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let is_address = text.parse::<std::net::SocketAddr>().is_ok();
        let is_name = text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port));
        if is_address || is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::Listen(text.to_owned()))
        }
    }
}

fn is_host(host: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !host.is_empty() && host.len() <= 253 && host.bytes().all(inner)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

impl TryFrom<String> for ListenAddress {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> String {
        address.0
    }
}

/// Where a collector listens: `HOST:PORT`, alone or as a URL, or the empty text for none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CollectorAddress(String);

impl CollectorAddress {
    /// Its URL, if there is one.
    #[must_use]
    pub fn into_url(self) -> Option<String> {
        match self.0 {
            none if none.is_empty() => None,
            url if url.contains("://") => Some(url),
            address => Some(format!("http://{address}")),
        }
    }
}

impl TryFrom<String> for CollectorAddress {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let address = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let address = address.map_or(text.as_str(), |rest| rest.strip_suffix('/').unwrap_or(rest));
        if text.is_empty() || address.parse::<ListenAddress>().is_ok() {
            Ok(Self(text))
        } else {
            Err(ValueError::Collector(text))
        }
    }
}

impl From<CollectorAddress> for String {
    fn from(address: CollectorAddress) -> String {
        address.0
    }
}

/// Where to listen, as an IP address and a port without names to look up, or the empty text for nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OptionalSocket(Option<SocketAddr>);

impl OptionalSocket {
    /// The address, if there is one.
    #[must_use]
    pub fn into_address(self) -> Option<SocketAddr> {
        self.0
    }
}

impl TryFrom<String> for OptionalSocket {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(|_| ValueError::Socket(text))
    }
}

impl From<OptionalSocket> for String {
    fn from(address: OptionalSocket) -> String {
        address.0.map(|address| address.to_string()).unwrap_or_default()
    }
}

/// A seccomp profile, or the empty text for none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SeccompProfile(String);

impl SeccompProfile {
    /// The profile as the older field of CRI has it.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

impl TryFrom<String> for SeccompProfile {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, ValueError> {
        if spec::seccomp::is_profile(&text) { Ok(Self(text)) } else { Err(ValueError::Seccomp(text)) }
    }
}

impl From<SeccompProfile> for String {
    fn from(profile: SeccompProfile) -> String {
        profile.0
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Whole<const MIN: i64, const MAX: i64>(i64);

/// A time span of one second to one day, in whole seconds.
pub type Seconds = Whole<1, 86_400>;

impl<const MIN: i64, const MAX: i64> Whole<MIN, MAX> {
    /// A number known when the program is compiled; use it in a `const` block, where a wrong one fails the build.
    pub(super) const fn literal(value: i64) -> Self {
        assert!(value >= MIN && value <= MAX);
        Self(value)
    }

    /// The number; negative ranges are not used.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.unsigned_abs()
    }

    /// The number as a size in memory.
    #[must_use]
    pub fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Seconds {
    /// The time span.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.get())
    }
}

impl<const MIN: i64, const MAX: i64> TryFrom<i64> for Whole<MIN, MAX> {
    type Error = ValueError;

    fn try_from(value: i64) -> Result<Self, ValueError> {
        if (MIN..=MAX).contains(&value) {
            Ok(Self(value))
        } else {
            Err(ValueError::Range { value, min: MIN, max: MAX })
        }
    }
}

impl<const MIN: i64, const MAX: i64> From<Whole<MIN, MAX>> for i64 {
    fn from(number: Whole<MIN, MAX>) -> i64 {
        number.0
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What an operator must act on.
    Error,
    /// And what was recovered from.
    Warn,
    /// And each step in the life of pods and images.
    Info,
    /// And what developers need.
    Debug,
    /// And everything, that of libraries included.
    Trace,
}

/// In which form log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line of text, for people.
    Text,
    /// One JSON object on a line, for programs.
    Json,
}

/// Who creates the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where it is the init system, else the daemon itself.
    Auto,
    /// systemd, through transient scopes.
    Systemd,
    /// The daemon itself, in the cgroup file system.
    Cgroupfs,
}

/// What becomes of volumes that images declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVolumes {
    /// Each is a directory of the container's own, with a copy of what the image has there.
    Bind,
    /// Each is a directory of the writable layer.
    Mkdir,
    /// Nothing.
    Ignore,
}

/// The name of a runtime handler, as a RuntimeClass gives it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HandlerName(String);

impl HandlerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HandlerName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let dashed = text.starts_with('-') || text.ends_with('-');
        if text.is_empty() || text.len() > 63 || dashed || !text.bytes().all(inner) {
            return Err(ValueError::HandlerName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for HandlerName {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<HandlerName> for String {
    fn from(name: HandlerName) -> String {
        name.0
    }
}

/// A runtime handler as a flag gives it: `NAME=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerFlag {
    /// Name of the handler.
    pub name: HandlerName,
    /// Program of its OCI runtime.
    pub path: AbsolutePath,
}

impl FromStr for HandlerFlag {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, path) = text.split_once('=').ok_or_else(|| ValueError::Handler(text.to_owned()))?;
        Ok(Self { name: name.parse()?, path: path.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_come_out_in_one_form() {
        let path: AbsolutePath = "//run/./crimson/".parse().unwrap();
        assert_eq!(path.into_path().to_str(), Some("/run/crimson"));
        for bad in ["", "run", "./run", "/run/../etc", "/a\0b"] {
            assert!(bad.parse::<AbsolutePath>().is_err(), "{bad:?} must be refused");
        }
        assert_eq!("".parse::<OptionalPath>().unwrap().into_path(), None);
        assert!("relative".parse::<OptionalPath>().is_err());
    }

    #[test]
    fn an_address_to_listen_on_is_a_host_and_a_port() {
        for good in ["127.0.0.1:0", "[::1]:10010", "localhost:0", "node-1.example.test:65535"] {
            assert_eq!(String::from(good.parse::<ListenAddress>().unwrap()), good);
        }
        for bad in
            ["", ":0", "127.0.0.1", "::1:0", "[::1]", "[::1:0", "a b:1", "a:65536", "a:+1", "a:", "a/b:1"]
        {
            assert!(bad.parse::<ListenAddress>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_socket_is_an_ip_address_and_a_port_or_nothing() {
        for good in ["", "127.0.0.1:9110", "[::1]:0"] {
            assert_eq!(String::from(OptionalSocket::try_from(good.to_owned()).unwrap()), good);
        }
        for bad in ["localhost:1", "127.0.0.1", ":9110", "::1:9110x"] {
            assert!(OptionalSocket::try_from(bad.to_owned()).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_collector_is_an_address_or_its_url_or_nothing() {
        for good in ["", "localhost:4317", "[::1]:4317", "http://10.0.0.1:4317/", "https://otel.test:443"] {
            assert_eq!(String::from(CollectorAddress::try_from(good.to_owned()).unwrap()), good);
        }
        for bad in
            ["localhost", "http://", "https://otel.test", "unix:///run/otel", "http://a:1/v1/traces", "a b:1"]
        {
            assert!(CollectorAddress::try_from(bad.to_owned()).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn numbers_keep_to_their_range() {
        assert_eq!(Seconds::try_from(240).unwrap().duration(), Duration::from_secs(240));
        for bad in [-1, 0, 86_401] {
            let error = Seconds::try_from(bad).unwrap_err();
            assert_eq!(error, ValueError::Range { value: bad, min: 1, max: 86_400 });
        }
    }

    #[test]
    fn handlers_are_a_label_and_an_absolute_path() {
        let handler: HandlerFlag = "kata-fc=/opt/kata/bin/kata=runtime".parse().unwrap();
        assert_eq!(handler.name.as_str(), "kata-fc");
        assert_eq!(handler.path.into_path().to_str(), Some("/opt/kata/bin/kata=runtime"));
        for bad in ["runc", "=/usr/bin/runc", "Runc=/usr/bin/runc", "-a=/b", "runc=runc", "a.b=/c"] {
            assert!(bad.parse::<HandlerFlag>().is_err(), "{bad:?} must be refused");
        }
    }
}
