//! Mounts: made, changed, listed and undone, each by one call that names its place in the error.
//!
//! Every call acts on the mount namespace of the calling thread. [`on_private_thread`] runs code in a copy that ends with
//! it. Unmounting is lazy and a place where nothing is mounted counts as done, so that an undo can be repeated.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::error::MountError;

pub use crate::mountinfo::{MountEntry, Propagation};

mod idmap;
pub(crate) mod overlay;

pub use idmap::{bind_mapped, overlay_mapped, probe as probe_idmap};

/// The parts of an overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Directories that are only read, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The directory that takes the changes.
    pub upper: Option<PathBuf>,
    /// An empty directory on the same filesystem as `upper`, for the kernel's use.
    pub work: Option<PathBuf>,
    /// Whether nothing may be changed. `upper`, if given, is then read like a topmost lower directory.
    pub readonly: bool,
    /// The SELinux label of every file in it, whatever labels the directories have. One directory alone, which is bound, keeps its
    /// own. Without SELinux the kernel refuses it.
    pub context: Option<String>,
}

/// Makes `source`, a directory or file, appear at `target` as well. Mounts below it do not.
///
/// # Errors
/// [`MountError`] naming the target.
pub fn bind(source: &Path, target: &Path) -> Result<(), MountError> {
    rustix::mount::mount_bind(source, target).map_err(|e| MountError::new("bind", target, e))
}

/// Like [`bind`], with every mount below.
///
/// # Errors
/// [`MountError`] naming the target.
pub fn bind_recursive(source: &Path, target: &Path) -> Result<(), MountError> {
    rustix::mount::mount_bind_recursive(source, target)
        .map_err(|e| MountError::new("bind recursively", target, e))
}

/// Mounts a filesystem in memory, without set-user-id programs, devices and programs.
///
/// # Errors
/// [`MountError`] naming the target.
pub fn tmpfs(target: &Path, size_bytes: u64, mode: u32) -> Result<(), MountError> {
    let options = CString::new(format!("size={size_bytes},mode={mode:o}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, options.as_c_str())
        .map_err(|e| MountError::new("mount tmpfs at", target, e))
}

/// Mounts the overlay at `target`. Any number of layers up to the kernel's 500 and any characters in their paths will do.
///
/// Without `upper`, or with `readonly`, the mount is read-only; when only one directory remains then, it is a read-only bind
/// mount, because the kernel makes no overlay of one.
///
/// # Errors
/// [`MountError`] naming the target or the layer that cannot be opened.
pub fn overlay(overlay: &Overlay, target: &Path) -> Result<(), MountError> {
    overlay::mount_at(&overlay::Layers::of(overlay)?, target)
}

/// Stops mount events to and from the mount at `target`.
///
/// # Errors
/// [`MountError`] when `target` is no mount point.
pub fn make_private(target: &Path) -> Result<(), MountError> {
    change(target, MountPropagationFlags::PRIVATE, "make private")
}

/// Like [`make_private`] for the mount and all below it.
///
/// # Errors
/// [`MountError`] when `target` is no mount point.
pub fn make_rprivate(target: &Path) -> Result<(), MountError> {
    change(target, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC, "make recursively private")
}

/// Lets mount events in, but none out, for the mount at `target` and all below it.
///
/// # Errors
/// [`MountError`] when `target` is no mount point.
pub fn make_rslave(target: &Path) -> Result<(), MountError> {
    change(target, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC, "make recursively slave")
}

/// Lets mount events in and out for the mount at `target` and all below it.
///
/// # Errors
/// [`MountError`] when `target` is no mount point.
pub fn make_rshared(target: &Path) -> Result<(), MountError> {
    change(target, MountPropagationFlags::SHARED | MountPropagationFlags::REC, "make recursively shared")
}

fn change(target: &Path, flags: MountPropagationFlags, action: &'static str) -> Result<(), MountError> {
    rustix::mount::mount_change(target, flags).map_err(|e| MountError::new(action, target, e))
}

/// Makes the mount at `target` read-only, keeping its other options; the filesystem and its other mounts are unchanged.
///
/// # Errors
/// [`MountError`] when `target` is no mount point.
pub fn remount_readonly(target: &Path) -> Result<(), MountError> {
    let failed = |e| MountError::new("remount read-only", target, e);
    let kept = rustix::fs::statvfs(target).map(|stat| kept_flags(stat.f_flag)).map_err(failed)?;
    rustix::mount::mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | kept, "").map_err(failed)
}

/// A remount sets every option anew, so the present ones have to be repeated.
fn kept_flags(present: StatVfsMountFlags) -> MountFlags {
    const PAIRS: [(StatVfsMountFlags, MountFlags); 6] = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    PAIRS.iter().filter(|(seen, _)| present.contains(*seen)).map(|(_, kept)| *kept).collect()
}

/// Makes `dir` a mount of its own which no mount event leaves or reaches. Where that is so already, also from an earlier run
/// of the program, nothing happens.
///
/// # Errors
/// [`MountError`] when `dir` is missing or the kernel refuses.
pub fn private_self_bind(dir: &Path) -> Result<(), MountError> {
    let place = dir.canonicalize().map_err(|e| MountError::new("resolve", dir, e))?;
    if is_private_mount(&place)? {
        return Ok(());
    }
    bind_recursive(&place, &place)?;
    make_rprivate(&place).inspect_err(|_| drop(unmount(&place)))
}

fn is_private_mount(place: &Path) -> Result<bool, MountError> {
    let topmost = list()?.into_iter().rfind(|entry| entry.mount_point == place);
    Ok(topmost
        .is_some_and(|entry| matches!(entry.propagation, Propagation::Private | Propagation::Unbindable)))
}

/// Takes the topmost mount away from `target`; users of files in it keep them. Where nothing is mounted, or nothing is at
/// all, this is a success.
///
/// # Errors
/// [`MountError`] when the mount stays.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(MountError::new("unmount", target, error)),
    }
}

/// The mounts of the calling thread's namespace, in the kernel's order.
///
/// # Errors
/// [`MountError`] when the table cannot be read.
pub fn list() -> Result<Vec<MountEntry>, MountError> {
    crate::mountinfo::read()
}

/// Runs `work` on a thread with a mount namespace of its own, a copy of the present one, in which no mount it makes reaches
/// the host; the host's later mounts do reach it. Everything mounted there ends with the thread, unless a process that
/// `work` started lives on in it or a descriptor keeps it.
///
/// # Errors
/// [`MountError`] when the namespace cannot be made, or `work` panicked.
pub fn on_private_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, MountError> {
    let root = Path::new("/");
    let failed = |e: io::Error| MountError::new("make a private mount namespace of", root, e);
    let answer = crate::thread::run("private-mounts", || {
        crate::thread::unshare(UnshareFlags::NEWNS).map_err(|e| failed(e.into()))?;
        make_rslave(root)?;
        Ok(work())
    });
    answer.map_err(failed)?.unwrap_or_else(|| Err(failed(io::Error::other("the work in it panicked"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(place: &Path) -> Vec<MountEntry> {
        let place = place.canonicalize().unwrap();
        list().unwrap().into_iter().filter(|entry| entry.mount_point == place).collect()
    }

    #[test]
    fn tmpfs_has_its_size_and_mode_and_goes_away_repeatably() {
        let dir = tempfile::tempdir().unwrap();
        on_private_thread(|| {
            tmpfs(dir.path(), 1 << 20, 0o750).unwrap();
            let usage = crate::disk::usage(dir.path()).unwrap();
            assert_eq!(usage.total_bytes, 1 << 20);
            let mounted = at(dir.path());
            assert_eq!(mounted.len(), 1);
            assert!(
                mounted[0].options.contains("noexec") && mounted[0].options.contains("mode=750"),
                "{mounted:?}"
            );
            unmount(dir.path()).unwrap();
            unmount(dir.path()).unwrap();
            unmount(&dir.path().join("missing")).unwrap();
            assert!(at(dir.path()).is_empty());
        })
        .unwrap();
    }

    #[test]
    fn nothing_mounted_on_a_private_thread_reaches_the_host() {
        let dir = tempfile::tempdir().unwrap();
        on_private_thread(|| tmpfs(dir.path(), 4096, 0o700)).unwrap().unwrap();
        assert!(at(dir.path()).is_empty());
        assert!(on_private_thread(|| assert_eq!(1, 2, "on purpose")).is_err());
    }

    #[test]
    fn remount_readonly_keeps_the_other_options() {
        let dir = tempfile::tempdir().unwrap();
        on_private_thread(|| {
            tmpfs(dir.path(), 1 << 20, 0o755).unwrap();
            remount_readonly(dir.path()).unwrap();
            let options = &at(dir.path())[0].options;
            for option in ["ro", "nosuid", "nodev", "noexec"] {
                assert!(options.split(',').any(|o| o == option), "{option} in {options}");
            }
            assert!(std::fs::write(dir.path().join("file"), "x").is_err());
            unmount(dir.path()).unwrap();
            assert!(remount_readonly(dir.path()).is_err(), "a plain directory is no mount");
        })
        .unwrap();
    }

    #[test]
    fn private_self_bind_happens_once_and_keeps_mounts_below_in_reach() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        on_private_thread(|| {
            make_rshared(Path::new("/")).unwrap();
            tmpfs(&below, 1 << 20, 0o755).unwrap();
            std::fs::write(below.join("file"), "x").unwrap();
            private_self_bind(dir.path()).unwrap();
            private_self_bind(dir.path()).unwrap();
            let mounted = at(dir.path());
            assert_eq!((mounted.len(), mounted[0].propagation), (1, Propagation::Private), "{mounted:?}");
            assert!(below.join("file").try_exists().unwrap());
            private_self_bind(&below).unwrap();
            assert!(private_self_bind(&dir.path().join("missing")).is_err());
        })
        .unwrap();
    }

    #[test]
    fn a_mount_beneath_a_private_directory_stays_out_of_peers() {
        let dir = tempfile::tempdir().unwrap();
        on_private_thread(|| {
            make_rshared(Path::new("/")).unwrap();
            private_self_bind(dir.path()).unwrap();
            let inner = dir.path().join("rootfs");
            std::fs::create_dir(&inner).unwrap();
            let mount_in_peer = crate::thread::run("peer", || {
                crate::process::unshare_mount_namespace().unwrap();
                tmpfs(&inner, 4096, 0o700).unwrap();
                at(&inner).len()
            });
            assert_eq!(mount_in_peer.unwrap(), Some(1));
            assert!(at(&inner).is_empty(), "a copy of the namespace keeps its mounts to itself");
        })
        .unwrap();
    }
}
