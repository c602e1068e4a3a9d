//! Connections to servers: directly, or by way of a proxy.
//!
//! To an HTTPS server a proxy makes a tunnel (`CONNECT`) and sees nothing but its name; TLS begins inside. For an HTTP
//! server it takes whole requests, which the client then writes with absolute URLs.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_service::Service;

use super::proxy::{Proxies, Proxy};
use super::tls::{Roots, client_config};
use crate::error::ImageError;
use crate::hosts::Trust;

const CONNECT_TIME: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 8 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Tcp = <HttpConnector as Service<Uri>>::Response;
type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Makes connections, before TLS with the server itself.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
    /// Speaks TLS with proxies whose URL asks for it.
    to_proxy: Option<HttpsConnector<HttpConnector>>,
}

/// A connection to a server or to its proxy.
pub(super) struct Stream {
    io: MaybeHttpsStream<Tcp>,
    /// The other end is a proxy that takes whole requests.
    is_proxy: bool,
}

impl Connector {
    pub(super) fn new(proxies: &Arc<Proxies>, roots: &Roots) -> Result<Self, ImageError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIME));
        let to_proxy = if proxies.is_empty() { None } else { Some(proxy_connector(tcp.clone(), roots)?) };
        Ok(Self { tcp, proxies: Arc::clone(proxies), to_proxy })
    }

    async fn connect(mut self, server: Uri) -> Result<Stream, BoxError> {
        let proxy = self.proxies.proxy_for(&server)?;
        let (Some(proxy), Some(mut to_proxy)) = (proxy, self.to_proxy) else {
            return Ok(Stream { io: self.tcp.call(server).await?.into(), is_proxy: false });
        };
        let io = to_proxy.call(proxy.uri.clone()).await?;
        if server.scheme_str() != Some("https") {
            return Ok(Stream { io, is_proxy: true });
        }
        Ok(Stream { io: tunnel(io, &server, &proxy).await?, is_proxy: false })
    }
}

fn proxy_connector(tcp: HttpConnector, roots: &Roots) -> Result<HttpsConnector<HttpConnector>, ImageError> {
    let tls = client_config(&Trust::default(), roots)?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

/// Asks the proxy for a tunnel to the server.
async fn tunnel(
    io: MaybeHttpsStream<Tcp>,
    server: &Uri,
    proxy: &Proxy,
) -> Result<MaybeHttpsStream<Tcp>, BoxError> {
    let place = format!("{}:{}", server.host().unwrap_or_default(), server.port_u16().unwrap_or(443));
    let mut question = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        question.extend([b"Proxy-Authorization: ", authorization.as_bytes(), b"\r\n"].concat());
    }
    question.extend(b"\r\n");
    let mut io = TokioIo::new(io);
    io.write_all(&question).await?;
    io.flush().await?;
    match status(&read_head(&mut io).await?) {
        Some(status) if status.starts_with('2') => Ok(io.into_inner()),
        Some(status) => Err(format!("the proxy answered {status}").into()),
        None => Err("the proxy does not answer as an HTTP proxy does".into()),
    }
}

/// Byte by byte: what follows the answer belongs to the server.
async fn read_head(io: &mut TokioIo<MaybeHttpsStream<Tcp>>) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_ANSWER {
        head.push(io.read_u8().await?);
    }
    Ok(head)
}

/// The three digits of an answer's first line.
fn status(head: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(head.split(|&b| b == b'\r').next()?).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let digits = rest.get(..3)?;
    let is_http = version.starts_with("HTTP/1.") && digits.bytes().all(|b| b.is_ascii_digit());
    (is_http && head.ends_with(b"\r\n\r\n")).then_some(digits)
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Boxed<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        Box::pin(self.clone().connect(server))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_proxy)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_answers_have_a_status() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some("200"));
        assert_eq!(status(b"HTTP/1.0 407 x\r\nA: b\r\n\r\n"), Some("407"));
        assert_eq!(status(b"HTTP/1.1 200\r\n\r\n"), Some("200"));
        for bad in [&b"HTTP/1.1 200 cut"[..], b"SSH-2.0-x y\r\n\r\n", b"HTTP/1.1 2\r\n\r\n", b"\r\n\r\n"] {
            assert_eq!(status(bad), None);
        }
    }
}
