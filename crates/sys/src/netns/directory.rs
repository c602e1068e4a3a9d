//! The directory in which namespaces are kept, as several programs use it.
//!
//! `ip netns add`, and the library of CNI's plugins, make it a shared mount of itself before they keep their first namespace
//! there. What was mounted beneath before is then there twice: in the new mount, where everybody sees it, and below it, where
//! no path leads and whence it keeps the file from being removed. So [`share`] does as they do, before there is anything of
//! ours, and [`uncover`] reaches what somebody else has covered.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::error::{MountError, NetnsError};

/// The kernel's bound for the part of a handle that a filesystem fills in.
const HANDLE_BYTES: usize = 128;

/// A directory's name by which only its filesystem knows it.
#[repr(C)]
struct Handle {
    header: libc::file_handle,
    bytes: [u8; HANDLE_BYTES],
}

/// Makes `dir`, if it is missing, and has it be a shared mount, of itself if it is none. What is mounted in it goes along and is
/// nowhere twice. Any number of callers may do this at once, `ip` among them.
///
/// # Errors
/// [`NetnsError::Directory`] when the kernel refuses.
pub fn share(dir: &Path) -> Result<(), NetnsError> {
    crate::atomic::create_dir_all(dir, 0o755)?;
    let failed = |action: &'static str| move |error: Errno| MountError::new(action, dir, error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // `ip` takes the same lock for the same purpose. It goes with the descriptor.
    let below = rustix::fs::open(dir, flags, Mode::empty()).map_err(failed("open"))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&below, FlockOperation::LockExclusive))
        .map_err(failed("lock"))?;
    if make_shared(dir).is_ok() {
        return Ok(());
    }
    crate::mount::bind_recursive(dir, dir)?;
    make_shared(dir).map_err(failed("share"))?;
    unmount_copied(&below, dir);
    Ok(())
}

fn make_shared(dir: &Path) -> rustix::io::Result<()> {
    rustix::mount::mount_change(dir, MountPropagationFlags::SHARED | MountPropagationFlags::REC)
}

/// Unmounts below the new mount what has a copy in it. What cannot be read or unmounted stays as it would without us.
fn unmount_copied(below: &OwnedFd, dir: &Path) {
    let entries = std::fs::read_dir(at(below)).into_iter().flatten().flatten();
    for name in entries.map(|entry| entry.file_name()) {
        if super::is_namespace(&dir.join(&name)).is_ok_and(|is| is) {
            unmount_all(&at(below).join(name)).ok();
        }
    }
}

/// Unmounts what is mounted at the file `path` below a mount that covers its directory. Returns whether something was there.
///
/// The mount below is reached by way of the directory above, and the directory in it by its handle, since every path leads into
/// the mount on top.
///
/// # Errors
/// The kernel's answer; filesystems without handles, overlays among them, give one.
pub(super) fn uncover(path: &Path) -> io::Result<bool> {
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    let dir = path.parent().ok_or_else(missing)?;
    let name = path.file_name().ok_or_else(missing)?;
    let above = File::open(dir.parent().ok_or_else(missing)?)?;
    let below = open(&above, &mut handle(dir)?)?;
    unmount_all(&at(&below).join(name))
}

/// Takes every mount away from a file; whether there was one.
pub(super) fn unmount_all(path: &Path) -> io::Result<bool> {
    let mut found = false;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => found = true,
            Err(Errno::INVAL) => return Ok(found),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A directory as a path that leads to the very mount it was opened in.
fn at(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", dir.as_raw_fd()))
}

fn handle(dir: &Path) -> io::Result<Handle> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    let header = libc::file_handle {
        handle_bytes: libc::c_uint::try_from(HANDLE_BYTES).unwrap_or_default(),
        handle_type: 0,
        f_handle: [],
    };
    let mut handle = Handle { header, bytes: [0; HANDLE_BYTES] };
    let mut mount = 0;
    let whole: *mut Handle = &raw mut handle;
    // SAFETY: the path ends with a zero byte, and the header is followed by as many bytes as it says.
    let answer =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), whole.cast(), &raw mut mount, 0) };
    if answer == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
}

/// The directory with this handle, in the mount that `mount` was opened in.
fn open(mount: &File, handle: &mut Handle) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let whole: *mut Handle = handle;
    // SAFETY: the handle was filled in by the kernel, and is whole.
    let fd: RawFd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), whole.cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::super::{create, is_namespace, remove};
    use super::*;
    use crate::mount::{self, MountEntry};

    const DIR: &str = "/run/netns";

    /// Runs a test where `/run` is empty and its own.
    fn with_empty_run(test: impl FnOnce() + Send) {
        mount::on_private_thread(|| {
            mount::make_rprivate(Path::new("/")).unwrap();
            // The machine's own would still be in the list of mounts, covered.
            unmount_all(Path::new(DIR)).ok();
            mount::tmpfs(Path::new("/run"), 1 << 20, 0o755).unwrap();
            test();
        })
        .unwrap();
    }

    fn mounts_at(path: &Path) -> Vec<MountEntry> {
        mount::list().unwrap().into_iter().filter(|entry| entry.mount_point == path).collect()
    }

    /// Whether any mount of ours keeps this namespace.
    fn is_kept(number: u64) -> bool {
        let root = PathBuf::from(format!("net:[{number}]"));
        mount::list().unwrap().iter().any(|entry| entry.root == root)
    }

    fn ip(args: &[&str]) {
        let output = Command::new("ip").arg("netns").args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn made(name: &str) -> (PathBuf, u64) {
        let path = Path::new(DIR).join(name);
        create(&path).unwrap();
        let number = std::fs::metadata(&path).unwrap().ino();
        assert!(is_kept(number));
        (path, number)
    }

    #[test]
    fn a_foreign_namespace_in_between_does_not_keep_ours() {
        with_empty_run(|| {
            share(Path::new(DIR)).unwrap();
            let (path, number) = made("ours");
            ip(&["add", "theirs"]);
            remove(&path).unwrap();
            assert!(!path.try_exists().unwrap() && !is_kept(number));
            assert!(is_namespace(&Path::new(DIR).join("theirs")).unwrap());
            ip(&["delete", "theirs"]);
            assert_eq!(mounts_at(Path::new(DIR)).len(), 1);
        });
    }

    /// As programs before this one made namespaces, in a directory that was no mount.
    #[test]
    fn a_namespace_that_was_covered_goes_and_the_covering_ones_stay() {
        with_empty_run(|| {
            let (path, number) = made("ours");
            ip(&["add", "theirs"]);
            assert_eq!(mounts_at(&path).len(), 2, "the test proves nothing");
            remove(&path).unwrap();
            assert!(!path.try_exists().unwrap() && !is_kept(number));
            remove(&path).unwrap();
            assert!(is_namespace(&Path::new(DIR).join("theirs")).unwrap());
            ip(&["delete", "theirs"]);
        });
    }

    #[test]
    fn sharing_takes_what_is_there_along_and_leaves_no_copy() {
        with_empty_run(|| {
            let (path, number) = made("ours");
            share(Path::new(DIR)).unwrap();
            assert_eq!(mounts_at(&path).len(), 1);
            assert!(is_namespace(&path).unwrap() && is_kept(number));
            ip(&["add", "theirs"]);
            remove(&path).unwrap();
            assert!(!is_kept(number));
        });
    }

    #[test]
    fn many_at_once_make_one_mount() {
        with_empty_run(|| {
            std::thread::scope(|threads| {
                for n in 0..8 {
                    threads.spawn(move || {
                        share(Path::new(DIR)).unwrap();
                        made(&format!("ours-{n}"));
                    });
                }
                threads.spawn(|| ip(&["add", "theirs"]));
            });
            assert_eq!(mounts_at(Path::new(DIR)).len(), 1);
            for n in 0..8 {
                remove(&Path::new(DIR).join(format!("ours-{n}"))).unwrap();
            }
            let left: Vec<_> =
                std::fs::read_dir(DIR).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["theirs"]);
        });
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = share(Path::new("/proc/no/such")).unwrap_err();
        assert!(types::error::chain(&error).contains("/proc/no"), "{error}");
    }
}
