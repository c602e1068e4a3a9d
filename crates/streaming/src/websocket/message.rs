//! What a message says: pure, and for any bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::pipe::Outgoing;

/// The channel number that is a command: the next byte names the channel whose sender has finished.
const CLOSE: u8 = 255;

/// A subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// No name, or `channel.k8s.io`: bytes.
    Binary,
    /// `base64.channel.k8s.io`: text, the channel as a digit.
    Base64,
    /// `v4.channel.k8s.io`: bytes, exit codes as JSON.
    BinaryV4,
    /// `v4.base64.channel.k8s.io`.
    Base64V4,
    /// `v5.channel.k8s.io`: as v4, and a client can close a channel.
    BinaryV5,
    /// `SPDY/3.1+portforward.k8s.io`: the bytes of a SPDY connection, without channels.
    Tunnel,
}

/// A message from the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// Bytes for a channel, which may not exist.
    Data(u8, Bytes),
    /// Nothing more comes for this channel.
    Close(u8),
    /// An empty message.
    Nothing,
}

/// What no client of the protocol sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Garbage {
    /// Not in base64.
    #[error("a message is not in base64")]
    Base64,
    /// Close without a channel, or with more than one.
    #[error("a close message does not name one channel")]
    Close,
}

impl Protocol {
    /// Whether the end of a command is told as JSON.
    pub(crate) fn has_exit_codes(self) -> bool {
        matches!(self, Self::BinaryV4 | Self::Base64V4 | Self::BinaryV5)
    }

    fn is_base64(self) -> bool {
        matches!(self, Self::Base64 | Self::Base64V4)
    }

    /// How many channels there are. In text each is one character of ASCII, from `0` on.
    pub(crate) fn channels(self) -> usize {
        if self.is_base64() { 80 } else { 255 }
    }

    /// Reads a message.
    pub(crate) fn decode(self, mut message: Bytes) -> Result<Incoming, Garbage> {
        let Some(&first) = message.first() else { return Ok(Incoming::Nothing) };
        let data = message.split_off(1);
        if self.is_base64() {
            let data = STANDARD.decode(data.trim_ascii_end()).map_err(|_| Garbage::Base64)?;
            return Ok(Incoming::Data(first.wrapping_sub(b'0'), data.into()));
        }
        match (self, first, &*data) {
            (Self::BinaryV5, CLOSE, [channel]) => Ok(Incoming::Close(*channel)),
            (Self::BinaryV5, CLOSE, _) => Err(Garbage::Close),
            _ => Ok(Incoming::Data(first, data)),
        }
    }

    /// Makes a message for the client, on one of the protocol's [`Self::channels`].
    pub(crate) fn encode(self, channel: u8, data: &[u8]) -> Outgoing {
        if self.is_base64() {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(channel.wrapping_add(b'0')));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(channel);
        message.extend_from_slice(data);
        Message::binary(message)
    }
}
