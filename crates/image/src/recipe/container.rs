//! The chunks of a recipe's file.

use std::io::{self, Read, Write};

use zstd::bulk::{Compressor, Decompressor};

use super::{MAX_RAW, RecipeError};

const MAGIC: &[u8; 15] = b"crimson-recipe\0";
const VERSION: u8 = 1;
/// Headers are nearly all the same, so that more effort gains little.
const LEVEL: i32 = 1;
const HEAD: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Steps,
    Saved,
}

/// A chunk's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Chunk { kind: Kind, raw: usize, packed: usize },
    End,
}

pub(super) struct ChunkWriter<W> {
    out: W,
    compressor: Compressor<'static>,
    packed: Vec<u8>,
}

impl<W: Write> ChunkWriter<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(&[VERSION])?;
        Ok(Self { out, compressor: Compressor::new(LEVEL)?, packed: Vec::new() })
    }

    pub(super) fn put(&mut self, kind: Kind, raw: &[u8]) -> io::Result<()> {
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, &mut self.packed)?;
        let kind = if kind == Kind::Steps { 0 } else { 1 };
        self.out.write_all(&head(kind, raw.len(), self.packed.len())?)?;
        self.out.write_all(&self.packed)
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        self.out.write_all(&head(2, 0, 0)?)?;
        self.out.flush()
    }
}

fn head(kind: u8, raw: usize, packed: usize) -> io::Result<[u8; HEAD]> {
    let mut head = [kind; HEAD];
    for (at, number) in [(1, raw), (5, packed)] {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        head[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    Ok(head)
}

/// Reads chunks in order; where they are is for the caller to know.
pub(super) struct ChunkReader {
    decompressor: Decompressor<'static>,
    packed: Vec<u8>,
}

impl ChunkReader {
    pub(super) fn new() -> Result<Self, RecipeError> {
        let decompressor = Decompressor::new().map_err(RecipeError::io("preparing to decompress"))?;
        Ok(Self { decompressor, packed: Vec::new() })
    }

    /// Makes sure that a recipe of this version follows.
    pub(super) fn start(input: &mut impl Read) -> Result<(), RecipeError> {
        let mut start = [0; MAGIC.len() + 1];
        fill(input, &mut start)?;
        match start.split_last() {
            Some((&VERSION, magic)) if magic == MAGIC => Ok(()),
            Some((_, magic)) if magic == MAGIC => Err(RecipeError::Malformed("its version is not known")),
            _ => Err(RecipeError::Malformed("it is no recipe")),
        }
    }

    pub(super) fn head(input: &mut impl Read) -> Result<Head, RecipeError> {
        let mut head = [0; HEAD];
        fill(input, &mut head)?;
        let number = |at: usize| {
            let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 4]);
            u32::from_le_bytes(bytes) as usize
        };
        let (raw, packed) = (number(1), number(5));
        let kind = match head[0] {
            0 => Kind::Steps,
            1 => Kind::Saved,
            2 => return Ok(Head::End),
            _ => return Err(RecipeError::Malformed("a chunk of an unknown kind")),
        };
        if raw > MAX_RAW || packed > zstd::zstd_safe::compress_bound(MAX_RAW) {
            return Err(RecipeError::Malformed("a chunk is too large"));
        }
        Ok(Head::Chunk { kind, raw, packed })
    }

    /// Unpacks what follows a head into `into`.
    pub(super) fn unpack(
        &mut self,
        input: &mut impl Read,
        (raw, packed): (usize, usize),
        into: &mut Vec<u8>,
    ) -> Result<(), RecipeError> {
        self.packed.resize(packed, 0);
        fill(input, &mut self.packed)?;
        into.clear();
        into.reserve_exact(raw);
        let unpacked = self.decompressor.decompress_to_buffer(&self.packed, into);
        match unpacked {
            Ok(len) if len == raw => Ok(()),
            _ => Err(RecipeError::Malformed("a chunk does not unpack to its length")),
        }
    }
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), RecipeError> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => RecipeError::Malformed("it ends early"),
        _ => RecipeError::Io { op: "reading the recipe".to_owned(), source: error },
    })
}
