//! Putting a recipe and a tree together to the archive they came from.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::container::{ChunkReader, Head, Kind};
use super::step::{self, Content, Step};
use super::{FILE, RecipeError, TREE};

/// What the table of replaced files may take.
const MAX_TABLE: usize = 256 << 20;
/// A table's entry beyond its path, roughly.
const PART_COST: usize = 64;

/// The archive of the layer in `directory` (with `fs` and `recipe` in it), byte for byte as it was pulled.
///
/// # Errors
/// [`RecipeError`] when there is no recipe or its table is damaged; damage that shows later is a [`io::Error`] of the
/// reader with a [`RecipeError`] inside.
pub(crate) fn read(directory: &Path, root: OwnedFd) -> Result<Tar<BufReader<File>>, RecipeError> {
    Tar::new(BufReader::new(open_recipe(directory)?), root)
}

fn open_recipe(directory: &Path) -> Result<File, RecipeError> {
    let path = directory.join(FILE);
    File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RecipeError::Missing(directory.to_owned()),
        _ => RecipeError::Io { op: format!("opening {}", path.display()), source: error },
    })
}

/// As [`read`], of a layer where the store keeps it.
pub(crate) fn open(directory: &Path) -> Result<Tar<BufReader<File>>, RecipeError> {
    let path = directory.join(TREE);
    let root = File::open(&path).map_err(RecipeError::io(format!("opening {}", path.display())))?;
    read(directory, root.into())
}

/// The length of the archive of the layer in `directory`.
pub(crate) fn length(directory: &Path) -> Result<u64, RecipeError> {
    let mut input = BufReader::new(open_recipe(directory)?);
    let mut chunks = ChunkReader::new()?;
    let (needed, brought) = measure(&mut input, &mut chunks)?;
    Ok(needed.saturating_add(brought))
}

/// Reads all of a recipe without a tree: how many bytes of files it needs and how many it brings.
///
/// # Errors
/// [`RecipeError::Malformed`] for anything that is no recipe.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse(bytes: &[u8]) -> Result<(u64, u64), RecipeError> {
    let mut input = io::Cursor::new(bytes);
    let mut chunks = ChunkReader::new()?;
    Saved::scan(&mut input, &mut chunks)?;
    measure(&mut input, &mut chunks)
}

fn measure<R: Read + Seek>(input: &mut R, chunks: &mut ChunkReader) -> Result<(u64, u64), RecipeError> {
    rewind(input)?;
    let (mut needed, mut brought) = (0_u64, 0_u64);
    let mut raw = Vec::new();
    while next_steps(input, chunks, &mut raw)? {
        let mut rest = raw.as_slice();
        while let Some((step, more)) = step::next(rest)? {
            match step {
                Step::Literal(bytes) => brought = brought.saturating_add(bytes.len() as u64),
                Step::Content(content) => needed = needed.saturating_add(content.len),
            }
            rest = more;
        }
    }
    Ok((needed, brought))
}

/// Where the parts of replaced files are.
#[derive(Default)]
struct Saved {
    files: HashMap<Vec<u8>, Vec<Replaced>>,
    cost: usize,
}

/// One of the files that were at a path, one after the other.
struct Replaced {
    step: u64,
    size: u64,
    /// Ascending.
    parts: Arc<Vec<Part>>,
}

#[derive(Clone, Copy)]
struct Part {
    offset: u64,
    len: u64,
    chunk: u64,
}

impl Saved {
    /// Walks over the whole file, unpacking the saved parts only.
    fn scan<R: Read + Seek>(input: &mut R, chunks: &mut ChunkReader) -> Result<Self, RecipeError> {
        rewind(input)?;
        let mut found = Self::default();
        let mut raw = Vec::new();
        loop {
            let at = input.stream_position().map_err(RecipeError::io("reading the recipe"))?;
            match ChunkReader::head(input)? {
                Head::End => return found.expect_end(input),
                Head::Chunk { kind: Kind::Steps, packed, .. } => skip(input, packed)?,
                Head::Chunk { kind: Kind::Saved, raw: len, packed } => {
                    chunks.unpack(input, (len, packed), &mut raw)?;
                    found.note(&step::saved(&raw)?, at)?;
                }
            }
        }
    }

    fn expect_end(self, input: &mut impl Read) -> Result<Self, RecipeError> {
        let more = input.read(&mut [0]).map_err(RecipeError::io("reading the recipe"))?;
        if more == 0 { Ok(self) } else { Err(RecipeError::Malformed("something follows its end")) }
    }

    /// Every file's first part is empty.
    fn note(&mut self, saved: &step::Saved<'_>, chunk: u64) -> Result<(), RecipeError> {
        let step::Saved { path, step, size, offset, bytes } = *saved;
        self.cost += PART_COST + if self.files.contains_key(path) { 0 } else { path.len() + PART_COST };
        if self.cost > MAX_TABLE {
            return Err(RecipeError::Malformed("it has too many saved parts"));
        }
        let files = self.files.entry(path.to_owned()).or_default();
        if bytes.is_empty() {
            files.push(Replaced { step, size, parts: Arc::default() });
            return Ok(());
        }
        let file = files.last_mut().filter(|file| file.step == step && file.size == size);
        let parts = file.and_then(|file| Arc::get_mut(&mut file.parts));
        let parts = parts.ok_or(RecipeError::Malformed("a saved part of no file"))?;
        parts.push(Part { offset, len: bytes.len() as u64, chunk });
        Ok(())
    }

    /// The file that was at `path` when step `number` was written, if it was replaced later.
    fn of(&self, path: &[u8], number: u64) -> Option<&Replaced> {
        self.files.get(path)?.iter().find(|file| file.step > number)
    }
}

fn rewind<R: Read + Seek>(input: &mut R) -> Result<(), RecipeError> {
    input.rewind().map_err(RecipeError::io("reading the recipe"))?;
    ChunkReader::start(input)
}

fn skip(input: &mut impl Seek, count: usize) -> Result<(), RecipeError> {
    let count = i64::try_from(count).map_err(|_| RecipeError::Malformed("a chunk is too large"))?;
    input.seek_relative(count).map_err(RecipeError::io("reading the recipe"))
}

/// The next chunk of steps into `raw`; `false` at the end.
fn next_steps<R: Read + Seek>(
    input: &mut R,
    chunks: &mut ChunkReader,
    raw: &mut Vec<u8>,
) -> Result<bool, RecipeError> {
    loop {
        match ChunkReader::head(input)? {
            Head::End => return Ok(false),
            Head::Chunk { kind: Kind::Saved, packed, .. } => skip(input, packed)?,
            Head::Chunk { kind: Kind::Steps, raw: len, packed } => {
                chunks.unpack(input, (len, packed), raw)?;
                return Ok(true);
            }
        }
    }
}

/// A layer's archive, read from its recipe and its tree.
pub(crate) struct Tar<R> {
    recipe: R,
    chunks: ChunkReader,
    root: OwnedFd,
    saved: Saved,
    /// The chunk of steps at hand, and how far it is done.
    steps: Vec<u8>,
    at: usize,
    /// What the step at hand still has to give.
    current: Current,
    /// Steps with content so far.
    contents: u64,
    open: Option<(Vec<u8>, File)>,
    part: Vec<u8>,
}

enum Current {
    None,
    /// A range of the chunk.
    Literal(std::ops::Range<usize>),
    File {
        at: u64,
        end: u64,
    },
    Saved {
        parts: Arc<Vec<Part>>,
        at: u64,
        end: u64,
        /// The chunk in [`Tar::part`].
        loaded: Option<u64>,
    },
}

impl<R: Read + Seek> Tar<R> {
    fn new(mut recipe: R, root: OwnedFd) -> Result<Self, RecipeError> {
        let mut chunks = ChunkReader::new()?;
        let saved = Saved::scan(&mut recipe, &mut chunks)?;
        rewind(&mut recipe)?;
        Ok(Self {
            recipe,
            chunks,
            root,
            saved,
            steps: Vec::new(),
            at: 0,
            current: Current::None,
            contents: 0,
            open: None,
            part: Vec::new(),
        })
    }

    /// Prepares the next step; `false` at the end of the archive.
    fn advance(&mut self) -> Result<bool, RecipeError> {
        while self.at >= self.steps.len() {
            self.at = 0;
            if !next_steps(&mut self.recipe, &mut self.chunks, &mut self.steps)? {
                self.steps.clear();
                return Ok(false);
            }
        }
        let steps = std::mem::take(&mut self.steps);
        let begun = self.begin(steps.get(self.at..).unwrap_or_default());
        self.steps = steps;
        begun.map(|()| true)
    }

    fn begin(&mut self, steps: &[u8]) -> Result<(), RecipeError> {
        let Some((step, rest)) = step::next(steps)? else { return Ok(()) };
        let end = self.at + steps.len() - rest.len();
        self.current = match step {
            Step::Literal(bytes) => Current::Literal(end - bytes.len()..end),
            Step::Content(content) => self.begin_content(&content)?,
        };
        self.at = end;
        Ok(())
    }

    fn begin_content(&mut self, content: &Content<'_>) -> Result<Current, RecipeError> {
        let (at, end) = (content.offset, content.offset + content.len);
        self.contents += 1;
        if let Some(file) = self.saved.of(content.path, self.contents - 1) {
            if file.size != content.size {
                return Err(RecipeError::Malformed("a saved file has another length"));
            }
            return Ok(Current::Saved { parts: Arc::clone(&file.parts), at, end, loaded: None });
        }
        if self.open.as_ref().is_none_or(|(path, _)| path != content.path) {
            self.open = Some((content.path.to_owned(), open_file(&self.root, content)?));
        }
        Ok(Current::File { at, end })
    }

    /// Gives what the step at hand has; 0 when it has no more.
    fn give(&mut self, buffer: &mut [u8]) -> Result<usize, RecipeError> {
        match &mut self.current {
            Current::None => Ok(0),
            Current::Literal(range) => {
                let count = copy(self.steps.get(range.clone()).unwrap_or_default(), buffer);
                range.start += count;
                Ok(count)
            }
            Current::File { at, end } => {
                let Some((path, file)) = &self.open else { return Ok(0) };
                let count = read_file(file, path, *at, limited(buffer, *end - *at))?;
                *at += count as u64;
                Ok(count)
            }
            Current::Saved { .. } => self.give_saved(buffer),
        }
    }

    fn give_saved(&mut self, buffer: &mut [u8]) -> Result<usize, RecipeError> {
        let Current::Saved { parts, at, end, loaded } = &mut self.current else { return Ok(0) };
        let wanted = limited(buffer, *end - *at);
        let next = parts.get(parts.partition_point(|part| part.offset + part.len <= *at)).copied();
        let count = match next {
            Some(part) if part.offset <= *at && *at < part.offset + part.len => {
                if *loaded != Some(part.chunk) {
                    load_part(&mut self.recipe, &mut self.chunks, part.chunk, &mut self.part)?;
                    *loaded = Some(part.chunk);
                }
                let start = usize::try_from(*at - part.offset).unwrap_or(usize::MAX);
                copy(step::saved(&self.part)?.bytes.get(start..).unwrap_or_default(), wanted)
            }
            next => {
                let until = next.map_or(*end, |part| part.offset).max(*at + 1);
                let hole = limited(wanted, until - *at);
                hole.fill(0);
                hole.len()
            }
        };
        *at += count as u64;
        Ok(count)
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, RecipeError> {
        loop {
            let count = self.give(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.current = Current::None;
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}

impl<R: Read + Seek> Read for Tar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() { Ok(0) } else { self.step(buffer).map_err(io::Error::from) }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    to.get_mut(..count).unwrap_or_default().copy_from_slice(from.get(..count).unwrap_or_default());
    count
}

fn limited(buffer: &mut [u8], limit: u64) -> &mut [u8] {
    let count = usize::try_from(limit).unwrap_or(usize::MAX).min(buffer.len());
    buffer.get_mut(..count).unwrap_or_default()
}

/// Reads the chunk at `at` and comes back to where the steps are read.
fn load_part<R: Read + Seek>(
    recipe: &mut R,
    chunks: &mut ChunkReader,
    at: u64,
    into: &mut Vec<u8>,
) -> Result<(), RecipeError> {
    let back = recipe.stream_position().map_err(RecipeError::io("reading the recipe"))?;
    recipe.seek(SeekFrom::Start(at)).map_err(RecipeError::io("reading the recipe"))?;
    if let Head::Chunk { raw, packed, .. } = ChunkReader::head(recipe)? {
        chunks.unpack(recipe, (raw, packed), into)?;
    }
    recipe.seek(SeekFrom::Start(back)).map_err(RecipeError::io("reading the recipe"))?;
    Ok(())
}

fn read_file(file: &File, path: &[u8], at: u64, buffer: &mut [u8]) -> Result<usize, RecipeError> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let name = || String::from_utf8_lossy(path).into_owned();
    match file.read_at(buffer, at) {
        Ok(0) => Err(RecipeError::Tree { path: name(), problem: "ends early" }),
        Ok(count) => Ok(count),
        Err(source) => Err(RecipeError::Io { op: format!("reading {:?}", name()), source }),
    }
}

/// Opens a regular file of the right length. What is anything else is looked at but never opened.
fn open_file(root: &OwnedFd, content: &Content<'_>) -> Result<File, RecipeError> {
    let path = String::from_utf8_lossy(content.path).into_owned();
    let failed = |errno: rustix::io::Errno| match errno {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {
            RecipeError::Tree { path: path.clone(), problem: "is missing" }
        }
        rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => {
            RecipeError::Tree { path: path.clone(), problem: "is not where it was put" }
        }
        errno => RecipeError::Io { op: format!("opening {path:?}"), source: errno.into() },
    };
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(root, content.path, flags, Mode::empty(), inside).map_err(failed)?;
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(RecipeError::Tree { path, problem: "is no file any more" });
    }
    if u64::try_from(stat.st_size) != Ok(content.size) {
        return Err(RecipeError::Tree { path, problem: "has another length" });
    }
    let own = format!("/proc/self/fd/{}", found.as_raw_fd());
    File::open(own).map_err(RecipeError::io(format!("opening {path:?}")))
}
