//! What all tests share: the node with its installed service, a registry with one image, a pod network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use e2e::{Cri, ImageBuilder, Machine, Media, Network, PodSpec, Registry, Result, patience};

use crate::host::{self, SERVICE};

/// The service's socket.
pub(crate) const SOCKET: &str = "/run/crimson/crimson.sock";
/// What the tests keep over a reboot.
pub(crate) const KEPT: &str = "/var/lib/node-suite";
/// The drop-in of the tests: both OCI runtimes under their names.
const DROP_IN: &str = "/etc/crimson/config.toml.d/50-node-suite.toml";
const REGISTRIES: &str = "/etc/crimson/certs.d";
const NETWORKS: &str = "/etc/cni/net.d";
/// Where the plugin host-local keeps them unless told otherwise.
const LEASES: &str = "/var/lib/cni/networks";
/// What network and bridge are called after.
const TOKEN: &str = "0c0ffee0";

/// Which of the two nodes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// systemd in namespaces on the host's kernel.
    Namespaces,
    /// A machine with a kernel of its own, emulated.
    Vm,
}

/// The node.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) kind: Kind,
    /// The reference of the test image in this boot's registry.
    pub(crate) reference: String,
    pub(crate) network: Network,
    registry: Registry,
    names: AtomicU32,
    told_leaks: Mutex<BTreeSet<String>>,
}

impl World {
    /// Starts the registry. The service need not be installed yet, and is told of nothing.
    pub(crate) async fn set() -> Result<Self> {
        let kind = match std::env::var("NODE_KIND").as_deref() {
            Ok("vm") => Kind::Vm,
            _ => Kind::Namespaces,
        };
        std::fs::create_dir_all(KEPT)?;
        let mut network = Network::plan(Path::new(KEPT), TOKEN)?;
        network.conf_dir = PathBuf::from(NETWORKS);
        network.leases = PathBuf::from(LEASES);
        let registry = Registry::start(&Arc::new(Machine::host()?)).await?;
        let image = registry.push(ImageBuilder::busybox(Media::Oci)?, "node/busybox", "1").await?;
        Ok(Self {
            kind,
            reference: image.reference,
            network,
            registry,
            names: AtomicU32::new(0),
            told_leaks: Mutex::default(),
        })
    }

    /// Writes what an administrator would write after the installation.
    pub(crate) fn configure(&self) -> Result {
        for directory in [NETWORKS, REGISTRIES, "/etc/crimson/config.toml.d"] {
            std::fs::create_dir_all(directory)?;
        }
        self.network.enable()?;
        self.registry.describe_to(Path::new(REGISTRIES))?;
        let mut text = "[runtime]\ndefault = \"crun\"\n".to_owned();
        for name in ["crun", "runc"] {
            let path = e2e::program(name).with_context(|| format!("{name} is not installed"))?;
            text.push_str(&format!("[runtime.handlers.{name}]\npath = \"{}\"\n", path.display()));
        }
        std::fs::write(DROP_IN, text).context("writing the drop-in")
    }

    /// Takes back [`World::configure`], which no package knows of.
    pub(crate) fn unconfigure(&self) -> Result {
        std::fs::remove_file(DROP_IN)?;
        std::fs::remove_dir_all(Path::new(REGISTRIES).join(self.registry.host()))?;
        std::fs::remove_dir_all(Path::new(REGISTRIES).join(self.registry.secure_host()))?;
        for directory in [REGISTRIES, "/etc/crimson/config.toml.d"] {
            // The package may own it, or somebody else may have put something there.
            drop(std::fs::remove_dir(directory));
        }
        Ok(())
    }

    /// A connection to the service once it answers.
    pub(crate) async fn cri(&self) -> Result<Cri> {
        let answers = async {
            loop {
                match connect().await {
                    Ok(cri) => return cri,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        match tokio::time::timeout(patience(30), answers).await {
            Ok(cri) => Ok(cri),
            Err(_) => Err(connect().await.err().unwrap_or_else(|| anyhow::anyhow!("it answers by now")))
                .context("the service does not answer"),
        }
    }

    /// The id of the test image, which is pulled if need be.
    pub(crate) async fn image(&self, cri: &Cri) -> Result<String> {
        cri.pull(&self.reference).await.context("pulling the test image")
    }

    /// A pod as the kubelet would ask for it under the systemd driver, with an identity of its own.
    pub(crate) fn pod(&self, name: &str, handler: &str) -> PodSpec {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{:08x}-1111-4222-8333-{number:012x}", host::now() & 0xffff_ffff);
        let mut pod = PodSpec::new(
            name,
            &uid,
            slice_of(&uid),
            &Path::new("/var/log/pods").join(format!("e2e_{name}_{uid}")),
        );
        pod.handler = handler.to_owned();
        pod
    }

    /// What has been told of as left behind.
    pub(crate) fn told_leaks(&self) -> BTreeSet<String> {
        self.told_leaks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what is told of as left behind.
    pub(crate) fn tell_leaks(&self, leaks: BTreeSet<String>) {
        self.told_leaks.lock().unwrap_or_else(PoisonError::into_inner).extend(leaks);
    }

    /// Starts the service if it does not run and removes all pods.
    pub(crate) async fn clear(&self) -> Result {
        host::systemctl(&["reset-failed"]).await?;
        host::systemctl(&["start", "dbus.socket", "dbus.service", SERVICE]).await?;
        let cri = self.cri().await?;
        for pod in cri.all_pods().await? {
            cri.stop_pod(&pod.id).await?;
            cri.remove_pod(&pod.id).await?;
        }
        Ok(())
    }
}

async fn connect() -> Result<Cri> {
    let cri = Cri::connect(Path::new(SOCKET)).await?;
    cri.all_pods().await?;
    Ok(cri)
}

/// The slice that the kubelet names for a burstable pod: dashes would lead a level deeper.
pub(crate) fn slice_of(uid: &str) -> String {
    format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"))
}

/// Makes the slice of a pod as the kubelet does, before it asks for the pod.
pub(crate) async fn make_slice(pod: &PodSpec) -> Result {
    host::systemctl(&["start", &slice(pod)]).await.map(drop)
}

/// Removes all slices as the kubelet does, in the hierarchies that systemd leaves alone, too.
pub(crate) async fn remove_slices() -> Result {
    host::systemctl(&["stop", "kubepods.slice"]).await?;
    let find =
        "find /sys/fs/cgroup -depth -type d -path '*/kubepods.slice*' -exec rmdir {} + 2>/dev/null; true";
    host::run("sh", &["-c", find]).await.map(drop)
}

/// The slice of a pod.
pub(crate) fn slice(pod: &PodSpec) -> String {
    pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default()
}

/// The scope of a container or of a pod's pause process.
pub(crate) fn scope(id: &str) -> String {
    format!("crimson-{id}.scope")
}
