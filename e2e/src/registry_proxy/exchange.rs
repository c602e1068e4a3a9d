//! One connection: a request in, its way to the registry and back, and the troubles on that way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::rules::{Rule, Trouble};
use super::{Request, Shared};
use crate::Result;

/// The longest head of a request or an answer.
const HEAD_LIMIT: usize = 64 << 10;

pub(super) async fn serve(listener: TcpListener, upstream: String, shared: Arc<Shared>) -> Result {
    loop {
        let (client, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client has gone, or there are too many connections for the moment.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (upstream, shared) = (upstream.clone(), Arc::clone(&shared));
        // What goes wrong between two ends is seen by both of them.
        tokio::spawn(async move { exchange(client, &upstream, &shared).await });
    }
}

/// An exchange that is on record, to its end.
struct Recorded<'a>(&'a Shared, usize);

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        self.0.change(self.1, |request| request.over = true);
    }
}

async fn exchange(mut client: TcpStream, upstream: &str, shared: &Shared) -> Result {
    let head = Head::read(&mut client).await?;
    let request = head.request()?;
    let rules = shared.rules.of(&request.path);
    let path = request.path.clone();
    let number = shared.begin(request);
    let _recorded = Recorded(shared, number);
    for rule in rules.iter().filter(|rule| rule.trouble.after().is_none()) {
        if rule.strikes() {
            return instead(&mut client, &rule.trouble, &path, |status| {
                shared.change(number, |request| request.status = status);
            })
            .await;
        }
    }
    let mut server = TcpStream::connect(upstream).await.context("connecting to the registry")?;
    server.write_all(&head.to_pass_on()).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // The request's body, if it has one. It ends when the client has left, for there is one request in a connection.
    let body = tokio::io::copy(&mut from_client, &mut to_server);
    let answer = async {
        let head = Head::read(&mut from_server).await?;
        shared.change(number, |request| request.status = head.status());
        to_client.write_all(&head.to_pass_on()).await?;
        let mut answer = Answer { from: head.rest.as_slice().chain(from_server), to: to_client, sent: 0 };
        answer.pass_on(&rules, |sent| shared.change(number, |request| request.sent = sent)).await
    };
    tokio::select! {
        // Nothing goes on for a client who has left, though the trouble was lifted at the same moment.
        biased;
        left = body => left.map(drop).context("passing on a request"),
        answered = answer => answered,
    }
}

/// Answers without asking the registry.
async fn instead(client: &mut TcpStream, trouble: &Trouble, path: &str, told: impl FnOnce(u16)) -> Result {
    let (status, header) = match trouble {
        Trouble::Status { code, retry_after } => {
            (*code, retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default())
        }
        Trouble::Redirect { to } => (307, format!("Location: http://{to}{path}\r\n")),
        // The rest strikes in the middle; to refuse is to say nothing.
        _ => return Ok(()),
    };
    let text = format!("HTTP/1.1 {status} As Told\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n");
    told(status);
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await.context("ending an answer")
}

/// The body of an answer on its way.
struct Answer<R, W> {
    from: R,
    to: W,
    sent: u64,
}

impl<R: AsyncRead + Unpin, W: tokio::io::AsyncWrite + Unpin> Answer<R, W> {
    async fn pass_on(&mut self, rules: &[Arc<Rule>], counted: impl Fn(u64)) -> Result {
        for rule in rules {
            let Some(after) = rule.trouble.after() else { continue };
            if !self.pass_until(after, &counted).await? {
                return self.end().await;
            }
            if !rule.strikes() {
                continue;
            }
            match &rule.trouble {
                Trouble::Stall { time, .. } => tokio::time::sleep(*time).await,
                Trouble::Hold { .. } => rule.until_lifted().await,
                _ => return self.end().await,
            }
        }
        self.pass_until(u64::MAX, &counted).await?;
        self.end().await
    }

    /// Passes on what there is up to a place; tells whether there may be more.
    async fn pass_until(&mut self, place: u64, counted: &impl Fn(u64)) -> Result<bool> {
        let mut buffer = [0_u8; 32 << 10];
        while self.sent < place {
            let room = usize::try_from(place - self.sent).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..room).context("room")?;
            let length = self.from.read(piece).await?;
            if length == 0 {
                return Ok(false);
            }
            self.to.write_all(piece.get(..length).context("a piece")?).await?;
            self.sent += length as u64;
            counted(self.sent);
        }
        Ok(true)
    }

    async fn end(&mut self) -> Result {
        self.to.shutdown().await.context("ending an answer")
    }
}

/// The lines before a body.
struct Head {
    lines: Vec<String>,
    /// What came with it of the body.
    rest: Vec<u8>,
}

impl Head {
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Self> {
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                let text = String::from_utf8(bytes).context("a head that is no text")?;
                let lines = text.trim_end().split("\r\n").map(str::to_owned).collect();
                return Ok(Self { lines, rest });
            }
            ensure!(bytes.len() < HEAD_LIMIT, "a head without end");
            ensure!(from.read_buf(&mut bytes).await? > 0, "the connection ended within a head");
        }
    }

    fn header(&self, name: &str) -> Option<String> {
        let headers = self.lines.iter().skip(1).filter_map(|line| line.split_once(':'));
        headers.into_iter().find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, it)| it.trim().to_owned())
    }

    fn request(&self) -> Result<Request> {
        let mut words = self.lines.first().context("a request without a line")?.split(' ').map(str::to_owned);
        Ok(Request {
            method: words.next().context("a method")?,
            path: words.next().context("a path")?,
            host: self.header("host").unwrap_or_default(),
            authorization: self.header("authorization"),
            range: self.header("range"),
            ..Request::default()
        })
    }

    fn status(&self) -> u16 {
        let word = self.lines.first().and_then(|line| line.split(' ').nth(1));
        word.and_then(|word| word.parse().ok()).unwrap_or_default()
    }

    /// The head for the other side: the same, but that the connection ends with it. What came of a request's body follows.
    fn to_pass_on(&self) -> Vec<u8> {
        let is_answer = self.lines.first().is_some_and(|line| line.starts_with("HTTP/"));
        let kept = |line: &&String| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !["connection", "keep-alive", "expect"].contains(&name.as_str())
        };
        let mut text = String::new();
        for line in self.lines.iter().filter(kept) {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("Connection: close\r\n\r\n");
        let rest: &[u8] = if is_answer { &[] } else { &self.rest };
        [text.as_bytes(), rest].concat()
    }
}
