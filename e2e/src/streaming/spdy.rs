//! SPDY/3.1 as far as a client needs it: frames, and the compressed header blocks with their dictionary.

use std::sync::LazyLock;

use anyhow::{Context, bail, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Result;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// The status of a stream that is not wanted any more.
const CANCEL: u32 = 5;
/// What Kubernetes' clients put into one frame.
const CHUNK: usize = 32 << 10;

/// What both ends have compressed before the first header: these words, each after its length, and a line of text.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for word in WORDS.split(' ').map(|word| word.replace('_', " ")) {
        bytes.extend(length(word.len()));
        bytes.extend(word.as_bytes());
    }
    bytes.extend(TEXT.as_bytes());
    bytes
});

const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host \
if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public \
set-cookie keep-alive origin";

const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// A frame that a server sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Reply {
        id: u32,
        headers: Vec<(String, String)>,
        last: bool,
    },
    Data {
        id: u32,
        bytes: Vec<u8>,
        last: bool,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping(u32),
    GoAway(u32),
    /// Of no interest here: settings, windows, headers.
    Other(u16),
}

/// The sending half.
pub(super) struct Writer<W> {
    out: W,
    packer: Compress,
}

/// The receiving half.
pub(super) struct Reader<R> {
    input: R,
    unpacker: Decompress,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(super) fn new(out: W) -> Result<Self> {
        let mut packer = Compress::new(Compression::default(), true);
        packer.set_dictionary(&DICTIONARY).context("the dictionary of headers")?;
        Ok(Self { out, packer })
    }

    /// Opens a stream.
    pub(super) async fn open(&mut self, id: u32, headers: &[(&str, String)]) -> Result {
        let mut body = id.to_be_bytes().to_vec();
        // No other stream belongs to it; priority 0, slot 0.
        body.extend([0; 6]);
        body.extend(self.pack(headers)?);
        self.control(SYN_STREAM, &body).await
    }

    /// Sends bytes on a stream, the last ones with its half-close.
    pub(super) async fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> Result {
        let mut chunks = bytes.chunks(CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            let flags = if last && chunks.peek().is_none() { FLAG_FIN } else { 0 };
            self.frame(&id.to_be_bytes(), flags, chunk).await?;
        }
        if bytes.is_empty() && last {
            self.frame(&id.to_be_bytes(), FLAG_FIN, &[]).await?;
        }
        Ok(())
    }

    /// Ends a stream in both directions.
    pub(super) async fn reset(&mut self, id: u32) -> Result {
        let body = [id.to_be_bytes(), CANCEL.to_be_bytes()].concat();
        self.control(RST_STREAM, &body).await
    }

    pub(super) async fn ping(&mut self, id: u32) -> Result {
        self.control(PING, &id.to_be_bytes()).await
    }

    async fn control(&mut self, kind: u16, body: &[u8]) -> Result {
        let [high, low] = kind.to_be_bytes();
        self.frame(&[0x80, 3, high, low], 0, body).await
    }

    async fn frame(&mut self, start: &[u8; 4], flags: u8, body: &[u8]) -> Result {
        let [_, a, b, c] = length(body.len());
        let mut frame = Vec::with_capacity(8 + body.len());
        frame.extend(start);
        frame.extend([flags, a, b, c]);
        frame.extend(body);
        Ok(self.out.write_all(&frame).await?)
    }

    fn pack(&mut self, headers: &[(&str, String)]) -> Result<Vec<u8>> {
        let mut plain = length(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [*name, value.as_str()]) {
            plain.extend(length(text.len()));
            plain.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(1024 + 2 * plain.len());
        self.packer.compress_vec(&plain, &mut packed, FlushCompress::Sync)?;
        Ok(packed)
    }
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, unpacker: Decompress::new(true) }
    }

    /// The next frame; nothing after the end of the connection.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 8];
        if !filled(&mut self.input, &mut head).await? {
            return Ok(None);
        }
        let [b0, b1, k0, k1, flags, l0, l1, l2] = head;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes([0, l0, l1, l2]))?];
        self.input.read_exact(&mut body).await.context("a frame that is cut off")?;
        let last = flags & FLAG_FIN != 0;
        if b0 & 0x80 == 0 {
            return Ok(Some(Frame::Data { id: u32::from_be_bytes([b0, b1, k0, k1]), bytes: body, last }));
        }
        ensure!([b0, b1] == [0x80, 3], "a frame of another version: {head:?}");
        self.control(u16::from_be_bytes([k0, k1]), last, &body).map(Some)
    }

    fn control(&mut self, kind: u16, last: bool, body: &[u8]) -> Result<Frame> {
        let word = |n: usize| {
            let bytes = body.get(4 * n..4 * n + 4).and_then(|it| it.try_into().ok());
            bytes.map(u32::from_be_bytes).with_context(|| format!("a short frame of type {kind}"))
        };
        Ok(match kind {
            SYN_REPLY => {
                let headers = self.unpack(body.get(4..).unwrap_or_default())?;
                Frame::Reply { id: word(0)?, headers, last }
            }
            RST_STREAM => Frame::Reset { id: word(0)?, status: word(1)? },
            PING => Frame::Ping(word(0)?),
            GOAWAY => Frame::GoAway(word(1)?),
            SYN_STREAM => bail!("a server opens no streams"),
            other => Frame::Other(other),
        })
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Vec<(String, String)>> {
        let (mut plain, begun) = (Vec::with_capacity(64 << 10), self.unpacker.total_in());
        loop {
            let used = usize::try_from(self.unpacker.total_in() - begun)?;
            let rest = packed.get(used..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match self.unpacker.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.unpacker.set_dictionary(&DICTIONARY)?;
                }
                done => {
                    done.context("a header block that is not compressed")?;
                    ensure!(self.unpacker.total_in() - begun > used as u64, "a header block without end");
                }
            }
        }
        pairs(&plain).context("a header block that is cut off")
    }
}

fn pairs(mut plain: &[u8]) -> Option<Vec<(String, String)>> {
    let mut headers = Vec::new();
    let count = number(&mut plain)?;
    for _ in 0..count {
        headers.push((text(&mut plain)?, text(&mut plain)?));
    }
    Some(headers)
}

fn number(plain: &mut &[u8]) -> Option<u32> {
    let (head, rest) = plain.split_at_checked(4)?;
    *plain = rest;
    Some(u32::from_be_bytes(head.try_into().ok()?))
}

fn text(plain: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(plain)?).ok()?;
    let (head, rest) = plain.split_at_checked(length)?;
    *plain = rest;
    Some(String::from_utf8_lossy(head).into_owned())
}

/// Nothing here is longer than 4 GiB.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Fills the buffer; false at the end of the input or after a reset.
pub(super) async fn filled(input: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Result<bool> {
    let (first, rest) = buffer.split_at_mut(1);
    match input.read(first).await {
        Ok(0) => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(false),
        done => done?,
    };
    input.read_exact(rest).await.context("the connection ends in the middle of a frame")?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both numbers are the format's own.
    #[test]
    fn the_dictionary_is_the_one_of_the_format() {
        assert_eq!(DICTIONARY.len(), 1423);
        let mut packer = Compress::new(Compression::default(), true);
        assert_eq!(packer.set_dictionary(&DICTIONARY).expect("a fresh stream"), 0xe3c6_a7c2);
    }

    #[tokio::test]
    async fn what_is_sent_is_what_arrives() -> Result {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut writer = Writer::new(near)?;
        for (id, kind) in [(1, "error"), (3, "stdout")] {
            writer.open(id, &[("streamtype", kind.to_owned())]).await?;
        }
        writer.data(3, b"hello", true).await?;
        writer.reset(1).await?;
        drop(writer);
        let mut reader = Reader::new(far);
        let mut head = [0; 18];
        for (id, kind) in [(1_u8, "error"), (3, "stdout")] {
            assert!(filled(&mut reader.input, &mut head).await?);
            assert_eq!((head[3], head[11]), (1, id));
            let mut block = vec![0; usize::from(head[7]) - 10];
            reader.input.read_exact(&mut block).await?;
            assert_eq!(reader.unpack(&block)?, [("streamtype".to_owned(), kind.to_owned())]);
        }
        assert_eq!(reader.next().await?, Some(Frame::Data { id: 3, bytes: b"hello".to_vec(), last: true }));
        assert_eq!(reader.next().await?, Some(Frame::Reset { id: 1, status: CANCEL }));
        assert_eq!(reader.next().await?, None);
        Ok(())
    }
}
