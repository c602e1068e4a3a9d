//! WebSocket as far as a client needs it: messages out of frames, and frames masked as a client's have to be.

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::spdy::filled;
use crate::Result;

const CONTINUED: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// More than any server here sends in one message.
const LIMIT: usize = 64 << 20;
/// Whoever reads the connection is to see something else than the payload.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A message that a server sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Data(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    /// Code and reason.
    Close(u16, String),
}

/// The sending half.
pub(super) struct Writer<W>(W);

/// The receiving half.
pub(super) struct Reader<R>(R);

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        Self(out)
    }

    pub(super) async fn binary(&mut self, payload: &[u8]) -> Result {
        self.frame(BINARY, payload).await
    }

    pub(super) async fn text(&mut self, payload: &str) -> Result {
        self.frame(TEXT, payload.as_bytes()).await
    }

    pub(super) async fn pong(&mut self, payload: &[u8]) -> Result {
        self.frame(PONG, payload).await
    }

    /// Says goodbye: a normal end.
    pub(super) async fn close(&mut self) -> Result {
        self.frame(CLOSE, &1000_u16.to_be_bytes()).await
    }

    async fn frame(&mut self, kind: u8, payload: &[u8]) -> Result {
        let mut frame = Vec::with_capacity(14 + payload.len());
        frame.push(0x80 | kind);
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(short @ 0..=125), _) => frame.push(0x80 | short),
            (_, Ok(middle)) => {
                frame.push(0x80 | 126);
                frame.extend(middle.to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend(u64::try_from(payload.len())?.to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Ok(self.0.write_all(&frame).await?)
    }
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self(input)
    }

    /// The next message; nothing after the end of the connection.
    pub(super) async fn next(&mut self) -> Result<Option<Message>> {
        let mut whole = Vec::new();
        loop {
            let Some((is_final, kind, payload)) = self.frame().await? else { return Ok(None) };
            match kind {
                CONTINUED | TEXT | BINARY => {
                    whole.extend(payload);
                    ensure!(whole.len() <= LIMIT, "a message of more than {LIMIT} bytes");
                    if is_final {
                        return Ok(Some(Message::Data(whole)));
                    }
                }
                // These may stand between the parts of others, which no server here does.
                PING => return Ok(Some(Message::Ping(payload))),
                PONG => return Ok(Some(Message::Pong)),
                CLOSE => return Ok(Some(close(&payload))),
                other => bail!("a frame of the unknown type {other}"),
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<(bool, u8, Vec<u8>)>> {
        let mut head = [0; 2];
        if !filled(&mut self.0, &mut head).await? {
            return Ok(None);
        }
        let [first, second] = head;
        ensure!(first & 0x70 == 0 && second & 0x80 == 0, "reserved bits or a masked frame: {head:?}");
        let length = match second {
            126 => u64::from(self.0.read_u16().await?),
            127 => self.0.read_u64().await?,
            short => u64::from(short),
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= LIMIT);
        let mut payload = vec![0; length.context("a frame that is too long")?];
        self.0.read_exact(&mut payload).await.context("a frame that is cut off")?;
        Ok(Some((first & 0x80 != 0, first & 0x0f, payload)))
    }
}

fn close(payload: &[u8]) -> Message {
    match payload.split_first_chunk() {
        Some((code, reason)) => {
            Message::Close(u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned())
        }
        // As RFC 6455 has it for a close without a code.
        None => Message::Close(1005, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lengths_of_all_three_kinds_are_masked_as_the_standard_says() -> Result {
        for (length, head) in [(5, 2), (126, 4), (65536, 10)] {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let mut writer = Writer::new(near);
            writer.binary(&vec![b'H'; length]).await?;
            drop(writer);
            let mut sent = Vec::new();
            far.read_to_end(&mut sent).await?;
            assert_eq!(sent.len(), head + 4 + length);
            assert_eq!(sent[head + 4], b'H' ^ 0x37);
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_message_in_parts_is_one_message() -> Result {
        let mut reader = Reader::new(&b"\x02\x03Hel\x80\x02lo\x88\x05\x03\xe8bye"[..]);
        assert_eq!(reader.next().await?, Some(Message::Data(b"Hello".to_vec())));
        assert_eq!(reader.next().await?, Some(Message::Close(1000, "bye".to_owned())));
        assert_eq!(reader.next().await?, None);
        Ok(())
    }
}
