//! Where a sandbox or a container lives on this node: paths, pids and numbers that the daemon has made or looked up.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use types::{ContainerId, SandboxId};

use crate::identity::Identity;
use crate::request::{DeviceRequest, MountRequest};
use crate::selinux::SelinuxLabels;

/// What the daemon prepared for a sandbox.
#[derive(Debug, Clone)]
pub struct SandboxPlace {
    /// The sandbox.
    pub id: SandboxId,
    /// Absolute path of the pause program's root file system; it must have the directories `proc` and `dev`.
    pub rootfs: PathBuf,
    /// What to run, `["/pause"]` for the embedded program.
    pub command: Vec<String>,
    /// The pinned network namespace; unused for a pod on the host network.
    pub netns: Option<PathBuf>,
    /// The pod's user namespace where it is there already; else a pod that is to have one gets it with its pause process.
    pub userns: Option<PathBuf>,
    /// As the OCI runtime reads it: a path, or `slice:prefix:name` for systemd.
    pub cgroups_path: String,
    /// The pod's `/dev/shm` on the host.
    pub shm: Option<PathBuf>,
    /// Config of a configured pause image; `None` for the embedded program.
    pub image: Option<ImageConfiguration>,
    /// Content of the profile that [`crate::SandboxRequest::seccomp_localhost`] names.
    pub seccomp_profile: Option<Vec<u8>>,
    /// Labels of the pod where SELinux is on.
    pub selinux: Option<SelinuxLabels>,
}

/// What the daemon prepared for a container.
#[derive(Debug, Clone)]
pub struct ContainerPlace<'a> {
    /// The container.
    pub id: ContainerId,
    /// The sandbox it belongs to.
    pub sandbox_id: SandboxId,
    /// Path of the root file system, absolute or relative to the bundle.
    pub rootfs: PathBuf,
    /// As the OCI runtime reads it.
    pub cgroups_path: String,
    /// The pod's pause process, whose namespaces are joined.
    pub pause_pid: i32,
    /// Main process of the container whose pid namespace is the target, for [`crate::PidMode::Target`].
    pub target_pid: Option<i32>,
    /// The pinned network namespace; without it the pause process's is joined.
    pub netns: Option<PathBuf>,
    /// File to show as `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// File to show as `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// File to show as `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// The pod's `/dev/shm` on the host.
    pub shm: Option<PathBuf>,
    /// The image's config.
    pub image: &'a ImageConfiguration,
    /// The image's name, for the annotation.
    pub image_name: String,
    /// Who the process runs as; see [`crate::identity::resolve`].
    pub identity: Identity,
    /// The request's mounts, each with its source checked.
    pub mounts: Vec<ResolvedMount>,
    /// The request's devices; for a privileged container every device of the host as well.
    pub devices: Vec<ResolvedDevice>,
    /// Volumes of the image config: path in the container, directory on the host.
    pub volumes: Vec<(PathBuf, PathBuf)>,
    /// Content of the profile that [`crate::ContainerRequest::seccomp_localhost`] names.
    pub seccomp_profile: Option<Vec<u8>>,
    /// Labels of the container where SELinux is on.
    pub selinux: Option<SelinuxLabels>,
}

/// A mount of the request whose source the daemon has found: symlinks followed, a missing directory made, the
/// propagation of the source checked (shared for bidirectional; shared or slave for host-to-container).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMount {
    /// What was asked.
    pub request: MountRequest,
    /// The path to bind: on the host, or where the image is going to be mounted while the OCI runtime creates the container.
    pub source: PathBuf,
}

/// The type of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Block device.
    Block,
    /// Character device.
    Char,
    /// Named pipe.
    Fifo,
}

/// A device node of the host, to be made in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// Path in the container.
    pub path: PathBuf,
    /// Block, character or fifo.
    pub kind: DeviceKind,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits of the node.
    pub file_mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Letters of `rwm` that the device cgroup grants.
    pub access: String,
}

impl ResolvedDevice {
    /// The device behind `request`, with the numbers of the node the daemon found; the owner becomes root.
    #[must_use]
    pub fn for_request(
        request: &DeviceRequest,
        kind: DeviceKind,
        major: i64,
        minor: i64,
        file_mode: u32,
    ) -> Self {
        let path = request.container_path.clone();
        Self { path, kind, major, minor, file_mode, uid: 0, gid: 0, access: request.permissions.clone() }
    }
}
