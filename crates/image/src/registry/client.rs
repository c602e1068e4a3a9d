//! One server's HTTP client: redirects without credentials.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RANGE, USER_AGENT,
};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;

use super::connect::Connector;
use super::proxy::Proxies;
use super::tls::client_config;
use super::{Environment, Failure};
use crate::error::ImageError;
use crate::hosts::{Trust, is_loopback};

const MAX_REDIRECTS: usize = 10;
const AGENT: &str = concat!("crimson/", env!("CARGO_PKG_VERSION"));

#[derive(Clone)]
pub(super) struct Client {
    http: HyperClient<HttpsConnector<Connector>, Full<Bytes>>,
    proxies: Arc<Proxies>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    pub(super) fn new(trust: &Trust, environment: &Environment) -> Result<Self, ImageError> {
        let Environment { roots, proxies, .. } = environment;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(trust, roots)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(proxies, roots)?);
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        Ok(Self { http, proxies: Arc::clone(proxies) })
    }

    /// GET, following redirects. Another server than the first is told what is wanted, and nothing else.
    pub(super) async fn follow(
        &self,
        url: &str,
        mut headers: HeaderMap,
    ) -> Result<Response<Incoming>, Failure> {
        let mut uri: Uri = parse_uri(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::GET, uri.clone(), headers.clone(), Bytes::new()).await?;
            let Some(target) = redirect_target(&uri, &response)? else {
                return Ok(response);
            };
            if origin(&target) != origin(&uri) {
                headers = harmless(&headers);
            }
            uri = target;
        }
        Err(Failure::Protocol(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// POST of a form. Redirects are not followed: the form holds a secret.
    pub(super) async fn post_form(&self, url: &str, form: String) -> Result<Response<Incoming>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        self.send(Method::POST, parse_uri(url)?, headers, form.into()).await
    }

    /// One request of any kind. Redirects are not followed.
    pub(super) async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        self.send(method, parse_uri(url)?, headers, body).await
    }

    async fn send(
        &self,
        method: Method,
        uri: Uri,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        if let Some(authorization) = self.proxy_authorization(&uri) {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        self.http.request(request).await.map_err(|error| {
            let detail = types::error::chain(&error);
            if error.is_connect() { Failure::Unreachable(detail) } else { Failure::Unavailable(detail) }
        })
    }

    /// For the proxy that takes the whole request, as it does for HTTP only; it keeps the header to itself.
    fn proxy_authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let is_http = uri.scheme_str() == Some("http");
        let proxy = is_http.then(|| self.proxies.proxy_for(uri)).and_then(Result::ok).flatten();
        proxy.and_then(|proxy| proxy.authorization.clone())
    }
}

/// The headers that say what is wanted.
fn harmless(headers: &HeaderMap) -> HeaderMap {
    let known = [ACCEPT, RANGE].into_iter();
    known.filter_map(|name| headers.get(&name).map(|value| (name, value.clone()))).collect()
}

fn parse_uri(url: &str) -> Result<Uri, Failure> {
    url.parse().map_err(|_| Failure::Protocol(format!("{url:?} is not a URL")))
}

/// Scheme, host and port: who is at the other end.
fn origin(uri: &Uri) -> (Option<&str>, Option<&str>, Option<u16>) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (uri.scheme_str(), uri.host(), uri.port_u16().or(Some(default)))
}

/// Where the answer sends us; a way from HTTPS to HTTP is taken to loopback addresses only.
fn redirect_target(from: &Uri, response: &Response<Incoming>) -> Result<Option<Uri>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| Failure::Protocol("a redirect without a target".to_owned()))?;
    safe_target(from, location).map(Some)
}

/// Where an answer of `url` sends us.
pub(super) fn target(url: &str, location: &str) -> Result<String, Failure> {
    safe_target(&parse_uri(url)?, location).map(|target| target.to_string())
}

pub(super) fn is_same_origin(one: &str, other: &str) -> bool {
    matches!((parse_uri(one), parse_uri(other)), (Ok(one), Ok(other)) if origin(&one) == origin(&other))
}

fn safe_target(from: &Uri, location: &str) -> Result<Uri, Failure> {
    let target = absolute(from, location)?;
    let downgrade = from.scheme_str() == Some("https") && target.scheme_str() != Some("https");
    let local = target.authority().is_some_and(|authority| is_loopback(authority.as_str()));
    if downgrade && !local {
        return Err(Failure::Protocol("a redirect from HTTPS to HTTP".to_owned()));
    }
    Ok(target)
}

fn absolute(from: &Uri, location: &str) -> Result<Uri, Failure> {
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    if location.starts_with("http://") || location.starts_with("https://") {
        parse_uri(location)
    } else if location.starts_with("//") {
        parse_uri(&format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        parse_uri(&format!("{scheme}://{authority}{location}"))
    } else {
        Err(Failure::Protocol(format!("a redirect to {location:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(same("https://a/x", "https://a:443/y"));
        assert!(!same("https://a/x", "http://a/x"));
        assert!(!same("https://a/x", "https://a.b/x"));
        assert!(!same("http://a:1/", "http://a:2/"));
    }

    #[test]
    fn relative_redirects_stay_on_the_server() {
        let from: Uri = "https://a:5/b".parse().unwrap();
        assert_eq!(absolute(&from, "/c?d").unwrap().to_string(), "https://a:5/c?d");
        assert_eq!(absolute(&from, "//x/c").unwrap().to_string(), "https://x/c");
        assert!(absolute(&from, "ftp://x").is_err());
    }
}
