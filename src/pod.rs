//! The domain: sandboxes and containers, from the first request to the last trace.
//!
//! [`Pods`] is the only door. Behind it one task owns each pod ([`actor`]); tables decide ([`phase`]); each verb is a
//! list of named steps in a file of its own ([`run_sandbox`], [`create`], [`start`], [`stop`], [`remove`], [`exec`],
//! [`update`], [`teardown`]); records on disk ([`record`]) say what there may be; [`recover`] makes them true again after a
//! restart; [`strays`] are what no record owns; [`stream`] is where sessions of users lead. Readers get immutable [`view`]s and wait for nobody.
//!
//! Knows no gRPC and no wire type. The outside worlds are traits ([`Drivers`]), so that whole lives run in unit tests.

mod actor;
mod command;
mod confine;
mod confinement;
mod create;
mod error;
mod exec;
mod faults;
mod figures;
mod files;
mod host;
mod image_volumes;
mod layout;
mod lookups;
mod marks;
mod network;
mod observer;
mod parents;
mod phase;
mod pipes;
mod record;
mod recover;
mod remove;
mod run_sandbox;
mod shared;
mod sources;
mod start;
mod steps;
mod stop;
mod strays;
mod stream;
mod teardown;
#[cfg(test)]
mod tests;
mod trace;
mod update;
mod userns;
pub mod view;
mod volumes;

use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use monitor_api::Monitor;
use spec::resources::SandboxResources;
use spec::{ContainerRequest, ResourcesUpdate, SandboxRequest};
use types::{ContainerId, SandboxId, Timestamp};

use self::actor::{Actor, Message, PodHandle};
pub use self::confinement::{Confinement, ConfinementError, DEFAULT_PROFILE, SecurityModules};
pub use self::error::{PodError, SharedError, StepError};
pub use self::exec::ExecOutput;
pub use self::figures::{LostLogLines, MonitorFigures, PendingTeardown, RunningMonitor, StateCounts};
pub use self::host::{Host, Kernel, Sockets};
pub use self::image_volumes::{ImageVolume, ImageVolumeError};
pub use self::layout::Layout;
pub use self::observer::Observer;
pub use self::recover::Recovery;
use self::shared::{Directory, Shared};
pub use self::shared::{Drivers, Handler, HandlerRules, Settings};
pub use self::strays::{Stray, World, persisting};
use self::view::{ContainerView, PodView, SandboxView};
pub use self::volumes::{CopyError, ImageVolumes};
use crate::events::Hub;
use crate::tasks::Tasks;

/// How many pods of one identity that are just leaving a request passes by before it gives up.
const ATTEMPTS: usize = 8;

/// All pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods {
    shared: Arc<Shared>,
}

/// The name of a sandbox for people: `namespace/name`, with the attempt where it is not the first.
fn display(request: &SandboxRequest) -> String {
    let (namespace, name) = (request.namespace(), request.name());
    match request.attempt() {
        0 => format!("sandbox {namespace}/{name}"),
        attempt => format!("sandbox {namespace}/{name} (attempt {attempt})"),
    }
}

impl Pods {
    /// An empty node; [`Pods::recover`] fills it with what the disk remembers.
    #[must_use]
    pub fn new(drivers: Drivers, settings: Settings) -> Self {
        Self { shared: Arc::new(Shared::new(drivers, settings)) }
    }

    /// Tells `observer` of every step from now on; only the first one is heard.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.shared.observer.set(observer).ok();
    }

    /// Configuration and host facts in force.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.shared.settings()
    }

    /// Where things lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.shared.layout()
    }

    /// Puts other settings in force for whatever begins from now on. Where things lie does not change. Pods whose handler
    /// is not among the new ones keep it.
    pub fn reconfigure(&self, settings: Settings) {
        self.shared.replace_settings(settings);
    }

    /// The outside worlds.
    #[must_use]
    pub fn drivers(&self) -> &Drivers {
        &self.shared.drivers
    }

    /// Makes a sandbox, or joins the making of one with the same identity, or returns the one that is ready.
    ///
    /// # Errors
    /// When the request is refused or a step fails; everything has been undone then.
    pub async fn run_sandbox(&self, request: SandboxRequest) -> Result<SandboxId, SharedError> {
        // Who asks at the moment at which another's attempt fails, or a removal ends, finds a pod that is just leaving.
        for _ in 0..ATTEMPTS {
            let handle = self.known_or_new(request.clone())?;
            if let Some(outcome) = handle.call(Message::Run).await {
                return outcome;
            }
        }
        Err(Arc::new(PodError::ShuttingDown))
    }

    fn known_or_new(&self, request: SandboxRequest) -> Result<PodHandle, SharedError> {
        let key = request.key().clone();
        let mut directory = self.shared.directory();
        let known = directory.keys.get(&key).and_then(|id| directory.sandboxes.get(id));
        if let Some(handle) = known {
            return Ok(handle.clone());
        }
        let record = run_sandbox::intend(&self.shared, request).map_err(Arc::new)?;
        let id = record.id.clone();
        let handle = Actor::spawn_new(&self.shared, record);
        directory.keys.insert(key, id.clone());
        directory.sandboxes.insert(id, handle.clone());
        Ok(handle)
    }

    /// Stops a sandbox; one that is not known is stopped.
    ///
    /// # Errors
    /// When processes cannot be ended or resources not be freed.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), SharedError> {
        self.on_sandbox(id, Message::StopSandbox).await
    }

    /// Removes a sandbox and everything in it; one that is not known is removed.
    ///
    /// # Errors
    /// When something cannot be freed; the sandbox stays listed then.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), SharedError> {
        self.on_sandbox(id, Message::RemoveSandbox).await
    }

    async fn on_sandbox(
        &self,
        id: &str,
        make: impl FnOnce(actor::Reply<()>) -> Message,
    ) -> Result<(), SharedError> {
        match self.find_sandbox(id) {
            // `None`: it went away while we asked.
            Ok((_, handle)) => handle.call(make).await.unwrap_or(Ok(())),
            Err(error) if matches!(*error, PodError::SandboxNotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a container, or joins the making of one with the same name and attempt.
    ///
    /// # Errors
    /// When the request is refused or a step fails; everything has been undone then.
    pub async fn create_container(
        &self,
        sandbox: &str,
        request: ContainerRequest,
    ) -> Result<ContainerId, SharedError> {
        let (_, handle) = self.find_sandbox(sandbox)?;
        let outcome = handle.call(|reply| Message::Create(Box::new(request), reply)).await;
        outcome.unwrap_or_else(|| Err(Arc::new(PodError::SandboxNotFound(sandbox.to_owned()))))
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// When it cannot be started; it is shown exited then.
    pub async fn start_container(&self, id: &str) -> Result<(), SharedError> {
        let (container, handle) = self.find_container(id)?;
        let outcome = handle.call(|reply| Message::Start(container.id.clone(), reply)).await;
        outcome.unwrap_or_else(|| Err(Arc::new(PodError::ContainerNotFound(id.to_owned()))))
    }

    /// Stops a container within `grace`; returns when its exit is recorded. One that is not known is stopped.
    ///
    /// # Errors
    /// When it outlives SIGKILL.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), SharedError> {
        self.on_container(id, |id, reply| Message::Stop(id, grace, reply)).await
    }

    /// Removes a container, killing it if it runs. One that is not known is removed.
    ///
    /// # Errors
    /// When something cannot be freed.
    pub async fn remove_container(&self, id: &str) -> Result<(), SharedError> {
        self.on_container(id, Message::Remove).await
    }

    async fn on_container(
        &self,
        id: &str,
        make: impl FnOnce(ContainerId, actor::Reply<()>) -> Message,
    ) -> Result<(), SharedError> {
        match self.find_container(id) {
            Ok((container, handle)) => {
                handle.call(|reply| make(container.id.clone(), reply)).await.unwrap_or(Ok(()))
            }
            Err(error) if matches!(*error, PodError::ContainerNotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes the limits of a created or running container; what the update leaves zero or empty stays.
    ///
    /// # Errors
    /// When there is no such container, it has ended, or a limit is refused; the limits are what they were then.
    pub async fn update_container(&self, id: &str, update: ResourcesUpdate) -> Result<(), SharedError> {
        let (container, handle) = self.find_container(id)?;
        let update = Box::new(update);
        let outcome = handle.call(|reply| Message::Update(container.id.clone(), update, reply)).await;
        outcome.unwrap_or_else(|| Err(Arc::new(PodError::ContainerNotFound(id.to_owned()))))
    }

    /// Remembers the resources of a ready sandbox, whose limits are set by the caller.
    ///
    /// # Errors
    /// When there is no such sandbox, it is not ready, or its record cannot be written.
    pub async fn update_sandbox(&self, id: &str, resources: SandboxResources) -> Result<(), SharedError> {
        let (_, handle) = self.find_sandbox(id)?;
        let outcome = handle.call(|reply| Message::UpdateSandbox(Box::new(resources), reply)).await;
        outcome.unwrap_or_else(|| Err(Arc::new(PodError::SandboxNotFound(id.to_owned()))))
    }

    /// Begins a new log file of a running container, after its old one has been renamed.
    ///
    /// # Errors
    /// When it does not run or the file cannot be opened; the old file stays in use then.
    pub async fn reopen_log(&self, id: &str) -> Result<(), SharedError> {
        let (container, _, monitor) = self.use_container(id, "reopen the log of").await?;
        let steps =
            steps::Steps::new(&self.shared, "reopen log of", container.display(), container.id.as_str());
        steps.run("reopen", monitor.reopen_log(&container.id)).await.map_err(Arc::new)
    }

    /// What is done at this moment.
    #[must_use]
    pub fn in_flight(&self) -> &Tasks {
        &self.shared.in_flight
    }

    /// The pod that this sandbox or container belongs to, by its id and in words where those are known yet.
    #[must_use]
    pub fn owner(&self, id: &str) -> Option<(SandboxId, Option<String>)> {
        let (sandbox, handle) = {
            let directory = self.shared.directory();
            let sandbox = match directory.containers.get(id) {
                Some(sandbox) => sandbox,
                None => directory.sandboxes.get_key_value(id)?.0,
            };
            (sandbox.clone(), directory.sandboxes.get(sandbox)?.clone())
        };
        let name = handle
            .view()
            .sandbox
            .as_ref()
            .map(|view| format!("{}/{}", view.request.namespace(), view.request.name()));
        Some((sandbox, name))
    }

    /// Views of all pods, in the order of their ids.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<PodView>> {
        let handles: Vec<PodHandle> = self.shared.directory().sandboxes.values().cloned().collect();
        handles.iter().map(PodHandle::view).collect()
    }

    /// A sandbox by its id or an unambiguous prefix of it, with its containers.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn sandbox(&self, id: &str) -> Result<(Arc<SandboxView>, Arc<PodView>), SharedError> {
        let view = self.find_sandbox(id)?.1.view();
        match view.sandbox.clone() {
            Some(sandbox) => Ok((sandbox, view)),
            None => Err(Arc::new(PodError::SandboxNotFound(id.to_owned()))),
        }
    }

    /// The same, with the time at which it was so: events before it are in the view, those after it are not.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn sandbox_at(&self, id: &str) -> Result<(Timestamp, Arc<SandboxView>, Arc<PodView>), SharedError> {
        let handle = self.find_sandbox(id)?.1;
        let (time, view) = self.shared.events.at(|| handle.view());
        match view.sandbox.clone() {
            Some(sandbox) => Ok((time, sandbox, view)),
            None => Err(Arc::new(PodError::SandboxNotFound(id.to_owned()))),
        }
    }

    /// What happens to sandboxes and containers.
    #[must_use]
    pub fn events(&self) -> &Hub {
        &self.shared.events
    }

    /// A container by its id or an unambiguous prefix of it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, SharedError> {
        self.find_container(id).map(|(container, _)| container)
    }

    fn find_sandbox(&self, id: &str) -> Result<(SandboxId, PodHandle), SharedError> {
        let directory = self.shared.directory();
        let mut matching = directory.sandboxes.range::<str, _>((Bound::Included(id), Bound::Unbounded));
        let (id, handle) = only(&mut matching, id, PodError::SandboxNotFound)?;
        Ok((id.clone(), handle.clone()))
    }

    fn find_container(&self, id: &str) -> Result<(Arc<ContainerView>, PodHandle), SharedError> {
        let missing = || Arc::new(PodError::ContainerNotFound(id.to_owned()));
        let (found, handle) = {
            let directory = self.shared.directory();
            let mut matching = directory.containers.range::<str, _>((Bound::Included(id), Bound::Unbounded));
            let (found, sandbox) = only(&mut matching, id, PodError::ContainerNotFound)?;
            let handle = directory.sandboxes.get(sandbox).cloned().ok_or_else(missing)?;
            (found.clone(), handle)
        };
        let container = handle.view().container(&found).cloned().ok_or_else(missing)?;
        Ok((container, handle))
    }

    /// A container that runs, with its monitor.
    async fn use_container(
        &self,
        id: &str,
        verb: &'static str,
    ) -> Result<(Arc<ContainerView>, PodHandle, Arc<dyn Monitor>), SharedError> {
        let (container, handle) = self.find_container(id)?;
        let asked = handle.call(|reply| Message::Use(container.id.clone(), verb, reply)).await;
        let monitor = asked.unwrap_or_else(|| Err(Arc::new(PodError::ContainerNotFound(id.to_owned()))))?;
        Ok((container, handle, monitor))
    }

    /// What exists and no record owns. The server of these pods must not be at work unless it is this one.
    ///
    /// # Errors
    /// When the world cannot be looked at.
    pub async fn strays(&self) -> Result<Vec<Stray>, StepError> {
        let world = World::of(&self.shared);
        record::blocking(move || world.look()).await
    }

    /// Removes one of [`Pods::strays`].
    ///
    /// # Errors
    /// When it stays.
    pub async fn remove_stray(&self, stray: &Stray) -> Result<(), StepError> {
        strays::remove(&self.shared, stray).await
    }

    /// Waits for the operations under way, at most `limit`. What does not end in time is resumed or undone by the next
    /// start of the server.
    pub async fn drain(&self, limit: Duration) {
        self.shared.operations.close();
        if tokio::time::timeout(limit, self.shared.operations.wait()).await.is_err() {
            tracing::warn!(pending = self.shared.operations.len(), "operations are still under way");
        }
    }
}

/// The single entry whose key begins with `prefix`.
fn only<'a, K: AsRef<str>, V>(
    matching: &mut Range<'a, K, V>,
    prefix: &str,
    missing: fn(String) -> PodError,
) -> Result<(&'a K, &'a V), SharedError> {
    let fits = |entry: &(&K, &V)| !prefix.is_empty() && entry.0.as_ref().starts_with(prefix);
    let first = matching.next().filter(fits).ok_or_else(|| Arc::new(missing(prefix.to_owned())))?;
    match matching.next().filter(fits) {
        Some(_) if first.0.as_ref() != prefix => Err(Arc::new(PodError::AmbiguousId(prefix.to_owned()))),
        _ => Ok(first),
    }
}

impl Directory {
    /// Enters a pod that has been found on disk.
    fn enter(&mut self, id: SandboxId, key: spec::PodKey, containers: Vec<ContainerId>, handle: PodHandle) {
        for container in containers {
            self.containers.insert(container, id.clone());
        }
        self.keys.insert(key, id.clone());
        self.sandboxes.insert(id, handle);
    }
}
