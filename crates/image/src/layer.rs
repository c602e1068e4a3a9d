//! From a layer's bytes, as they arrive, to a verified directory: hash, decompress, hash again, unpack.
//!
//! Runs on a blocking thread; the downloading task feeds it through a bounded channel, so that a slow disk slows the
//! download down and memory stays bounded. What took how long goes to the log, one event per layer.

mod clock;

use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use types::Digest;

use crate::error::{ImageError, is_full};
use crate::hash::Hasher;
use crate::pull::Chunks;
use crate::unpack::{Target, UnpackError, Unpacked, limit, unpack_within};
use clock::{Clock, Part};

/// What a layer must turn out to be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
}

/// Why a layer's bytes did not become a directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// The bytes are not those that the digests promise.
    #[error("{0}")]
    Corrupt(String),
    /// The archive in them is malformed or hostile, or could not be written.
    #[error(transparent)]
    Unpack(UnpackError),
}

impl LayerError {
    /// The error of the pull or load of `reference` in which this happened.
    pub(crate) fn of(self, layer: &Digest, reference: impl ToString) -> ImageError {
        let (reference, layer) = (reference.to_string(), layer.clone());
        match self {
            Self::Corrupt(detail) => {
                ImageError::Corrupt { reference, what: format!("layer {layer}"), detail }
            }
            Self::Unpack(error) if error.io().is_some_and(is_full) => {
                ImageError::DiskFull { what: format!("layer {layer} of {reference}") }
            }
            Self::Unpack(source) => ImageError::Unpack { reference, layer, source },
        }
    }
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const DECODED_BUFFER: usize = 128 << 10;
/// 128 MiB, what `zstd --long` makes at most; anything larger would let an image choose how much memory we take.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Unpacks the blob in `blob`, verifying both digests.
pub(crate) fn unpack_blob(
    blob: impl Chunks + 'static,
    expected: &Expected,
    target: impl Into<Target>,
) -> Result<Unpacked, LayerError> {
    let clock = Rc::new(Clock::start());
    let mut source = BlobReader::new(blob, expected.size, Rc::clone(&clock));
    match unpack_stream(&mut source, target.into(), &clock) {
        Ok((unpacked, content)) => {
            source.verify(&expected.digest)?;
            check("content", &expected.diff_id, &content.diff_id)?;
            clock.log(expected, content.size);
            Ok(unpacked)
        }
        // Corrupt bytes look like a malformed archive; the blob's digest tells which of the two it is.
        Err(error) if error.is_of_content() => {
            source.verify(&expected.digest)?;
            Err(LayerError::Unpack(error))
        }
        Err(error) => Err(LayerError::Unpack(error)),
    }
}

/// What the decompressor gave in all.
struct Content {
    diff_id: Digest,
    size: u64,
}

fn unpack_stream(
    source: &mut BlobReader,
    target: Target,
    clock: &Rc<Clock>,
) -> Result<(Unpacked, Content), UnpackError> {
    let limit = limit(source.size);
    let decoder = Decoder::new(source).map_err(|error| read_error(error, ""))?;
    let input = BufReader::with_capacity(DECODED_BUFFER, ContentReader::new(decoder, Rc::clone(clock)));
    let (unpacked, input) = unpack_within(limit, input, target)?;
    let ContentReader { hasher, seen, .. } = input.into_inner();
    Ok((unpacked, Content { diff_id: hasher.finish(), size: seen }))
}

fn read_error(error: io::Error, after: &str) -> UnpackError {
    UnpackError::Archive { after: after.to_owned(), problem: crate::tar::TarError::Read(error) }
}

fn check(what: &str, expected: &Digest, actual: &Digest) -> Result<(), LayerError> {
    if expected == actual {
        return Ok(());
    }
    Err(LayerError::Corrupt(format!("its {what} has the digest {actual}, not {expected}")))
}

/// The decompressor that the first bytes ask for; manifests are not always right about it.
enum Decoder<'a> {
    Plain(&'a mut BlobReader),
    Gzip(Box<MultiGzDecoder<&'a mut BlobReader>>),
    Zstd(Box<zstd::Decoder<'static, &'a mut BlobReader>>),
}

impl<'a> Decoder<'a> {
    fn new(source: &'a mut BlobReader) -> io::Result<Self> {
        let start = source.peek(ZSTD.len())?;
        if start.starts_with(GZIP) {
            return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(source))));
        }
        if start.starts_with(ZSTD) || is_skippable_frame(start) {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            return Ok(Self::Zstd(Box::new(decoder)));
        }
        Ok(Self::Plain(source))
    }
}

/// zstd:chunked images may begin with such a frame.
fn is_skippable_frame(start: &[u8]) -> bool {
    matches!(start, [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50)
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Reads what the decompressor gives, hashing and counting it.
struct ContentReader<'a> {
    decoder: Decoder<'a>,
    hasher: Hasher,
    seen: u64,
    clock: Rc<Clock>,
}

impl<'a> ContentReader<'a> {
    fn new(decoder: Decoder<'a>, clock: Rc<Clock>) -> Self {
        Self { decoder, hasher: Hasher::new(), seen: 0, clock }
    }
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.clock.during(Part::Decompress, || self.decoder.read(buffer))?;
        let bytes = buffer.get(..count).unwrap_or_default();
        self.clock.during(Part::Hash, || self.hasher.update(bytes));
        self.seen += bytes.len() as u64;
        Ok(count)
    }
}

/// Reads a blob from the channel, hashing and counting it.
struct BlobReader {
    blob: Box<dyn Chunks>,
    current: Bytes,
    hasher: Hasher,
    seen: u64,
    size: u64,
    clock: Rc<Clock>,
}

impl BlobReader {
    fn new(blob: impl Chunks + 'static, size: u64, clock: Rc<Clock>) -> Self {
        Self { blob: Box::new(blob), current: Bytes::new(), hasher: Hasher::new(), seen: 0, size, clock }
    }

    /// The first bytes, not consumed; fewer only when the blob is shorter.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.current.len() < count {
            let Some(more) = self.receive()? else { break };
            self.current = [&self.current[..], &more[..]].concat().into();
        }
        Ok(&self.current)
    }

    fn receive(&mut self) -> io::Result<Option<Bytes>> {
        let received = self.clock.during(Part::Network, || self.blob.next())?;
        let Some(chunk) = received else { return Ok(None) };
        self.seen += chunk.len() as u64;
        if self.seen > self.size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the blob is longer than announced"));
        }
        self.clock.during(Part::Hash, || self.hasher.update(&chunk));
        Ok(Some(chunk))
    }

    /// Takes what is left of the blob and compares its digest.
    fn verify(mut self, digest: &Digest) -> Result<(), LayerError> {
        while self.receive().map_err(|error| LayerError::Corrupt(error.to_string()))?.is_some() {}
        if self.seen < self.size {
            return Err(LayerError::Corrupt(format!("it has {} bytes, not {}", self.seen, self.size)));
        }
        check("blob", digest, &self.hasher.finish())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        let (now, _) = available.split_at(count);
        buffer.get_mut(..count).unwrap_or_default().copy_from_slice(now);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.receive()? {
                Some(chunk) => self.current = chunk,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        drop(self.current.split_to(count.min(self.current.len())));
    }
}

#[cfg(test)]
mod tests;
