//! RunPodSandbox: makes a pod's network, shared memory, monitor and pause container.
//!
//! The record written first names every resource that the steps may make; whatever fails or dies, [`teardown`] undoes
//! from that record. Network plugins are the slow part, so the monitor and the pause container come up meanwhile.

use std::path::PathBuf;
use std::sync::Arc;

use monitor_api::{Connection, CreateRequest, Monitor};
use spec::{SandboxPlace, SandboxRequest};
use types::ContainerId;

use super::confine;
use super::error::{PodError, StepError};
use super::files::PodFiles;
use super::phase::SandboxPhase;
use super::record::{SandboxRecord, VERSION, blocking};
use super::shared::{Handler, Shared};
use super::steps::Steps;
use super::teardown::{self, Target};
use super::{files, network, sources, userns};

/// Size of a pod's `/dev/shm`, in bytes, as containerd and Docker have it.
const SHM_BYTES: u64 = 64 << 20;

/// A sandbox in service.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) record: SandboxRecord,
    pub(super) connection: Connection,
}

/// Checks the request against the configuration and plans every resource; touches nothing.
pub(super) fn intend(shared: &Shared, request: SandboxRequest) -> Result<SandboxRecord, PodError> {
    let settings = shared.settings();
    let handler = settings.handler(request.runtime_handler())?;
    userns::check(handler, &request)?;
    cni::Bandwidth::from_annotations(&request.annotations().clone().into_iter().collect())
        .map_err(|error| PodError::Invalid(types::error::chain(&error)))?;
    spec::shm_bytes(&request, &handler.facts(&settings.facts))?;
    let id = shared.marks.sandbox();
    let object = super::display(&request);
    let cgroup = shared.drivers.cgroups.oci_path(request.cgroup_parent(), id.as_str()).map_err(|error| {
        PodError::Step { verb: "run sandbox", object, step: "cgroup", source: Box::new(error.into()) }
    })?;
    let netns = (!request.host_network()).then(|| settings.netns_dir.join(shared.marks.netns()));
    let shm = (!request.host_ipc()).then(|| shared.layout().pod_dir(&id).join("shm"));
    // Last of all: what is refused must not keep a level.
    let selinux_level =
        shared.levels.assign(&*shared.drivers.confinement, settings.selinux_categories, &id, &request)?;
    Ok(SandboxRecord {
        version: VERSION,
        id,
        selinux_level,
        handler: handler.name.clone(),
        phase: SandboxPhase::Creating,
        created_at: shared.now(),
        netns,
        shm,
        cgroup,
        pause_image: None,
        pause_pid: None,
        ips: Vec::new(),
        network: None,
        request: Arc::new(request),
    })
}

/// Performs the steps; on failure undoes them before the error is returned.
pub(super) async fn run(shared: &Arc<Shared>, record: SandboxRecord) -> Result<Running, PodError> {
    let object = super::display(&record.request);
    let steps = Steps::new(shared, "run sandbox", object, record.id.as_str());
    let mut attempt = Attempt { shared, steps, record, connection: None };
    let outcome = attempt.perform().await;
    attempt.steps.ended(outcome.is_ok());
    match outcome {
        Ok(()) => match attempt.connection {
            Some(connection) => Ok(Running { record: attempt.record, connection }),
            None => Err(PodError::ShuttingDown),
        },
        Err(error) => {
            attempt.undo().await;
            Err(error)
        }
    }
}

struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    steps: Steps<'a>,
    record: SandboxRecord,
    connection: Option<Connection>,
}

impl Attempt<'_> {
    async fn perform(&mut self) -> Result<(), PodError> {
        let handler = self.shared.settings().handler_of_pod(&self.record.handler)?.clone();
        self.steps.run("record", self.record.save(self.shared.layout())).await?;
        self.steps.run("files", files::make_pod_files(self.shared, &self.record)).await?;
        let rootfs = self.lease_pause().await?;
        let (shared, steps, record) = (self.shared, &self.steps, &self.record);
        let (netns, monitor) =
            tokio::join!(make_netns(shared, steps, record), prepare_pause(shared, steps, record));
        // The monitor is known, and can be undone, before an error of the other is looked at.
        let connection = self.connection.insert(monitor?);
        netns?;
        let (network, pause) = tokio::join!(
            network::attach(shared, steps, record),
            start_pause(shared, steps, record, &handler, rootfs, &connection.monitor),
        );
        // Both have ended, so nothing is being made any more when the error of either is looked at.
        if let Some(attachment) = network? {
            self.record.ips = attachment.ips;
            self.record.network = Some(attachment.result);
        }
        self.record.pause_pid = Some(pause?);
        self.record.phase = SandboxPhase::Ready;
        self.steps.run("publish", self.record.save(self.shared.layout())).await
    }

    /// Holds the configured pause image, if one is, and fetches it if it is not there: kubelet never does. Otherwise the
    /// embedded program serves.
    async fn lease_pause(&mut self) -> Result<Option<image::Rootfs>, PodError> {
        let Some(reference) = self.shared.settings().pause_image.clone() else { return Ok(None) };
        let images = &self.shared.drivers.images;
        let image = self.steps.run("pause image", images.ensure(&reference)).await?;
        self.record.pause_image = Some(image.clone());
        self.steps.run("record", self.record.save(self.shared.layout())).await?;
        let owner = self.record.id.as_str();
        self.steps.run("image", images.lease(owner, &image)).await.map(Some)
    }

    async fn undo(&mut self) {
        if self.connection.is_none() {
            // The monitor may have come up although nobody heard of it.
            self.connection = self.shared.drivers.monitors.connect(&self.record.id).await.unwrap_or_default();
        }
        let monitor = self.connection.as_ref().map(|connection| Arc::clone(&connection.monitor));
        let target = Target { record: self.record.clone(), containers: Vec::new(), monitor, view: None };
        if let Err(error) = teardown::remove(self.shared, teardown::UNDO, &target).await {
            let error = types::error::chain(&error);
            tracing::error!(pod.id = %self.record.id, error, "a failed sandbox could not be undone; trying again");
            teardown::retry_removal(self.shared, teardown::UNDO, target);
        }
    }
}

async fn make_netns(shared: &Shared, steps: &Steps<'_>, record: &SandboxRecord) -> Result<(), PodError> {
    let Some(path) = record.netns.clone() else { return Ok(()) };
    let host = Arc::clone(&shared.drivers.host);
    let maps = record.request.user_namespace().as_ref().map(userns::maps);
    steps.run("netns", blocking(move || host.create_netns(&path, maps.as_ref()))).await
}

/// Brings up what the pause container needs besides its network namespace: shared memory, parent cgroup, monitor.
async fn prepare_pause(
    shared: &Arc<Shared>,
    steps: &Steps<'_>,
    record: &SandboxRecord,
) -> Result<Connection, PodError> {
    if let Some(path) = record.shm.clone() {
        let host = Arc::clone(&shared.drivers.host);
        let userns = record.request.user_namespace();
        let facts = shared.settings().facts_of(&record.handler);
        let bytes = spec::shm_bytes(&record.request, &facts)?.unwrap_or(SHM_BYTES);
        steps.run("shm", blocking(move || host.mount_shm(&path, bytes, userns))).await?;
    }
    steps.run("cgroup", shared.parents.ensure(&shared.drivers.cgroups, record)).await?;
    steps.run("monitor", shared.drivers.monitors.spawn(&record.id)).await
}

/// Has the monitor make and start the pause container.
async fn start_pause(
    shared: &Shared,
    steps: &Steps<'_>,
    record: &SandboxRecord,
    handler: &Handler,
    rootfs: Option<image::Rootfs>,
    monitor: &Arc<dyn Monitor>,
) -> Result<i32, PodError> {
    let id = pause_id(record);
    steps.run("bundle", write_bundle(shared, record, rootfs.as_ref())).await?;
    let request = create_request(shared, record, handler, rootfs, id.clone());
    let created = steps.run("pause create", monitor.create(request)).await?;
    steps.run("pause start", monitor.start(&id)).await?;
    Ok(created.pid)
}

/// The pause container has the sandbox's id.
pub(super) fn pause_id(record: &SandboxRecord) -> ContainerId {
    ContainerId::parse(record.id.as_str()).unwrap_or_else(|_| ContainerId::from_random([0; 32]))
}

async fn write_bundle(
    shared: &Shared,
    record: &SandboxRecord,
    rootfs: Option<&image::Rootfs>,
) -> Result<(), StepError> {
    let bundle = shared.layout().bundle(record.id.as_str());
    let embedded = rootfs.is_none();
    let path = if embedded { shared.layout().pause_rootfs() } else { bundle.join("rootfs") };
    let unset = shared.settings().facts.unset_seccomp_profile.clone();
    let seccomp_profile = sources::read_sandbox_profile(&record.request, &unset).await?;
    let PodFiles { resolv_conf, hosts, hostname } = PodFiles::of(shared, record);
    let own = [resolv_conf, hosts, hostname].into_iter().chain(record.shm.clone()).collect();
    let facts = shared.settings().facts_of(&record.handler);
    let confined = confine::pod(shared, record, facts.clone(), own).await?;
    let place = SandboxPlace {
        id: record.id.clone(),
        rootfs: path,
        command: if embedded { vec!["/pause".to_owned()] } else { Vec::new() },
        netns: record.netns.clone(),
        userns: userns::bound(shared.layout(), record),
        cgroups_path: record.cgroup.clone(),
        shm: record.shm.clone(),
        image: rootfs.map(|rootfs| (*rootfs.config).clone()),
        seccomp_profile,
        selinux: confined.labels.clone(),
    };
    let facts = confined.facts(&facts);
    let spec = spec::sandbox_spec(&record.request, &facts, &place)?;
    files::write_bundle(bundle, &spec, record.request.user_namespace()).await
}

fn create_request(
    shared: &Shared,
    record: &SandboxRecord,
    handler: &Handler,
    rootfs: Option<image::Rootfs>,
    container: ContainerId,
) -> CreateRequest {
    let bundle = shared.layout().bundle(record.id.as_str());
    let overlay = rootfs.map(|rootfs| files::read_only(rootfs.layers));
    CreateRequest {
        container,
        rootfs: overlay,
        images: Vec::new(),
        user_namespace: userns::of_pause(shared.layout(), record),
        runtime: handler.command.clone(),
        log: None::<PathBuf>,
        terminal: false,
        stdin: false,
        stdin_once: false,
        exit_file: bundle.join("exit.json"),
        timeout_ms: u64::try_from(shared.settings().runtime_timeout.as_millis()).unwrap_or(u64::MAX),
        bundle,
    }
}
