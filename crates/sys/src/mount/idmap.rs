//! Mounts that show the files of a filesystem with other owners: what belongs to root on disk belongs to the root of a user
//! namespace. Nothing is copied and no owner is changed; the kernel translates at each look.
//!
//! An overlay is made of layers that are mounted so; its writable directory is not, since what is written there bears the
//! ids that the writer has outside.

#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::overlay::{self, Layers};
use super::{Overlay, on_private_thread};
use crate::error::MountError;
use crate::userns::{IdMap, IdMaps};

const EMPTY: &CStr = c"";

/// Beginning of the name of a probe's directory; the number of its process follows.
const PROBE: &str = ".idmap-probe-";

/// What a mapped copy of a mount is, beside mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    /// With all that is mounted beneath it, which is not mapped, and open to mounts that come and go on the host.
    Volume,
    /// Read-only, and no mount event leaves or reaches it.
    Layer,
}

/// Makes `source`, with what is mounted beneath it, appear at `target`, its ids mapped as `userns` maps them.
///
/// # Errors
/// [`MountError`] naming `source` where its filesystem cannot be mapped, else `target`.
pub fn bind_mapped(source: &Path, userns: BorrowedFd<'_>, target: &Path) -> Result<(), MountError> {
    let copy =
        detached(source, userns, Copy::Volume).map_err(|e| MountError::new("map the ids of", source, e))?;
    attach(&copy, target)
}

/// Mounts the overlay at `target` like [`super::overlay`], with the ids of its lower directories mapped as `userns` maps them.
///
/// # Errors
/// [`MountError`] naming the layer whose filesystem cannot be mapped, else as [`super::overlay`].
pub fn overlay_mapped(overlay: &Overlay, userns: BorrowedFd<'_>, target: &Path) -> Result<(), MountError> {
    let mut layers = Layers::of(overlay)?;
    // The upper directory of a read-only overlay is read like a lower one, but written to with mapped ids.
    let unmapped = usize::from(overlay.readonly && overlay.upper.is_some());
    if layers.single().is_some() && unmapped == 0 {
        let only = layers.mapped(0, userns)?;
        return attach(&only, target);
    }
    // The kernel takes no layer that is mounted nowhere, so all of them are mounted here, one upon the other, for the moment.
    let mut attached = 0;
    let mounted = (unmapped..layers.len()).try_for_each(|at| {
        let mapped = layers.mapped(at, userns)?;
        attach(&mapped, target)?;
        attached += 1;
        layers.replace(at, mapped);
        Ok(())
    });
    let made = mounted.and_then(|()| overlay::make(&layers, target));
    for _ in 0..attached {
        super::unmount(target)?;
    }
    match made? {
        Some(overlay) => attach(&overlay, target),
        None => overlay_by_options(overlay, userns, target),
    }
}

/// For kernels that cannot give a detached overlay. The layers stay mounted beneath it, where nobody sees them.
fn overlay_by_options(overlay: &Overlay, userns: BorrowedFd<'_>, target: &Path) -> Result<(), MountError> {
    let mut layers = Layers::of(overlay)?;
    for at in usize::from(overlay.readonly && overlay.upper.is_some())..layers.len() {
        let mapped = layers.mapped(at, userns)?;
        attach(&mapped, target)?;
        layers.replace(at, mapped);
    }
    layers.mount_by_options(target).map_err(|e| MountError::new("mount overlay at", target, e))
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<(), MountError> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| MountError::new("mount at", target, e))
}

/// A copy of the mount that `source` lies on, from there on downwards, mapped and mounted nowhere.
pub(super) fn detached(source: &Path, userns: BorrowedFd<'_>, copy: Copy) -> io::Result<OwnedFd> {
    let recursion = match copy {
        Copy::Volume => OpenTreeFlags::AT_RECURSIVE,
        Copy::Layer => OpenTreeFlags::empty(),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursion;
    let tree = open_tree(CWD, source, flags)?;
    let (attributes, propagation) = match copy {
        Copy::Volume => (0, 0),
        Copy::Layer => (libc::MOUNT_ATTR_RDONLY, libc::MS_PRIVATE),
    };
    let change = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | attributes,
        attr_clr: 0,
        propagation,
        userns_fd: u64::try_from(userns.as_raw_fd()).unwrap_or_default(),
    };
    // SAFETY: the path is a string of the program, the attributes are as long as the call is told and outlive it, and both
    // descriptors are open.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

/// Tries whether the ids of an overlay's layers can be mapped where `dir` lies: makes a user namespace and such an overlay, and
/// looks at the owners. Nothing is left, in `dir` or elsewhere.
///
/// # Errors
/// [`MountError`] with the first step that this kernel or this filesystem refuses.
pub fn probe(dir: &Path) -> Result<(), MountError> {
    let place = dir.join(format!("{PROBE}{}", std::process::id()));
    clear_dead(dir);
    let tried = try_overlay(&place);
    crate::atomic::remove_tree(&place).map_err(|e| MountError::new("clear", &place, e.source))?;
    tried
}

/// Removes what probes of processes have left that are dead. What stays takes a few bytes.
fn clear_dead(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let pid = name.to_str().and_then(|name| name.strip_prefix(PROBE)?.parse::<u32>().ok());
        let is_dead = |pid| matches!(Path::new(&format!("/proc/{pid}")).try_exists(), Ok(false));
        if pid.is_some_and(is_dead) {
            crate::atomic::remove_tree(&path).ok();
        }
    }
}

fn try_overlay(place: &Path) -> Result<(), MountError> {
    let failed = |action| move |e: io::Error| MountError::new(action, place, e);
    let map = IdMap { outside: 100_000, length: 65_536 };
    let userns = crate::userns::create(&IdMaps { uids: map, gids: map }).map_err(failed("map ids at"))?;
    let at = |name: &str| place.join(name);
    ["one", "two", "upper", "work", "merged"]
        .iter()
        .try_for_each(|name| std::fs::create_dir_all(at(name)))
        .and_then(|()| std::fs::write(at("one").join("file"), "x"))
        .and_then(|()| chown(at("one").join("file"), Some(0), Some(7)))
        .map_err(failed("prepare"))?;
    let overlay = Overlay {
        lowers: vec![at("one"), at("two")],
        upper: Some(at("upper")),
        work: Some(at("work")),
        ..Overlay::default()
    };
    let owners = on_private_thread(|| {
        overlay_mapped(&overlay, userns.as_fd(), &at("merged"))?;
        let seen = std::fs::metadata(at("merged/file")).map_err(failed("look at a file in"))?;
        Ok::<_, MountError>((seen.uid(), seen.gid()))
    })??;
    if owners == (100_000, 100_007) {
        return Ok(());
    }
    Err(failed("map ids at")(io::Error::other(format!("owners {owners:?} are not those of the maps"))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::mount::{list, tmpfs};

    const MAPS: IdMaps = IdMaps {
        uids: IdMap { outside: 200_000, length: 65_536 },
        gids: IdMap { outside: 300_000, length: 65_536 },
    };

    fn owner(path: &Path) -> (u32, u32) {
        let seen = std::fs::symlink_metadata(path).unwrap();
        (seen.uid(), seen.gid())
    }

    /// What other tests mount on the host must not be counted.
    fn hear_of_no_mounts() {
        crate::mount::make_rprivate(Path::new("/")).unwrap();
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            for name in ["a", "b", "c", "upper", "work", "merged"] {
                std::fs::create_dir(place.at(name)).unwrap();
            }
            for name in ["a", "b", "c"] {
                let file = place.at(name).join(name);
                std::fs::write(&file, name).unwrap();
                chown(&file, Some(5), Some(6)).unwrap();
            }
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn overlay(&self, lowers: &[&str]) -> Overlay {
            let lowers = lowers.iter().map(|name| self.at(name)).collect();
            Overlay {
                lowers,
                upper: Some(self.at("upper")),
                work: Some(self.at("work")),
                ..Overlay::default()
            }
        }
    }

    #[test]
    fn layers_show_mapped_owners_and_the_disk_keeps_its_own() {
        let place = Place::new();
        let userns = crate::userns::create(&MAPS).unwrap();
        let merged = place.at("merged");
        for by_options in [false, true] {
            on_private_thread(|| {
                let overlay = place.overlay(&["a", "b", "c"]);
                match by_options {
                    false => overlay_mapped(&overlay, userns.as_fd(), &merged).unwrap(),
                    true => overlay_by_options(&overlay, userns.as_fd(), &merged).unwrap(),
                }
                for name in ["a", "b", "c"] {
                    assert_eq!(owner(&merged.join(name)), (200_005, 300_006), "{name}");
                    assert_eq!(owner(&place.at(name).join(name)), (5, 6));
                }
                assert_eq!(std::fs::read_dir(place.at("upper")).unwrap().count(), 0);
                // A change copies the file up, with the owner that was seen.
                std::fs::set_permissions(merged.join("c"), PermissionsExt::from_mode(0o600)).unwrap();
                assert_eq!(owner(&place.at("upper/c")), (200_005, 300_006));
            })
            .unwrap();
            std::fs::remove_file(place.at("upper/c")).unwrap();
        }
        assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 0);
    }

    #[test]
    fn an_overlay_is_one_mount_and_reaches_no_peer_of_its_layers() {
        let place = Place::new();
        let userns = crate::userns::create(&MAPS).unwrap();
        let merged = place.at("merged");
        on_private_thread(|| {
            hear_of_no_mounts();
            crate::mount::make_rshared(Path::new("/")).unwrap();
            crate::mount::private_self_bind(&merged).unwrap();
            let before = list().unwrap();
            overlay_mapped(&place.overlay(&["a", "b", "c"]), userns.as_fd(), &merged).unwrap();
            let after = list().unwrap();
            let new: Vec<_> = after.iter().filter(|mount| !before.contains(mount)).collect();
            assert_eq!(new.len(), 1, "{new:?}");
            assert_eq!(new[0].mount_point, merged.canonicalize().unwrap());
        })
        .unwrap();
    }

    #[test]
    fn one_layer_alone_is_mapped_and_cannot_be_written() {
        let place = Place::new();
        let userns = crate::userns::create(&MAPS).unwrap();
        let merged = place.at("merged");
        on_private_thread(|| {
            let only = Overlay { lowers: vec![place.at("b")], readonly: true, ..Overlay::default() };
            overlay_mapped(&only, userns.as_fd(), &merged).unwrap();
            assert_eq!(owner(&merged.join("b")), (200_005, 300_006));
            let error = std::fs::write(merged.join("new"), "x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        })
        .unwrap();
        std::fs::write(place.at("b/new"), "x").unwrap();
    }

    #[test]
    fn a_volume_is_mapped_with_what_is_beneath_it_in_reach() {
        let place = Place::new();
        let userns = crate::userns::create(&MAPS).unwrap();
        let merged = place.at("merged");
        on_private_thread(|| {
            let below = place.at("a/below");
            std::fs::create_dir(&below).unwrap();
            tmpfs(&below, 1 << 20, 0o755).unwrap();
            std::fs::write(below.join("file"), "x").unwrap();
            bind_mapped(&place.at("a"), userns.as_fd(), &merged).unwrap();
            assert_eq!(owner(&merged.join("a")), (200_005, 300_006));
            assert!(merged.join("below/file").try_exists().unwrap());
            std::fs::write(merged.join("a"), "written").unwrap();
            let file = place.at("one file");
            std::fs::write(&file, "").unwrap();
            bind_mapped(&place.at("b/b"), userns.as_fd(), &file).unwrap();
            assert_eq!(owner(&file), (200_005, 300_006));
        })
        .unwrap();
        assert_eq!(std::fs::read(place.at("a/a")).unwrap(), b"written");
    }

    #[test]
    fn what_cannot_be_mapped_is_named_and_leaves_no_mount() {
        let place = Place::new();
        let userns = crate::userns::create(&MAPS).unwrap();
        on_private_thread(|| {
            hear_of_no_mounts();
            let before = list().unwrap().len();
            let error = bind_mapped(Path::new("/proc"), userns.as_fd(), &place.at("merged")).unwrap_err();
            assert!(error.to_string().contains("map the ids of /proc"), "{error}");
            let mut overlay = place.overlay(&["a", "b"]);
            overlay.lowers.push("/proc/sys".into());
            let error = overlay_mapped(&overlay, userns.as_fd(), &place.at("merged")).unwrap_err();
            assert!(error.to_string().contains("/proc/sys"), "{error}");
            assert_eq!(list().unwrap().len(), before);
        })
        .unwrap();
    }

    #[test]
    fn the_probe_tells_whether_it_works_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".idmap-probe-4194305/upper")).unwrap();
        probe(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(probe(Path::new("/proc")).is_err());
    }
}
