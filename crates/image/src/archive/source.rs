//! Where the files of an archive come from: a directory, or what was spooled of a stream.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::spool::Spool;
use crate::error::ImageError;

pub(super) enum Source {
    Directory(sys::beneath::Root),
    Spool(Spool),
}

impl Source {
    pub(super) fn directory(path: &Path) -> Result<Self, ImageError> {
        let root = sys::beneath::Root::open(path);
        let failed =
            |error| ImageError::store(format!("opening {}", path.display()), std::io::Error::other(error));
        root.map(Self::Directory).map_err(failed)
    }

    /// The file of this name, and its length.
    pub(super) fn open(&self, name: &str) -> Result<Option<(File, u64)>, ImageError> {
        let file = match self {
            Self::Directory(root) => open_beneath(root, name)?,
            Self::Spool(spool) => spool.open(name)?,
        };
        let Some(file) = file else { return Ok(None) };
        let metadata =
            file.metadata().map_err(|error| ImageError::store(format!("reading {name}"), error))?;
        if !metadata.is_file() {
            return Err(unusable(format!("{name} is not a file")));
        }
        Ok(Some((file, metadata.len())))
    }

    /// The whole file, if there is one.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((file, len)) = self.open(name)? else { return Ok(None) };
        if len > limit {
            return Err(unusable(format!("{name} has {len} bytes, more than the {limit} allowed")));
        }
        let mut bytes = Vec::new();
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(|error| ImageError::store(format!("reading {name}"), error))?;
        Ok(Some(bytes))
    }
}

fn open_beneath(root: &sys::beneath::Root, name: &str) -> Result<Option<File>, ImageError> {
    let failed = |error| ImageError::store(format!("opening {name}"), std::io::Error::other(error));
    let path = Path::new(name);
    match root.metadata(path).map_err(failed)? {
        None => Ok(None),
        Some(_) => root.open_read(path).map(Some).map_err(failed),
    }
}

/// The archive is not one that can be loaded.
pub(super) fn unusable(detail: impl Into<String>) -> ImageError {
    ImageError::Unsupported { reference: "the archive".to_owned(), detail: detail.into() }
}
