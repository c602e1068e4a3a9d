//! Exec and attach: the channels of one process.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::link::{Event, In, Link, Shared};
use super::{Channel, Dialer, Protocol, Streams};
use crate::{Result, patience};

/// How long the next thing to come is waited for.
const PATIENCE_SECONDS: u64 = 30;

/// A session. Dropping it with all its inputs cuts the connection.
pub struct Remote {
    input: Input,
    reader: In,
    heard: Outcome,
    open: bool,
    /// They end with the session.
    _tasks: JoinSet<()>,
}

/// The channels from the client, which can be used while another task reads the others.
#[derive(Clone)]
pub struct Input {
    out: Shared,
    ids: [Option<u32>; 5],
    protocol: Protocol,
}

/// Everything that a session has brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// What came on the error channel.
    pub error: String,
    /// With what words the server has closed the connection.
    pub goodbye: Option<String>,
    /// Channels that have ended.
    pub ended: Vec<Channel>,
    /// Channels that were broken off.
    pub reset: Vec<Channel>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("protocol", &self.input.protocol).finish_non_exhaustive()
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl Outcome {
    /// The exit code; any other failure is an error with its text.
    pub fn code(&self) -> Result<i32> {
        let status: Value =
            serde_json::from_str(&self.error).with_context(|| format!("no status: {:?}", self.error))?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        ensure!(status["status"] == "Failure", "neither success nor failure: {status}");
        if status["reason"] != "NonZeroExitCode" {
            bail!("{}", status["message"].as_str().unwrap_or_default());
        }
        let causes = status["details"]["causes"].as_array().context("a status without causes")?;
        let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode").context("no exit code")?;
        Ok(cause["message"].as_str().context("an exit code that is no text")?.parse()?)
    }

    fn is_over(&self, channel: Channel) -> bool {
        self.ended.contains(&channel) || self.reset.contains(&channel)
    }
}

impl Remote {
    /// Upgrades, opens the channels and waits until the server has taken them.
    pub async fn open(dialer: &Dialer, url: &str, protocol: Protocol, streams: Streams) -> Result<Self> {
        let Link { out, input: reader, tasks } = Link::open(dialer, url, protocol).await?;
        let input = Input { ids: ids(protocol, streams), out, protocol };
        let mut remote = Self { input, reader, heard: Outcome::default(), open: true, _tasks: tasks };
        if matches!(protocol, Protocol::Spdy(_)) {
            timeout(patience(PATIENCE_SECONDS), remote.open_streams())
                .await
                .context("streams stay closed")??;
        }
        Ok(remote)
    }

    async fn open_streams(&mut self) -> Result {
        let mut streams: Vec<_> =
            Channel::ALL.iter().filter_map(|it| Some((self.input.id(*it)?, *it))).collect();
        streams.sort_by_key(|(id, _)| *id);
        for (id, channel) in &streams {
            let headers = [("streamtype", channel.name().to_owned())];
            self.input.out.lock().await.open(*id, &headers).await?;
        }
        let mut waiting = streams.len();
        while waiting > 0 {
            for event in self.reader.next(&self.input.out).await?.context("closed before it began")? {
                if matches!(event, Event::Opened) {
                    waiting -= 1;
                }
                self.take(event)?;
            }
        }
        Ok(())
    }

    /// A handle for sending.
    #[must_use]
    pub fn input(&self) -> Input {
        self.input.clone()
    }

    /// Sends input.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result {
        self.input.send(bytes).await
    }

    /// What has come so far.
    #[must_use]
    pub fn heard(&self) -> &Outcome {
        &self.heard
    }

    /// Reads what comes next; false once the connection is closed.
    pub async fn read(&mut self) -> Result<bool> {
        let next = timeout(patience(PATIENCE_SECONDS), self.reader.next(&self.input.out)).await;
        match next
            .with_context(|| format!("{}: nothing comes after {:?}", self.input.protocol, self.brief()))??
        {
            Some(events) => {
                events.into_iter().try_for_each(|event| self.take(event))?;
            }
            None => self.open = false,
        }
        Ok(self.open)
    }

    /// Reads until the output contains a text.
    pub async fn until(&mut self, text: &str) -> Result {
        let mut searched = 0;
        while !contains(self.heard.stdout.get(searched..).unwrap_or_default(), text.as_bytes()) {
            searched = self.heard.stdout.len().saturating_sub(text.len());
            if !self.read().await? {
                bail!("{}: closed before {text:?} came: {}", self.input.protocol, self.brief());
            }
        }
        Ok(())
    }

    /// Reads until everything has ended and gives all of it.
    pub async fn finish(mut self) -> Result<Outcome> {
        while !self.is_over() && self.read().await? {}
        Ok(self.heard)
    }

    /// Reads until the server has closed the connection and gives all of it.
    pub async fn closed(mut self) -> Result<Outcome> {
        while self.read().await? {}
        Ok(self.heard)
    }

    /// Cuts the connection without a word.
    pub fn cut(self) {}

    /// A client of SPDY is content when the outputs and the error channel have ended, one of WebSocket after the goodbye.
    fn is_over(&self) -> bool {
        let over = |channel| self.input.id(channel).is_none() || self.heard.is_over(channel);
        match self.input.protocol {
            Protocol::WebSocket(_) => self.heard.goodbye.is_some(),
            _ => [Channel::Stdout, Channel::Stderr, Channel::Error].into_iter().all(over),
        }
    }

    fn take(&mut self, event: Event) -> Result {
        let channel = |id| self.input.channel(id).with_context(|| format!("there is no channel {id}"));
        match event {
            Event::Data(id, bytes) => match channel(id)? {
                Channel::Stdout => self.heard.stdout.extend(bytes),
                Channel::Stderr => self.heard.stderr.extend(bytes),
                Channel::Error => self.heard.error.push_str(&String::from_utf8_lossy(&bytes)),
                other => ensure!(bytes.is_empty(), "{other:?} leads to the server only"),
            },
            Event::Ended(id) => self.heard.ended.push(channel(id)?),
            Event::Reset(id) => self.heard.reset.push(channel(id)?),
            Event::Goodbye(words) => self.heard.goodbye = Some(words),
            Event::Opened | Event::Nothing => {}
        }
        Ok(())
    }

    fn brief(&self) -> String {
        let Outcome { stdout, stderr, error, .. } = &self.heard;
        let tail = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes.get(bytes.len().saturating_sub(200)..).unwrap_or_default())
                .into_owned()
        };
        format!("{} bytes …{:?}, stderr …{:?}, {error:?}", stdout.len(), tail(stdout), tail(stderr))
    }
}

impl Input {
    /// Sends input.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> Result {
        self.say(Channel::Stdin, bytes.as_ref(), false).await
    }

    /// Ends the input and goes on listening.
    pub async fn close(&self) -> Result {
        self.say(Channel::Stdin, &[], true).await
    }

    /// Tells the size of the terminal.
    pub async fn resize(&self, width: u16, height: u16) -> Result {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        self.say(Channel::Resize, size.as_bytes(), false).await
    }

    /// Sends bytes on any channel.
    pub async fn say(&self, channel: Channel, bytes: &[u8], last: bool) -> Result {
        let id = self.id(channel).with_context(|| format!("the session has no {}", channel.name()))?;
        self.out.lock().await.data(id, bytes, last).await
    }

    fn id(&self, channel: Channel) -> Option<u32> {
        self.ids.get(usize::try_from(channel.number()).ok()?).copied().flatten()
    }

    fn channel(&self, id: u32) -> Option<Channel> {
        Channel::ALL.into_iter().find(|it| self.id(*it) == Some(id))
    }

    /// Whether both belong to one connection.
    #[must_use]
    pub fn is_of(&self, remote: &Remote) -> bool {
        Arc::ptr_eq(&self.out, &remote.input.out)
    }
}

/// Channels by their numbers; over SPDY streams in the order in which Kubernetes' clients open them.
fn ids(protocol: Protocol, streams: Streams) -> [Option<u32>; 5] {
    let wanted = |channel| match channel {
        Channel::Stdin => streams.stdin,
        Channel::Stdout => streams.stdout,
        Channel::Stderr => streams.stderr && !streams.tty,
        Channel::Error => true,
        Channel::Resize => streams.tty && protocol.resizes(),
    };
    let mut ids = [None; 5];
    let mut next = 1;
    let order = [Channel::Error, Channel::Stdin, Channel::Stdout, Channel::Stderr, Channel::Resize];
    for channel in order.into_iter().filter(|it| wanted(*it)) {
        let id = match protocol {
            Protocol::WebSocket(_) => channel.number(),
            _ => next,
        };
        next += 2;
        if let Some(place) = usize::try_from(channel.number()).ok().and_then(|n| ids.get_mut(n)) {
            *place = Some(id);
        }
    }
    ids
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_out_of_a_status() {
        let outcome = |error: &str| Outcome { error: error.to_owned(), ..Outcome::default() };
        let failure = r#"{"metadata":{},"status":"Failure","message":"x","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(outcome(failure).code().expect("a code"), 3);
        assert_eq!(outcome(r#"{"metadata":{},"status":"Success"}"#).code().expect("a code"), 0);
        let other = outcome(r#"{"status":"Failure","message":"gone","reason":"InternalError"}"#).code();
        assert_eq!(other.expect_err("no code").to_string(), "gone");
    }

    #[test]
    fn streams_are_opened_in_the_usual_order() {
        assert_eq!(ids(super::super::SPDY, Streams::TERMINAL), [Some(3), Some(5), None, Some(1), Some(7)]);
        assert_eq!(ids(super::super::WEBSOCKET, Streams::OUTPUT), [None, Some(1), Some(2), Some(3), None]);
    }
}
