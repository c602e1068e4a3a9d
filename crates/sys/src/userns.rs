//! User namespaces: made with their id maps, and found again by what belongs to them.
//!
//! Only a process with a single thread may make one, so a small program that is part of this one does (`pause/holder.rs`). It
//! holds the namespace until its maps are written and somebody else has taken hold of it: by a descriptor, or by a namespace
//! that belongs to it ([`crate::netns::create_owned`]). The program ends with its parent, however that ends, and a user
//! namespace that nobody holds is gone, so a crash leaves nothing.

#![allow(unsafe_code, reason = "the questions that a namespace answers are ioctls without a safe wrapper")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::spawn::Program;

/// The program that makes the namespace and waits.
const HOLDER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holder"));

/// Ids from 0 inside a namespace and the same number of ids outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// What id 0 is outside.
    pub outside: u32,
    /// How many ids there are.
    pub length: u32,
}

impl IdMap {
    /// What `inside` is outside; none for an id that the map does not have.
    #[must_use]
    pub fn outside_of(self, inside: u32) -> Option<u32> {
        if inside < self.length { self.outside.checked_add(inside) } else { None }
    }

    fn line(self) -> String {
        format!("0 {} {}\n", self.outside, self.length)
    }
}

/// The two maps of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMaps {
    /// Of users.
    pub uids: IdMap,
    /// Of groups.
    pub gids: IdMap,
}

/// Makes a user namespace with these maps. It lives as long as the descriptor, and what is made with it.
///
/// # Errors
/// The kernel's answer, with the step that it refused.
pub fn create(maps: &IdMaps) -> io::Result<OwnedFd> {
    let holder = Holder::start(maps)?;
    open(&holder.namespace("user")).map_err(step("open the new user namespace"))
}

/// The user namespace at `path`, or the one that owns the namespace at `path`.
///
/// # Errors
/// The kernel's answer; what is no namespace has none.
pub fn owner_of(path: &Path) -> io::Result<OwnedFd> {
    let namespace = open(path)?;
    // SAFETY: the call takes no memory; on what is no namespace it fails.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_NSTYPE) };
    match kind {
        libc::CLONE_NEWUSER => Ok(namespace),
        0.. => {
            // SAFETY: as above.
            let owner = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
            if owner < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor was just made, to be closed on exec, and is known to nobody else.
            Ok(unsafe { OwnedFd::from_raw_fd(owner) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Names what was attempted in an error that keeps its kind.
fn step(action: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{action}: {error}"))
}

/// The process that holds a new user namespace. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Holder {
    process: Child,
    /// Closed first, which is what ends the process.
    to: Option<File>,
    from: File,
}

impl Holder {
    /// Has the process make the namespace, and writes its maps.
    pub(crate) fn start(maps: &IdMaps) -> io::Result<Self> {
        let mut holder = Self::spawn().map_err(step("start the holder of a user namespace"))?;
        holder.hear().map_err(step("make a user namespace"))?;
        holder.write("uid_map", maps.uids).map_err(step("map users"))?;
        holder.write("gid_map", maps.gids).map_err(step("map groups"))?;
        Ok(holder)
    }

    /// Makes a network namespace that belongs to the user namespace; where it can be had while the process lives.
    pub(crate) fn make_netns(&mut self) -> io::Result<PathBuf> {
        if let Some(to) = &mut self.to {
            to.write_all(&[1])?;
        }
        self.hear()?;
        Ok(self.namespace("net"))
    }

    fn spawn() -> io::Result<Self> {
        let program = program()?;
        let (input, to) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let process = Program::new(&path, Path::new("/")).arg0("userns").stdin(input).stdout(output).start();
        let process = process.map_err(|error| match error {
            crate::spawn::SpawnError::Start { source, .. } => source,
            other @ crate::spawn::SpawnError::Relative(_) => io::Error::other(other),
        })?;
        Ok(Self { process, to: Some(to.into()), from: from.into() })
    }

    /// Waits until the process has made what it was to make. Without a word from it its status is the kernel's answer.
    fn hear(&mut self) -> io::Result<()> {
        let mut byte = [0];
        if self.from.read(&mut byte)? == 1 {
            return Ok(());
        }
        self.to = None;
        let status = self.process.wait()?;
        match status.code() {
            Some(number @ 1..) => Err(io::Error::from_raw_os_error(number)),
            _ => Err(io::Error::other(format!("the holder of the namespace ended with {status}"))),
        }
    }

    fn write(&self, file: &str, map: IdMap) -> io::Result<()> {
        std::fs::write(format!("/proc/{}/{file}", self.process.id()), map.line())
    }

    fn namespace(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{name}", self.process.id()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.to = None;
        self.process.wait().ok();
    }
}

/// The holder as a file in memory.
fn program() -> io::Result<OwnedFd> {
    let file = match rustix::fs::memfd_create("userns", MemfdFlags::CLOEXEC | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the second flag: every file in memory can be run there.
        Err(Errno::INVAL) => rustix::fs::memfd_create("userns", MemfdFlags::CLOEXEC)?,
        made => made?,
    };
    let mut file = File::from(file);
    file.write_all(HOLDER)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MAPS: IdMaps = IdMaps {
        uids: IdMap { outside: 200_000, length: 65_536 },
        gids: IdMap { outside: 300_000, length: 1_000 },
    };

    fn inode(fd: &OwnedFd) -> u64 {
        File::from(fd.try_clone().unwrap()).metadata().unwrap().ino()
    }

    #[test]
    fn the_maps_are_those_asked_for() {
        let holder = Holder::start(&MAPS).unwrap();
        let read = |file: &str| {
            let text = std::fs::read_to_string(format!("/proc/{}/{file}", holder.process.id())).unwrap();
            text.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u32>>()
        };
        assert_eq!(read("uid_map"), [0, 200_000, 65_536]);
        assert_eq!(read("gid_map"), [0, 300_000, 1_000]);
        assert_eq!(MAPS.uids.outside_of(65_535), Some(265_535));
        assert_eq!(MAPS.uids.outside_of(65_536), None);
    }

    #[test]
    fn a_namespace_is_found_by_itself_and_by_what_it_owns() {
        let namespace = create(&MAPS).unwrap();
        assert_ne!(inode(&namespace), std::fs::metadata("/proc/self/ns/user").unwrap().ino());
        let by_itself = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        assert_eq!(inode(&owner_of(&by_itself).unwrap()), inode(&namespace));
        let mut holder = Holder::start(&MAPS).unwrap();
        let netns = holder.make_netns().unwrap();
        let owner = inode(&owner_of(&netns).unwrap());
        assert_eq!(owner, std::fs::metadata(holder.namespace("user")).unwrap().ino());
        let ours = inode(&owner_of(Path::new("/proc/self/ns/net")).unwrap());
        assert_ne!(owner, ours);
        assert!(owner_of(Path::new("/dev/null")).is_err());
        assert!(owner_of(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn the_holder_ends_with_whoever_asked() {
        let holder = Holder::start(&MAPS).unwrap();
        let pid = i32::try_from(holder.process.id()).unwrap();
        let process = crate::pidfd::PidFd::open(pid).unwrap();
        drop(holder);
        assert!(process.wait_ended(Some(std::time::Duration::from_secs(60))).unwrap());
    }

    #[test]
    fn what_the_kernel_refuses_is_named() {
        let nothing = IdMap { outside: 0, length: 0 };
        let error = create(&IdMaps { uids: nothing, gids: nothing }).unwrap_err();
        assert!(error.to_string().starts_with("map users: "), "{error}");
    }
}
