//! One upgraded connection as a session sees it: numbered streams, whichever transport carries them.
//!
//! Over SPDY a number is a stream's id, over WebSocket a channel's.

use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::spdy::{self, Frame};
use super::websocket::{self, Message};
use super::{Dialer, Pipe, Protocol, upgrade};
use crate::Result;

type BoxReader = Box<dyn AsyncRead + Send + Unpin>;
type BoxWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// The sending half, which the receiving half uses too, for answers to pings.
pub(super) type Shared = Arc<Mutex<Out>>;

/// What goes to the server.
pub(super) enum Out {
    Spdy(spdy::Writer<BoxWriter>),
    WebSocket(websocket::Writer<BoxWriter>, Protocol),
}

/// What comes from the server.
pub(super) enum In {
    Spdy(spdy::Reader<BoxReader>),
    WebSocket(websocket::Reader<BoxReader>, Protocol),
}

/// Something that has come.
#[derive(Debug)]
pub(super) enum Event {
    /// The server has taken a stream that was opened.
    Opened,
    Data(u32, Vec<u8>),
    /// Nothing more comes on a stream.
    Ended(u32),
    /// A stream was broken off.
    Reset(u32),
    /// The server says why it will close the connection.
    Goodbye(String),
    /// Nothing that concerns a stream.
    Nothing,
}

/// A connection and its halves. Dropping all of them cuts it.
pub(super) struct Link {
    pub(super) out: Shared,
    pub(super) input: In,
    pub(super) tasks: JoinSet<()>,
}

impl Link {
    pub(super) async fn open(dialer: &Dialer, url: &str, protocol: Protocol) -> Result<Self> {
        let pipe = upgrade::upgrade(dialer, url, protocol).await?;
        let mut tasks = JoinSet::new();
        let (out, input) = match protocol {
            Protocol::WebSocket(_) => {
                let out = Out::WebSocket(websocket::Writer::new(pipe.writer), protocol);
                (out, In::WebSocket(websocket::Reader::new(pipe.reader), protocol))
            }
            Protocol::Spdy(_) => spdy_halves(pipe)?,
            Protocol::Tunnelled => spdy_halves(through_messages(pipe, &mut tasks))?,
        };
        Ok(Self { out: Arc::new(Mutex::new(out)), input, tasks })
    }
}

fn spdy_halves(pipe: Pipe) -> Result<(Out, In)> {
    Ok((Out::Spdy(spdy::Writer::new(pipe.writer)?), In::Spdy(spdy::Reader::new(pipe.reader))))
}

/// A pipe whose bytes travel in the messages of a WebSocket.
fn through_messages(pipe: Pipe, tasks: &mut JoinSet<()>) -> Pipe {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (reader, writer) = tokio::io::split(near);
    let (mut from_near, mut to_near) = tokio::io::split(far);
    let out = Arc::new(Mutex::new(websocket::Writer::new(pipe.writer)));
    let mut input = websocket::Reader::new(pipe.reader);
    let pongs = Arc::clone(&out);
    tasks.spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = from_near.read(&mut buffer).await {
            let chunk = buffer.get(..count).unwrap_or_default();
            if out.lock().await.binary(chunk).await.is_err() {
                return;
            }
        }
        drop(out.lock().await.close().await);
    });
    tasks.spawn(async move {
        while let Ok(Some(message)) = input.next().await {
            let done = match message {
                Message::Data(bytes) => to_near.write_all(&bytes).await.map_err(Into::into),
                Message::Ping(payload) => pongs.lock().await.pong(&payload).await,
                Message::Pong => Ok(()),
                Message::Close(..) => break,
            };
            if done.is_err() {
                return;
            }
        }
        drop(to_near.shutdown().await);
    });
    Pipe { reader: Box::new(reader), writer: Box::new(writer) }
}

impl Out {
    /// Opens a stream. Channels of WebSocket are there from the beginning.
    pub(super) async fn open(&mut self, id: u32, headers: &[(&str, String)]) -> Result {
        match self {
            Self::Spdy(writer) => writer.open(id, headers).await,
            Self::WebSocket(..) => Ok(()),
        }
    }

    /// Sends bytes, the last ones with the end of the stream.
    pub(super) async fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> Result {
        match self {
            Self::Spdy(writer) => writer.data(id, bytes, last).await,
            Self::WebSocket(writer, protocol) => {
                // Nobody sends more in one message.
                for chunk in bytes.chunks(32 << 10) {
                    message(writer, *protocol, u8::try_from(id)?, chunk).await?;
                }
                if last { end(writer, *protocol, id).await } else { Ok(()) }
            }
        }
    }

    /// Ends a stream in both directions.
    pub(super) async fn reset(&mut self, id: u32) -> Result {
        match self {
            Self::Spdy(writer) => writer.reset(id).await,
            Self::WebSocket(..) => bail!("WebSocket resets no single channel"),
        }
    }

    /// Says goodbye, where there is a word for it.
    pub(super) async fn goodbye(&mut self) -> Result {
        match self {
            Self::Spdy(_) => Ok(()),
            Self::WebSocket(writer, _) => writer.close().await,
        }
    }
}

async fn message(
    writer: &mut websocket::Writer<BoxWriter>,
    protocol: Protocol,
    channel: u8,
    bytes: &[u8],
) -> Result {
    if protocol.is_base64() {
        return writer.text(&format!("{channel}{}", BASE64.encode(bytes))).await;
    }
    writer.binary(&[&[channel], bytes].concat()).await
}

async fn end(writer: &mut websocket::Writer<BoxWriter>, protocol: Protocol, id: u32) -> Result {
    if !protocol.half_closes() {
        bail!("{protocol} ends no single channel");
    }
    writer.binary(&[255, u8::try_from(id)?]).await
}

impl In {
    /// What comes next; nothing after the end of the connection.
    pub(super) async fn next(&mut self, out: &Shared) -> Result<Option<Vec<Event>>> {
        match self {
            Self::Spdy(reader) => Ok(reader.next().await?.map(|frame| of_frame(frame, out))),
            Self::WebSocket(reader, protocol) => {
                let Some(message) = reader.next().await? else { return Ok(None) };
                of_message(message, *protocol, out).map(|event| Some(vec![event]))
            }
        }
    }
}

fn of_frame(frame: Frame, out: &Shared) -> Vec<Event> {
    let ended = |id, last: bool| last.then_some(Event::Ended(id));
    match frame {
        Frame::Reply { id, last, .. } => {
            [Some(Event::Opened), ended(id, last)].into_iter().flatten().collect()
        }
        Frame::Data { id, bytes, last } => {
            [Some(Event::Data(id, bytes)), ended(id, last)].into_iter().flatten().collect()
        }
        Frame::Reset { id, .. } => vec![Event::Reset(id)],
        Frame::GoAway(status) => vec![Event::Goodbye(format!("GOAWAY {status}"))],
        Frame::Ping(id) => {
            // Odd ones would be answers to ours.
            if id.is_multiple_of(2) {
                answer(out, move |out| Box::pin(async move { out.pong(&id.to_be_bytes()).await }));
            }
            vec![Event::Nothing]
        }
        Frame::Other(_) => vec![Event::Nothing],
    }
}

fn of_message(message: Message, protocol: Protocol, out: &Shared) -> Result<Event> {
    Ok(match message {
        Message::Data(bytes) => of_channel(bytes, protocol)?,
        Message::Close(code, reason) => {
            answer(out, |out| Box::pin(out.goodbye()));
            Event::Goodbye(format!("{code} {reason}").trim_end().to_owned())
        }
        Message::Ping(payload) => {
            answer(out, move |out| Box::pin(async move { out.pong(&payload).await }));
            Event::Nothing
        }
        Message::Pong => Event::Nothing,
    })
}

fn of_channel(mut bytes: Vec<u8>, protocol: Protocol) -> Result<Event> {
    let first = *bytes.first().context("an empty message")?;
    bytes.remove(0);
    if protocol.is_base64() {
        return Ok(Event::Data(u32::from(first.wrapping_sub(b'0')), BASE64.decode(bytes)?));
    }
    match (first, bytes.as_slice()) {
        (255, [channel]) if protocol.half_closes() => Ok(Event::Ended(u32::from(*channel))),
        _ => Ok(Event::Data(u32::from(first), bytes)),
    }
}

impl Out {
    async fn pong(&mut self, payload: &[u8]) -> Result {
        match self {
            Self::Spdy(writer) => {
                writer.ping(u32::from_be_bytes(payload.try_into().context("the number of a ping")?)).await
            }
            Self::WebSocket(writer, _) => writer.pong(payload).await,
        }
    }
}

type Answering<'a> = std::pin::Pin<Box<dyn Future<Output = Result> + Send + 'a>>;

/// Answers beside the reading, which must not wait for a sender who may wait for it. The connection may be gone: no harm.
fn answer(out: &Shared, say: impl for<'a> FnOnce(&'a mut Out) -> Answering<'a> + Send + 'static) {
    let out = Arc::clone(out);
    tokio::spawn(async move { drop(say(&mut *out.lock().await).await) });
}
