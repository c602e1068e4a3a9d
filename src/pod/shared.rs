//! What all pods' tasks share: drivers, settings, the directory of names and ids.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use monitor_api::RuntimeCommand;
use spec::{NodeFacts, PodKey};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use types::{ContainerId, SandboxId, Timestamp};

use super::actor::PodHandle;
use super::confine::Levels;
use super::confinement::Confinement;
use super::error::PodError;
use super::faults::Faults;
use super::figures::Figures;
use super::host::Host;
use super::layout::Layout;
use super::lookups::Lookups;
use super::marks::Marks;
use super::observer::Observer;
use super::parents::Parents;
use super::volumes::ImageVolumes;
use crate::events::Hub;
use crate::tasks::Tasks;

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
    /// Security modules.
    pub confinement: Arc<dyn Confinement>,
}

/// How pods of one handler differ from those of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerRules {
    /// Directory of network configurations, when it is another than all other pods'.
    pub cni_conf_dir: Option<PathBuf>,
    /// Annotations of pods that the OCI runtime gets to see, `*` standing for any run of characters.
    pub pod_annotations: Vec<String>,
    /// Annotations of containers that the OCI runtime gets to see although it acts by them.
    pub container_annotations: Vec<String>,
    /// Whether privileged containers get the devices of the host.
    pub privileged_devices: bool,
    /// The least memory limit, in bytes.
    pub min_memory_bytes: i64,
}

impl Default for HandlerRules {
    fn default() -> Self {
        Self {
            cni_conf_dir: None,
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            privileged_devices: true,
            min_memory_bytes: spec::cri_defaults::MIN_MEMORY_BYTES,
        }
    }
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
    /// Whether it and the kernel can make a mount read-only with everything mounted beneath it.
    pub recursive_read_only: bool,
    /// Whether it and the kernel can give a pod user and group ids of its own.
    pub user_namespaces: bool,
    /// The line in which it tells its name and version; empty when it does not.
    pub version: String,
    /// What it says that it can do.
    pub features: runtime::Features,
    /// How its pods differ from others'.
    pub rules: HandlerRules,
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
    /// What becomes of volumes that images declare.
    pub image_volumes: ImageVolumes,
    /// How long a mount source may take to answer.
    pub mount_source_timeout: Duration,
    /// Directories of CDI descriptions, the least important first.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Whether devices belong to the user and group of the request.
    pub device_ownership: bool,
    /// SELinux categories from which pods' pairs are chosen.
    pub selinux_categories: u32,
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
            image_volumes: ImageVolumes::default(),
            mount_source_timeout: Duration::from_secs(30),
            cdi_spec_dirs: Vec::new(),
            device_ownership: false,
            selinux_categories: 1024,
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

    /// What the node offers to pods of this handler; of one that is unknown by now, what the node offers by itself.
    #[must_use]
    pub fn facts_of(&self, handler: &str) -> NodeFacts {
        let handler = self.handlers.get(handler).or_else(|| self.retired.get(handler));
        handler.map_or_else(|| self.facts.clone(), |handler| handler.facts(&self.facts))
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
    /// One that works and can do what every runtime can.
    #[must_use]
    pub fn new(name: String, command: RuntimeCommand) -> Self {
        Self {
            name,
            command,
            broken: None,
            recursive_read_only: false,
            user_namespaces: false,
            version: String::new(),
            features: runtime::Features::default(),
            rules: HandlerRules::default(),
        }
    }

    /// What is left of the node's offers with this runtime. One that does not say whether it has filters or labels is taken
    /// to have them: runtimes that tell nothing are older than those that were built without.
    #[must_use]
    pub fn facts(&self, node: &NodeFacts) -> NodeFacts {
        let has = |said: Option<bool>| said != Some(false);
        NodeFacts {
            recursive_read_only: self.recursive_read_only,
            privileged_devices: self.rules.privileged_devices,
            pod_annotations: self.rules.pod_annotations.clone(),
            container_annotations: self.rules.container_annotations.clone(),
            min_memory_bytes: self.rules.min_memory_bytes,
            seccomp: node.seccomp && has(self.features.seccomp),
            selinux: node.selinux && has(self.features.selinux),
            apparmor: node.apparmor && has(self.features.apparmor),
            ..node.clone()
        }
    }

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
    /// Who is told of steps.
    pub(super) observer: OnceLock<Arc<dyn Observer>>,
    /// What operators are told.
    pub(super) figures: Figures,
    /// What is done at this moment, for readers.
    pub(super) in_flight: Tasks,
    /// Parent cgroups of our making.
    pub(super) parents: Parents,
    pub(super) marks: Marks,
    /// SELinux levels of living pods.
    pub(super) levels: Levels,
    pub(super) lookups: Lookups,
    /// What happens, for subscribers; and the time.
    pub(super) events: Hub,
    directory: Mutex<Directory>,
}

impl Shared {
    pub(super) fn new(drivers: Drivers, settings: Settings) -> Self {
        let parents = Parents::open(settings.layout.cgroup_list());
        Self {
            drivers,
            marks: Marks::open(&settings.layout),
            events: Hub::new(settings.layout.clock()),
            layout: settings.layout.clone(),
            settings: watch::Sender::new(Arc::new(settings)),
            parents,
            operations: TaskTracker::new(),
            tasks: TaskTracker::new(),
            faults: Faults::default(),
            observer: OnceLock::new(),
            figures: Figures::default(),
            in_flight: Tasks::default(),
            levels: Levels::default(),
            lookups: Lookups::default(),
            directory: Mutex::default(),
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
        self.events.now()
    }

    /// Makes sure that times given out are later than those remembered.
    pub(super) fn advance(&self, seen: Timestamp) {
        self.events.advance(seen);
    }
}
