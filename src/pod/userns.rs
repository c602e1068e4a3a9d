//! Pods with a user namespace of their own.
//!
//! The namespace is made with the pod's network namespace, which belongs to it and keeps it alive, so that it needs neither a mount
//! nor a record of its own: what names, sweeps and undoes the one does it for the other. The pause process joins it, and the
//! containers join the pause process. For a pod with the node's network the OCI runtime makes it with the pause process. No file of an image is copied or changes its owner: the monitor's helper mounts layers,
//! images and volumes with their ids mapped. What is made for one pod or container alone is given to the pod's root.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use monitor_api::MappedVolume;
use spec::oci_spec::runtime::{Mount, Spec};
use spec::{ResolvedMount, SandboxRequest, SpecError, UserNamespace};
use sys::userns::{IdMap, IdMaps};

use super::error::{PodError, StepError};
use super::image_volumes::{self, ImageVolume};
use super::layout::Layout;
use super::record::{ContainerRecord, SandboxRecord};
use super::shared::Handler;
use super::sources;

/// Refuses a pod whose namespace the handler cannot make on this node.
pub(super) fn check(handler: &Handler, request: &SandboxRequest) -> Result<(), PodError> {
    if request.user_namespace().is_none() || handler.user_namespaces {
        return Ok(());
    }
    Err(PodError::Spec(SpecError::Unavailable {
        what: format!("a user namespace with runtime handler {:?}", handler.name),
        reason: "its OCI runtime has none, or the kernel cannot map the ids of files here; the log of the server's start tells",
    }))
}

/// The maps as the kernel takes them.
pub(super) fn maps(of: &UserNamespace) -> IdMaps {
    let map = |map: spec::userns::IdMap| IdMap { outside: map.host_id, length: map.length };
    IdMaps { uids: map(of.uids), gids: map(of.gids) }
}

/// Makes a directory of a pod or container that nobody but root can look into; the pod's root may pass through.
pub(super) fn make_directory(dir: &Path, pod: Option<UserNamespace>) -> Result<(), StepError> {
    sys::atomic::create_dir_all(dir, 0o700)?;
    let Some(maps) = pod else { return Ok(()) };
    let opened = chown(dir, None, Some(maps.gids.host_id))
        .and_then(|()| std::fs::set_permissions(dir, PermissionsExt::from_mode(0o710)));
    opened.map_err(StepError::io(format!("opening {} to the pod's root", dir.display())))
}

/// Has a file or directory belong to the pod's root; without a user namespace it does.
pub(super) fn give(path: &Path, pod: Option<UserNamespace>) -> Result<(), StepError> {
    let Some(maps) = pod else { return Ok(()) };
    let (uid, gid) = maps.on_node(0, 0);
    chown(path, Some(uid), Some(gid)).map_err(StepError::io(format!("giving {} to the pod", path.display())))
}

/// Where the pause container finds the namespace while the OCI runtime creates it.
pub(super) fn bound(layout: &Layout, record: &SandboxRecord) -> Option<PathBuf> {
    (record.request.user_namespace().is_some() && record.netns.is_some())
        .then(|| layout.bundle(record.id.as_str()).join("user"))
}

/// What the monitor needs for the pause container.
pub(super) fn of_pause(layout: &Layout, record: &SandboxRecord) -> Option<monitor_api::UserNamespace> {
    let maps = record.request.user_namespace()?;
    let (uid, gid) = maps.on_node(0, 0);
    Some(monitor_api::UserNamespace {
        path: record.netns.clone()?,
        bind: bound(layout, record),
        uid,
        gid,
        volumes: Vec::new(),
    })
}

/// What the monitor needs for a container.
pub(super) fn of_container(
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
) -> Option<monitor_api::UserNamespace> {
    let maps = sandbox.request.user_namespace()?;
    let (uid, gid) = maps.on_node(record.user.0, record.user.1);
    let of_pause = || Some(PathBuf::from(format!("/proc/{}/ns/user", sandbox.pause_pid?)));
    let path = sandbox.netns.clone().or_else(of_pause)?;
    Some(monitor_api::UserNamespace { path, bind: None, uid, gid, volumes: record.mapped.clone() })
}

/// Takes what is to be mounted with its ids mapped from where it is to where the monitor's helper binds it. That is what the
/// request says of its mounts, and holds for all that the image declares.
pub(super) fn map_volumes(
    layout: &Layout,
    record: &ContainerRecord,
    mounts: &mut [ResolvedMount],
    declared: &mut [(PathBuf, PathBuf)],
) -> Vec<MappedVolume> {
    let asked = |mount: &&mut ResolvedMount| mount.request.ids.is_some() && mount.request.image.is_none();
    let mounts = mounts.iter_mut().filter(asked).map(|mount| &mut mount.source);
    let sources = mounts.chain(declared.iter_mut().map(|(_, source)| source));
    let place = layout.bundle(record.id.as_str()).join("volumes");
    let map = |(n, source): (usize, &mut PathBuf)| {
        let target = place.join(n.to_string());
        let source = std::mem::replace(source, target.clone());
        MappedVolume { source, target }
    };
    sources.enumerate().map(map).collect()
}

/// Has the OCI runtime ask for nothing that the pod's root may not do: it may make a bind mount read-only only with the other options
/// that the source is mounted with, and runc 1.1 does not look them up itself. What the monitor mounts is not there yet; its options are those of what
/// it copies, and an overlay, which is what several layers of an image become, has none.
pub(super) fn keep_options(
    layout: &Layout,
    record: &ContainerRecord,
    spec: &mut Spec,
) -> Result<(), StepError> {
    const KEPT: [&str; 3] = ["nosuid", "nodev", "noexec"];
    let images = image_volumes::sources(layout, record);
    let table = sys::mount::list()?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in mounts.iter_mut().filter(|mount| is_readonly_bind(mount)) {
        let Some(source) = mount.source().clone() else { continue };
        let mut options = mount.options().clone().unwrap_or_default();
        let copied = match images.iter().position(|image| *image == source) {
            Some(at) => record.image_volumes.get(at).and_then(ImageVolume::lone_layer),
            None => {
                let mapped = record.mapped.iter().find(|volume| volume.target == source);
                Some(mapped.map_or(source.as_path(), |volume| &volume.source))
            }
        };
        let entry = copied.and_then(|copied| sources::mount_of(&table, copied));
        let present = entry.map_or("", |entry| &entry.options);
        let kept = KEPT.iter().filter(|kept| present.split(',').any(|option| option == **kept));
        options.extend(kept.map(|kept| (*kept).to_owned()));
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn is_readonly_bind(mount: &Mount) -> bool {
    let has = |wanted: &str| mount.options().iter().flatten().any(|option| option == wanted);
    mount.typ().as_deref() == Some("bind") && has("ro")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_read_only_bind_mounts_are_looked_at() {
        let mount = |typ: &str, options: &[&str]| {
            let mut mount = Mount::default();
            mount
                .set_typ(Some(typ.to_owned()))
                .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
            mount
        };
        assert!(is_readonly_bind(&mount("bind", &["rbind", "ro"])));
        assert!(!is_readonly_bind(&mount("bind", &["rbind", "rw"])));
        assert!(!is_readonly_bind(&mount("bind", &["rbind", "rro"])), "it changes this option alone");
        assert!(!is_readonly_bind(&mount("sysfs", &["ro"])));
    }

    #[test]
    fn ids_are_told_as_the_kernel_takes_them() {
        let map = |host_id| spec::userns::IdMap { host_id, length: 10 };
        let maps = maps(&UserNamespace { uids: map(100), gids: map(200) });
        assert_eq!((maps.uids.outside_of(3), maps.gids.outside_of(3)), (Some(103), Some(203)));
        assert_eq!(maps.gids.outside_of(10), None);
    }
}
