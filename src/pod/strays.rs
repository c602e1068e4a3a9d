//! What exists and no record owns: found by one look, for the sweep at the start of the server and for `crimson check`.
//!
//! Promises: first the world is looked at, then the records, and a record is on disk from before the first effect of an
//! operation until after the last; so what is being made is never taken for a stray. What is just being removed may be, for
//! the moment between the two looks, which is why a stray that was seen once only is none ([`persisting`]).
//!
//! What lies in directories of our own is ours. Elsewhere (cgroups, network namespaces, processes) only what bears our mark
//! is touched: see [`super::marks`].

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use types::{ContainerId, SandboxId};

use super::error::StepError;
use super::host::Host;
use super::image_volumes::holder;
use super::layout::Layout;
use super::marks::Marks;
use super::record::{blocking, load};
use super::shared::{Drivers, Shared};

/// Something without an owner. The order is that of removal: what uses goes before what is used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Stray {
    /// A monitor whose sandbox is not on record.
    Monitor {
        /// The sandbox.
        sandbox: SandboxId,
        /// Its process.
        pid: i32,
    },
    /// A cgroup of a container or sandbox that is not on record.
    Cgroup {
        /// Its path as the OCI runtime knows it.
        path: String,
    },
    /// The network's record of a sandbox that is not on record.
    Network {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// A network namespace.
    Namespace {
        /// Where it is bound.
        path: PathBuf,
    },
    /// A mount beneath the state directory.
    Mount {
        /// Where it is.
        path: PathBuf,
    },
    /// A directory of a pod or container that is not on record.
    Directory {
        /// Where it is.
        path: PathBuf,
    },
    /// What keeps an image's layers on disk for a container that is not on record.
    Lease {
        /// The container or sandbox.
        owner: String,
    },
    /// A record that cannot be read, or that belongs to none.
    Record {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Whether another version of this server may be able to read it: then it is shown only.
        other_version: bool,
    },
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Monitor { sandbox, pid } => write!(f, "monitor {pid} of sandbox {sandbox}"),
            Self::Cgroup { path } => write!(f, "cgroup {path}"),
            Self::Network { sandbox } => write!(f, "network of sandbox {sandbox}"),
            Self::Namespace { path } => write!(f, "network namespace {}", path.display()),
            Self::Mount { path } => write!(f, "mount {}", path.display()),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
            Self::Lease { owner } => write!(f, "image lease of {owner}"),
            Self::Record { path, reason, .. } => write!(f, "record {}: {reason}", path.display()),
        }
    }
}

impl Stray {
    /// The step that removes one of its kind.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Monitor { .. } => "monitor",
            Self::Cgroup { .. } => "cgroup",
            Self::Network { .. } => "network",
            Self::Namespace { .. } => "netns",
            Self::Mount { .. } => "mount",
            Self::Directory { .. } => "directory",
            Self::Lease { .. } => "lease",
            Self::Record { .. } => "record",
        }
    }
}

/// Where to look, and with whose eyes.
#[derive(Debug, Clone)]
pub struct World {
    /// The directories.
    pub layout: Layout,
    /// Where network namespaces are bound.
    pub netns_dir: PathBuf,
    /// The kernel.
    pub host: Arc<dyn Host>,
    /// Control groups.
    pub cgroups: Arc<dyn cgroup::CgroupDriver>,
    /// Everyone who holds an image.
    pub leases: Vec<String>,
    /// Sandboxes that the network has on record.
    pub networks: Vec<SandboxId>,
}

impl World {
    /// The world of a server that is at work, or whose lock is held.
    pub(super) fn of(shared: &Shared) -> Self {
        let Drivers { images, network, cgroups, host, .. } = &shared.drivers;
        Self {
            layout: shared.layout().clone(),
            netns_dir: shared.settings().netns_dir.clone(),
            host: Arc::clone(host),
            cgroups: Arc::clone(cgroups),
            leases: images.leases(),
            networks: network.cached(),
        }
    }

    /// Everything without an owner, in the order of removal. Blocks.
    ///
    /// # Errors
    /// When directories or tables of the kernel cannot be read: then nothing can be said of anything.
    pub fn look(self) -> Result<Vec<Stray>, StepError> {
        let marks = Marks::read(&self.layout);
        let seen = self.everything(&marks)?;
        let owned = Owned::read(&self.layout)?;
        let mut strays: Vec<Stray> =
            seen.into_iter().filter_map(|(owner, it)| owned.lacks(&owner).then_some(it)).collect();
        strays.extend(owned.broken);
        strays.sort();
        strays.dedup();
        Ok(strays)
    }

    fn everything(&self, marks: &Marks) -> Result<Vec<(Owner, Stray)>, StepError> {
        let mut seen = Vec::new();
        for (pid, sandbox) in self.host.monitors(&self.layout.pods())? {
            if marks.is_id(sandbox.as_str()) {
                seen.push((Owner::Id(sandbox.to_string()), Stray::Monitor { sandbox, pid }));
            }
        }
        for (id, path) in self.cgroups.groups()? {
            if marks.is_id(&id) {
                seen.push((Owner::Id(id), Stray::Cgroup { path }));
            }
        }
        for path in self.host.namespaces(&self.netns_dir)? {
            if marks.is_netns(&file_name(&path)) {
                seen.push((Owner::Netns(path.clone()), Stray::Namespace { path }));
            }
        }
        for path in self.host.mounts_beneath(self.layout.state())? {
            seen.push((self.owner_of_mount(&path), Stray::Mount { path }));
        }
        for path in self.directories()? {
            seen.push((Owner::Id(file_name(&path)), Stray::Directory { path }));
        }
        let networks = self.networks.iter().cloned();
        seen.extend(networks.map(|sandbox| (Owner::Id(sandbox.to_string()), Stray::Network { sandbox })));
        seen.extend(
            self.leases
                .iter()
                .map(|owner| (Owner::Id(holder(owner).to_owned()), Stray::Lease { owner: owner.clone() })),
        );
        Ok(seen)
    }

    /// Nothing is mounted beneath the state directory but in directories of pods and containers.
    fn owner_of_mount(&self, path: &Path) -> Owner {
        let places = [self.layout.pods(), self.layout.bundles()];
        let id = places.iter().find_map(|place| path.strip_prefix(place).ok()?.components().next());
        id.map_or(Owner::Nobody, |id| Owner::Id(id.as_os_str().to_string_lossy().into_owned()))
    }

    fn directories(&self) -> Result<Vec<PathBuf>, StepError> {
        let mut found = Vec::new();
        for place in [self.layout.pods(), self.layout.bundles(), self.layout.layers()] {
            found.extend(children(&place)?);
        }
        // What an OCI runtime keeps there under other names is its own.
        for handler in children(&self.layout.runtime_roots())?.iter().filter(|path| path.is_dir()) {
            found.extend(
                children(handler)?.into_iter().filter(|path| ContainerId::parse(&file_name(path)).is_ok()),
            );
        }
        Ok(found)
    }
}

/// Strays of the first look that a second one has found, too.
#[must_use]
pub fn persisting(first: Vec<Stray>, second: &[Stray]) -> Vec<Stray> {
    first.into_iter().filter(|stray| second.contains(stray)).collect()
}

/// Whose something is, if anybody's.
enum Owner {
    Id(String),
    Netns(PathBuf),
    Nobody,
}

/// What the records own.
struct Owned {
    ids: BTreeSet<String>,
    netns: BTreeSet<PathBuf>,
    /// A sandbox's record cannot be read, and nobody knows its namespace.
    is_partial: bool,
    broken: Vec<Stray>,
}

impl Owned {
    fn read(layout: &Layout) -> Result<Self, StepError> {
        let (ids, netns) = (BTreeSet::new(), BTreeSet::new());
        let mut owned = Self { ids, netns, is_partial: false, broken: Vec::new() };
        for dir in children(&layout.records())? {
            owned.add(dir)?;
        }
        Ok(owned)
    }

    fn add(&mut self, dir: PathBuf) -> Result<(), StepError> {
        let loaded = match load(&dir) {
            Ok(loaded) => loaded,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StepError::io(format!("reading {}", dir.display()))(error)),
        };
        let is_broken = !loaded.broken.is_empty();
        match loaded.sandbox {
            Some(sandbox) => self.netns.extend(sandbox.netns),
            None if is_broken => self.is_partial = true,
            None => {
                let reason = "no sandbox belongs to it".to_owned();
                self.broken.push(Stray::Record { path: dir, reason, other_version: false });
                return Ok(());
            }
        }
        // By the names of the files, so that a record need not be readable to protect what it owns.
        self.ids.extend(children(&dir)?.iter().map(|path| stem(path)));
        self.ids.insert(file_name(&dir));
        self.broken.extend(loaded.broken.into_iter().map(|broken| Stray::Record {
            path: broken.path,
            reason: broken.reason,
            other_version: broken.other_version,
        }));
        Ok(())
    }

    fn lacks(&self, owner: &Owner) -> bool {
        match owner {
            Owner::Id(id) => !self.ids.contains(id),
            Owner::Netns(path) => !self.is_partial && !self.netns.contains(path),
            Owner::Nobody => true,
        }
    }
}

/// Removes one stray.
///
/// # Errors
/// When it stays.
pub(super) async fn remove(shared: &Shared, stray: &Stray) -> Result<(), StepError> {
    let Drivers { images, network, cgroups, host, .. } = &shared.drivers;
    match stray.clone() {
        Stray::Monitor { sandbox, pid } => end_monitor(shared, &sandbox, pid).await,
        Stray::Cgroup { path } => {
            let (killer, killed) = (Arc::clone(cgroups), path.clone());
            blocking(move || Ok(killer.kill_all(&killed)?)).await?;
            cgroups.release(&path).await?;
            let cgroups = Arc::clone(cgroups);
            blocking(move || Ok(cgroups.remove(&path)?)).await
        }
        Stray::Network { sandbox } => {
            let valid: Vec<SandboxId> = network.cached().into_iter().filter(|id| *id != sandbox).collect();
            network.gc(&valid).await?;
            Ok(())
        }
        Stray::Namespace { path } => {
            let host = Arc::clone(host);
            blocking(move || host.remove_netns(&path)).await
        }
        Stray::Mount { path } => {
            let host = Arc::clone(host);
            blocking(move || host.unmount(&path)).await
        }
        Stray::Directory { path } => {
            if let Ok(id) = SandboxId::parse(&file_name(&path)) {
                dismiss_monitor(shared, &id).await;
            }
            remove_directory(Arc::clone(host), path).await
        }
        Stray::Lease { owner } => Ok(images.release(&owner).await?),
        Stray::Record { other_version: true, reason, .. } => Err(StepError::Invalid(reason)),
        Stray::Record { path, .. } => set_aside(shared.layout(), path).await,
    }
}

async fn remove_directory(host: Arc<dyn Host>, path: PathBuf) -> Result<(), StepError> {
    blocking(move || {
        for mount in host.mounts_beneath(&path)?.into_iter().rev() {
            host.unmount(&mount)?;
        }
        Ok(sys::atomic::remove_tree(&path)?)
    })
    .await
}

/// A record that cannot be read may still tell somebody something. It goes where nobody takes it for a pod's.
async fn set_aside(layout: &Layout, path: PathBuf) -> Result<(), StepError> {
    let (records, aside) = (layout.records(), layout.broken_records());
    blocking(move || {
        let target = aside.join(path.strip_prefix(&records).unwrap_or(&path));
        let what = || format!("moving {} to {}", path.display(), target.display());
        if let Some(parent) = target.parent() {
            sys::atomic::create_dir_all(parent, 0o700)?;
        }
        if path.is_dir() {
            sys::atomic::remove_tree(&target)?;
        }
        std::fs::rename(&path, &target).map_err(|error| StepError::io(what())(error))
    })
    .await
}

/// Ends a monitor that nobody knows: by its socket if it has one, else as a process.
async fn end_monitor(shared: &Shared, id: &SandboxId, pid: i32) -> Result<(), StepError> {
    dismiss_monitor(shared, id).await;
    let (host, pods, id) = (Arc::clone(&shared.drivers.host), shared.layout().pods(), id.clone());
    blocking(move || host.end_monitor(&pods, pid, &id)).await
}

/// Ends the monitor of a sandbox whose socket is not there any more, if it lives.
pub(super) async fn end_lost_monitor(shared: &Shared, id: &SandboxId) -> Result<(), StepError> {
    let (host, pods, id) = (Arc::clone(&shared.drivers.host), shared.layout().pods(), id.clone());
    blocking(move || {
        let monitors = host.monitors(&pods)?;
        let mut own = monitors.into_iter().filter(|(_, sandbox)| *sandbox == id);
        own.try_for_each(|(pid, sandbox)| host.end_monitor(&pods, pid, &sandbox))
    })
    .await
}

/// Ends a monitor that still answers, with all it has.
async fn dismiss_monitor(shared: &Shared, id: &SandboxId) {
    let Ok(Some(connection)) = shared.drivers.monitors.connect(id).await else { return };
    for container in super::recover::ask(id, Some(&connection)).await.into_keys() {
        if let Err(error) = connection.monitor.delete(&container).await {
            tracing::warn!(container.id = %container, error = types::error::chain(&error), "deleting what nobody owns");
        }
    }
    if let Err(error) = connection.monitor.shutdown().await {
        tracing::warn!(pod.id = %id, error = types::error::chain(&error), "dismissing a monitor");
    }
}

/// The entries of a directory; one that is not there has none.
pub(super) fn children(dir: &Path) -> Result<Vec<PathBuf>, StepError> {
    let what = format!("reading {}", dir.display());
    match std::fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(StepError::io(what)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(StepError::io(what)(error)),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
