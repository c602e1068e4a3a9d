//! Whiteouts: the archive's `.wh.` names, and what overlay wants in their place.
//!
//! | archive | on disk |
//! |---|---|
//! | `.wh.NAME` | a character device 0/0 called NAME, unless this layer has NAME itself; a directory then becomes opaque |
//! | `.wh..wh..opq` | its directory is marked `trusted.overlay.opaque=y` |
//! | other `.wh..wh.*` | nothing: aufs kept notes of its own under such names |

use std::os::fd::AsFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::tree::{Name, stat};
use super::{Applier, EntryError, io_error, node};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// What a name with the whiteout prefix hides.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// One name of the lower layers.
    Name(Vec<u8>),
    /// All that lower layers have in the directory.
    Directory,
    /// Nothing.
    Nothing,
}

/// `None` for ordinary names.
pub(super) fn parse(last: &[u8]) -> Result<Option<Hidden>, EntryError> {
    let Some(name) = last.strip_prefix(PREFIX) else { return Ok(None) };
    match name {
        _ if last == OPAQUE => Ok(Some(Hidden::Directory)),
        _ if last.starts_with(AUFS) => Ok(Some(Hidden::Nothing)),
        b"" | b"." | b".." => Err(EntryError::Name("is a whiteout of no file")),
        name => Ok(Some(Hidden::Name(name.to_vec()))),
    }
}

impl Applier {
    pub(super) fn apply_whiteout(&mut self, name: &Name, hidden: &Hidden) -> Result<(), EntryError> {
        match hidden {
            Hidden::Nothing => Ok(()),
            Hidden::Directory => self.hide_directory(name),
            Hidden::Name(hidden) => self.hide_name(&name.with_last(hidden)),
        }
    }

    fn hide_directory(&mut self, name: &Name) -> Result<(), EntryError> {
        // Overlay does not look for the mark on a layer's root: the layers below are left out instead.
        self.total.opaque_root |= name.directory.is_empty();
        let directory = self.parent(name)?;
        node::set_opaque(directory.as_fd(), b".")
    }

    fn hide_name(&mut self, name: &Name) -> Result<(), EntryError> {
        let directory = self.parent(name)?;
        match node::make_whiteout(directory.as_fd(), &name.last) {
            Ok(()) => {
                self.total.inodes += 1;
                Ok(())
            }
            Err(Errno::EXIST) => {
                let found =
                    stat(directory.as_fd(), &name.last).map_err(io_error("looking at what it hides"))?;
                let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
                if is_directory { node::set_opaque(directory.as_fd(), &name.last) } else { Ok(()) }
            }
            Err(errno) => Err(io_error("making the whiteout")(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(parse(b"file").unwrap(), None);
        assert_eq!(parse(b".wh").unwrap(), None);
        assert_eq!(parse(b".wh.file").unwrap(), Some(Hidden::Name(b"file".to_vec())));
        assert_eq!(parse(b".wh..hidden").unwrap(), Some(Hidden::Name(b".hidden".to_vec())));
        assert_eq!(parse(b".wh..wh..opq").unwrap(), Some(Hidden::Directory));
        assert_eq!(parse(b".wh..wh.plnk").unwrap(), Some(Hidden::Nothing));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
