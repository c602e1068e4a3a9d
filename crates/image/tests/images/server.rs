//! A small HTTP server that answers as a test tells it to, and remembers what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::builder::{Built, digest};

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where a range request wants to go on.
    pub(crate) fn offset(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Send nothing for so long after this many bytes of the body.
    pub(crate) stall: Option<(usize, Duration)>,
    /// Send nothing after this many bytes of the body as long as this is so.
    pub(crate) hold: Option<(usize, watch::Receiver<bool>)>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// An address that nobody listens at. Nobody else is given it as long as the socket is held.
pub(crate) fn dead_address() -> (String, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().to_string(), socket)
}

pub(crate) struct Server {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Request>>>,
    sent: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    /// Speaks TLS if it is given an acceptor.
    pub(crate) async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::new(Mutex::new(0));
        let (answer, log, count) = (Arc::new(answer), Arc::clone(&seen), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log, count) = (Arc::clone(&answer), Arc::clone(&log), Arc::clone(&count));
                let tls = tls.clone();
                tokio::spawn(async move {
                    drop(match tls {
                        None => serve(stream, &*answer, &log, &count).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &*answer, &log, &count).await,
                            Err(error) => Err(error),
                        },
                    });
                });
            }
        });
        Self { address, seen, sent, task }
    }

    /// Serves one image in every repository and under every tag.
    pub(crate) async fn of_image(image: Built) -> Self {
        let content = Content::new(&image);
        Self::start(move |request| content.reply(request)).await
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, part_of_path: &str) -> usize {
        self.requests().iter().filter(|request| request.path().contains(part_of_path)).count()
    }

    /// Bytes of all bodies sent.
    pub(crate) fn sent(&self) -> usize {
        *self.sent.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &(impl Fn(&Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Request>>,
    sent: &Mutex<usize>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(request) = read_request(&mut stream).await? else { return Ok(()) };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!(
        "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes()).await?;
    let until = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    let (first, pause) = reply.stall.unwrap_or((until, Duration::ZERO));
    let first = reply.hold.as_ref().map_or(first, |(at, _)| first.min(*at)).min(until);
    *sent.lock().unwrap() += first;
    stream.write_all(&reply.body[..first]).await?;
    stream.flush().await?;
    tokio::time::sleep(pause).await;
    if let Some((_, mut hold)) = reply.hold {
        hold.wait_for(|is_held| !is_held).await.ok();
    }
    *sent.lock().unwrap() += until - first;
    stream.write_all(&reply.body[first..until]).await?;
    stream.shutdown().await
}

async fn read_request(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { method, target, headers, body: String::from_utf8_lossy(&body).into_owned() }))
}

/// One image's manifest and blobs.
#[derive(Clone)]
pub(crate) struct Content {
    manifest: Vec<u8>,
    manifest_type: &'static str,
    blobs: HashMap<String, Vec<u8>>,
}

impl Content {
    pub(crate) fn new(image: &Built) -> Self {
        let blobs = image.blobs.iter().map(|blob| (digest(blob), blob.clone())).collect();
        Self { manifest: image.manifest.clone(), manifest_type: image.family.manifest(), blobs }
    }

    /// As a well-behaved registry answers, ranges included.
    pub(crate) fn reply(&self, request: &Request) -> Reply {
        if request.path().contains("/manifests/") {
            return Reply::ok(self.manifest.clone()).header("Content-Type", self.manifest_type);
        }
        let name = request.path().rsplit('/').next().unwrap_or_default();
        let Some(blob) = self.blobs.get(name) else { return Reply::new(404) };
        let offset = request.offset();
        let mut reply = Reply::ok(&blob[offset.min(blob.len())..]);
        if offset > 0 {
            reply.status = 206;
        }
        reply
    }
}
