//! A control group, opened once.

use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, openat};

use crate::account::Account;
use crate::census::{self, Census};
use crate::error::StatsError;
use crate::usage::Usage;

mod hugepages;
mod inside;
mod kept;
mod processes;
mod v1;
mod v2;

pub use self::kept::Allowance;
use self::kept::Kept;

/// Files by which a directory is known that counts something.
const COUNTING: [&str; 4] = ["cpuacct.usage", "cpu.stat", "memory.usage_in_bytes", "pids.current"];
/// Files by which one is known that counts what only [`Group::account`] tells.
const COUNTING_MORE: [&str; 2] = ["blkio.throttle.io_service_bytes", "hugetlb.2MB.usage_in_bytes"];
/// The longest accounting file that is read: `memory.stat` has some 3 KiB.
const LONGEST: usize = 16 << 10;
/// What the kernel gives of a file of many lines at a time.
const PAGE: usize = 4 << 10;

/// A control group in all hierarchies that have it.
#[derive(Debug)]
pub struct Group {
    directories: Vec<Directory>,
    /// Where the group is beside these, and what of that was opened once somebody wanted to know more.
    elsewhere: Vec<PathBuf>,
    more: OnceLock<Vec<Directory>>,
    unified: bool,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    kept: Kept,
    /// Of which files it has the likes: see [`kind`].
    kinds: Vec<&'static str>,
}

/// What files of one hierarchy have in common: the controller that a name begins with, or pressure, which the unified one has.
fn kind(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((_, "pressure")) => "pressure",
        _ => name.split_once('.').map_or(name, |(controller, _)| controller),
    }
}

impl Group {
    /// Opens the group's directories, one in each hierarchy; those that are missing are left out.
    ///
    /// # Errors
    /// [`StatsError::Gone`] when none exists, [`StatsError::Read`] when one cannot be opened.
    pub fn open(directories: &[PathBuf]) -> Result<Self, StatsError> {
        let mut opened = Vec::with_capacity(directories.len());
        for path in directories {
            match Directory::open(path) {
                Ok(directory) => opened.push(directory),
                Err(StatsError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(first) = directories.first().filter(|_| !opened.is_empty()) else {
            let path = directories.first().cloned().unwrap_or_default();
            return Err(StatsError::Gone { path });
        };
        debug_assert!(first.is_absolute());
        // Each directory kept is a descriptor, and most hierarchies of v1 count nothing that is asked for.
        let (mut opened, others): (Vec<_>, Vec<_>) =
            opened.into_iter().partition(|directory| directory.has_any(&COUNTING));
        opened.iter_mut().for_each(Directory::find_kinds);
        let elsewhere = others.into_iter().map(|directory| directory.path).collect();
        // Of v1 hierarchies one may be of that kind too, without controllers (hybrid); it counts nothing.
        let controlled = opened.iter().any(|directory| directory.has("memory.usage_in_bytes"));
        let unified = !controlled && opened.iter().any(|directory| directory.has("cpu.stat"));
        Ok(Self { directories: opened, elsewhere, more: OnceLock::new(), unified })
    }

    /// The same, which from now on keeps those files open that [`Group::read`] needs, as far as the allowance goes.
    #[must_use]
    pub fn keeping(mut self, allowance: &Arc<Allowance>) -> Self {
        self.directories.iter_mut().for_each(|directory| directory.kept = Kept::within(allowance));
        self
    }

    /// What the group uses.
    ///
    /// # Errors
    /// [`StatsError::Gone`] when the group was removed, [`StatsError::Read`] when the kernel refuses. A figure that this kernel does
    /// not count is no error.
    pub fn read(&self) -> Result<Usage, StatsError> {
        let usage = if self.unified { v2::read(self) } else { v1::read(self) }?;
        if usage == Usage::default() { Err(self.gone()) } else { Ok(usage) }
    }

    /// Everything that the kernel keeps of it.
    ///
    /// # Errors
    /// As of [`Group::read`].
    pub fn account(&self) -> Result<Account, StatsError> {
        let mut account = if self.unified { v2::account(self) } else { v1::account(self) }?;
        if account == Account::default() {
            return Err(self.gone());
        }
        account.hugepages = hugepages::read(self)?;
        Ok(account)
    }

    /// Its processes, those of groups in it among them, and what they hold open. Takes longer the more that is.
    ///
    /// # Errors
    /// As of [`Group::read`].
    pub fn census(&self) -> Result<Census, StatsError> {
        Ok(census::of(&processes::of(self)?))
    }

    /// The processor time alone, as in [`Usage::cpu_nanoseconds`].
    ///
    /// # Errors
    /// As of [`Group::read`].
    pub fn cpu_nanoseconds(&self) -> Result<Option<u64>, StatsError> {
        let found = if self.unified { v2::cpu_nanoseconds(self) } else { v1::cpu_nanoseconds(self) }?;
        if found.is_none() && !self.directories.iter().any(|directory| directory.has("cgroup.procs")) {
            return Err(self.gone());
        }
        Ok(found)
    }

    /// The content of a file, of whichever hierarchy has it.
    fn text(&self, name: &str) -> Result<Option<String>, StatsError> {
        // Looking for a file where it is not takes half as long as reading it, and there are a dozen of each group.
        let has_its_like = |directory: &&Directory| directory.kinds.contains(&kind(name));
        let likely = self.directories.iter().filter(has_its_like);
        for directory in likely.chain(self.directories.iter().filter(|it| !has_its_like(it))) {
            if let Some(text) = directory.text(name)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// The first content of a file of this name that has a line on `field`: hierarchies may have files of one name.
    fn text_on(&self, name: &str, field: &str) -> Result<Option<String>, StatsError> {
        for directory in &self.directories {
            if let Some(text) = directory.text(name)?.filter(|it| crate::text::field(it, field).is_some()) {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// As [`Group::text`], in those hierarchies too that are rarely asked.
    fn text_anywhere(&self, name: &str) -> Result<Option<String>, StatsError> {
        if let Some(text) = self.text(name)? {
            return Ok(Some(text));
        }
        for directory in self.more() {
            if let Some(text) = directory.text(name)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    fn more(&self) -> &[Directory] {
        self.more.get_or_init(|| {
            let opened = self.elsewhere.iter().filter_map(|path| Directory::open(path).ok());
            opened.filter(|directory| directory.has_any(&COUNTING_MORE)).collect()
        })
    }

    fn gone(&self) -> StatsError {
        let path = self.directories.first().map(|directory| directory.path.clone()).unwrap_or_default();
        StatsError::Gone { path }
    }
}

impl Directory {
    fn open(path: &Path) -> Result<Self, StatsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| StatsError::new(path.to_owned(), error))?;
        Ok(Self { path: path.to_owned(), fd, kept: Kept::default(), kinds: Vec::new() })
    }

    fn find_kinds(&mut self) {
        let marks = COUNTING.into_iter().chain(["memory.pressure"]).filter(|name| self.has(name));
        self.kinds = marks.map(kind).collect();
    }

    /// A group in this one.
    fn inner(&self, name: &CStr) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).ok()?;
        let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
        Some(Self { path, fd, kept: Kept::default(), kinds: Vec::new() })
    }

    /// The directory, open for its names to be read.
    fn readable(&self) -> rustix::io::Result<OwnedFd> {
        openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.fd, name, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()).is_ok()
    }

    fn has_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.has(name))
    }

    /// `None` when there is no such file, be it that the kernel has none or that the group is gone.
    fn text(&self, name: &str) -> Result<Option<String>, StatsError> {
        self.text_within(name, LONGEST)
    }

    /// The same, with `longest` bytes at most.
    fn text_within(&self, name: &str, longest: usize) -> Result<Option<String>, StatsError> {
        let read = || -> rustix::io::Result<String> {
            if let Some(text) = self.kept.read(name, |file| content(file, longest)) {
                return Ok(text);
            }
            let file = openat(&self.fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let text = content(&file, longest)?;
            self.kept.keep(name, file);
            Ok(text)
        };
        match read().map_err(|error| StatsError::new(self.path.join(name), error)) {
            Ok(text) => Ok(Some(text)),
            Err(StatsError::Gone { .. }) => Ok(None),
            // Pressure is not counted with psi=0 although its files are there.
            Err(StatsError::Read { source, .. })
                if source.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// All of a file from its beginning, however far it was read before; `longest` bytes at most.
fn content(file: &OwnedFd, longest: usize) -> rustix::io::Result<String> {
    let mut buffer = vec![0; PAGE];
    let mut filled = 0;
    loop {
        if filled == buffer.len() && filled < longest {
            buffer.resize(longest, 0);
        }
        let room = buffer.get_mut(filled..).unwrap_or_default();
        let wanted = room.len();
        let count = rustix::io::pread(file, room, u64::try_from(filled).unwrap_or(u64::MAX))?;
        filled += count;
        // The kernel gives what there is, up to the last line that has room in its page: half a page short is the end.
        if count == 0 || count < wanted.min(PAGE) / 2 {
            break;
        }
    }
    buffer.truncate(filled);
    Ok(String::from_utf8(buffer)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests;
