//! Proxies by environment: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, in capitals or not.
//!
//! The rules are those of Go programs, because the same variables steer kubelet and other runtimes on the machine:
//! * loopback addresses and `localhost` are always reached directly;
//! * `NO_PROXY` holds, with commas between them, `*`, addresses, networks (`10.0.0.0/8`) and domains; `example.com`
//!   means its subdomains as well, `.example.com` and `*.example.com` mean those only; all but networks may have a port.
//!
//! A value that cannot be understood fails the pulls it would apply to; nothing is sent around a proxy by mistake.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;

use crate::hosts::is_loopback;

/// Which proxy to use for which server.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    http: Option<Result<Arc<Proxy>, ProxyError>>,
    https: Option<Result<Arc<Proxy>, ProxyError>>,
    exceptions: Vec<Exception>,
}

/// One proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    /// Without credentials.
    pub(super) uri: Uri,
    /// For the proxy itself.
    pub(super) authorization: Option<HeaderValue>,
}

/// A proxy's variable makes no sense. Its value may hold a password and is not shown.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{variable} is not the URL of a proxy that speaks http or https")]
pub(super) struct ProxyError {
    variable: &'static str,
}

/// What is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    Network(IpAddr, u32),
    Address(IpAddr, Option<u16>),
    /// The name, and whether it is meant itself beside its subdomains.
    Domain(String, bool, Option<u16>),
}

impl Proxies {
    pub(crate) fn from_environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let capitals = variable(name).filter(|value| !value.is_empty());
            capitals.or_else(|| variable(&name.to_ascii_lowercase())).filter(|value| !value.is_empty())
        };
        let proxy = |name: &'static str| {
            let parsed = Proxy::parse(&value(name)?).ok_or(ProxyError { variable: name });
            Some(parsed.map(Arc::new))
        };
        let exceptions = value("NO_PROXY").unwrap_or_default();
        let exceptions = exceptions.split(',').filter_map(|text| Exception::parse(text.trim())).collect();
        Self { http: proxy("HTTP_PROXY"), https: proxy("HTTPS_PROXY"), exceptions }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy on the way to `uri`, if there is one.
    pub(super) fn proxy_for(&self, uri: &Uri) -> Result<Option<Arc<Proxy>>, ProxyError> {
        let is_tls = uri.scheme_str() == Some("https");
        let configured = if is_tls { &self.https } else { &self.http };
        let Some(proxy) = configured else { return Ok(None) };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let is_local = uri.authority().is_some_and(|authority| is_loopback(authority.as_str()));
        if is_local || self.exceptions.iter().any(|exception| exception.covers(&host, port)) {
            return Ok(None);
        }
        proxy.clone().map(Some)
    }
}

impl Proxy {
    /// `[http[s]://][user[:password]@]host[:port]`
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme =
            Some(scheme.to_ascii_lowercase()).filter(|scheme| scheme == "http" || scheme == "https")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (credentials, place) = match authority.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, authority),
        };
        let uri: Uri = format!("{scheme}://{place}/").parse().ok()?;
        uri.host().filter(|host| !host.is_empty())?;
        let authorization = match credentials {
            Some(credentials) => Some(basic(credentials)?),
            None => None,
        };
        Some(Self { uri, authorization })
    }
}

fn basic(credentials: &str) -> Option<HeaderValue> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let pair = [decode(user)?, b":".to_vec(), decode(password)?].concat();
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        decoded.push(u8::from_str_radix(hex, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    Some(decoded)
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, length)) = text.split_once('/') {
            return Some(Self::Network(address.parse().ok()?, length.parse().ok()?));
        }
        if let Some(address) = as_address(&text) {
            return Some(Self::Address(address, None));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text.as_str(), None),
        };
        if let Some(address) = as_address(name) {
            return Some(Self::Address(address, port));
        }
        let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
        let domain = below.unwrap_or(name);
        (!domain.is_empty()).then(|| Self::Domain(domain.to_owned(), below.is_none(), port))
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        let is_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::Everything => true,
            Self::Network(network, length) => {
                as_address(host).is_some_and(|address| is_within(address, *network, *length))
            }
            Self::Address(address, wanted) => is_port(wanted) && as_address(host) == Some(*address),
            Self::Domain(domain, itself, wanted) => {
                let is_below =
                    || host.strip_suffix(domain.as_str()).is_some_and(|start| start.ends_with('.'));
                is_port(wanted) && ((*itself && host == domain) || is_below())
            }
        }
    }
}

fn as_address(text: &str) -> Option<IpAddr> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    inside.parse().ok()
}

fn is_within(address: IpAddr, network: IpAddr, length: u32) -> bool {
    let differ = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) if length <= 32 => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) if length <= 128 => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    differ >= length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        Proxies::new(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    fn chosen(proxies: &Proxies, uri: &str) -> Option<String> {
        proxies.proxy_for(&uri.parse().unwrap()).unwrap().map(|proxy| proxy.uri.to_string())
    }

    #[test]
    fn variables_count_by_scheme_and_in_both_cases() {
        let both = proxies(&[("HTTPS_PROXY", "p.example:3128"), ("http_proxy", "https://q.example")]);
        assert_eq!(chosen(&both, "https://r.example/v2").as_deref(), Some("http://p.example:3128/"));
        assert_eq!(chosen(&both, "http://r.example:5000").as_deref(), Some("https://q.example/"));
        for local in ["https://localhost:5000", "https://127.0.0.1", "https://[::1]:5000"] {
            assert_eq!(chosen(&both, local), None, "{local}");
        }
        let upper = proxies(&[("HTTPS_PROXY", "a"), ("https_proxy", "b")]);
        assert_eq!(chosen(&upper, "https://r").as_deref(), Some("http://a/"));
        assert!(proxies(&[("HTTPS_PROXY", ""), ("OTHER", "x")]).is_empty());
    }

    #[test]
    fn exceptions_are_those_of_go_programs() {
        let list = "a.example, .b.example,*.c.example:5000,10.0.0.0/8,192.0.2.1,192.0.2.2:80,fd00::/8,[fe80::1]:5,,/,x:y";
        let some = proxies(&[("HTTPS_PROXY", "p"), ("no_proxy", list)]);
        for (host, direct) in [
            ("a.example", true),
            ("A.Example:5000", true),
            ("sub.a.example", true),
            ("nota.example", false),
            ("b.example", false),
            ("sub.b.example", true),
            ("sub.c.example:5000", true),
            ("sub.c.example", false),
            ("10.200.0.1:5000", true),
            ("11.0.0.1", false),
            ("192.0.2.1:99", true),
            ("192.0.2.2", false),
            ("192.0.2.2:80", true),
            ("[fd12::1]:5000", true),
            ("[fe80::1]:5", true),
            ("[fe80::1]:6", false),
        ] {
            assert_eq!(chosen(&some, &format!("https://{host}/v2")).is_none(), direct, "{host}");
        }
        assert_eq!(chosen(&proxies(&[("HTTPS_PROXY", "p"), ("NO_PROXY", "*")]), "https://r"), None);
    }

    #[test]
    fn credentials_are_decoded_and_not_shown() {
        let some = proxies(&[("HTTPS_PROXY", "http://us%65r:hunter%32@p.example:3128/")]);
        let proxy = some.proxy_for(&"https://r".parse().unwrap()).unwrap().unwrap();
        assert_eq!(proxy.authorization.as_ref().unwrap(), "Basic dXNlcjpodW50ZXIy");
        assert_eq!(proxy.uri, "http://p.example:3128/");
        assert!(!format!("{some:?}").contains("hunter") && !format!("{some:?}").contains("dXNlcjpo"));
    }

    #[test]
    fn what_is_no_proxy_fails_what_it_would_apply_to() {
        for bad in ["socks5://p:1080", "http://", "http://u:%zz@p", "http://u:hunter2@p q"] {
            let some = proxies(&[("HTTPS_PROXY", bad), ("NO_PROXY", "direct.example")]);
            let error = some.proxy_for(&"https://r.example".parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("hunter2"), "{error}");
            assert_eq!(chosen(&some, "https://direct.example"), None);
        }
    }
}
