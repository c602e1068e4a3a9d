//! The task behind a connection's channels.
//!
//! It never waits for one thing only: a client that does not read holds up what is sent, a process that does not read holds up
//! what is received, and either way the other direction, pings and the client's leaving are seen to. While messages cannot be
//! received, pongs that nobody asked for tell the client that the server is alive, and make the kernel notice when the client is
//! not: its farewell may wait behind bytes for which there is no room.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Bytes as Payload};
use tokio_util::sync::{CancellationToken, PollSender};

use super::Peer;
use super::message::{Garbage, Incoming, Protocol};
use super::pipe::Outgoing;

/// How often an idle client is asked whether it is there. It need not answer: the kernel knows who is not.
const PING: Duration = Duration::from_secs(30);
/// How often a client whose messages have to wait is sent a pong. Impatient ones expect one within a minute.
const PONG: Duration = Duration::from_secs(2);
/// For the client to answer a close frame.
const FAREWELL: Duration = Duration::from_secs(2);
/// The largest message that is taken; other servers' bound.
const LARGEST: usize = 32 * 1024 * 1024;

/// Settings of the library, with a bound for all it keeps.
fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(32 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(LARGEST))
        .max_frame_size(Some(LARGEST))
}

/// Why a connection is over.
#[derive(Debug)]
enum Over {
    /// The session has let go of every channel.
    Finished,
    /// The client closed, or the connection broke.
    Left,
    /// The client does not keep to the protocol.
    Garbage(String),
}

pub(super) struct Driver<S> {
    socket: WebSocketStream<S>,
    protocol: Protocol,
    /// Where each channel's bytes go; none when nobody wants them any more.
    incoming: BTreeMap<u8, PollSender<Bytes>>,
    /// A message that its channel has no room for yet.
    parked: Option<(u8, Bytes)>,
    outgoing: mpsc::Receiver<Outgoing>,
    first: std::vec::IntoIter<Outgoing>,
    gone: CancellationToken,
    ping: Interval,
    /// Whether `parked` has waited, and when it is time for the next pong.
    waiting: bool,
    pong: Interval,
    pong_due: bool,
}

impl<S: Peer> Driver<S> {
    /// Serves the channels until the connection is over.
    pub(super) async fn serve(
        peer: S,
        protocol: Protocol,
        incoming: Vec<(u8, mpsc::Sender<Bytes>)>,
        first: Vec<Outgoing>,
        outgoing: mpsc::Receiver<Outgoing>,
        gone: CancellationToken,
    ) {
        let driver = Self {
            socket: socket(peer).await,
            protocol,
            incoming: incoming
                .into_iter()
                .map(|(channel, sender)| (channel, PollSender::new(sender)))
                .collect(),
            parked: None,
            outgoing,
            first: first.into_iter(),
            gone,
            ping: every(PING),
            waiting: false,
            pong: every(PONG),
            pong_due: false,
        };
        driver.run().await;
    }

    /// Moves messages until the connection is over, and says good-bye.
    async fn run(mut self) {
        let over = poll_fn(|cx| self.poll(cx)).await;
        let code = match over {
            Over::Finished => CloseCode::Normal,
            Over::Left => CloseCode::Away,
            Over::Garbage(why) => {
                tracing::debug!(op = "streaming", reason = why, "a client's messages are unusable");
                CloseCode::Protocol
            }
        };
        // Readers learn from this token that what they have was not all.
        self.gone.cancel();
        self.incoming.clear();
        self.outgoing.close();
        // Failures are another way to be closed.
        drop(timeout(FAREWELL, self.close(code)).await);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        if let Poll::Ready(over) = self.receive(cx) {
            return Poll::Ready(over);
        }
        self.send(cx)
    }

    /// Sends what channels have written; when there is nothing, sees to it that all of it leaves.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            match ready!(Pin::new(&mut self.socket).poll_ready(cx)) {
                Ok(()) => {}
                Err(_) => return Poll::Ready(Over::Left),
            }
            let message = match self.next_outgoing(cx) {
                Poll::Ready(Some(message)) => message,
                Poll::Ready(None) => return Poll::Ready(Over::Finished),
                Poll::Pending => break,
            };
            if Pin::new(&mut self.socket).start_send(message).is_err() {
                return Poll::Ready(Over::Left);
            }
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(Over::Left),
        }
    }

    fn next_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if let Some(first) = self.first.next() {
            return Poll::Ready(Some(first));
        }
        if let Poll::Ready(message) = self.outgoing.poll_recv(cx) {
            self.ping.reset();
            return Poll::Ready(message);
        }
        if std::mem::take(&mut self.pong_due) {
            return Poll::Ready(Some(Message::Pong(Payload::new())));
        }
        self.ping.poll_tick(cx).map(|_| Some(Message::Ping(Payload::new())))
    }

    /// Takes messages as long as their channels have room.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            if let Err(over) = ready!(self.unpark(cx)) {
                return Poll::Ready(over);
            }
            let message = match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(judge(&error)),
                None => return Poll::Ready(Over::Left),
            };
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => text.into(),
                Message::Close(_) => return Poll::Ready(Over::Left),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            if let Err(garbage) = self.take(data) {
                return Poll::Ready(Over::Garbage(garbage.to_string()));
            }
        }
    }

    fn take(&mut self, data: Bytes) -> Result<(), Garbage> {
        match self.protocol.decode(data)? {
            Incoming::Data(channel, data) if !data.is_empty() => self.parked = Some((channel, data)),
            Incoming::Close(channel) => drop(self.incoming.remove(&channel)),
            Incoming::Data(..) | Incoming::Nothing => {}
        }
        Ok(())
    }

    /// Gives the parked message to its channel. Ready when there is none any more.
    fn unpark(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        let Some((channel, data)) = self.parked.take() else { return Poll::Ready(Ok(())) };
        let Some(sender) = self.incoming.get_mut(&channel) else { return Poll::Ready(Ok(())) };
        match sender.poll_reserve(cx) {
            Poll::Ready(Ok(())) => drop(sender.send_item(data)),
            Poll::Ready(Err(_)) => drop(self.incoming.remove(&channel)),
            Poll::Pending => {
                self.parked = Some((channel, data));
                return self.look_after_client(cx);
            }
        }
        self.waiting = false;
        Poll::Ready(Ok(()))
    }

    /// While messages wait, their client cannot be heard.
    fn look_after_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        if !std::mem::replace(&mut self.waiting, true) {
            self.pong.reset();
        }
        loop {
            ready!(self.pong.poll_tick(cx));
            if self.socket.get_ref().has_hung_up() {
                return Poll::Ready(Err(Over::Left));
            }
            self.pong_due = true;
        }
    }

    /// Sends a close frame and waits for the client's, so that nothing sent before is lost.
    async fn close(&mut self, code: CloseCode) -> Result<(), tungstenite::Error> {
        self.socket.close(Some(CloseFrame { code, reason: "".into() })).await?;
        while let Some(message) = poll_fn(|cx| Pin::new(&mut self.socket).poll_next(cx)).await {
            message?;
        }
        Ok(())
    }
}

/// The library on a connection whose handshake is done.
pub(super) async fn socket<S: Peer>(peer: S) -> WebSocketStream<S> {
    WebSocketStream::from_raw_socket(peer, Role::Server, Some(config())).await
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    interval
}

fn judge(error: &tungstenite::Error) -> Over {
    use tungstenite::Error;
    match error {
        Error::Capacity(_) | Error::Protocol(_) | Error::Utf8(_) => Over::Garbage(error.to_string()),
        _ => Over::Left,
    }
}
