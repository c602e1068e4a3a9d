//! Ends pods and frees what they hold: StopPodSandbox, RemovePodSandbox, the undo of a failed RunPodSandbox, and what
//! recovery finds half made, all by the same steps.
//!
//! Each step is idempotent, goes on past the failures of others and reports the first. Processes go first, so that no
//! connection is cut under a process that still runs. A network plugin that fails or hangs keeps nobody waiting: its DEL
//! is in the CNI driver's journal and is repeated here with a growing pause until it succeeds. Until then the network
//! namespace stays (the bridge plugin forgets its masquerade rules without it), and so does the record of a removed
//! sandbox, which nobody sees any more but the next start of the server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use monitor_api::{ExitRecord, Monitor};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;
use types::{ContainerId, ErrorKind, Kind as _};

use super::error::{PodError, StepError};
use super::figures::Place;
use super::image_volumes;
use super::layout::Layout;
use super::network;
use super::phase::ContainerPhase;
use super::record::{ContainerRecord, SandboxRecord, blocking};
use super::run_sandbox::pause_id;
use super::shared::Shared;
use super::steps::Steps;
use super::strays;
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

/// StopPodSandbox, in errors and logs.
const STOP: &str = "stop sandbox";
/// RemovePodSandbox.
pub(super) const REMOVE: &str = "remove sandbox";
/// What is done when RunPodSandbox fails.
pub(super) const UNDO: &str = "undo run sandbox";
/// What a start of the server does with what the one before has left.
pub(super) const RECOVER: &str = "recover sandbox";

/// What the steps are called by which a container is discarded: alone, and with its pod.
pub(super) const ALONE: [&str; 3] = ["files", "image", "record"];
const WITH_POD: [&str; 3] = ["container files", "container image", "container record"];

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

/// The steps of a teardown, which goes on past failures and reports the first.
#[derive(Debug)]
pub(super) struct Failures<'a> {
    steps: Steps<'a>,
    first: Option<PodError>,
}

impl<'a> Failures<'a> {
    pub(super) fn new(shared: &'a Shared, verb: &'static str, target: &Target) -> Self {
        Self { steps: steps_of(shared, verb, &target.record), first: None }
    }

    /// Performs one step, whatever became of those before it.
    async fn run(&mut self, step: &'static str, work: impl Future<Output = Result<(), StepError>>) {
        let result = self.steps.run(step, work).await;
        self.note(result);
    }

    fn note(&mut self, result: Result<(), PodError>) {
        if let Err(error) = result {
            self.first.get_or_insert(error);
        }
    }

    fn into_result(self) -> Result<(), PodError> {
        self.steps.ended(self.first.is_none());
        self.first.map_or(Ok(()), Err)
    }
}

/// The steps of a verb on a sandbox.
pub(super) fn steps_of<'a>(shared: &'a Shared, verb: &'static str, record: &SandboxRecord) -> Steps<'a> {
    Steps::new(shared, verb, super::display(&record.request), record.id.as_str())
}

/// Shows that a verb on a sandbox goes on behind.
fn place_of(shared: &Shared, verb: &'static str, record: &SandboxRecord, stage: &'static str) -> Place {
    shared.figures.pending.enter(verb, super::display(&record.request), record.id.as_str(), stage)
}

/// Ends every process of the pod and releases its network; records, layers and logs stay.
pub(super) async fn stop(shared: &Arc<Shared>, target: &Target) -> Result<(), PodError> {
    let mut failures = Failures::new(shared, STOP, target);
    // What is still pending goes on by itself.
    drop(release(shared, STOP, target, &mut failures).await);
    failures.into_result()
}

/// Stops the pod and removes everything that is left of it, its record last.
pub(super) async fn remove(
    shared: &Arc<Shared>,
    verb: &'static str,
    target: &Target,
) -> Result<(), PodError> {
    let mut failures = Failures::new(shared, verb, target);
    let pending = release(shared, verb, target, &mut failures).await;
    for container in &target.containers {
        let discarded = discard_container(shared, &failures.steps, WITH_POD, container).await;
        failures.note(discarded);
    }
    failures.run("files", remove_files(shared, target)).await;
    if target.record.pause_image.is_some() {
        let owner = target.record.id.as_str();
        let release = async { Ok(shared.drivers.images.release(owner).await?) };
        failures.run("image", release).await;
    }
    failures.run("cgroup", shared.parents.collect(&*shared.drivers.cgroups, &target.record.id)).await;
    if failures.first.is_none() {
        match pending {
            None => failures.run("record", forget(shared, &target.record)).await,
            Some(network) => forget_after(shared, verb, &target.record, network),
        }
    }
    failures.into_result()
}

async fn forget(shared: &Shared, record: &SandboxRecord) -> Result<(), StepError> {
    let dir = shared.layout().record_dir(&record.id);
    blocking(move || Ok(sys::atomic::remove_tree(&dir)?)).await
}

/// Keeps the record until the network is detached.
fn forget_after(shared: &Arc<Shared>, verb: &'static str, record: &SandboxRecord, network: JoinHandle<()>) {
    let (worker, record) = (Arc::clone(shared), record.clone());
    shared.tasks.spawn(async move {
        if network.await.is_err() {
            return tracing::debug!("the network's teardown was cut off; the next start takes it up");
        }
        let steps = steps_of(&worker, verb, &record);
        let place = place_of(&worker, verb, &record, "record");
        let mut pause = Pause::default();
        while !place.attempt(&steps, "record", forget(&worker, &record)).await {
            pause.wait().await;
        }
    });
}

/// The steps that all of these verbs share. The network's teardown is returned if it goes on behind.
async fn release(
    shared: &Arc<Shared>,
    verb: &'static str,
    target: &Target,
    failures: &mut Failures<'_>,
) -> Option<JoinHandle<()>> {
    failures.run("containers", kill_containers(shared, target)).await;
    end_processes(shared, target, failures).await;
    let pending = release_network(shared, verb, &target.record).await;
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
pub(super) async fn end_processes(shared: &Arc<Shared>, target: &Target, failures: &mut Failures<'_>) {
    let handler = &target.record.handler;
    let monitor = target.monitor.as_ref();
    for container in &target.containers {
        failures.run("processes", free_container(shared, handler, container, monitor)).await;
    }
    let pause = pause_id(&target.record);
    failures.run("pause", free(shared, handler, &pause, &target.record.cgroup, monitor)).await;
    if let Some(monitor) = monitor {
        failures.run("monitor", dismiss(monitor, target)).await;
    }
}

/// A monitor that does not take leave has gone already, or is found by the next start of the server.
async fn dismiss(monitor: &Arc<dyn Monitor>, target: &Target) -> Result<(), StepError> {
    if let Err(error) = monitor.shutdown().await {
        let error = types::error::chain(&error);
        tracing::debug!(pod.id = %target.record.id, error, "the monitor did not take leave");
    }
    Ok(())
}

/// Frees what the OCI runtime and the kernel hold of a container whose processes may be dead or not. What stays all the same is
/// logged, and found by the next start of the server: a teardown does not wait for it.
pub(super) async fn free_container(
    shared: &Arc<Shared>,
    handler: &str,
    container: &ContainerRecord,
    monitor: Option<&Arc<dyn Monitor>>,
) -> Result<(), StepError> {
    free(shared, handler, &container.id, &container.cgroup, monitor).await
}

async fn free(
    shared: &Arc<Shared>,
    handler: &str,
    id: &ContainerId,
    cgroup: &str,
    monitor: Option<&Arc<dyn Monitor>>,
) -> Result<(), StepError> {
    let cgroups = &shared.drivers.cgroups;
    if delete(id, monitor).await {
        forget_scope(shared, cgroup).await;
        if cgroups.directories(cgroup).is_empty() {
            return Ok(());
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
    Ok(())
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
    let error = error.into();
    super::actor::log_dropped("systemd does not know that a container is gone", &error);
    if !goes_on {
        return;
    }
    let (worker, cgroup) = (Arc::clone(shared), cgroup.to_owned());
    let place = shared.figures.pending.enter("forget scope", format!("scope of {cgroup}"), "", "systemd");
    place.failed(&error);
    shared.tasks.spawn(async move {
        let mut pause = Pause::default();
        loop {
            pause.wait().await;
            match worker.drivers.cgroups.release(&cgroup).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => place.failed(&error),
                Ok(()) | Err(_) => return,
            }
        }
    });
}

/// Detaches the pod's network, at once if that goes quickly, else in a task that repeats it until it is done.
async fn release_network(
    shared: &Arc<Shared>,
    verb: &'static str,
    record: &SandboxRecord,
) -> Option<JoinHandle<()>> {
    let mut detach = detach(shared, verb, record)?;
    match tokio::time::timeout(NETWORK_WAIT, &mut detach).await {
        Ok(_) => None,
        Err(_) => {
            tracing::warn!(pod.id = %record.id, "the network's teardown takes long and goes on behind");
            Some(detach)
        }
    }
}

/// Begins the teardown of the network of a sandbox that has one; also of a stopped one's that an earlier server did not end,
/// or never came to.
pub(super) fn detach(
    shared: &Arc<Shared>,
    verb: &'static str,
    record: &SandboxRecord,
) -> Option<JoinHandle<()>> {
    let netns = record.netns.clone()?;
    let (worker, record) = (Arc::clone(shared), record.clone());
    let work = async move {
        let steps = steps_of(&worker, verb, &record);
        let place = place_of(&worker, verb, &record, "network");
        detach_until_done(&worker, (&steps, &place), &network::describe(&record), &netns).await;
    };
    Some(shared.tasks.spawn(work.in_current_span()))
}

/// Repeats the network's teardown with a growing pause, then removes the namespace, as often as that takes.
async fn detach_until_done(
    shared: &Shared,
    (steps, place): (&Steps<'_>, &Place),
    pod: &cni::PodNetwork,
    netns: &Path,
) {
    let begun = Instant::now();
    let (mut pause, mut attached) = (Pause::default(), true);
    loop {
        attached = attached && !place.attempt(steps, "network", shared.drivers.network.teardown(pod)).await;
        if !attached || begun.elapsed() > NETNS_WAIT {
            let removed = place.attempt(steps, "netns", remove_netns(shared, netns)).await;
            if removed && !attached {
                return;
            }
        }
        let _pause = steps.waits("pause before it is tried again");
        pause.wait().await;
    }
}

async fn remove_netns(shared: &Shared, netns: &Path) -> Result<(), StepError> {
    let (host, path) = (Arc::clone(&shared.drivers.host), netns.to_owned());
    blocking(move || host.remove_netns(&path)).await
}

/// Removes a container's bundle and writable layer, its images' leases, and its record last.
pub(super) async fn discard_container(
    shared: &Shared,
    steps: &Steps<'_>,
    [files, image, record]: [&'static str; 3],
    container: &ContainerRecord,
) -> Result<(), PodError> {
    let bundle = shared.layout().bundle(container.id.as_str());
    let layer = shared.layout().layer_dir(&container.id);
    let remove = blocking(move || {
        sys::atomic::remove_tree(&bundle)?;
        Ok(sys::atomic::remove_tree(&layer)?)
    });
    steps.run(files, remove).await?;
    steps.run(image, release_images(shared, container)).await?;
    steps.run(record, container.delete(shared.layout())).await
}

/// Discards a container that nobody sees any more. What stays is on record, and tried again behind until it is gone.
pub(super) async fn discard_in_the_end(shared: &Arc<Shared>, verb: &'static str, container: ContainerRecord) {
    let Err(error) = discard_unseen(shared, verb, &container).await else { return };
    let (id, pending) = (container.id.as_str(), &shared.figures.pending);
    let place = pending.enter(verb, container.display(), id, "files and record");
    place.failed(&error);
    let worker = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let mut pause = Pause::default();
        loop {
            pause.wait().await;
            match discard_unseen(&worker, verb, &container).await {
                Ok(()) => return,
                Err(error) => place.failed(&error),
            }
        }
    });
}

async fn discard_unseen(
    shared: &Shared,
    verb: &'static str,
    container: &ContainerRecord,
) -> Result<(), PodError> {
    let steps = Steps::new(shared, verb, container.display(), container.id.as_str());
    discard_container(shared, &steps, ALONE, container).await
}

async fn release_images(shared: &Shared, container: &ContainerRecord) -> Result<(), StepError> {
    let images = &*shared.drivers.images;
    image_volumes::release(images, container).await?;
    Ok(images.release(container.id.as_str()).await?)
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

/// Repeats the removal of a sandbox that no task owns any more. The connection to its monitor has gone with the first attempt, so
/// each has one of its own; a monitor whose socket has gone is ended as a process.
pub(super) fn retry_removal(shared: &Arc<Shared>, verb: &'static str, mut target: Target) {
    let worker = Arc::clone(shared);
    let place = place_of(shared, verb, &target.record, "all of it");
    shared.tasks.spawn(async move {
        let mut pause = Pause::default();
        loop {
            pause.wait().await;
            let connection = worker.drivers.monitors.connect(&target.record.id).await.unwrap_or_default();
            target.monitor = connection.as_ref().map(|connection| Arc::clone(&connection.monitor));
            let steps = steps_of(&worker, verb, &target.record);
            let id = &target.record.id;
            let end_monitor = strays::end_lost_monitor(&worker, id);
            if connection.is_none() && !place.attempt(&steps, "monitor", end_monitor).await {
                continue;
            }
            place.at("all of it");
            match remove(&worker, verb, &target).await {
                Ok(()) => return,
                Err(error) => place.failed(&error),
            }
        }
    });
}
