//! The files of an archive that comes as a stream, kept until it is loaded.
//!
//! What an archive says of its files often stands behind them, so that they are put aside first. Names stay in memory and
//! name nothing on the disk.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use tokio_util::sync::CancellationToken;

use super::source::unusable;
use crate::error::ImageError;
use crate::store::Ingest;
use crate::tar::{Archive, Entry, Kind, TarError};

const BUFFER: usize = 256 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z'];
const ZSTD_WINDOW_LOG: u32 = 27;
/// An archive of a hundred images of a hundred layers has fewer.
const MAX_FILES: usize = 32 << 10;
/// The names in an archive of images are short.
const MAX_NAME: usize = 512;
/// Symbolic links stand for layers that several images have; a link to a link is not written by anybody.
const MAX_LINKS: usize = 4;

pub(super) struct Spool {
    directory: PathBuf,
    entries: HashMap<String, Place>,
}

enum Place {
    File(usize),
    Link(String),
}

impl Spool {
    /// Takes a whole stream.
    pub(super) fn take(
        input: impl Read,
        ingest: &Ingest,
        closing: &CancellationToken,
    ) -> Result<Self, ImageError> {
        let consumed = Rc::new(Cell::new(0));
        let input = Counted { input, consumed: Rc::clone(&consumed), closing: closing.clone() };
        let input = decoded(BufReader::with_capacity(BUFFER, input))?;
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, input));
        let mut spool = Self { directory: ingest.path().to_owned(), entries: HashMap::new() };
        let mut spooled = 0;
        while let Some(entry) = next(&mut archive)? {
            spool.add(&entry, &mut archive, &mut |count| {
                spooled += count;
                let limit = crate::unpack::limit(consumed.get());
                if spooled > limit {
                    Err(unusable("it unpacks to more than 200 times its size"))
                } else {
                    Ok(())
                }
            })?;
        }
        Ok(spool)
    }

    fn add<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        count: &mut dyn FnMut(u64) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let Some(name) = clean(&entry.path) else { return Ok(()) };
        if self.entries.len() >= MAX_FILES {
            return Err(unusable("it has too many files"));
        }
        let place = match entry.kind {
            Kind::File if entry.regions.is_some() => {
                return Err(unusable(format!("{name} is a sparse file")));
            }
            Kind::File => {
                let number = self.entries.len();
                self.write(number, archive, count)?;
                Place::File(number)
            }
            Kind::Symlink => match resolve(&name, &entry.link) {
                Some(target) => Place::Link(target),
                None => return Err(unusable(format!("the link {name} points outside of it"))),
            },
            Kind::HardLink => match clean(&entry.link) {
                Some(target) => Place::Link(target),
                None => return Err(unusable(format!("the link {name} points outside of it"))),
            },
            _ => return Ok(()),
        };
        if self.entries.insert(name.clone(), place).is_some() {
            return Err(unusable(format!("it has {name} twice")));
        }
        Ok(())
    }

    fn write<R: Read>(
        &self,
        number: usize,
        archive: &mut Archive<R>,
        count: &mut dyn FnMut(u64) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let failed = |error| ImageError::store("putting the archive aside", error);
        let path = self.path(number);
        let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = archive.read_data(&mut buffer).map_err(|error| malformed(&error))?;
            if len == 0 {
                return Ok(());
            }
            count(len as u64)?;
            file.write_all(buffer.get(..len).unwrap_or_default()).map_err(failed)?;
        }
    }

    pub(super) fn open(&self, name: &str) -> Result<Option<File>, ImageError> {
        let Some(mut name) = clean(name.as_bytes()) else {
            return Err(unusable(format!("{name:?} cannot be a file in it")));
        };
        for _ in 0..=MAX_LINKS {
            match self.entries.get(&name) {
                None => return Ok(None),
                Some(Place::Link(target)) => name.clone_from(target),
                Some(Place::File(number)) => {
                    let file = File::open(self.path(*number));
                    return file.map(Some).map_err(|e| ImageError::store(format!("opening {name}"), e));
                }
            }
        }
        Err(unusable(format!("{name} is a link that leads nowhere")))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.join(format!("spooled-{number}"))
    }
}

fn next<R: Read>(archive: &mut Archive<R>) -> Result<Option<Entry>, ImageError> {
    archive.next_entry().map_err(|error| malformed(&error))
}

fn malformed(error: &TarError) -> ImageError {
    unusable(types::error::chain(error))
}

/// A name without `.`, beneath the root; `None` for anything that no archive of images has.
fn clean(raw: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(raw).ok().filter(|text| text.len() <= MAX_NAME && !text.contains('\0'))?;
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() { None } else { Some(parts.join("/")) }
}

/// Where a symbolic link called `name` leads.
fn resolve(name: &str, target: &[u8]) -> Option<String> {
    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
    if target.starts_with(b"/") {
        return None;
    }
    clean(&[parent.as_bytes(), target].join(&b'/'))
}

fn decoded<'a>(mut input: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, ImageError> {
    let failed = |error| ImageError::store("reading the archive", error);
    let mut start = Vec::new();
    input.by_ref().take(XZ.len() as u64).read_to_end(&mut start).map_err(failed)?;
    let input = io::Cursor::new(start.clone()).chain(input);
    if start.starts_with(XZ) {
        return Err(unusable("it is compressed by xz; gzip, zstd and plain archives are read"));
    }
    if start.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(input)));
    }
    if start.starts_with(ZSTD) {
        let mut decoder = zstd::Decoder::with_buffer(input).map_err(failed)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(input))
}

/// Counts what was read of the stream, and ends it when the store closes.
struct Counted<R> {
    input: R,
    consumed: Rc<Cell<u64>>,
    closing: CancellationToken,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.closing.is_cancelled() {
            return Err(io::Error::other("the image store is shutting down"));
        }
        let count = self.input.read(buffer)?;
        self.consumed.set(self.consumed.get() + count as u64);
        Ok(count)
    }
}
