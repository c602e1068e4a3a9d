//! Where names lead within a layer's directory.
//!
//! Every lookup goes through `openat2` with `RESOLVE_IN_ROOT`: a symbolic link, absolute or full of `..`, ends within the
//! directory. Mount points and `/proc`'s magic links are never crossed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
use rustix::io::Errno;

use super::{EntryError, Time, io_error, node};

const MAX_PATH: usize = 4095;
const MAX_COMPONENT: usize = 255;
const MAX_LINKS: usize = 40;
/// Deeper trees are not made: they could not be removed within the limits on open files and path lengths.
const MAX_DEPTH: usize = 512;

/// An entry's name split into its directory and its last component, both relative to the root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) directory: Vec<u8>,
    pub(super) last: Vec<u8>,
}

impl Name {
    /// Cleans an archive's name; `None` is the root itself.
    pub(super) fn parse(raw: &[u8]) -> Result<Option<Self>, EntryError> {
        if raw.contains(&0) {
            return Err(EntryError::Name("contains a zero byte"));
        }
        if raw.len() > MAX_PATH {
            return Err(EntryError::Name("is too long"));
        }
        let mut parts = clean(raw)?;
        if parts.len() > MAX_DEPTH {
            return Err(EntryError::TooDeep);
        }
        if parts.iter().any(|part| part.len() > MAX_COMPONENT) {
            return Err(EntryError::Name("has a component that is too long"));
        }
        let Some(last) = parts.pop() else { return Ok(None) };
        Ok(Some(Self { last: last.to_vec(), directory: parts.join(&b'/') }))
    }

    pub(super) fn path(&self) -> Vec<u8> {
        join(&self.directory, &self.last)
    }

    /// A sibling of this name.
    pub(super) fn with_last(&self, last: &[u8]) -> Self {
        Self { directory: self.directory.clone(), last: last.to_vec() }
    }
}

fn clean(raw: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    let mut parts = Vec::new();
    for part in raw.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(EntryError::Outside)?;
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

fn join(directory: &[u8], last: &[u8]) -> Vec<u8> {
    if directory.is_empty() { last.to_vec() } else { [directory, last].join(&b'/') }
}

/// An open directory of the layer.
pub(super) struct Place {
    fd: OwnedFd,
    /// Its path, which leads through no symbolic link.
    path: Vec<u8>,
}

impl Place {
    /// The path of what has this name in the directory.
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A layer's directory while it is being filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory used last: entries come directory by directory.
    cached: Option<(Vec<u8>, Rc<Place>)>,
    /// Directories made because an entry needed them.
    implied: Vec<Vec<u8>>,
    /// Whether one of these took a whiteout's place, which was counted.
    replaced: bool,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, cached: None, implied: Vec::new(), replaced: false }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory at `path`, made with its parents when it is missing.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<Place>, EntryError> {
        if let Some((_, place)) = self.cached.as_ref().filter(|(cached, _)| cached == path) {
            return Ok(Rc::clone(place));
        }
        let place = match self.open(path) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_all(path, 0)?,
            Err(errno) => return Err(open_error(errno)),
        };
        let place = Rc::new(place);
        self.cached = Some((path.to_vec(), Rc::clone(&place)));
        Ok(place)
    }

    /// The directory at `path`, which must be there.
    pub(super) fn existing(&self, path: &[u8]) -> Result<Place, Errno> {
        self.open(path)
    }

    /// To be called when something that may have been a directory or a link to one was removed.
    pub(super) fn forget(&mut self) {
        self.cached = None;
    }

    /// Whether a directory took the place of something that was counted.
    pub(super) fn has_replaced(&self) -> bool {
        self.replaced
    }

    /// The directories made without an entry since the last call.
    pub(super) fn take_implied(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.implied)
    }

    pub(super) fn set_time(&mut self, path: &[u8], time: Time) -> Result<(), EntryError> {
        match self.open_last(path) {
            Ok((fd, last)) => node::set_time(fd.as_fd(), &last, time),
            // Replaced through another name for the same directory.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(open_error(errno)),
        }
    }

    pub(super) fn bytes_of(&mut self, path: &[u8]) -> Result<u64, EntryError> {
        match self.open_last(path).and_then(|(fd, last)| stat(fd.as_fd(), &last)) {
            Ok(stat) => Ok(node::bytes(&stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(0),
            Err(errno) => Err(open_error(errno)),
        }
    }

    fn open_last(&mut self, path: &[u8]) -> Result<(Rc<Place>, Vec<u8>), Errno> {
        let at = path.iter().rposition(|&b| b == b'/');
        let (directory, last) = match at {
            Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
            None => (&b""[..], path),
        };
        let last = if last.is_empty() { b"." } else { last };
        if let Some((_, fd)) = self.cached.as_ref().filter(|(cached, _)| cached == directory) {
            return Ok((Rc::clone(fd), last.to_vec()));
        }
        let fd = Rc::new(self.open(directory)?);
        self.cached = Some((directory.to_vec(), Rc::clone(&fd)));
        Ok((fd, last.to_vec()))
    }

    fn open(&self, path: &[u8]) -> Result<Place, Errno> {
        let name = if path.is_empty() { b"." } else { path };
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let open = |resolve| {
            openat2(
                &self.root,
                name,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            )
        };
        match open(inside | ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => open(inside).and_then(|fd| self.locate(fd)),
            result => result.map(|fd| Place { fd, path: path.to_vec() }),
        }
    }

    /// Finds out where links led to. Through them the depth of the name no longer bounds the depth of the tree.
    fn locate(&self, fd: OwnedFd) -> Result<Place, Errno> {
        let (root, real) = (own_path(&self.root)?, own_path(&fd)?);
        let path = real.strip_prefix(root.as_slice()).ok_or(Errno::NOENT)?;
        let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
        let depth = path.iter().filter(|&&b| b == b'/').count();
        if depth > MAX_DEPTH { Err(Errno::NAMETOOLONG) } else { Ok(Place { fd, path }) }
    }

    /// Opens `path` component by component, making what is missing.
    fn make_all(&mut self, path: &[u8], links: usize) -> Result<Place, EntryError> {
        let mut done: Vec<u8> = Vec::new();
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            let next = join(&done, part);
            match self.open(&next) {
                Ok(_) => {}
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_one(&done, part, links)?,
                Err(errno) => return Err(open_error(errno)),
            }
            done = next;
        }
        self.open(path).map_err(open_error)
    }

    /// Makes one missing directory, or what the dangling link in its place points to.
    fn make_one(&mut self, parent: &[u8], name: &[u8], links: usize) -> Result<(), EntryError> {
        let directory = self.open(parent).map_err(open_error)?;
        match stat(directory.as_fd(), name) {
            Err(Errno::NOENT) => node::make_implied(directory.as_fd(), name)?,
            Err(errno) => return Err(open_error(errno)),
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
                return self.make_target(directory.as_fd(), parent, name, links);
            }
            Ok(found) if node::is_whiteout(&found) => {
                self.replaced = true;
                node::whiteout_to_directory(directory.as_fd(), name)?;
            }
            Ok(_) => return Err(EntryError::NotADirectory),
        }
        self.implied.push(join(parent, name));
        Ok(())
    }

    fn make_target(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: &[u8],
        name: &[u8],
        links: usize,
    ) -> Result<(), EntryError> {
        if links == MAX_LINKS {
            return Err(open_error(Errno::LOOP));
        }
        let target = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(open_error)?;
        let target = target.as_bytes();
        let start = if target.starts_with(b"/") { &b""[..] } else { parent };
        let path = clamp(&join(start, target));
        self.make_all(&path, links + 1).map(drop)
    }
}

/// As [`clean`], but `..` at the root stays there, as it does for the kernel.
fn clamp(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn own_path(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(own, Vec::new()).map(std::ffi::CString::into_bytes)
}

fn open_error(errno: Errno) -> EntryError {
    match errno {
        Errno::NOTDIR => EntryError::NotADirectory,
        Errno::NAMETOOLONG => EntryError::TooDeep,
        errno => io_error("opening its directory")(errno),
    }
}

/// The node at `name`, links not followed.
pub(super) fn stat(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_kept_inside() {
        let name = |raw: &[u8]| Name::parse(raw).map(|name| name.map(|name| name.path()));
        for (raw, expected) in [
            (&b"./a/b"[..], Some(&b"a/b"[..])),
            (b"/a//b/", Some(b"a/b")),
            (b"a/../b", Some(b"b")),
            (b"./", None),
            (b"/", None),
            (b"a/..", None),
            (b"\xff/\xfe", Some(b"\xff/\xfe")),
        ] {
            assert_eq!(name(raw).unwrap().as_deref(), expected);
        }
        assert!(matches!(name(b"../a"), Err(EntryError::Outside)));
        assert!(matches!(name(b"a/../../b"), Err(EntryError::Outside)));
        assert!(matches!(name(b"a\0b"), Err(EntryError::Name(_))));
        assert!(matches!(name(&[b'a'; 5000]), Err(EntryError::Name(_))));
        assert!(matches!(name(&b"a/".repeat(600)), Err(EntryError::TooDeep)));
    }
}
