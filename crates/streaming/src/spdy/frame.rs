//! Frames as bytes, without any input or output.
//!
//! [`Decoder`] takes bytes as they come, cut anywhere, and gives what they mean; payload of data is handed on in pieces and
//! never collected, so a frame of 16 MiB needs no more room than a small one. It holds at most one control frame
//! ([`MAX_CONTROL`]) and one header block. Every error is final: the connection has to be closed.

use super::headers::{HeaderError, HeaderReader, HeaderWriter, Headers};

/// The most that a control frame may hold. Kubernetes' have less than 200 bytes.
pub(super) const MAX_CONTROL: usize = 16 * 1024;
/// The window of a stream and of a connection in which nobody has changed it.
pub(super) const INITIAL_WINDOW: u32 = 64 * 1024;
/// Every frame begins with so many bytes.
pub(super) const HEAD: usize = 8;

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const STREAM_MASK: u32 = 0x7fff_ffff;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const SETTING_INITIAL_WINDOW: u32 = 7;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum ResetReason {
    /// The stream's headers make no sense.
    Protocol = 1,
    /// Not wanted.
    Refused = 3,
    /// Wanted no more.
    Cancel = 5,
    /// It has filled what there is for it, and others wait.
    FlowControl = 7,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum CloseReason {
    /// All is done.
    Done = 0,
    /// The other side sends what cannot be understood.
    Protocol = 1,
}

/// What the other side has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A part of a stream; `last` if nothing follows.
    Data { stream: u32, bytes: &'a [u8], last: bool },
    /// A new stream.
    Open { stream: u32, headers: Headers, last: bool, unidirectional: bool },
    /// Nothing follows on a stream, told otherwise than by data.
    Last { stream: u32 },
    /// A stream is at its end in both directions.
    Reset { stream: u32 },
    /// The window that every stream begins with.
    InitialWindow(u32),
    /// So many bytes more may be sent; on the whole connection if `stream` is 0.
    Window { stream: u32, more: u32 },
    /// To be answered with the same.
    Ping(u32),
    /// No more streams will be opened.
    GoAway,
}

/// Bytes that are no SPDY/3.1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Another version, or something else altogether.
    #[error("control frame of version {0}")]
    Version(u16),
    /// More than we take.
    #[error("control frame of type {kind} has {length} bytes")]
    TooLarge {
        /// The type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// Too short, or with a length that does not fit its type.
    #[error("control frame of type {0} is malformed")]
    Malformed(u16),
    /// A stream that cannot be opened, or data for one that was never opened.
    #[error("stream {0} is out of order")]
    Stream(u32),
    /// Its headers cannot be read.
    #[error("headers cannot be read")]
    Headers(#[from] HeaderError),
}

/// Where in a frame we are.
#[derive(Debug)]
enum Place {
    Head,
    Data { stream: u32, left: usize, last: bool },
    Control { kind: u16, flags: u8, length: usize },
    Skipped { left: usize },
}

/// Makes events out of bytes.
#[derive(Debug)]
pub(super) struct Decoder {
    place: Place,
    /// The head as far as it has come.
    head: [u8; HEAD],
    filled: usize,
    /// The payload of a control frame as far as it has come.
    payload: Vec<u8>,
    headers: HeaderReader,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Head,
            head: [0; HEAD],
            filled: 0,
            payload: Vec::new(),
            headers: HeaderReader::new(),
        }
    }

    /// The next event in `input`, which is shortened by what was used; `None` when it is used up.
    ///
    /// # Errors
    /// When these bytes cannot be understood. Nothing after them can.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            let event = match self.place {
                Place::Head => {
                    let part = take(HEAD - self.filled, input);
                    self.head[self.filled..self.filled + part.len()].copy_from_slice(part);
                    self.filled += part.len();
                    if self.filled < HEAD {
                        return Ok(None);
                    }
                    self.filled = 0;
                    self.begin()?
                }
                Place::Data { stream, left, last } => {
                    let bytes = take(left, input);
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let left = left - bytes.len();
                    self.place = if left == 0 { Place::Head } else { Place::Data { stream, left, last } };
                    Some(Event::Data { stream, bytes, last: last && left == 0 })
                }
                Place::Control { kind, flags, length } => {
                    self.payload.extend_from_slice(take(length - self.payload.len(), input));
                    if self.payload.len() < length {
                        return Ok(None);
                    }
                    self.place = Place::Head;
                    self.control(kind, flags)?
                }
                Place::Skipped { left } => {
                    let skipped = take(left, input).len();
                    self.place =
                        if skipped == left { Place::Head } else { Place::Skipped { left: left - skipped } };
                    if skipped < left {
                        return Ok(None);
                    }
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// A head is complete. An event comes only from a data frame that is empty.
    fn begin<'a>(&mut self) -> Result<Option<Event<'a>>, FrameError> {
        let [a, b, c, d, flags, x, y, z] = self.head;
        let length = usize::try_from(u32::from_be_bytes([0, x, y, z])).unwrap_or(usize::MAX);
        let (version, kind) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        if version & CONTROL == 0 {
            let (stream, last) = (u32::from_be_bytes([a, b, c, d]), flags & FLAG_FIN != 0);
            if stream == 0 {
                return Err(FrameError::Stream(stream));
            }
            self.place = if length == 0 { Place::Head } else { Place::Data { stream, left: length, last } };
            return Ok((length == 0 && last).then_some(Event::Data { stream, bytes: &[], last }));
        }
        if version != CONTROL | VERSION {
            return Err(FrameError::Version(version & !CONTROL));
        }
        self.place = match kind {
            SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE if length > MAX_CONTROL => {
                return Err(FrameError::TooLarge { kind, length });
            }
            SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE => Place::Control { kind, flags, length },
            _ => Place::Skipped { left: length },
        };
        Ok(None)
    }

    /// A control frame is complete.
    fn control<'a>(&mut self, kind: u16, flags: u8) -> Result<Option<Event<'a>>, FrameError> {
        let payload = std::mem::take(&mut self.payload);
        let event = self.interpret(kind, flags, &payload);
        self.payload = payload;
        self.payload.clear();
        self.payload.shrink_to(1024);
        event
    }

    fn interpret<'a>(
        &mut self,
        kind: u16,
        flags: u8,
        payload: &[u8],
    ) -> Result<Option<Event<'a>>, FrameError> {
        let malformed = FrameError::Malformed(kind);
        let last = flags & FLAG_FIN != 0;
        let word =
            |at: usize| payload.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_be_bytes);
        let stream = word(0).map(|id| id & STREAM_MASK);
        Ok(match kind {
            SYN_STREAM => {
                let (Some(stream), Some(block)) = (stream, payload.get(10..)) else { return Err(malformed) };
                let headers = self.headers.read(block)?;
                Some(Event::Open { stream, headers, last, unidirectional: flags & FLAG_UNIDIRECTIONAL != 0 })
            }
            SYN_REPLY | HEADERS => {
                let (Some(stream), Some(block)) = (stream, payload.get(4..)) else { return Err(malformed) };
                self.headers.read(block)?;
                last.then_some(Event::Last { stream })
            }
            SETTINGS => initial_window(payload).ok_or(malformed)?,
            PING if payload.len() == 4 => word(0).map(Event::Ping),
            GOAWAY if payload.len() == 8 => Some(Event::GoAway),
            RST_STREAM if payload.len() == 8 => stream.map(|stream| Event::Reset { stream }),
            WINDOW_UPDATE if payload.len() == 8 => {
                stream.zip(word(4)).map(|(stream, more)| Event::Window { stream, more: more & STREAM_MASK })
            }
            _ => return Err(malformed),
        })
    }
}

/// The one setting that matters to a server; `None` if the frame is malformed.
fn initial_window<'a>(payload: &[u8]) -> Option<Option<Event<'a>>> {
    let (count, settings) = payload.split_first_chunk::<4>()?;
    let (settings, rest) = settings.as_chunks::<8>();
    if !rest.is_empty() || usize::try_from(u32::from_be_bytes(*count)).ok()? != settings.len() {
        return None;
    }
    let found = settings.iter().rev().find_map(|&[_, a, b, c, value @ ..]| {
        let id = u32::from_be_bytes([0, a, b, c]);
        (id == SETTING_INITIAL_WINDOW).then(|| u32::from_be_bytes(value))
    });
    Some(found.map(|window| Event::InitialWindow(window & STREAM_MASK)))
}

/// At most `length` bytes from the front of `input`.
fn take<'a>(length: usize, input: &mut &'a [u8]) -> &'a [u8] {
    let (taken, rest) = input.split_at(length.min(input.len()));
    *input = rest;
    taken
}

/// Appends a data frame. It has at most 2^24 - 1 bytes.
pub(super) fn put_data(stream: u32, bytes: &[u8], last: bool, out: &mut Vec<u8>) {
    out.reserve(HEAD + bytes.len());
    out.extend_from_slice(&stream.to_be_bytes());
    put_length(if last { FLAG_FIN } else { 0 }, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends to the data frame that begins at `begin` and is the last one.
pub(super) fn extend_data(begin: usize, bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes);
    end_frame(begin + HEAD, out);
}

/// Appends the acceptance of a stream, without headers; with `last` we have nothing to say on it.
pub(super) fn put_reply(stream: u32, last: bool, headers: &mut HeaderWriter, out: &mut Vec<u8>) {
    let begin = put_head(SYN_REPLY, if last { FLAG_FIN } else { 0 }, out);
    out.extend_from_slice(&stream.to_be_bytes());
    headers.write(&[], out);
    end_frame(begin, out);
}

/// Appends the end of a stream in both directions.
pub(super) fn put_reset(stream: u32, reason: ResetReason, out: &mut Vec<u8>) {
    put_words(RST_STREAM, &[stream, reason as u32], out);
}

/// Appends a ping, or the answer to one.
pub(super) fn put_ping(id: u32, out: &mut Vec<u8>) {
    put_words(PING, &[id], out);
}

/// Appends the announcement that the connection ends, and after which stream of the other side's.
pub(super) fn put_go_away(last_stream: u32, reason: CloseReason, out: &mut Vec<u8>) {
    put_words(GOAWAY, &[last_stream, reason as u32], out);
}

/// Appends the permission to send so many bytes more; on the whole connection if `stream` is 0.
pub(super) fn put_window(stream: u32, more: u32, out: &mut Vec<u8>) {
    put_words(WINDOW_UPDATE, &[stream, more], out);
}

fn put_words(kind: u16, words: &[u32], out: &mut Vec<u8>) {
    let begin = put_head(kind, 0, out);
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
    end_frame(begin, out);
}

/// Begins a control frame; [`end_frame`] fills in its length.
fn put_head(kind: u16, flags: u8, out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&(CONTROL | VERSION).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    put_length(flags, 0, out);
    out.len()
}

fn put_length(flags: u8, length: usize, out: &mut Vec<u8>) {
    let [_, x, y, z] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[flags, x, y, z]);
}

/// The last frame's payload began here and ends now.
fn end_frame(begin: usize, out: &mut [u8]) {
    let [_, x, y, z] = u32::try_from(out.len() - begin).unwrap_or(u32::MAX).to_be_bytes();
    out[begin - 3..begin].copy_from_slice(&[x, y, z]);
}

#[cfg(any(test, fuzzing))]
impl Decoder {
    /// How much memory there is for what is not handed out yet.
    pub(super) fn held(&self) -> usize {
        self.payload.capacity()
    }
}

/// What only clients send.
#[cfg(test)]
pub(super) mod client {
    use super::*;

    pub(in super::super) fn put_open(
        stream: u32,
        pairs: &[(&str, &str)],
        last: bool,
        headers: &mut HeaderWriter,
        out: &mut Vec<u8>,
    ) {
        let begin = put_head(SYN_STREAM, if last { FLAG_FIN } else { 0 }, out);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(&[0; 6]);
        headers.write(pairs, out);
        end_frame(begin, out);
    }

    pub(in super::super) fn put_settings(settings: &[(u32, u32)], out: &mut Vec<u8>) {
        let count = u32::try_from(settings.len()).unwrap_or(u32::MAX);
        let words: Vec<u32> =
            std::iter::once(count).chain(settings.iter().flat_map(|&(id, value)| [id, value])).collect();
        put_words(SETTINGS, &words, out);
    }
}

#[cfg(test)]
mod tests;
