//! Writing a recipe while the layer is unpacked, on the same thread.
//!
//! The archive is read through a [`Tap`], which notes all that passes but for the content of files. A recipe that cannot
//! be written fails the unpacking at the next entry, not the read in which it happened: that error would be the archive's.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::container::{ChunkWriter, Kind};
use super::step::{self, Content};
use super::{MAX_PATH, MAX_RAW};

/// Longest literal before it becomes a step.
const MAX_LITERAL: usize = MAX_RAW / 4;
/// Steps are put into a chunk when they have this length; with the literal and the path that make them exceed it they
/// stay below [`MAX_RAW`].
const FULL: usize = MAX_RAW / 4;
/// Room for the head of a saved part: a path and four numbers.
const SAVED_HEAD: usize = MAX_PATH + 64;

/// A recipe being written, or nothing where none is wanted.
pub(crate) struct Writer {
    chunks: Option<ChunkWriter<File>>,
    literal: Vec<u8>,
    steps: Vec<u8>,
    /// Steps with content so far.
    contents: u64,
    failure: Option<io::Error>,
}

impl Writer {
    /// Writes into an empty file.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        Ok(Self { chunks: Some(ChunkWriter::new(file)?), ..Self::none() })
    }

    /// Writes nothing.
    pub(crate) fn none() -> Self {
        Self { chunks: None, literal: Vec::new(), steps: Vec::new(), contents: 0, failure: None }
    }

    /// Notes bytes as they stand in the archive.
    pub(crate) fn literal(&mut self, mut bytes: &[u8]) {
        if self.chunks.is_none() {
            return;
        }
        while !bytes.is_empty() {
            let room = MAX_LITERAL.saturating_sub(self.literal.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.literal.extend_from_slice(now);
            bytes = later;
            if self.literal.len() >= MAX_LITERAL {
                self.end_literal();
                self.end_chunk();
            }
        }
    }

    /// Notes that a file's bytes follow in the archive.
    pub(crate) fn content(&mut self, content: &Content<'_>) {
        if self.chunks.is_none() {
            return;
        }
        self.end_literal();
        step::put_content(&mut self.steps, content);
        self.contents += 1;
        if self.steps.len() >= FULL {
            self.end_chunk();
        }
    }

    /// Keeps what `file`, about to leave the tree, has under `path`.
    pub(crate) fn save(&mut self, path: &[u8], file: &File) {
        if self.chunks.is_none() || self.failure.is_some() {
            return;
        }
        if let Err(error) = self.try_save(path, file) {
            self.failure = Some(error);
        }
    }

    fn try_save(&mut self, path: &[u8], file: &File) -> io::Result<()> {
        let size = file.metadata()?.len();
        // Also an empty file must be known to be here and not in the tree.
        let mut at = 0;
        self.save_part(path, file, (size, 0, 0))?;
        while let Some((start, end)) = next_data(file, at, size)? {
            at = start;
            while at < end {
                let len = (end - at).min((MAX_RAW - SAVED_HEAD) as u64);
                self.save_part(path, file, (size, at, len))?;
                at += len;
            }
        }
        Ok(())
    }

    fn save_part(
        &mut self,
        path: &[u8],
        file: &File,
        (size, offset, len): (u64, u64, u64),
    ) -> io::Result<()> {
        let Some(chunks) = &mut self.chunks else { return Ok(()) };
        let mut raw = Vec::new();
        step::put_saved_head(&mut raw, path, [self.contents, size, offset]);
        let start = raw.len();
        raw.resize(start + usize::try_from(len).map_err(io::Error::other)?, 0);
        file.read_exact_at(raw.get_mut(start..).unwrap_or_default(), offset)?;
        chunks.put(Kind::Saved, &raw)
    }

    /// What went wrong so far.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.end_literal();
        self.end_chunk();
        self.check()?;
        self.chunks.map_or(Ok(()), ChunkWriter::end)
    }

    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            step::put_literal(&mut self.steps, &self.literal);
            self.literal.clear();
        }
    }

    fn end_chunk(&mut self) {
        let Some(chunks) = self.chunks.as_mut().filter(|_| !self.steps.is_empty()) else { return };
        let put = chunks.put(Kind::Steps, &self.steps);
        self.steps.clear();
        if let Err(error) = put {
            self.failure.get_or_insert(error);
        }
    }
}

/// The next stretch at or behind `at` that is no hole.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
    Ok(Some((start, end)).filter(|(start, end)| start < end))
}

/// Reads an archive and notes what passes.
pub(crate) struct Tap<R> {
    input: R,
    recipe: Writer,
    is_content: bool,
}

impl<R> Tap<R> {
    pub(crate) fn new(input: R, recipe: Writer) -> Self {
        Self { input, recipe, is_content: false }
    }

    pub(crate) fn recipe(&mut self) -> &mut Writer {
        &mut self.recipe
    }

    /// From here on what passes goes to a file.
    pub(crate) fn begin_content(&mut self) {
        self.is_content = true;
    }

    /// What passed since [`Tap::begin_content`] is in that file.
    pub(crate) fn end_content(&mut self, content: &Content<'_>) {
        self.is_content = false;
        self.recipe.content(content);
    }

    pub(crate) fn into_parts(self) -> (R, Writer) {
        (self.input, self.recipe)
    }
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if !self.is_content {
            self.recipe.literal(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}
