//! Network namespaces that outlive their maker, each kept by a bind mount at a path of the caller's choice.

#![allow(unsafe_code, reason = "the flags of an interface are set by an ioctl that has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{FileError, NetnsError};
use crate::userns::{Holder, IdMaps};

mod directory;

pub use directory::share;

/// The type of the filesystem that namespaces live in.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Makes a network namespace with its loopback interface up and keeps it at `path`, which must not exist; a missing parent
/// directory is made.
///
/// # Errors
/// [`NetnsError`] with the step that failed; nothing is left at `path` then.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    create_by(path, || {
        let made = crate::thread::run("new-netns", || make_here(path));
        let made = made.map_err(|e| NetnsError::new("make", path, e))?;
        made.unwrap_or_else(|| Err(NetnsError::Panicked { path: path.to_owned() }))
    })
}

/// Like [`create`], with a namespace that belongs to a new user namespace with these maps. The user namespace lives as long as
/// this one does; [`crate::userns::owner_of`] finds it.
///
/// # Errors
/// As [`create`].
pub fn create_owned(path: &Path, maps: &IdMaps) -> Result<(), NetnsError> {
    create_by(path, || {
        let failed = |action| move |e: io::Error| NetnsError::new(action, path, e);
        let mut holder = Holder::start(maps).map_err(failed("make an owner for"))?;
        let made = holder.make_netns().map_err(failed("make"))?;
        rustix::mount::mount_bind(&made, path).map_err(|e| NetnsError::new("keep", path, e))?;
        run_in(path, loopback_up)?.map_err(failed("bring up loopback in"))
    })
}

/// Makes the file, and with `make` the namespace at it.
fn create_by(path: &Path, make: impl FnOnce() -> Result<(), NetnsError>) -> Result<(), NetnsError> {
    if let Some(parent) = path.parent() {
        crate::atomic::create_dir_all(parent, 0o755)?;
    }
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH;
    drop(rustix::fs::open(path, flags, mode).map_err(|e| FileError::new("create", path, e))?);
    make().inspect_err(|_| drop(remove(path)))
}

/// The calling thread gets the new namespace, sets it up from inside and binds it.
fn make_here(path: &Path) -> Result<(), NetnsError> {
    crate::thread::unshare(UnshareFlags::NEWNET).map_err(|e| NetnsError::new("make", path, e))?;
    loopback_up().map_err(|e| NetnsError::new("bring up loopback in", path, e))?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path).map_err(|e| NetnsError::new("keep", path, e))
}

/// Gives the namespace at `path` up and removes the file, also one that a later mount of the directory has covered. What still uses it (a process, an open socket) keeps it alive. A
/// missing namespace or file is a success.
///
/// # Errors
/// [`NetnsError`] when the file stays.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    match directory::unmount_all(path) {
        Ok(_) => unlink(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(NetnsError::new("unmount", path, error)),
    }
}

/// A file at which something is mounted still, below a mount that covers the directory, is busy.
fn unlink(path: &Path) -> Result<(), NetnsError> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) if matches!(directory::uncover(path), Ok(true)) => unlink(path),
        Err(error) => Err(NetnsError::File(FileError::new("remove", path, error))),
    }
}

/// Whether a namespace is kept at `path`, rather than an ordinary file or nothing.
///
/// # Errors
/// The kernel's answer when `path` cannot be looked at for another reason than that it is missing.
pub fn is_namespace(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        Ok(stat) => Ok(stat.f_type == NSFS_MAGIC),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs `work` in the namespace at `path`, on a thread that ends with it.
///
/// # Errors
/// [`NetnsError`] when the namespace cannot be entered, or `work` panicked.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let namespace = open(path)?;
    let answer = crate::thread::run("in-netns", || {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(rustix::fd::AsFd::as_fd(&namespace), network)
            .map_err(|e| NetnsError::new("enter", path, e))?;
        Ok(work())
    });
    answer
        .map_err(|e| NetnsError::new("make a thread for", path, e))?
        .unwrap_or_else(|| Err(NetnsError::Panicked { path: path.to_owned() }))
}

fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| NetnsError::new("open", path, e))
}

/// Sets the `UP` flag of `lo` in the calling thread's namespace.
fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is a plain C structure for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    interface_ioctl(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the call before has filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    interface_ioctl(&socket, libc::SIOCSIFFLAGS, &mut request)
}

fn interface_ioctl(socket: &OwnedFd, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both calls used here read and write one ifreq, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), call, std::ptr::from_mut(request)) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn own_namespace() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn a_namespace_is_kept_entered_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for it");
        create(&path).unwrap();
        assert!(is_namespace(&path).unwrap());
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        let inside = run_in(&path, || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            own_namespace()
        });
        assert_eq!(inside.unwrap(), std::fs::metadata(&path).unwrap().ino());
        assert_ne!(own_namespace(), std::fs::metadata(&path).unwrap().ino());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.try_exists().unwrap() && !is_namespace(&path).unwrap());
    }

    #[test]
    fn a_namespace_can_belong_to_a_user_namespace_and_keeps_it_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owned");
        let map = crate::userns::IdMap { outside: 100_000, length: 10 };
        create_owned(&path, &IdMaps { uids: map, gids: map }).unwrap();
        let owner = crate::userns::owner_of(&path).unwrap();
        let owner = std::fs::File::from(owner).metadata().unwrap().ino();
        assert_ne!(owner, std::fs::metadata("/proc/self/ns/user").unwrap().ino());
        run_in(&path, || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        })
        .unwrap();
        assert!(create_owned(&path, &IdMaps { uids: map, gids: map }).is_err());
        remove(&path).unwrap();
        let none = crate::userns::IdMap { outside: 0, length: 0 };
        assert!(create_owned(&path, &IdMaps { uids: none, gids: map }).is_err());
        assert!(!path.try_exists().unwrap());
    }

    #[test]
    fn what_exists_is_neither_taken_nor_harmed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "mine").unwrap();
        let error = create(&path).unwrap_err();
        assert!(matches!(error, NetnsError::File(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert!(!is_namespace(&path).unwrap());
        assert!(run_in(&path, || ()).is_err());
        assert!(matches!(run_in(&dir.path().join("missing"), || ()), Err(NetnsError::Step { .. })));
    }

    #[test]
    fn a_namespace_left_by_an_earlier_run_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("left");
        create(&path).unwrap();
        rustix::mount::mount_bind(&path, &path).unwrap();
        remove(&path).unwrap();
        std::fs::write(&path, "a crash between the file and the mount").unwrap();
        remove(&path).unwrap();
        assert!(!path.try_exists().unwrap());
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        create(&path).unwrap();
        let answer: Result<(), _> = run_in(&path, || std::panic::resume_unwind(Box::new("on purpose")));
        assert!(matches!(answer, Err(NetnsError::Panicked { .. })));
        remove(&path).unwrap();
    }
}
