//! Port-forward: a tunnel with any number of connections, each a pair of streams.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::link::{Event, In, Link, Shared};
use super::{Dialer, Protocol};
use crate::{Result, patience};

const PATIENCE_SECONDS: u64 = 30;
/// Parts that wait for a reader: at least 8 MiB of a server that fills its frames.
const QUEUE: usize = 256;

/// One client's tunnel. Dropping it with all its connections cuts it.
pub struct Tunnel {
    out: Shared,
    routes: Routes,
    protocol: Protocol,
    next_id: AtomicU32,
    /// Over WebSocket the pairs are there from the beginning.
    fixed: Mutex<HashMap<u16, (Stream, Stream)>>,
    /// What was said in the end; there once the connection is closed.
    end: watch::Receiver<Option<String>>,
    _tasks: JoinSet<()>,
}

/// One forwarded connection.
pub struct Forwarded {
    out: Shared,
    data: Stream,
    error: Stream,
}

/// The way to the server of one connection, for another task.
#[derive(Clone)]
pub struct ForwardedInput {
    out: Shared,
    id: u32,
}

/// What comes on one stream.
struct Stream {
    id: u32,
    parts: mpsc::Receiver<Part>,
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Ended,
    Reset,
}

/// Where what comes on a stream belongs.
#[derive(Clone, Default)]
struct Routes(Arc<Mutex<HashMap<u32, mpsc::Sender<Part>>>>);

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarded").field("stream", &self.data.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for ForwardedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardedInput").field("stream", &self.id).finish_non_exhaustive()
    }
}

impl ForwardedInput {
    /// Sends bytes.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> Result {
        self.out.lock().await.data(self.id, bytes.as_ref(), false).await
    }

    /// Sends nothing more and goes on listening.
    pub async fn close(&self) -> Result {
        self.out.lock().await.data(self.id, &[], true).await
    }
}

impl Routes {
    fn add(&self, id: u32) -> Stream {
        let (sender, parts) = mpsc::channel(QUEUE);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        Stream { id, parts }
    }

    /// Nobody may listen any more: then it is dropped, and so is the way. Who listens slowly holds up the tunnel, as with
    /// the clients of Kubernetes.
    async fn deliver(&self, id: u32, part: Part) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let Some(sender) = sender else { return };
        if sender.send(part).await.is_err() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Tunnel {
    /// Upgrades. The ports are those that CRI was asked for; over WebSocket each of them is connected to once, and at once.
    pub async fn open(dialer: &Dialer, url: &str, protocol: Protocol, ports: &[u16]) -> Result<Self> {
        let Link { out, input, mut tasks } = Link::open(dialer, url, protocol).await?;
        let (routes, mut fixed) = (Routes::default(), HashMap::new());
        if matches!(protocol, Protocol::WebSocket(_)) {
            for (port, id) in ports.iter().zip((0..).step_by(2)) {
                fixed.insert(*port, (routes.add(id), routes.add(id + 1)));
            }
        }
        let (told, end) = watch::channel(None);
        tasks.spawn({
            let (out, routes) = (Arc::clone(&out), routes.clone());
            async move {
                let words = listen(input, &out, &routes).await.unwrap_or_else(|error| format!("{error:#}"));
                routes.close();
                told.send_replace(Some(words));
            }
        });
        let (next_id, fixed) = (AtomicU32::new(1), Mutex::new(fixed));
        Ok(Self { out, routes, protocol, next_id, fixed, end, _tasks: tasks })
    }

    /// A connection to a port of the pod.
    pub async fn connect(&self, port: u16) -> Result<Forwarded> {
        let out = Arc::clone(&self.out);
        if matches!(self.protocol, Protocol::WebSocket(_)) {
            let pair = self.fixed.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
            let (data, error) = pair.with_context(|| format!("port {port} is not there, or taken"))?;
            let mut connection = Forwarded { out, data, error };
            connection.is_introduced(port).await?;
            return Ok(connection);
        }
        // Ids have to come in their order.
        let mut sender = out.lock().await;
        let first = self.next_id.fetch_add(4, Ordering::SeqCst);
        let (error, data) = (self.routes.add(first), self.routes.add(first + 2));
        let headers = |kind: &str| {
            let request = ((first - 1) / 4).to_string();
            [("streamtype", kind.to_owned()), ("port", port.to_string()), ("requestid", request)]
        };
        sender.open(error.id, &headers("error")).await?;
        // Nothing is ever said to it.
        sender.data(error.id, &[], true).await?;
        sender.open(data.id, &headers("data")).await?;
        drop(sender);
        Ok(Forwarded { out, data, error })
    }

    /// Cuts the tunnel without a word.
    pub fn cut(self) {}

    /// Whether the server has closed it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Waits until the server has closed it; gives its last words.
    pub async fn closed(&self) -> Result<String> {
        let mut end = self.end.clone();
        let words = timeout(patience(PATIENCE_SECONDS), end.wait_for(Option::is_some)).await;
        Ok(words.context("the tunnel stays open")??.clone().unwrap_or_default())
    }
}

/// Hands out what comes, to the end of the connection.
async fn listen(mut input: In, out: &Shared, routes: &Routes) -> Result<String> {
    let mut words = String::new();
    while let Some(events) = input.next(out).await? {
        for event in events {
            match event {
                Event::Data(id, bytes) => routes.deliver(id, Part::Bytes(bytes)).await,
                Event::Ended(id) => routes.deliver(id, Part::Ended).await,
                Event::Reset(id) => routes.deliver(id, Part::Reset).await,
                Event::Goodbye(text) => words = text,
                Event::Opened | Event::Nothing => {}
            }
        }
    }
    Ok(words)
}

impl Forwarded {
    /// A handle for sending.
    #[must_use]
    pub fn input(&self) -> ForwardedInput {
        ForwardedInput { out: Arc::clone(&self.out), id: self.data.id }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result {
        self.input().send(bytes).await
    }

    /// Sends nothing more and goes on listening.
    pub async fn close(&mut self) -> Result {
        self.input().close().await
    }

    /// Breaks the connection off, and it alone.
    pub async fn reset(self) -> Result {
        let mut out = self.out.lock().await;
        out.reset(self.data.id).await?;
        out.reset(self.error.id).await
    }

    /// Reads what comes next; nothing at the end.
    pub async fn read(&mut self) -> Result<Option<Vec<u8>>> {
        self.data.read().await
    }

    /// Reads so many bytes.
    pub async fn read_exact(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            bytes.extend(self.read().await?.with_context(|| format!("ends after {} bytes", bytes.len()))?);
        }
        ensure!(bytes.len() == count, "{} bytes instead of {count}", bytes.len());
        Ok(bytes)
    }

    /// Reads to the end.
    pub async fn read_to_end(&mut self) -> Result<Vec<u8>> {
        self.data.read_to_end().await
    }

    /// What is said to be wrong with the connection: empty at its good end.
    pub async fn error(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.error.read_to_end().await?).into_owned())
    }

    /// What is said to be wrong, without waiting for the end of the channel.
    pub async fn complaint(&mut self) -> Result<String> {
        let bytes = self.error.read().await?.context("ended without a complaint")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Over WebSocket either channel begins with the port.
    async fn is_introduced(&mut self, port: u16) -> Result {
        for stream in [&mut self.data, &mut self.error] {
            let first = stream.read().await?.context("a channel ends before it has begun")?;
            ensure!(first == port.to_le_bytes(), "port {port} is introduced as {first:?}");
        }
        Ok(())
    }
}

impl Stream {
    async fn read(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let part = timeout(patience(PATIENCE_SECONDS), self.parts.recv()).await;
            match part.with_context(|| format!("nothing comes on stream {}", self.id))? {
                Some(Part::Bytes(bytes)) if bytes.is_empty() => {}
                Some(Part::Bytes(bytes)) => return Ok(Some(bytes)),
                Some(Part::Ended) => return Ok(None),
                Some(Part::Reset) => bail!("stream {} was reset", self.id),
                // The tunnel is closed.
                None => return Ok(None),
            }
        }
    }

    async fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(more) = self.read().await? {
            bytes.extend(more);
        }
        Ok(bytes)
    }
}
