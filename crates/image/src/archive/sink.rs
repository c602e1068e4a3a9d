//! Where the files of an archive go: a tar stream, or a directory.
//!
//! Streams are the same for the same files: nobody owns them, and they are as old as time.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::ImageError;
use crate::tar::file_header;

const BLOCK: u64 = 512;
/// Two empty blocks end an archive.
const END: usize = 1024;

pub(super) trait Sink {
    /// Puts a file of exactly `len` bytes.
    fn put(&mut self, name: &str, len: u64, content: &mut dyn Read) -> Result<(), ImageError>;
}

pub(super) struct TarSink<W>(W);

impl<W: Write> TarSink<W> {
    pub(super) fn new(out: W) -> Self {
        Self(out)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<(), ImageError> {
        let end = self.0.write_all(&[0; END]).and_then(|()| self.0.flush());
        end.map_err(|error| ImageError::store("writing the archive", error))
    }

    fn pad(&mut self, len: u64) -> io::Result<()> {
        let padding = (BLOCK - len % BLOCK) % BLOCK;
        io::copy(&mut io::repeat(0).take(padding), &mut self.0).map(drop)
    }
}

impl<W: Write> Sink for TarSink<W> {
    fn put(&mut self, name: &str, len: u64, content: &mut dyn Read) -> Result<(), ImageError> {
        let header = self.0.write_all(&file_header(name, len));
        let written = header.and_then(|()| copy_exactly(content, len, &mut self.0));
        written.and_then(|()| self.pad(len)).map_err(|e| ImageError::store(format!("writing {name}"), e))
    }
}

/// A directory that is removed again unless it is finished.
pub(super) struct DirectorySink {
    path: PathBuf,
    is_finished: bool,
}

impl DirectorySink {
    /// Takes a directory that is empty, or makes it.
    pub(super) fn new(path: &Path) -> Result<Self, ImageError> {
        let failed = |error| ImageError::store(format!("making {}", path.display()), error);
        fs::create_dir_all(path).map_err(failed)?;
        if fs::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "the directory is not empty")));
        }
        fs::create_dir_all(path.join("blobs/sha256")).map_err(failed)?;
        Ok(Self { path: path.to_owned(), is_finished: false })
    }

    pub(super) fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Sink for DirectorySink {
    fn put(&mut self, name: &str, len: u64, content: &mut dyn Read) -> Result<(), ImageError> {
        let path = self.path.join(name);
        let written = fs::File::create_new(&path).and_then(|mut file| copy_exactly(content, len, &mut file));
        written.map_err(|error| ImageError::store(format!("writing {}", path.display()), error))
    }
}

impl Drop for DirectorySink {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            let path = self.path.display();
            tracing::warn!(op = "save", %path, %error, "an unfinished archive stays");
        }
    }
}

fn copy_exactly(content: &mut dyn Read, len: u64, out: &mut dyn Write) -> io::Result<()> {
    let count = io::copy(&mut content.take(len), out)?;
    if count < len || content.read(&mut [0])? > 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another length than before"));
    }
    Ok(())
}
