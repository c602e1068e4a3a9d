//! Copies a directory of an image with everything in it.
//!
//! Promises: both sides are reached by descriptor and name, and no link is followed, so that nothing outside of the two directories
//! is read or written; owners, modes, times, hard links, holes and extended attributes are kept; a copy that fails says where. Left
//! out are attributes that belong to the host (SELinux labels) or to overlays, whiteouts, and sockets.
//!
//! The tree may be as deep as an image can be: directories wait in a list, and none is kept open.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use types::{ErrorKind, Kind};

/// How much of a file is read at once.
const PIECE: usize = 256 << 10;
/// The kernel's limit for one attribute, and for the list of names.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Why a tree was not copied.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}")]
pub struct CopyError {
    action: &'static str,
    /// Beneath the directory that is copied; empty for itself.
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[cfg(test)]
impl CopyError {
    /// One that failed for this reason.
    pub(in super::super) fn for_test(source: io::Error) -> Self {
        Self { action: "copying", path: PathBuf::from("file"), source }
    }
}

impl Kind for CopyError {
    fn kind(&self) -> ErrorKind {
        // Whatever is missing or in the way, it is no object of the caller's.
        match ErrorKind::of_io(&self.source) {
            ErrorKind::NotFound => ErrorKind::Internal,
            kind => kind,
        }
    }
}

/// Copies what is in `from`, and its own attributes, to the empty directory `to`.
pub(super) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), CopyError> {
    let mut copy = Copy { from, to, links: HashMap::new(), directories: Vec::new(), waiting: Vec::new() };
    copy.waiting.push(PathBuf::new());
    while let Some(directory) = copy.waiting.pop() {
        copy.fill(&directory)?;
    }
    copy.finish()
}

struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    /// Where a file with several names was copied to.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories that are filled. They get their attributes in the end, since filling them changes their times.
    directories: Vec<(PathBuf, Stat)>,
    waiting: Vec<PathBuf>,
}

/// A directory on both sides.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(Errno) -> CopyError + 'a {
    move |error| CopyError { action, path: path.to_owned(), source: error.into() }
}

impl Copy<'_> {
    fn fill(&mut self, path: &Path) -> Result<(), CopyError> {
        let directory = Pair {
            from: open_directory(self.from, path).map_err(at("opening", path))?,
            to: open_directory(self.to, path).map_err(at("opening the copy of", path))?,
        };
        let found = rustix::fs::fstat(&directory.from).map_err(at("looking at", path))?;
        self.directories.push((path.to_owned(), found));
        for name in names(&directory.from).map_err(at("reading", path))? {
            let child = path.join(OsStr::from_bytes(name.to_bytes()));
            self.child(&directory, &name, child)?;
        }
        Ok(())
    }

    fn child(&mut self, directory: &Pair, name: &CStr, path: PathBuf) -> Result<(), CopyError> {
        let found = rustix::fs::statat(&directory.from, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("looking at", &path))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(&directory.to, name, Mode::RWXU).map_err(at("making", &path))?;
                self.waiting.push(path);
                return Ok(());
            }
            FileType::Socket => return Ok(()),
            FileType::CharacterDevice if found.st_rdev == 0 => return Ok(()),
            _ if found.st_nlink > 1 && self.link(directory, name, &found, &path)? => return Ok(()),
            FileType::RegularFile => return file(directory, name, &found, &path),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&directory.from, name, Vec::new());
                let target = target.map_err(at("reading the link", &path))?;
                rustix::fs::symlinkat(&*target, &directory.to, name).map_err(at("making", &path))?;
            }
            kind => {
                let mode = Mode::from_raw_mode(found.st_mode);
                rustix::fs::mknodat(&directory.to, name, kind, mode, found.st_rdev)
                    .map_err(at("making", &path))?;
            }
        }
        set_attributes_by_name(directory.to.as_fd(), name, &found).map_err(at("describing", &path))
    }

    /// Makes another name of what was copied already; says whether it was.
    fn link(&mut self, directory: &Pair, name: &CStr, found: &Stat, path: &Path) -> Result<bool, CopyError> {
        match self.links.get(&(found.st_dev, found.st_ino)) {
            Some(first) => {
                rustix::fs::linkat(self.to, first, &directory.to, name, AtFlags::empty())
                    .map_err(at("linking", path))?;
                Ok(true)
            }
            None => {
                self.links.insert((found.st_dev, found.st_ino), path.to_owned());
                Ok(false)
            }
        }
    }

    fn finish(self) -> Result<(), CopyError> {
        for (path, found) in &self.directories {
            let from = open_directory(self.from, path).map_err(at("opening", path))?;
            let to = open_directory(self.to, path).map_err(at("opening the copy of", path))?;
            set_attributes(from.as_fd(), to.as_fd(), found).map_err(at("describing", path))?;
        }
        Ok(())
    }
}

fn open_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn file(directory: &Pair, name: &CStr, found: &Stat, path: &Path) -> Result<(), CopyError> {
    let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from =
        rustix::fs::openat(&directory.from, name, reading, Mode::empty()).map_err(at("opening", path))?;
    let writing = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let owner_only = Mode::RUSR | Mode::WUSR;
    let to = rustix::fs::openat(&directory.to, name, writing, owner_only).map_err(at("making", path))?;
    let (from, to) = (File::from(from), File::from(to));
    copy_content(&from, &to).map_err(|source| CopyError {
        action: "copying",
        path: path.to_owned(),
        source,
    })?;
    set_attributes(from.as_fd(), to.as_fd(), found).map_err(at("describing", path))
}

/// Copies what is not a hole.
fn copy_content(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin)).unwrap_or(size).min(size);
        copy_range(from, to, begin, end, &mut buffer)?;
        at = end.max(begin + 1);
    }
    to.set_len(size)
}

fn copy_range(from: &File, to: &File, begin: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = begin;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        let read = from.read_at(piece, at)?;
        if read == 0 {
            break;
        }
        to.write_all_at(piece.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
    Ok(())
}

/// Owner first, since a change of owner takes setuid and file capabilities away; times last.
fn set_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, found: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(to, Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(found.st_mode))?;
    copy_xattrs(from, to)?;
    rustix::fs::futimens(to, &times(found))
}

/// For what is not opened: links, devices, pipes.
fn set_attributes_by_name(directory: BorrowedFd<'_>, name: &CStr, found: &Stat) -> Result<(), Errno> {
    let owner = (Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)));
    rustix::fs::chownat(directory, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if !FileType::from_raw_mode(found.st_mode).is_symlink() {
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(found.st_mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(directory, name, &times(found), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(found: &Stat) -> Timestamps {
    let time = |tv_sec, nanos| Timespec { tv_sec, tv_nsec: i64::try_from(nanos).unwrap_or_default() };
    Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    }
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut names = vec![0; MAX_ATTRIBUTE];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    let mut value = vec![0; MAX_ATTRIBUTE];
    let names = names.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty() && is_copied(name)) {
        let length = match rustix::fs::fgetxattr(from, name, &mut value) {
            Err(Errno::NODATA) => continue,
            length => length?,
        };
        match rustix::fs::fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty()) {
            // A file system without this class of attributes costs the attribute only, as when layers are unpacked.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Overlay's own attributes would redirect lookups; SELinux labels are the host's to choose.
fn is_copied(name: &[u8]) -> bool {
    let of_overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    !of_overlay && name != b"security.selinux"
}

#[cfg(test)]
mod tests;
