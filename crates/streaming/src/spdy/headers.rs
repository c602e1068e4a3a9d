//! Header blocks: names with values, through one zlib stream for each direction of a connection.
//!
//! What a client sends is inflated with a bound, whatever it claims. What we send goes uncompressed: a zlib stream may consist
//! of stored blocks, the only headers that a server of ours has to send are none, and no compressor has to be kept.

use flate2::{Decompress, FlushDecompress, Status};

/// What both sides have in their windows before the first block, from the SPDY/3 specification.
const DICTIONARY: &[u8; 1423] = include_bytes!("dictionary.bin");
/// The beginning of a zlib stream: deflate with a window of 32 KiB, and the checksum of the dictionary.
const STREAM_HEAD: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
/// An empty stored block, with which a compressor ends what is to be readable at once.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// The most that a block may be after decompression.
pub(super) const MAX_BLOCK: usize = 64 * 1024;

/// The most headers in a block. Kubernetes' have three.
const MAX_HEADERS: usize = 128;

/// The headers of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of `name`, which is lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(found, _)| found == name)?;
        value.split('\0').next()
    }
}

#[cfg(any(test, fuzzing))]
impl HeaderReader {
    /// How much memory there is for decompressed bytes.
    pub(super) fn held(&self) -> usize {
        self.plain.capacity()
    }
}

#[cfg(any(test, fuzzing))]
impl Headers {
    pub(super) fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

/// A header block that cannot be read; those after it cannot either.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// The zlib stream is broken or has ended.
    #[error("header block is no continuation of a zlib stream")]
    Compression,
    /// More than we take.
    #[error("header block has more than {MAX_BLOCK} bytes or {MAX_HEADERS} headers")]
    TooLarge,
    /// The lengths in it do not add up, or a name or value is no text.
    #[error("header block is malformed")]
    Malformed,
}

/// The client's header blocks, one after the other.
#[derive(Debug)]
pub(super) struct HeaderReader {
    inflate: Decompress,
    plain: Vec<u8>,
}

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(true), plain: Vec::new() }
    }

    /// Reads the next block.
    ///
    /// # Errors
    /// When it cannot be read; the connection has to end, since further blocks build upon it.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        self.plain.clear();
        self.inflate(block)?;
        let headers = parse(&self.plain);
        self.plain.shrink_to(1024);
        headers
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<(), HeaderError> {
        loop {
            self.plain.reserve_exact(512.max(self.plain.len()));
            let before = self.inflate.total_in();
            let result = self.inflate.decompress_vec(block, &mut self.plain, FlushDecompress::Sync);
            let consumed = usize::try_from(self.inflate.total_in() - before).unwrap_or(usize::MAX);
            block = block.get(consumed..).ok_or(HeaderError::Compression)?;
            match result {
                Err(error) if error.needs_dictionary().is_some() => self.give_dictionary()?,
                Err(_) | Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(Status::Ok | Status::BufError) if self.plain.len() > MAX_BLOCK => {
                    return Err(HeaderError::TooLarge);
                }
                Ok(Status::Ok | Status::BufError) if self.plain.len() == self.plain.capacity() => {}
                Ok(Status::Ok | Status::BufError) if block.is_empty() => return Ok(()),
                Ok(Status::Ok) => {}
                Ok(Status::BufError) => return Err(HeaderError::Compression),
            }
        }
    }

    fn give_dictionary(&mut self) -> Result<(), HeaderError> {
        self.inflate.set_dictionary(DICTIONARY).map(|_| ()).map_err(|_| HeaderError::Compression)
    }
}

/// Reads names and values out of a decompressed block.
fn parse(mut plain: &[u8]) -> Result<Headers, HeaderError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let count = take_length(&mut plain)?;
    if count > MAX_HEADERS {
        return Err(HeaderError::TooLarge);
    }
    for _ in 0..count {
        let name = take_text(&mut plain)?;
        let value = take_text(&mut plain)?;
        pairs.push((name, value));
    }
    if plain.is_empty() { Ok(Headers(pairs)) } else { Err(HeaderError::Malformed) }
}

fn take_length(plain: &mut &[u8]) -> Result<usize, HeaderError> {
    let (length, rest) = plain.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *plain = rest;
    usize::try_from(u32::from_be_bytes(*length)).map_err(|_| HeaderError::Malformed)
}

fn take_text(plain: &mut &[u8]) -> Result<String, HeaderError> {
    let length = take_length(plain)?;
    let (text, rest) = plain.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *plain = rest;
    str::from_utf8(text).map(str::to_owned).map_err(|_| HeaderError::Malformed)
}

/// The header blocks that we send.
#[derive(Debug, Default)]
pub(super) struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    /// Appends a block with these headers to `out`.
    pub(super) fn write(&mut self, headers: &[(&str, &str)], out: &mut Vec<u8>) {
        if !self.begun {
            self.begun = true;
            out.extend_from_slice(&STREAM_HEAD);
        }
        let mut plain = Vec::new();
        put_length(headers.len(), &mut plain);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            put_length(text.len(), &mut plain);
            plain.extend_from_slice(text.as_bytes());
        }
        for part in plain.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            out.push(0);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(part);
        }
        out.extend_from_slice(&FLUSH);
    }
}

fn put_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests;
