//! What a container's mount table holds.
//!
//! Later entries replace earlier ones with the same destination: defaults, then the pod's files, then the image's
//! volumes, then the request's mounts. The result is ordered by depth, so that a parent is mounted before what lies
//! below it; within one depth the order of the request stays.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::place::{ContainerPlace, ResolvedMount, SandboxPlace};
use crate::request::{ContainerRequest, Propagation, SandboxRequest};

/// What the pause process needs: its own proc, a device directory, the pod's shared memory.
pub(crate) fn sandbox(place: &SandboxPlace) -> Vec<Mount> {
    let mut mounts = vec![proc(), dev()];
    if let Some(shm) = &place.shm {
        mounts.push(bind(Path::new("/dev/shm"), shm, &["rbind", "rprivate"]));
    }
    mounts
}

/// The mounts of a container and, where a mount travels, the propagation its root must have.
pub(crate) fn container(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Result<(Vec<Mount>, Option<&'static str>), SpecError> {
    let mut mounts = defaults(request.privileged());
    mounts.push(shm(sandbox, place));
    mounts.extend(pod_files(request.readonly_rootfs(), place));
    mounts
        .extend(place.volumes.iter().map(|(path, source)| bind(path, source, &["rbind", "rprivate", "rw"])));
    for mount in &place.mounts {
        mounts.push(requested(mount, facts)?);
    }
    Ok((ordered(mounts), rootfs_propagation(&place.mounts)))
}

fn defaults(privileged: bool) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    vec![
        proc(),
        dev(),
        filesystem(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        filesystem("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        filesystem("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        filesystem("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ]
}

fn proc() -> Mount {
    filesystem("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])
}

fn dev() -> Mount {
    filesystem("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])
}

/// The pod's shared memory; the node's for a pod with the node's IPC.
fn shm(sandbox: &SandboxRequest, place: &ContainerPlace<'_>) -> Mount {
    let path = Path::new("/dev/shm");
    match &place.shm {
        Some(source) => bind(path, source, &["rbind", "rprivate"]),
        None if sandbox.host_ipc() => bind(path, path, &["rbind", "rprivate"]),
        None => {
            filesystem("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
        }
    }
}

fn pod_files(readonly: bool, place: &ContainerPlace<'_>) -> Vec<Mount> {
    let options = ["rbind", "rprivate", if readonly { "ro" } else { "rw" }];
    [
        ("/etc/hostname", &place.hostname),
        ("/etc/hosts", &place.hosts),
        ("/etc/resolv.conf", &place.resolv_conf),
    ]
    .into_iter()
    .filter_map(|(path, source)| Some(bind(Path::new(path), source.as_ref()?, &options)))
    .collect()
}

fn requested(mount: &ResolvedMount, facts: &NodeFacts) -> Result<Mount, SpecError> {
    let request = &mount.request;
    if request.recursive_read_only && !facts.recursive_read_only {
        return Err(SpecError::RroUnsupported { path: request.container_path.display().to_string() });
    }
    let access = match (request.readonly, request.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let propagation = match request.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    Ok(bind(&request.container_path, &mount.source, &["rbind", propagation, access]))
}

/// A mount travels only if the container's root takes part; `rshared` includes what `rslave` gives.
fn rootfs_propagation(mounts: &[ResolvedMount]) -> Option<&'static str> {
    let any = |wanted| mounts.iter().any(|mount| mount.request.propagation == wanted);
    if any(Propagation::Bidirectional) {
        return Some("rshared");
    }
    any(Propagation::HostToContainer).then_some("rslave")
}

fn ordered(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut unique: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        unique.retain(|earlier| earlier.destination() != mount.destination());
        unique.push(mount);
    }
    unique.sort_by_key(|mount| mount.destination().components().count());
    unique
}

fn filesystem(path: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(path))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(texts(options)));
    mount
}

fn bind(path: &Path, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(path.to_owned())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(texts(options)));
    mount
}

fn texts(options: &[&str]) -> Vec<String> {
    options.iter().map(|option| (*option).to_owned()).collect()
}
