//! Which servers stand for a registry: containerd's `certs.d/<host>/hosts.toml`, or the registry itself.
//!
//! A server that is listed twice (as `server` and as a host, the usual way to give a registry an authority of its own)
//! is one server, with the trust and the headers of its host entry.
//!
//! Read anew for every pull, so that a change needs no restart. Keys that this server does not know are skipped with a
//! debug line: the file may serve containerd on the same machine as well.

mod options;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hyper::header::HeaderMap;
use toml::{Table, Value};

use crate::error::ImageError;
pub(crate) use options::Identity;
use options::{headers, identities, strings};

const FILE: &str = "hosts.toml";
const API: &str = "/v2";

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) tls: bool,
    /// `host[:port]`.
    pub(crate) authority: String,
    /// What precedes the repository in every path, `/v2` as a rule.
    pub(crate) prefix: String,
    /// Serves blobs and manifests by digest.
    pub(crate) pull: bool,
    /// May say which digest a tag means.
    pub(crate) resolve: bool,
    pub(crate) trust: Trust,
    /// Sent with every request to this server, and to no other.
    pub(crate) headers: HeaderMap,
    /// Is the registry itself, so that credentials for the registry are for this server.
    pub(crate) is_registry: bool,
}

/// Whom to believe to be the server, and who we are to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// Files with authorities that count beside the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Believe anyone.
    pub(crate) skip_verify: bool,
    /// Certificates to show when the server asks for one.
    pub(crate) client: Vec<Identity>,
}

/// What is wrong with a `hosts.toml`.
#[derive(Debug, thiserror::Error)]
enum HostsError {
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    #[error("the file is not valid TOML")]
    Toml(#[source] toml::de::Error),
    #[error("{0:?} is not a registry's URL")]
    Url(String),
    #[error("{key} of {host:?} has the wrong type")]
    Type { key: &'static str, host: String },
}

/// The servers for a registry, in the order to try them: mirrors, then the registry.
pub(crate) fn endpoints(registry: &str, config_dir: Option<&Path>) -> Result<Vec<Endpoint>, ImageError> {
    let default = Endpoint::of_registry(registry);
    let Some((path, text)) = config_dir.and_then(|dir| find(dir, registry)) else {
        return Ok(vec![default]);
    };
    let parsed = text
        .map_err(HostsError::Read)
        .and_then(|text| parse(&text, path.parent().unwrap_or(Path::new("/")), registry, default));
    parsed.map_err(|source| ImageError::Hosts { path, source: Box::new(source) })
}

/// The first `hosts.toml` among `host_port_`, `host:port` and `_default`.
fn find(config_dir: &Path, registry: &str) -> Option<(PathBuf, io::Result<String>)> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port.into_iter().chain([registry.to_owned(), "_default".to_owned()]);
    names.map(|name| config_dir.join(name).join(FILE)).find_map(|path| match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some((path, result)),
    })
}

fn parse(
    text: &str,
    directory: &Path,
    registry: &str,
    default: Endpoint,
) -> Result<Vec<Endpoint>, HostsError> {
    let mut table: Table = toml::from_str(text).map_err(HostsError::Toml)?;
    let mut endpoints = Vec::new();
    if let Some(Value::Table(hosts)) = table.remove("host") {
        for (url, options) in hosts {
            let Value::Table(options) = options else {
                return Err(HostsError::Type { key: "host", host: url });
            };
            let mut endpoint = Endpoint::parse(&url, registry)?;
            endpoint.apply(&url, options, directory)?;
            endpoints.push(endpoint);
        }
    }
    let (mut server, is_named) = match table.remove("server") {
        None => (default, false),
        Some(Value::String(url)) if url.is_empty() => (default, false),
        Some(Value::String(url)) => (Endpoint::parse(&url, registry)?, true),
        Some(_) => return Err(HostsError::Type { key: "server", host: registry.to_owned() }),
    };
    server.is_registry = true;
    server.apply(registry, table, directory)?;
    Ok(with_server(endpoints, server, is_named))
}

/// Adds the registry behind the listed hosts, or to the one that already is it.
fn with_server(mut hosts: Vec<Endpoint>, server: Endpoint, is_named: bool) -> Vec<Endpoint> {
    // Without `server` the scheme is a guess, and a host entry knows better.
    let is_it = |host: &&mut Endpoint| host.is_same_as(&server) && (host.tls == server.tls || !is_named);
    match hosts.iter_mut().find(is_it) {
        Some(host) => host.absorb(server),
        None => hosts.push(server),
    }
    hosts
}

impl Endpoint {
    /// The registry as its name says: HTTPS, but for loopback addresses, where a registry without TLS is usual.
    fn of_registry(registry: &str) -> Self {
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        Self {
            tls: !is_loopback(authority) || authority.ends_with(":443"),
            authority: authority.to_owned(),
            prefix: API.to_owned(),
            pull: true,
            resolve: true,
            trust: Trust::default(),
            headers: HeaderMap::new(),
            is_registry: true,
        }
    }

    /// A server that nothing is configured for.
    pub(crate) fn foreign(authority: &str) -> Self {
        Self { tls: true, is_registry: false, ..Self::of_registry(authority) }
    }

    fn parse(url: &str, registry: &str) -> Result<Self, HostsError> {
        let (tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(HostsError::Url(url.to_owned())),
            None => (true, url),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let valid = authority.parse::<hyper::http::uri::Authority>().is_ok() && !authority.contains('@');
        if !valid || path.contains(['?', '#']) {
            return Err(HostsError::Url(url.to_owned()));
        }
        let own = Self::of_registry(registry);
        let path = path.trim_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self {
            tls,
            authority: authority.to_owned(),
            prefix,
            is_registry: own.authority == authority,
            ..own
        })
    }

    /// Whether both are one server, by whatever scheme.
    fn is_same_as(&self, other: &Self) -> bool {
        let place = |endpoint: &Self| {
            let port = if endpoint.tls { ":443" } else { ":80" };
            endpoint.authority.trim_end_matches(port).to_ascii_lowercase()
        };
        place(self) == place(other) && self.prefix == other.prefix
    }

    /// Takes over what the other entry of the same server allows; what is said here about trust counts.
    fn absorb(&mut self, server: Self) {
        self.is_registry = true;
        self.pull |= server.pull;
        self.resolve |= server.resolve;
        if self.trust.ca.is_empty() && !self.trust.skip_verify {
            (self.trust.ca, self.trust.skip_verify) = (server.trust.ca, server.trust.skip_verify);
        }
        if self.trust.client.is_empty() {
            self.trust.client = server.trust.client;
        }
        if self.headers.is_empty() {
            self.headers = server.headers;
        }
    }

    fn apply(&mut self, host: &str, options: Table, directory: &Path) -> Result<(), HostsError> {
        let wrong = |key| HostsError::Type { key, host: host.to_owned() };
        let mut override_path = false;
        for (key, value) in options {
            match key.as_str() {
                "capabilities" => {
                    let names = strings(&value).ok_or_else(|| wrong("capabilities"))?;
                    self.pull = names.contains(&"pull");
                    self.resolve = names.contains(&"resolve");
                }
                "skip_verify" => {
                    self.trust.skip_verify = value.as_bool().ok_or_else(|| wrong("skip_verify"))?
                }
                "override_path" => override_path = value.as_bool().ok_or_else(|| wrong("override_path"))?,
                "ca" => {
                    let paths = strings(&value).ok_or_else(|| wrong("ca"))?;
                    self.trust.ca = paths.into_iter().map(|path| directory.join(path)).collect();
                }
                "client" => {
                    self.trust.client = identities(&value, directory).ok_or_else(|| wrong("client"))?;
                }
                "header" => self.headers = headers(&value).ok_or_else(|| wrong("header"))?,
                _ => {
                    tracing::debug!(
                        op = "hosts",
                        step = key,
                        "a key of hosts.toml is not supported and is skipped"
                    )
                }
            }
        }
        if !override_path && !self.prefix.ends_with(API) {
            self.prefix.push_str(API);
        }
        Ok(())
    }
}

/// Whether `host[:port]` is this machine's loopback interface.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn read(text: &str) -> Result<Vec<Endpoint>, HostsError> {
        parse(text, Path::new("/certs"), "r.example:5000", Endpoint::of_registry("r.example:5000"))
    }

    fn urls(endpoints: &[Endpoint]) -> Vec<String> {
        let url =
            |e: &Endpoint| format!("{}://{}{}", if e.tls { "https" } else { "http" }, e.authority, e.prefix);
        endpoints.iter().map(url).collect()
    }

    #[test]
    fn only_loopback_registries_speak_http_unasked() {
        for (registry, url) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("r.example", "https://r.example/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.9:5000", "http://127.0.0.9:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost:443", "https://localhost:443/v2"),
            ("localhost.evil.example", "https://localhost.evil.example/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ] {
            assert_eq!(urls(&endpoints(registry, None).unwrap()), [url]);
        }
    }

    #[test]
    fn mirrors_come_in_the_files_order_and_then_the_server() {
        let endpoints = read(
            r#"
            server = "https://origin.example"
            skip_verify = true
            [host."https://z.example/path"]
              capabilities = ["pull"]
              override_path = true
            [host."http://a.example:80"]
              ca = "ca.crt"
              some_new_key = 1
              [host."http://a.example:80".header]
                x = ["y"]
            [host."r.example:5000/v2/"]
            "#,
        )
        .unwrap();
        assert_eq!(
            urls(&endpoints),
            [
                "https://z.example/path",
                "http://a.example:80/v2",
                "https://r.example:5000/v2",
                "https://origin.example/v2"
            ]
        );
        let facts: Vec<_> = endpoints.iter().map(|e| (e.pull, e.resolve, e.is_registry)).collect();
        assert_eq!(
            facts,
            [(true, false, false), (true, true, false), (true, true, true), (true, true, true)]
        );
        assert_eq!(endpoints[1].trust.ca, [PathBuf::from("/certs/ca.crt")]);
        assert!(endpoints[3].trust.skip_verify && !endpoints[0].trust.skip_verify);
        assert_eq!(
            (&endpoints[1].headers["x"], endpoints[2].headers.len()),
            (&HeaderValue::from_static("y"), 0)
        );
    }

    #[test]
    fn a_server_listed_twice_is_one() {
        for (text, url) in [
            ("server = \"https://h.example\"\n[host.\"https://H.example:443\"]", "https://H.example:443/v2"),
            ("[host.\"https://r.example:5000\"]", "https://r.example:5000/v2"),
            ("[host.\"http://r.example:5000\"]", "http://r.example:5000/v2"),
        ] {
            let [only] = read(&format!("{text}\nca = \"ca.crt\"\ncapabilities = [\"pull\"]"))
                .unwrap()
                .try_into()
                .unwrap();
            assert_eq!(urls(std::slice::from_ref(&only)), [url]);
            assert!(only.is_registry && only.resolve, "{text}");
            assert_eq!(only.trust.ca, [PathBuf::from("/certs/ca.crt")]);
        }
        let above = "server = \"https://h\"\nca = \"ca.crt\"\n[host.\"https://h\"]";
        assert_eq!(read(above).unwrap()[0].trust.ca, [PathBuf::from("/certs/ca.crt")]);
        for two in [
            "server = \"https://h\"\n[host.\"http://h\"]",
            "server = \"https://h\"\n[host.\"https://h/v2/mirror\"]\noverride_path = true",
            "server = \"https://h\"\n[host.\"https://h:5000\"]",
        ] {
            assert_eq!(read(two).unwrap().len(), 2, "{two}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for bad in [
            "server = 1",
            "server = \"ftp://x\"",
            "[host.\"https://a b\"]",
            "[host.\"https://user@host\"]",
            "[host.\"https://a\"]\nca = 3",
            "client = [[]]",
            "header = 1",
            "host.x = 1",
            "skip_verify = \"yes\"",
            "= =",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_directory_may_be_named_in_three_ways() {
        let dir = tempfile::tempdir().unwrap();
        let first = || endpoints("r.example:5000", Some(dir.path())).unwrap().remove(0).authority;
        assert_eq!(first(), "r.example:5000");
        for (name, server) in [("_default", "c"), ("r.example:5000", "b"), ("r.example_5000_", "a")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(FILE), format!("server = \"https://{server}\"")).unwrap();
            assert_eq!(first(), server);
        }
        fs::write(dir.path().join("r.example_5000_").join(FILE), "server = ").unwrap();
        let error = endpoints("r.example:5000", Some(dir.path())).unwrap_err();
        assert!(error.to_string().contains("r.example_5000_/hosts.toml"), "{error}");
    }
}
