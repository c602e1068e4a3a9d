//! Ends pods and frees what they hold: StopPodSandbox, RemovePodSandbox, the undo of a failed RunPodSandbox, and what
//! recovery finds half made, all by the same steps.
//!
//! Each step is idempotent, goes on past the failures of others and reports the first. Processes go first, so that no
//! connection is cut under a process that still runs. A network plugin that fails or hangs keeps nobody waiting: its DEL
//! is in the CNI driver's journal and is repeated here with a growing pause until it succeeds. Until then the network
//! namespace stays (the bridge plugin forgets its masquerade rules without it), and so does the record of a removed
//! sandbox, which nobody sees any more but the next start of the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use monitor_api::{ExitRecord, Monitor};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use types::{ContainerId, ErrorKind, Kind as _};

use super::error::{PodError, StepError};
use super::layout::Layout;
use super::network;
use super::phase::ContainerPhase;
use super::record::{ContainerRecord, SandboxRecord, blocking};
use super::run_sandbox::pause_id;
use super::shared::Shared;
use super::view::{ContainerState, PodView};

/// How long a plugin that fails keeps the network namespace alive.
const NETNS_WAIT: Duration = Duration::from_secs(300);
/// How long killed processes may take to be seen dead.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// How long the network's teardown may hold up StopPodSandbox; it goes on afterwards.
const NETWORK_WAIT: Duration = Duration::from_secs(8);
/// First and longest pause between repetitions of what could not be undone.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const SIGKILL: i32 = 9;

/// The growing pause between repetitions.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(RETRY.0)
    }
}

impl Pause {
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY.1);
    }
}

/// A pod to be torn down.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) record: SandboxRecord,
    pub(super) containers: Vec<ContainerRecord>,
    pub(super) monitor: Option<Arc<dyn Monitor>>,
    /// The pod's views, to see its containers end; none when no task owns the pod.
    pub(super) view: Option<watch::Receiver<Arc<PodView>>>,
}

/// Collects failures while the work goes on.
#[derive(Debug)]
struct Failures<'a> {
    shared: &'a Shared,
    verb: &'static str,
    target: &'a Target,
    first: Option<PodError>,
}

impl<'a> Failures<'a> {
    fn new(shared: &'a Shared, verb: &'static str, target: &'a Target) -> Self {
        Self { shared, verb, target, first: None }
    }

    /// Performs one step, whatever became of those before it.
    async fn run(&mut self, step: &'static str, work: impl Future<Output = Result<(), StepError>>) {
        let result = match self.shared.faults.strike(self.verb, step).await {
            Ok(()) => work.await,
            Err(fault) => Err(fault),
        };
        let Err(source) = result else { return };
        let error = types::error::chain(&source);
        tracing::warn!(pod.id = %self.target.record.id, op = self.verb, step, error, "teardown step failed");
        let object = super::display(&self.target.record.request);
        self.first.get_or_insert(PodError::Step { verb: self.verb, object, step, source: Box::new(source) });
    }

    fn into_result(self) -> Result<(), PodError> {
        self.first.map_or(Ok(()), Err)
    }
}

/// Ends every process of the pod and releases its network; records, layers and logs stay.
pub(super) async fn stop(shared: &Arc<Shared>, target: &Target) -> Result<(), PodError> {
    let mut failures = Failures::new(shared, "stop sandbox", target);
    // What is still pending goes on by itself.
    drop(release(shared, target, &mut failures).await);
    failures.into_result()
}

/// Stops the pod and removes everything that is left of it, its record last.
pub(super) async fn remove(shared: &Arc<Shared>, target: &Target) -> Result<(), PodError> {
    let mut failures = Failures::new(shared, "remove sandbox", target);
    let pending = release(shared, target, &mut failures).await;
    for container in &target.containers {
        failures.run("container", discard_container(shared, container)).await;
    }
    failures.run("files", remove_files(shared, target)).await;
    if target.record.pause_image.is_some() {
        let owner = target.record.id.as_str();
        let release = async { Ok(shared.drivers.images.release(owner).await?) };
        failures.run("image", release).await;
    }
    failures.run("cgroup", shared.parents.collect(&*shared.drivers.cgroups, &target.record.id)).await;
    if failures.first.is_none() {
        let dir = shared.layout().record_dir(&target.record.id);
        let forget = blocking(move || Ok(sys::atomic::remove_tree(&dir)?));
        match pending {
            None => failures.run("record", forget).await,
            Some(network) => forget_after(shared, network, forget),
        }
    }
    failures.into_result()
}

/// Keeps the record until the network is detached.
fn forget_after(
    shared: &Shared,
    network: JoinHandle<()>,
    forget: impl Future<Output = Result<(), StepError>> + Send + 'static,
) {
    shared.tasks.spawn(async move {
        if network.await.is_err() {
            return tracing::debug!("the network's teardown was cut off; the next start takes it up");
        }
        if let Err(error) = forget.await {
            super::actor::log_dropped("the record of a removed sandbox stays", &error);
        }
    });
}

/// The steps that both verbs share. The network's teardown is returned if it goes on behind.
async fn release(
    shared: &Arc<Shared>,
    target: &Target,
    failures: &mut Failures<'_>,
) -> Option<JoinHandle<()>> {
    failures.run("containers", kill_containers(shared, target)).await;
    let end = async {
        end_processes(shared, target).await;
        Ok(())
    };
    failures.run("processes", end).await;
    let mut pending = None;
    let detach = async {
        pending = release_network(shared, &target.record).await;
        Ok(())
    };
    failures.run("network", detach).await;
    if let Some(shm) = target.record.shm.clone() {
        let host = Arc::clone(&shared.drivers.host);
        failures.run("shm", blocking(move || host.unmount(&shm))).await;
    }
    pending
}

/// Kills the running containers and waits until their exits are recorded.
async fn kill_containers(shared: &Shared, target: &Target) -> Result<(), StepError> {
    for container in target.containers.iter().filter(|container| container.phase == ContainerPhase::Running) {
        kill(shared, container, target.monitor.as_ref()).await;
    }
    let Some(mut view) = target.view.clone() else { return Ok(()) };
    let dead = view.wait_for(|view| view.containers.iter().all(|c| c.state != ContainerState::Running));
    match tokio::time::timeout(KILL_WAIT, dead).await {
        // Closed: the pod's task is gone, and nobody records exits any more.
        Ok(Ok(_) | Err(_)) => Ok(()),
        Err(_) => {
            Err(StepError::Timeout(format!("containers live on {} s after SIGKILL", KILL_WAIT.as_secs())))
        }
    }
}

/// Sends SIGKILL to everything in the container's cgroup.
pub(super) async fn kill(shared: &Shared, container: &ContainerRecord, monitor: Option<&Arc<dyn Monitor>>) {
    if let Some(monitor) = monitor {
        match monitor.signal(&container.id, SIGKILL, true).await {
            Ok(()) => return,
            Err(error) => {
                let error = types::error::chain(&error);
                tracing::debug!(container.id = %container.id, error, "the monitor could not kill; using the cgroup");
            }
        }
    }
    let (cgroups, cgroup) = (Arc::clone(&shared.drivers.cgroups), container.cgroup.clone());
    if let Err(error) = blocking(move || Ok(cgroups.kill_all(&cgroup)?)).await {
        super::actor::log_dropped("processes could not be killed by their cgroup", &error);
    }
}

/// Ends what is left of the pod in the OCI runtime, pause container last, and then the monitor.
pub(super) async fn end_processes(shared: &Arc<Shared>, target: &Target) {
    let handler = &target.record.handler;
    let monitor = target.monitor.as_ref();
    for container in &target.containers {
        free_container(shared, handler, container, monitor).await;
    }
    free(shared, handler, &pause_id(&target.record), &target.record.cgroup, monitor).await;
    if let Some(monitor) = monitor
        && let Err(error) = monitor.shutdown().await
    {
        let error = types::error::chain(&error);
        tracing::debug!(pod.id = %target.record.id, error, "the monitor did not take leave");
    }
}

/// Frees what the OCI runtime and the kernel hold of a container whose processes may be dead or not.
pub(super) async fn free_container(
    shared: &Arc<Shared>,
    handler: &str,
    container: &ContainerRecord,
    monitor: Option<&Arc<dyn Monitor>>,
) {
    free(shared, handler, &container.id, &container.cgroup, monitor).await;
}

async fn free(
    shared: &Arc<Shared>,
    handler: &str,
    id: &ContainerId,
    cgroup: &str,
    monitor: Option<&Arc<dyn Monitor>>,
) {
    let cgroups = &shared.drivers.cgroups;
    if delete(id, monitor).await {
        forget_scope(shared, cgroup).await;
        if cgroups.directories(cgroup).is_empty() {
            return;
        }
    }
    // On v1 an OCI runtime that is killed in the middle of a start may leave a process frozen, which only this can end.
    let (killer, killed) = (Arc::clone(cgroups), cgroup.to_owned());
    match blocking(move || Ok(killer.kill_all(&killed)?)).await {
        Ok(()) => forget_scope(shared, cgroup).await,
        Err(error) => super::actor::log_dropped("a container's processes could not be killed", &error),
    }
    let (cgroups, cgroup) = (Arc::clone(cgroups), cgroup.to_owned());
    let state = shared.layout().runtime_root(handler).join(id.as_str());
    let freed = blocking(move || {
        cgroups.remove(&cgroup)?;
        Ok(sys::atomic::remove_tree(&state)?)
    });
    if let Err(error) = freed.await {
        super::actor::log_dropped("a container could not be freed without its monitor", &error);
    }
}

/// Has the monitor delete the container; says whether it did.
async fn delete(id: &ContainerId, monitor: Option<&Arc<dyn Monitor>>) -> bool {
    let Some(monitor) = monitor else { return false };
    match monitor.delete(id).await {
        Ok(()) => true,
        Err(error) => {
            let error = types::error::chain(&error);
            tracing::debug!(container.id = %id, error, "the monitor could not delete; doing without it");
            false
        }
    }
}

/// Has systemd forget a scope whose processes are dead. The OCI runtime tells it, too, but ends well when it gets no answer,
/// and one that is killed in the middle of a start tells nothing. Without an answer now it goes on until there is one.
async fn forget_scope(shared: &Arc<Shared>, cgroup: &str) {
    let Err(error) = shared.drivers.cgroups.release(cgroup).await else { return };
    let goes_on = error.kind() == ErrorKind::Unavailable;
    super::actor::log_dropped("systemd does not know that a container is gone", &error.into());
    if !goes_on {
        return;
    }
    let (worker, cgroup) = (Arc::clone(shared), cgroup.to_owned());
    shared.tasks.spawn(async move {
        let mut pause = Pause::default();
        loop {
            pause.wait().await;
            match worker.drivers.cgroups.release(&cgroup).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                Ok(()) | Err(_) => return,
            }
        }
    });
}

/// Detaches the pod's network, at once if that goes quickly, else in a task that repeats it until it is done.
async fn release_network(shared: &Arc<Shared>, record: &SandboxRecord) -> Option<JoinHandle<()>> {
    let netns = record.netns.clone()?;
    let pod = network::describe(record);
    let worker = Arc::clone(shared);
    let mut detach = shared.tasks.spawn(async move { detach_until_done(&worker, pod, netns).await });
    match tokio::time::timeout(NETWORK_WAIT, &mut detach).await {
        Ok(_) => None,
        Err(_) => {
            tracing::warn!(pod.id = %record.id, "the network's teardown takes long and goes on behind");
            Some(detach)
        }
    }
}

/// Takes up the teardown of a stopped sandbox's network that an earlier server did not end, or never came to.
pub(super) fn resume_detaching(shared: &Arc<Shared>, record: &SandboxRecord) {
    let Some(netns) = record.netns.clone() else { return };
    let (worker, pod) = (Arc::clone(shared), network::describe(record));
    shared.tasks.spawn(async move { detach_until_done(&worker, pod, netns).await });
}

/// Repeats the network's teardown with a growing pause, then removes the namespace.
async fn detach_until_done(shared: &Arc<Shared>, pod: cni::PodNetwork, netns: PathBuf) {
    let begun = Instant::now();
    let mut pause = Pause::default();
    while let Err(error) = shared.drivers.network.teardown(&pod).await {
        let error = types::error::chain(&error);
        tracing::warn!(pod.id = %pod.sandbox, error, "the network could not be detached; trying again");
        if begun.elapsed() > NETNS_WAIT {
            remove_netns(shared, &netns).await;
        }
        pause.wait().await;
    }
    remove_netns(shared, &netns).await;
}

async fn remove_netns(shared: &Shared, netns: &Path) {
    let (host, path) = (Arc::clone(&shared.drivers.host), netns.to_owned());
    if let Err(error) = blocking(move || host.remove_netns(&path)).await {
        super::actor::log_dropped("a network namespace could not be removed", &error);
    }
}

/// Removes a container's bundle, writable layer, image lease and record.
pub(super) async fn discard_container(shared: &Shared, container: &ContainerRecord) -> Result<(), StepError> {
    let bundle = shared.layout().bundle(container.id.as_str());
    let layer = shared.layout().layer_dir(&container.id);
    blocking(move || {
        sys::atomic::remove_tree(&bundle)?;
        Ok(sys::atomic::remove_tree(&layer)?)
    })
    .await?;
    shared.drivers.images.release(container.id.as_str()).await?;
    container.delete(shared.layout()).await
}

async fn remove_files(shared: &Shared, target: &Target) -> Result<(), StepError> {
    let pod = shared.layout().pod_dir(&target.record.id);
    let bundle = shared.layout().bundle(target.record.id.as_str());
    blocking(move || {
        sys::atomic::remove_tree(&bundle)?;
        Ok(sys::atomic::remove_tree(&pod)?)
    })
    .await
}

/// The exit that a monitor wrote down, if it did.
pub(super) async fn read_exit(layout: &Layout, id: &ContainerId) -> Option<ExitRecord> {
    let path = layout.bundle(id.as_str()).join("exit.json");
    let read = tokio::task::spawn_blocking(move || read_exit_file(&path)).await;
    read.ok().flatten()
}

fn read_exit_file(path: &Path) -> Option<ExitRecord> {
    let bytes = std::fs::read(path).ok()?;
    match ExitRecord::from_json(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "an exit record cannot be read");
            None
        }
    }
}

/// Repeats the removal of a sandbox that no task owns any more.
pub(super) fn retry_removal(shared: &Arc<Shared>, target: Target) {
    let worker = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let mut pause = Pause::default();
        loop {
            pause.wait().await;
            if remove(&worker, &target).await.is_ok() {
                return;
            }
        }
    });
}
