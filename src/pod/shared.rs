//! What all pods' tasks share: drivers, settings, the directory of names and ids.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use monitor_api::RuntimeCommand;
use spec::{NodeFacts, PodKey};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use types::{ContainerId, SandboxId, Timestamp};

use super::actor::PodHandle;
use super::error::PodError;
use super::faults::Faults;
use super::host::Host;
use super::layout::Layout;
use super::marks::Marks;
use super::parents::Parents;

/// The outside worlds.
#[derive(Debug, Clone)]
pub struct Drivers {
    /// Images and their layers.
    pub images: Arc<dyn image::ImageSource>,
    /// Pod networks.
    pub network: Arc<dyn cni::Network>,
    /// Control groups.
    pub cgroups: Arc<dyn cgroup::CgroupDriver>,
    /// Monitors, and through them the OCI runtime.
    pub monitors: Arc<dyn monitor_api::Monitors>,
    /// Namespaces and mounts.
    pub host: Arc<dyn Host>,
}

/// A configured OCI runtime.
#[derive(Debug, Clone)]
pub struct Handler {
    /// Name in the configuration.
    pub name: String,
    /// How to call it.
    pub command: RuntimeCommand,
    /// Why it cannot be used on this host, if so.
    pub broken: Option<String>,
    /// Whether it can make a mount read-only with everything mounted beneath it.
    pub recursive_read_only: bool,
}

/// What the configuration and the host say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where things lie.
    pub layout: Layout,
    /// What the host offers.
    pub facts: NodeFacts,
    /// The handlers by name.
    pub handlers: BTreeMap<String, Handler>,
    /// Handlers that a reload took away: pods that have one keep it, new pods do not get it.
    pub retired: BTreeMap<String, Handler>,
    /// The handler that "" stands for.
    pub default_handler: String,
    /// A pause image; none means the embedded program.
    pub pause_image: Option<String>,
    /// Limit for one call of the OCI runtime.
    pub runtime_timeout: Duration,
    /// Where network namespaces are bound.
    pub netns_dir: PathBuf,
    /// Cap on each output stream of ExecSync, in bytes; the rest is read and dropped.
    pub exec_output_bytes: usize,
}

impl Settings {
    /// Nothing configured, in this place.
    #[must_use]
    pub fn at(layout: Layout) -> Self {
        Self {
            layout,
            facts: NodeFacts::default(),
            handlers: BTreeMap::new(),
            retired: BTreeMap::new(),
            default_handler: String::new(),
            pause_image: None,
            runtime_timeout: Duration::ZERO,
            netns_dir: PathBuf::new(),
            exec_output_bytes: 0,
        }
    }

    /// The handler that a request names.
    ///
    /// # Errors
    /// When it is not configured, or does not work on this host.
    pub fn handler(&self, name: &str) -> Result<&Handler, PodError> {
        let wanted = if name.is_empty() { self.default_handler.as_str() } else { name };
        let handler = self.handlers.get(wanted).ok_or_else(|| {
            if name.is_empty() {
                PodError::BrokenHandler {
                    name: String::new(),
                    reason: "no OCI runtime is configured or found on PATH".to_owned(),
                }
            } else {
                PodError::UnknownHandler(name.to_owned())
            }
        })?;
        handler.usable()
    }

    /// The handler of a pod that exists.
    ///
    /// # Errors
    /// When it is not configured any more since a start of the server, or does not work on this host.
    pub fn handler_of_pod(&self, name: &str) -> Result<&Handler, PodError> {
        match self.retired.get(name) {
            Some(handler) if !self.handlers.contains_key(name) => handler.usable(),
            _ => self.handler(name),
        }
    }

    /// These settings as the successors of `earlier`: what those had and these lack is retired.
    fn following(mut self, earlier: &Self) -> Self {
        let known = earlier.retired.iter().chain(&earlier.handlers);
        self.retired = known
            .filter(|(name, _)| !self.handlers.contains_key(*name))
            .map(|(name, handler)| (name.clone(), handler.clone()))
            .collect();
        self
    }
}

impl Handler {
    fn usable(&self) -> Result<&Self, PodError> {
        match &self.broken {
            None => Ok(self),
            Some(reason) => Err(PodError::BrokenHandler { name: self.name.clone(), reason: reason.clone() }),
        }
    }
}

/// Names and ids of all pods.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) sandboxes: BTreeMap<SandboxId, PodHandle>,
    pub(super) keys: HashMap<PodKey, SandboxId>,
    pub(super) containers: BTreeMap<ContainerId, SandboxId>,
}

/// Shared by all pods' tasks.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) drivers: Drivers,
    /// Replaced as a whole by a reload; each operation takes them once for what belongs together.
    settings: watch::Sender<Arc<Settings>>,
    layout: Layout,
    /// Operations: waited for when the server ends.
    pub(super) operations: TaskTracker,
    /// Everything else: owners of pods, event pumps, retries. They end with the process.
    pub(super) tasks: TaskTracker,
    pub(super) faults: Faults,
    /// Parent cgroups of our making.
    pub(super) parents: Parents,
    pub(super) marks: Marks,
    directory: Mutex<Directory>,
    last_time: AtomicI64,
}

impl Shared {
    pub(super) fn new(drivers: Drivers, settings: Settings) -> Self {
        let parents = Parents::open(settings.layout.cgroup_list());
        Self {
            drivers,
            marks: Marks::open(&settings.layout),
            layout: settings.layout.clone(),
            settings: watch::Sender::new(Arc::new(settings)),
            parents,
            operations: TaskTracker::new(),
            tasks: TaskTracker::new(),
            faults: Faults::default(),
            directory: Mutex::default(),
            last_time: AtomicI64::new(0),
        }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The settings in force at this moment.
    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Puts `settings` in force for whatever begins from now on.
    pub(super) fn replace_settings(&self, settings: Settings) {
        // Under the lock of the directory, beneath which new pods choose their handler.
        let _directory = self.directory();
        let settings = settings.following(&self.settings());
        self.settings.send_replace(Arc::new(settings));
    }

    /// Locks the directory; never held across an await.
    pub(super) fn directory(&self) -> MutexGuard<'_, Directory> {
        // A panic while the lock is held cannot leave the maps half changed: each change is one insert or remove.
        self.directory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The present, later than every time given out before: creation times order attempts.
    pub(super) fn now(&self) -> Timestamp {
        let wall = Timestamp::now().0;
        let previous = self
            .last_time
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(wall.max(last + 1)));
        Timestamp(previous.map_or(wall, |last| wall.max(last + 1)))
    }

    /// Makes sure that times given out are later than those remembered.
    pub(super) fn advance(&self, seen: Timestamp) {
        self.last_time.fetch_max(seen.0, Ordering::Relaxed);
    }
}
