//! What a container's mount table holds.
//!
//! Later entries replace earlier ones with the same destination: the image's volumes, then defaults, then the pod's files, then
//! the request's mounts. A default one is also left out where the request mounts something above it: a container that has the
//! node's `/sys` or `/dev` is to see what the node has there. The result is ordered by depth, so that a parent is mounted
//! before what lies below it; within one depth the order of the request stays.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::error::SpecError;
use crate::facts::{Hierarchy, NodeFacts};
use crate::place::{ContainerPlace, ResolvedMount, SandboxPlace};
use crate::request::{ContainerRequest, Propagation, SandboxRequest};

/// What the pause process needs: its own proc, a device directory, the pod's shared memory.
pub(crate) fn sandbox(place: &SandboxPlace) -> Vec<Mount> {
    let mut mounts = vec![proc(), dev()];
    if let Some(shm) = &place.shm {
        mounts.push(pod_shm(shm));
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
    let mut mounts = volumes(place);
    let shown = |default: &Mount| !is_beneath_a_requested(default.destination(), &place.mounts);
    mounts.extend(defaults(request.privileged(), sandbox, facts).into_iter().filter(shown));
    mounts.push(shm(sandbox, place));
    mounts.extend(pod_files(request.readonly_rootfs(), place));
    for mount in &place.mounts {
        mounts.push(requested(mount, facts)?);
    }
    Ok((ordered(mounts), rootfs_propagation(&place.mounts)))
}

/// Whether every container has something mounted here.
pub(crate) fn is_standard(path: &Path) -> bool {
    const PATHS: [&str; 10] = [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/mqueue",
        "/dev/shm",
        "/sys",
        "/sys/fs/cgroup",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
    ];
    PATHS.iter().any(|standard| path == Path::new(standard))
}

fn volumes(place: &ContainerPlace<'_>) -> Vec<Mount> {
    place.volumes.iter().map(|(path, source)| bind(path, source, &["rbind", "rprivate", "rw"])).collect()
}

fn is_beneath_a_requested(path: &Path, mounts: &[ResolvedMount]) -> bool {
    mounts.iter().any(|mount| {
        let above = &mount.request.container_path;
        path != above && path.starts_with(above)
    })
}

fn defaults(privileged: bool, sandbox: &SandboxRequest, facts: &NodeFacts) -> Vec<Mount> {
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
        sys(privileged, sandbox, facts),
        cgroups(privileged, sandbox, facts),
    ]
}

/// The kernel's objects. A sysfs shows those of the network, whose owner alone may mount it: a pod that has the node's network and a
/// user namespace of its own gets the node's mount.
fn sys(privileged: bool, sandbox: &SandboxRequest, facts: &NodeFacts) -> Mount {
    if sandbox.host_network() && sandbox.user_namespace().is_some() {
        let access = if facts.recursive_read_only { "rro" } else { "ro" };
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", access];
        return bind(Path::new("/sys"), Path::new("/sys"), &options);
    }
    let access = if privileged { "rw" } else { "ro" };
    filesystem("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access])
}

/// The control groups: read-only, and the container's own, but for a privileged one, which manages the node's.
///
/// On v2 it gets the node's own mount. Another mount of the hierarchy out of the node's cgroup namespace would set the options of the
/// one superblock anew, and take `nsdelegate` and `memory_recursiveprot` from the whole node. In a user namespace of the pod's own
/// nobody manages the node, and there is a cgroup namespace.
fn cgroups(privileged: bool, sandbox: &SandboxRequest, facts: &NodeFacts) -> Mount {
    let path = "/sys/fs/cgroup";
    if privileged && facts.hierarchy == Hierarchy::V2 && sandbox.user_namespace().is_none() {
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "relatime", "rw"];
        return bind(Path::new(path), Path::new(path), &options);
    }
    let access = if privileged { "rw" } else { "ro" };
    filesystem(path, "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access])
}

fn proc() -> Mount {
    filesystem("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])
}

fn dev() -> Mount {
    filesystem("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])
}

/// The options are those that it was mounted with: crun forgets what is not said again.
fn pod_shm(source: &Path) -> Mount {
    bind(Path::new("/dev/shm"), source, &["rbind", "rprivate", "nosuid", "nodev", "noexec"])
}

/// The pod's shared memory; the node's for a pod with the node's IPC.
fn shm(sandbox: &SandboxRequest, place: &ContainerPlace<'_>) -> Mount {
    let path = Path::new("/dev/shm");
    match &place.shm {
        Some(source) => pod_shm(source),
        None if sandbox.host_ipc() => bind(path, path, &["rbind", "rprivate", "nosuid", "nodev"]),
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
    if request.image.is_some() {
        // A mount of its own with nothing beneath it, so that recursion has nothing to do. Programs in it may be run.
        return Ok(bind(&request.container_path, &mount.source, &["bind", "rprivate", "ro"]));
    }
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
