//! Where things lie on disk. The only place that knows.
//!
//! ```text
//! <root>/pods/<sandbox>/sandbox.json             durable record of a sandbox
//! <root>/pods/<sandbox>/<container>.json         durable record of a container
//! <root>/containers/<container>/{upper,work}     writable layer
//! <root>/containers/<container>/volumes/<n>      volumes that the image declares
//! <root>/{images,cni}                            stores of the image and network drivers
//! <root>/instance                                this server's number: see `super::marks`
//! <root>/broken/                                 records that `crimson check --repair` has set aside
//! <state>/pods/<sandbox>/                        monitor.sock, monitor.pid, resolv.conf, hosts, hostname, shm
//! <state>/containers/<container>/                OCI bundle: config.json, rootfs; exit.json written by the monitor; heard
//! <state>/containers/<container>/images/<n>      where images are mounted for the OCI runtime to bind them
//! <state>/runtime/<handler>/                     the OCI runtime's own state
//! <state>/clock                                  the latest time that was given out
//! <state>/pause/                                 root file system of every pause container
//! ```
//!
//! `state` is volatile (tmpfs on a real node) and gone after a reboot; `root` is durable.

use std::path::{Path, PathBuf};

use types::{ContainerId, SandboxId};

/// The directories of this server.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    state: PathBuf,
}

impl Layout {
    /// `root` is durable, `state` volatile.
    #[must_use]
    pub fn new(root: PathBuf, state: PathBuf) -> Self {
        Self { root, state }
    }

    /// The durable directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The volatile directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Durable records of all sandboxes.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(super) fn record_dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.records().join(sandbox.as_str())
    }

    pub(super) fn sandbox_record(&self, sandbox: &SandboxId) -> PathBuf {
        self.record_dir(sandbox).join("sandbox.json")
    }

    pub(super) fn container_record(&self, sandbox: &SandboxId, container: &ContainerId) -> PathBuf {
        self.record_dir(sandbox).join(format!("{container}.json"))
    }

    /// Writable layers of all containers.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(super) fn layer_dir(&self, container: &ContainerId) -> PathBuf {
        self.layers().join(container.as_str())
    }

    /// Volatile directories of all pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// Volatile directory of one pod.
    #[must_use]
    pub fn pod_dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.pods().join(sandbox.as_str())
    }

    /// Bundles of all containers.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// The OCI bundle of one container, or of the pause container when given the sandbox's id.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundles().join(id)
    }

    pub(super) fn image_mount(&self, container: &ContainerId, n: usize) -> PathBuf {
        self.bundle(container.as_str()).join("images").join(n.to_string())
    }

    /// The OCI runtime's `--root` for a handler.
    #[must_use]
    pub fn runtime_root(&self, handler: &str) -> PathBuf {
        self.runtime_roots().join(handler)
    }

    /// The roots of all handlers.
    pub(super) fn runtime_roots(&self) -> PathBuf {
        self.state.join("runtime")
    }

    /// The number by which this server knows what it has named.
    pub(super) fn instance(&self) -> PathBuf {
        self.root.join("instance")
    }

    /// Where records go that cannot be read.
    pub(super) fn broken_records(&self) -> PathBuf {
        self.root.join("broken")
    }

    /// The list of parent cgroups of our making.
    #[must_use]
    pub(super) fn cgroup_list(&self) -> PathBuf {
        self.state.join("cgroups.json")
    }

    /// The latest time that this server has given out.
    pub(super) fn clock(&self) -> PathBuf {
        self.state.join("clock")
    }

    /// Root file system of pause containers.
    #[must_use]
    pub fn pause_rootfs(&self) -> PathBuf {
        self.state.join("pause")
    }
}
