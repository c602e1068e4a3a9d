//! Unpacks one layer's archive into a directory that overlay can use as a lower layer.
//!
//! Owns the meaning of entries: replacement (the last entry of a name wins), whiteouts, metadata, hard links, devices.
//! Where names lead is the business of [`tree`], which never leaves the layer's directory.
//!
//! Promises:
//! * Nothing outside the directory is made, changed or read. Names above the root are refused; absolute names and
//!   symbolic links are taken relative to the root.
//! * Whiteouts hide what lower layers have, never what this layer itself has, in whatever order the entries come.
//! * Attributes by which overlay itself works cannot come from an archive.
//! * An error names the entry. The caller throws the directory away then.
//! * Memory and disk are bounded whatever the archive says: see [`bounds`].
//!
//! Each layer unpacks alone, so that layers can be unpacked side by side and shared by their diff id. A directory that
//! an archive uses but does not hold is therefore made 0755 root:root, as Docker's overlay2 makes it.

mod bounds;
mod node;
mod tree;
mod whiteout;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use crate::recipe::{Tap, Writer};
use crate::tar::{Archive, Entry, Kind, TarError};
pub(crate) use bounds::limit;
use bounds::{Bounded, Bounds};
use tree::{Name, Tree};

/// A layer's archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// One entry is malformed, hostile, or cannot be written.
    #[error("entry {entry:?}")]
    Entry {
        /// The entry's name, as far as it is text.
        entry: String,
        /// What is wrong with it.
        #[source]
        problem: EntryError,
    },
    /// The archive itself is malformed.
    #[error("after entry {after:?}")]
    Archive {
        /// The last entry that was read, empty before the first.
        after: String,
        /// What is wrong.
        #[source]
        problem: TarError,
    },
    /// What the archive has beside files cannot be kept.
    #[error("the layer's recipe cannot be written")]
    Recipe(#[source] io::Error),
}

/// What is wrong with one entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The name leads above the root.
    #[error("the name points outside of the image")]
    Outside,
    /// The name cannot be a file's name.
    #[error("the name {0}")]
    Name(&'static str),
    /// The target of a hard link leads above the root.
    #[error("the hard link's target {0:?} points outside of the image")]
    LinkOutside(String),
    /// The target of a hard link is not in this layer, or cannot be linked to.
    #[error("the hard link's target {target:?} cannot be linked to")]
    LinkTarget {
        /// The target as the archive says it.
        target: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A parent of the entry is a file.
    #[error("a parent of the entry is not a directory")]
    NotADirectory,
    /// The layer takes more than layers may.
    #[error("the layer {0}")]
    Bounds(&'static str),
    /// Directories are nested deeper than any real image needs.
    #[error("directories are nested too deeply")]
    TooDeep,
    /// The entry's data cannot be read from the archive.
    #[error("the data cannot be read")]
    Data(#[source] TarError),
    /// A file operation failed.
    #[error("{op} failed")]
    Io {
        /// What was being done.
        op: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// The failure of the stream beneath the archive or of the disk, if it is one of those.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Entry { problem: EntryError::Io { source, .. }, .. }
            | Self::Entry { problem: EntryError::Data(TarError::Read(source)), .. }
            | Self::Archive { problem: TarError::Read(source), .. }
            | Self::Recipe(source) => Some(source),
            _ => None,
        }
    }

    /// Whether corrupt bytes could have caused this, rather than a file operation.
    pub(crate) fn is_of_content(&self) -> bool {
        !matches!(self, Self::Entry { problem: EntryError::Io { .. }, .. } | Self::Recipe(_))
    }
}

/// What an unpacked layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Unpacked {
    /// Bytes and inodes that it takes on disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Whether it hides everything below it.
    pub(crate) opaque_root: bool,
}

/// A modification time: seconds and nanoseconds since the epoch.
type Time = (i64, u32);

struct Applier {
    tree: Tree,
    /// Directories made so far. Their times are set at the end, because every file made in one changes them.
    directories: HashMap<Vec<u8>, Option<Time>>,
    buffer: Vec<u8>,
    total: Unpacked,
    bounds: Bounds,
    /// Something was replaced, so that adding up does not give the layer's usage.
    replaced: bool,
}

/// Where a layer goes.
#[derive(Debug)]
pub(crate) struct Target {
    /// An empty directory.
    pub(crate) root: OwnedFd,
    /// An empty file for the layer's recipe, if it is to have one.
    pub(crate) recipe: Option<File>,
}

impl From<OwnedFd> for Target {
    fn from(root: OwnedFd) -> Self {
        Self { root, recipe: None }
    }
}

/// Unpacks the archive in `input`, reads to the end of what follows it, and gives the reader back.
#[cfg(test)]
pub(crate) fn unpack<R: Read>(input: R, target: impl Into<Target>) -> Result<(Unpacked, R), UnpackError> {
    unpack_within(limit(0), input, target)
}

/// The same, for an archive that must not be longer than `limit`.
pub(crate) fn unpack_within<R: Read>(
    limit: u64,
    input: R,
    target: impl Into<Target>,
) -> Result<(Unpacked, R), UnpackError> {
    let Target { root, recipe } = target.into();
    let recipe = recipe.map_or_else(|| Ok(Writer::none()), Writer::new).map_err(UnpackError::Recipe)?;
    let mut archive = Archive::new(Tap::new(Bounded::new(input, limit), recipe));
    let (total, last) = apply_all(&mut archive, Applier::new(root, limit))?;
    let mut input = archive.into_inner();
    io::copy(&mut input, &mut io::sink())
        .map_err(|error| UnpackError::Archive { after: last, problem: TarError::Read(error) })?;
    let (input, recipe) = input.into_parts();
    recipe.finish().map_err(UnpackError::Recipe)?;
    Ok((total, input.into_inner()))
}

/// Applies every entry; the name of the last one is for what may go wrong behind it.
fn apply_all<R: Read>(
    archive: &mut Archive<Tap<R>>,
    mut applier: Applier,
) -> Result<(Unpacked, String), UnpackError> {
    let mut last = String::new();
    loop {
        let next =
            archive.next_entry().map_err(|problem| UnpackError::Archive { after: last.clone(), problem })?;
        let Some(entry) = next else { break };
        last = String::from_utf8_lossy(&entry.path).into_owned();
        applier
            .apply(&entry, archive)
            .map_err(|problem| UnpackError::Entry { entry: last.clone(), problem })?;
        archive.input_mut().recipe().check().map_err(UnpackError::Recipe)?;
    }
    let total = applier.finish().map_err(|problem| UnpackError::Entry { entry: "/".to_owned(), problem })?;
    Ok((total, last))
}

impl Applier {
    fn new(root: OwnedFd, limit: u64) -> Self {
        Self {
            bounds: Bounds::new(limit),
            tree: Tree::new(root),
            directories: HashMap::from([(Vec::new(), None)]),
            buffer: vec![0; 128 << 10],
            total: Unpacked::default(),
            replaced: false,
        }
    }

    fn apply<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<Tap<R>>) -> Result<(), EntryError> {
        self.bounds.count_entry()?;
        let Some(name) = Name::parse(&entry.path)? else {
            return self.apply_root(entry);
        };
        if let Some(hidden) = whiteout::parse(&name.last)? {
            return self.apply_whiteout(&name, &hidden);
        }
        match entry.kind {
            Kind::Directory => self.make_directory(&name, entry, archive.input_mut().recipe()),
            Kind::HardLink => self.make_hard_link(&name, entry, archive.input_mut().recipe()),
            Kind::File => {
                self.bounds.count_data(archive.remaining(), self.tree.root())?;
                self.make_file(&name, entry, archive)
            }
            _ => self.make_special(&name, entry, archive.input_mut().recipe()),
        }
    }

    /// `./` carries the metadata of the image's root directory.
    fn apply_root(&mut self, entry: &Entry) -> Result<(), EntryError> {
        if entry.kind != Kind::Directory {
            return Err(EntryError::Name("is the root's, but the entry is no directory"));
        }
        node::set_root_metadata(self.tree.root(), entry)?;
        self.directories.insert(Vec::new(), Some(entry.mtime));
        Ok(())
    }

    /// Sets the directories' times and adds up what they take.
    fn finish(mut self) -> Result<Unpacked, EntryError> {
        for (path, time) in std::mem::take(&mut self.directories) {
            if let Some(time) = time {
                self.tree.set_time(&path, time)?;
            }
            self.total.bytes += self.tree.bytes_of(&path)?;
            self.total.inodes += 1;
        }
        if self.replaced || self.tree.has_replaced() {
            (self.total.bytes, self.total.inodes) = node::measure(self.tree.root())?;
        }
        Ok(self.total)
    }
}

fn io_error(op: &'static str) -> impl Fn(rustix::io::Errno) -> EntryError {
    move |errno| EntryError::Io { op, source: errno.into() }
}

#[cfg(test)]
mod tests;
