//! Making and describing single nodes, always by an open directory and a name in it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tree::{Name, Place, stat};
use super::{Applier, EntryError, Time, io_error};
use crate::recipe::{Content, Tap, Writer};
use crate::tar::{Archive, Entry, Kind, Region};

const OPAQUE: &str = "trusted.overlay.opaque";
const IMPLIED_MODE: u32 = 0o755;
/// Linux takes no more; file systems that take less say that they are full.
const MAX_ATTRIBUTE: usize = 64 << 10;

impl Applier {
    pub(super) fn make_directory(
        &mut self,
        name: &Name,
        entry: &Entry,
        recipe: &mut Writer,
    ) -> Result<(), EntryError> {
        let place = self.parent(name)?;
        let directory = place.as_fd();
        match rustix::fs::mkdirat(directory, &*name.last, mode_of(IMPLIED_MODE)) {
            Err(Errno::EXIST) => self.make_directory_over(&place, name, recipe)?,
            result => result.map_err(io_error("making the directory"))?,
        }
        set_owner_and_mode(directory, &name.last, entry)?;
        set_xattrs(directory, &name.last, &entry.xattrs)?;
        self.bounds.count_directory(&name.directory)?;
        self.directories.insert(name.path(), Some(entry.mtime));
        Ok(())
    }

    /// A directory stays; a whiteout becomes an opaque directory; anything else gives way.
    fn make_directory_over(
        &mut self,
        place: &Place,
        name: &Name,
        recipe: &mut Writer,
    ) -> Result<(), EntryError> {
        let directory = place.as_fd();
        let found = stat(directory, &name.last).map_err(io_error("looking at what it replaces"))?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Ok(());
        }
        if is_whiteout(&found) {
            self.replaced = true;
            return whiteout_to_directory(directory, &name.last);
        }
        self.clear(place, name, recipe)?;
        rustix::fs::mkdirat(directory, &*name.last, mode_of(IMPLIED_MODE))
            .map_err(io_error("making the directory"))
    }

    pub(super) fn make_file<R: Read>(
        &mut self,
        name: &Name,
        entry: &Entry,
        archive: &mut Archive<Tap<R>>,
    ) -> Result<(), EntryError> {
        let directory = self.parent(name)?;
        let file = File::from(self.create_file(&directory, name, entry, archive.input_mut().recipe())?);
        self.write_data(&file, &directory.child(&name.last), entry, archive)?;
        let found = rustix::fs::fstat(&file).map_err(io_error("looking at the file"))?;
        set_file_owner_and_mode(file.as_fd(), &found, entry)?;
        set_xattrs(directory.as_fd(), &name.last, &entry.xattrs)?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(io_error("setting its time"))?;
        self.count(&found);
        Ok(())
    }

    fn create_file(
        &mut self,
        directory: &Place,
        name: &Name,
        entry: &Entry,
        recipe: &mut Writer,
    ) -> Result<OwnedFd, EntryError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create =
            || rustix::fs::openat(directory, &*name.last, flags, mode_of(entry.mode & 0o777 | 0o200));
        match create() {
            Err(Errno::EXIST) => {
                self.clear(directory, name, recipe)?;
                create().map_err(io_error("creating the file"))
            }
            result => result.map_err(io_error("creating the file")),
        }
    }

    fn write_data<R: Read>(
        &mut self,
        file: &File,
        path: &[u8],
        entry: &Entry,
        archive: &mut Archive<Tap<R>>,
    ) -> Result<(), EntryError> {
        let whole = [Region { offset: 0, len: entry.size }];
        for region in entry.regions.as_deref().unwrap_or(&whole) {
            let Region { offset, len } = *region;
            archive.input_mut().begin_content();
            self.write_region(file, *region, archive)?;
            archive.input_mut().end_content(&Content { path, size: entry.size, offset, len });
        }
        if entry.regions.is_some() {
            file.set_len(entry.size).map_err(|source| EntryError::Io { op: "setting its length", source })?;
        }
        Ok(())
    }

    fn write_region<R: Read>(
        &mut self,
        file: &File,
        region: Region,
        archive: &mut Archive<Tap<R>>,
    ) -> Result<(), EntryError> {
        let end = region.offset + region.len;
        let mut at = region.offset;
        while at < end {
            let limit = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
            let buffer = self.buffer.get_mut(..limit).unwrap_or_default();
            let count = archive.read_data(buffer).map_err(EntryError::Data)?;
            let bytes = buffer.get(..count).unwrap_or_default();
            file.write_all_at(bytes, at)
                .map_err(|source| EntryError::Io { op: "writing the file", source })?;
            at += count as u64;
        }
        Ok(())
    }

    /// Symbolic links, devices and fifos.
    pub(super) fn make_special(
        &mut self,
        name: &Name,
        entry: &Entry,
        recipe: &mut Writer,
    ) -> Result<(), EntryError> {
        let place = self.parent(name)?;
        let directory = place.as_fd();
        match create_special(directory, &name.last, entry) {
            Err(Errno::EXIST) => {
                self.clear(&place, name, recipe)?;
                create_special(directory, &name.last, entry).map_err(io_error("making the node"))?;
            }
            result => result.map_err(io_error("making the node"))?,
        }
        set_owner_and_mode(directory, &name.last, entry)?;
        set_xattrs(directory, &name.last, &entry.xattrs)?;
        set_time(directory, &name.last, entry.mtime)?;
        let found = stat(directory, &name.last).map_err(io_error("looking at the node"))?;
        self.count(&found);
        Ok(())
    }

    pub(super) fn make_hard_link(
        &mut self,
        name: &Name,
        entry: &Entry,
        recipe: &mut Writer,
    ) -> Result<(), EntryError> {
        let text = || String::from_utf8_lossy(&entry.link).into_owned();
        let target = match Name::parse(&entry.link) {
            Ok(Some(target)) => target,
            Err(EntryError::Outside) => return Err(EntryError::LinkOutside(text())),
            Ok(None) => return Err(EntryError::Name("is a hard link to the root")),
            Err(other) => return Err(other),
        };
        let link_error = |errno: Errno| EntryError::LinkTarget { target: text(), source: errno.into() };
        let from = self.tree.existing(&target.directory).map_err(link_error)?;
        let source = stat(from.as_fd(), &target.last).map_err(link_error)?;
        let place = self.parent(name)?;
        let directory = place.as_fd();
        let link = || rustix::fs::linkat(&from, &*target.last, directory, &*name.last, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) if stat(directory, &name.last).is_ok_and(|s| s.st_ino == source.st_ino) => {
                Ok(())
            }
            Err(Errno::EXIST) => {
                self.clear(&place, name, recipe)?;
                link().map_err(link_error)
            }
            result => result.map_err(link_error),
        }
    }

    /// The directory that holds `name`.
    pub(super) fn parent(&mut self, name: &Name) -> Result<std::rc::Rc<Place>, EntryError> {
        let directory = self.tree.directory(&name.directory);
        for path in self.tree.take_implied() {
            self.bounds.count_directory(&path)?;
            self.directories.entry(path).or_insert(None);
        }
        directory
    }

    /// Removes what stands in the way of a later entry of the same name.
    pub(super) fn clear(
        &mut self,
        place: &Place,
        name: &Name,
        recipe: &mut Writer,
    ) -> Result<(), EntryError> {
        self.tree.forget();
        self.replaced = true;
        self.directories.remove(&name.path());
        let directory = place.as_fd();
        save(directory, &name.last, &place.child(&name.last), recipe)
            .map_err(io_error("keeping what it replaces"))?;
        match rustix::fs::unlinkat(directory, &*name.last, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                remove_directory(directory, &name.last).map_err(io_error("replacing a directory"))
            }
            result => result.map_err(io_error("replacing an earlier entry")),
        }
    }

    fn count(&mut self, found: &Stat) {
        self.total.bytes += bytes(found);
        self.total.inodes += 1;
    }
}

fn create_special(directory: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Errno> {
    let node = |kind, major, minor| {
        rustix::fs::mknodat(directory, name, kind, mode_of(entry.mode), rustix::fs::makedev(major, minor))
    };
    match entry.kind {
        Kind::Symlink => rustix::fs::symlinkat(&*entry.link, directory, name),
        Kind::CharDevice { major, minor } => node(FileType::CharacterDevice, major, minor),
        Kind::BlockDevice { major, minor } => node(FileType::BlockDevice, major, minor),
        Kind::Fifo => node(FileType::Fifo, 0, 0),
        Kind::File | Kind::Directory | Kind::HardLink => Err(Errno::INVAL),
    }
}

/// A directory that no entry described.
pub(super) fn make_implied(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), EntryError> {
    let failed = io_error("making a parent directory");
    rustix::fs::mkdirat(directory, name, mode_of(IMPLIED_MODE)).map_err(&failed)?;
    rustix::fs::chownat(directory, name, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(&failed)?;
    rustix::fs::chmodat(directory, name, mode_of(IMPLIED_MODE), AtFlags::empty()).map_err(&failed)
}

/// What a lower layer has under this name stays hidden, and this layer puts a directory in its place.
pub(super) fn whiteout_to_directory(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), EntryError> {
    rustix::fs::unlinkat(directory, name, AtFlags::empty()).map_err(io_error("replacing a whiteout"))?;
    make_implied(directory, name)?;
    set_opaque(directory, name)
}

pub(super) fn set_opaque(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), EntryError> {
    let path = proc_path(directory, name);
    rustix::fs::lsetxattr(&*path, OPAQUE, b"y", XattrFlags::empty())
        .map_err(io_error("marking the directory opaque"))
}

pub(super) fn make_whiteout(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(directory, name, FileType::CharacterDevice, mode_of(0), rustix::fs::makedev(0, 0))
}

/// Overlay's mark for a name that lower layers no longer have.
pub(super) fn is_whiteout(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice && found.st_rdev == 0
}

pub(super) fn set_root_metadata(root: BorrowedFd<'_>, entry: &Entry) -> Result<(), EntryError> {
    set_owner_and_mode(root, b".", entry)?;
    set_xattrs(root, b".", &entry.xattrs)
}

/// Owner before mode: a change of owner clears setuid and setgid.
fn set_owner_and_mode(directory: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), EntryError> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io_error("setting its owner"))?;
    if entry.kind == Kind::Symlink {
        return Ok(());
    }
    rustix::fs::chmodat(directory, name, mode_of(entry.mode), AtFlags::empty())
        .map_err(io_error("setting its mode"))
}

/// As [`set_owner_and_mode`], saving the calls that would change nothing: most files of most images.
fn set_file_owner_and_mode(file: BorrowedFd<'_>, found: &Stat, entry: &Entry) -> Result<(), EntryError> {
    let owned = found.st_uid == entry.uid && found.st_gid == entry.gid;
    if !owned {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(io_error("setting its owner"))?;
    }
    if owned && found.st_mode & 0o7777 == entry.mode {
        return Ok(());
    }
    rustix::fs::fchmod(file, mode_of(entry.mode)).map_err(io_error("setting its mode"))
}

fn set_xattrs(
    directory: BorrowedFd<'_>,
    name: &[u8],
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> Result<(), EntryError> {
    if xattrs.is_empty() {
        return Ok(());
    }
    if xattrs.iter().any(|(_, value)| value.len() > MAX_ATTRIBUTE) {
        return Err(EntryError::Bounds("has an extended attribute of more than 64 KiB"));
    }
    let path = proc_path(directory, name);
    for (key, value) in xattrs.iter().filter(|(key, _)| may_come_from_an_archive(key)) {
        match rustix::fs::lsetxattr(&*path, &**key, value, XattrFlags::empty()) {
            // A file system without this class of attributes, as for every other runtime, costs the attribute only.
            Err(Errno::NOTSUP) => {
                tracing::debug!(op = "unpack", "the file system does not take an extended attribute");
            }
            result => result.map_err(io_error("setting an extended attribute"))?,
        }
    }
    Ok(())
}

/// Overlay's own attributes would redirect lookups to other layers; SELinux labels are the host's to choose.
fn may_come_from_an_archive(key: &[u8]) -> bool {
    !key.starts_with(b"trusted.overlay.") && !key.starts_with(b"user.overlay.") && key != b"security.selinux"
}

pub(super) fn set_time(directory: BorrowedFd<'_>, name: &[u8], time: Time) -> Result<(), EntryError> {
    rustix::fs::utimensat(directory, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io_error("setting its time"))
}

fn times((tv_sec, nanos): Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec, tv_nsec: nanos.into() },
    }
}

fn mode_of(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

/// `lsetxattr` knows no directory descriptors; this path leads through one and does not follow the last component.
fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

pub(super) fn bytes(found: &Stat) -> u64 {
    u64::try_from(found.st_blocks).unwrap_or_default() * 512
}

/// Keeps the content of the file, or of all files in the directory, for the layer's recipe.
fn save(parent: BorrowedFd<'_>, name: &[u8], path: &[u8], recipe: &mut Writer) -> Result<(), Errno> {
    match FileType::from_raw_mode(stat(parent, name)?.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            recipe.save(path, &File::from(file));
        }
        FileType::Directory => {
            let fd = open_directory(parent, name)?;
            for child in children(fd.as_fd())? {
                save(fd.as_fd(), &child, &[path, &*child].join(&b'/'), recipe)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Removes a directory of this layer with all that is in it.
fn remove_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let fd = open_directory(parent, name)?;
    for child in children(fd.as_fd())? {
        match rustix::fs::unlinkat(&fd, &*child, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_directory(fd.as_fd(), &child)?,
            result => result?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Bytes and inodes beneath `root`, itself included; a file with several names counts once.
pub(super) fn measure(root: BorrowedFd<'_>) -> Result<(u64, u64), EntryError> {
    let mut seen = std::collections::HashMap::new();
    measure_into(root, &mut seen).map_err(io_error("measuring the layer"))?;
    Ok((seen.values().sum(), seen.len() as u64))
}

fn measure_into(fd: BorrowedFd<'_>, seen: &mut std::collections::HashMap<u64, u64>) -> Result<(), Errno> {
    let own = rustix::fs::fstat(fd)?;
    seen.insert(own.st_ino, bytes(&own));
    for child in children(fd)? {
        let found = stat(fd, &child)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            measure_into(open_directory(fd, &child)?.as_fd(), seen)?;
        } else {
            seen.insert(found.st_ino, bytes(&found));
        }
    }
    Ok(())
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn children(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    // The descriptor may be a bare path handle, which cannot be read from.
    let readable = open_directory(directory, b".")?;
    let mut names = Vec::new();
    for item in Dir::new(readable)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
