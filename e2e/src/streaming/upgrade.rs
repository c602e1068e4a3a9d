//! The HTTP exchange before a session: dial, ask, and take over the connection or read why not.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Protocol;
use crate::{Machine, Result, patience};

/// The key of RFC 6455's example, whose answer is known too.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// No answer of a server has a longer head.
const HEAD_LIMIT: usize = 16 << 10;

/// From where connections are made.
#[derive(Debug, Clone)]
pub struct Dialer(Option<Arc<Machine>>);

/// A connection of one's own, after the upgrade.
pub struct Pipe {
    /// What comes from the server.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What goes to it.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// What a server has answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body of a refusal.
    pub body: String,
    /// The connection, if it was upgraded.
    pub pipe: Option<Pipe>,
}

impl Dialer {
    /// From inside a machine's network.
    #[must_use]
    pub fn on(machine: &Arc<Machine>) -> Self {
        Self(Some(Arc::clone(machine)))
    }

    /// From where this program runs.
    #[must_use]
    pub fn here() -> Self {
        Self(None)
    }

    async fn dial(&self, address: &str) -> Result<TcpStream> {
        let Some(machine) = &self.0 else {
            return TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"));
        };
        let target = address.to_owned();
        let stream = machine.in_network(move || std::net::TcpStream::connect(target)).await?;
        let stream = stream.with_context(|| format!("connecting to {address}"))?;
        stream.set_nonblocking(true)?;
        Ok(TcpStream::from_std(stream)?)
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

impl Pipe {
    /// Waits until the server has closed the connection; gives what it sent before.
    pub async fn closed(&mut self) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let end = timeout(patience(10), self.reader.read_to_end(&mut rest)).await;
        drop(end.context("the server leaves the connection open")?);
        Ok(rest)
    }
}

impl Answer {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The connection, or the refusal as an error.
    pub fn upgraded(self) -> Result<Pipe> {
        let Self { status, body, pipe, .. } = self;
        pipe.with_context(|| format!("refused with {status}: {}", body.trim_end()))
    }
}

/// The headers with which a protocol is asked for, and the method.
#[must_use]
pub fn offer(protocol: Protocol) -> (&'static str, Vec<(&'static str, String)>) {
    let mut headers = vec![("Connection", "Upgrade".to_owned())];
    let named = |header| (!protocol.name().is_empty()).then(|| (header, protocol.name().to_owned()));
    match protocol {
        Protocol::Spdy(_) => {
            headers.push(("Upgrade", "SPDY/3.1".to_owned()));
            headers.extend(named("X-Stream-Protocol-Version"));
            ("POST", headers)
        }
        Protocol::WebSocket(_) | Protocol::Tunnelled => {
            headers.push(("Upgrade", "websocket".to_owned()));
            headers.push(("Sec-WebSocket-Version", "13".to_owned()));
            headers.push(("Sec-WebSocket-Key", KEY.to_owned()));
            headers.extend(named("Sec-WebSocket-Protocol"));
            ("GET", headers)
        }
    }
}

/// Sends a request with these headers.
pub async fn ask(
    dialer: &Dialer,
    url: &str,
    method: &str,
    headers: &[(&'static str, String)],
) -> Result<Answer> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not plain HTTP"))?;
    let (address, path) = rest.split_once('/').with_context(|| format!("{url} has no path"))?;
    let stream = dialer.dial(address).await?;
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut request = format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n");
    request.extend(headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
    writer.write_all(format!("{request}\r\n").as_bytes()).await?;
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let answer = timeout(patience(30), head(&mut reader)).await.context("no answer to the request")??;
    if answer.status == 101 {
        let pipe = Pipe { reader: Box::new(reader), writer: Box::new(writer) };
        return Ok(Answer { pipe: Some(pipe), ..answer });
    }
    let length = answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    let body = timeout(patience(30), body(&mut reader, length)).await.context("no body")??;
    Ok(Answer { body, ..answer })
}

/// Upgrades to a protocol, or says what the server has against it.
pub(super) async fn upgrade(dialer: &Dialer, url: &str, protocol: Protocol) -> Result<Pipe> {
    let (method, headers) = offer(protocol);
    let answer = ask(dialer, url, method, &headers).await?;
    let header = match protocol {
        Protocol::Spdy(_) => "x-stream-protocol-version",
        Protocol::WebSocket(_) | Protocol::Tunnelled => "sec-websocket-protocol",
    };
    if answer.status == 101 {
        let chosen = answer.header(header).unwrap_or_default();
        // Who asks for no version of SPDY's channels is told the first one by some servers, and nothing by others.
        if chosen != protocol.name() && !protocol.name().is_empty() {
            bail!("asked for {protocol}, got {chosen:?}");
        }
        if header == "sec-websocket-protocol" && answer.header("sec-websocket-accept") != Some(ACCEPT) {
            bail!("a wrong Sec-WebSocket-Accept: {:?}", answer.headers);
        }
    }
    answer.upgraded().with_context(|| protocol.to_string())
}

async fn head(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Answer> {
    let mut lines = Vec::new();
    let mut size = 0;
    loop {
        let mut line = String::new();
        size += reader.read_line(&mut line).await?;
        if line.is_empty() || size > HEAD_LIMIT {
            bail!("the head of the answer ends early or never: {lines:?}");
        }
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.with_context(|| format!("no status in {lines:?}"))?;
    let parse = |line: &String| {
        line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.iter().skip(1).filter_map(parse).collect();
    Ok(Answer { status, headers, body: String::new(), pipe: None })
}

async fn body(reader: &mut (impl AsyncRead + Unpin), length: u64) -> Result<String> {
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body).await?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}
