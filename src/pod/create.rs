//! CreateContainer: holds the images, finds out who the process is, checks mounts and devices, lays out the writable layer
//! and writes the OCI bundle. The OCI runtime is called only by StartContainer, so a created container is files alone:
//! it costs no process, survives anything, and can still be changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use spec::{ContainerPlace, ContainerRequest, Identity};
use types::Timestamp;

use super::confine::{self, Confined};
use super::error::{PodError, StepError};
use super::files::{self, PodFiles};
use super::phase::ContainerPhase;
use super::record::{ContainerRecord, SandboxRecord, VERSION, blocking};
use super::shared::Shared;
use super::steps::Steps;
use super::{image_volumes, sources, teardown, userns, volumes};

/// The most that is read of an image's `/etc/passwd` or `/etc/group`.
const ACCOUNTS_LIMIT: u64 = 8 << 20;

/// Checks the request against what is known and plans every resource; touches nothing.
pub(super) fn intend(
    shared: &Shared,
    sandbox: &SandboxRecord,
    request: ContainerRequest,
) -> Result<ContainerRecord, PodError> {
    let images = &shared.drivers.images;
    let image =
        images.resolve(request.image()).ok_or_else(|| PodError::ImageNotFound(request.image().to_owned()))?;
    let image_volumes = image_volumes::find(&**images, &request)?;
    let id = shared.marks.container();
    let object = format!("container {:?}", request.name());
    let cgroup =
        shared.drivers.cgroups.oci_path(sandbox.request.cgroup_parent(), id.as_str()).map_err(|error| {
            PodError::Step {
                verb: "create container",
                object,
                step: "cgroup",
                source: Box::new(error.into()),
            }
        })?;
    Ok(ContainerRecord {
        version: VERSION,
        id,
        sandbox: sandbox.id.clone(),
        phase: ContainerPhase::Creating,
        created_at: shared.now(),
        started_at: Timestamp::UNSET,
        pid: None,
        image: image.id.clone(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        image_name: image.name().to_owned(),
        layers: Vec::new(),
        image_volumes,
        mapped: Vec::new(),
        log_path: log_path(sandbox, &request),
        cgroup,
        stop_signal: request.stop_signal(&image.config).number(),
        user: (0, 0, Vec::new()),
        exit: None,
        updating: None,
        request: Arc::new(request),
    })
}

/// The log's absolute path; none when the sandbox has no log directory or the container no log.
fn log_path(sandbox: &SandboxRecord, request: &ContainerRequest) -> Option<PathBuf> {
    let directory = sandbox.request.log_directory();
    let relative = request.log_path()?;
    (!directory.is_empty()).then(|| Path::new(directory).join(relative))
}

/// Performs the steps; `target_pid` is the process whose pid namespace the request wants to share. On failure undoes them
/// before the error is returned.
pub(super) async fn run(
    shared: &Arc<Shared>,
    sandbox: &SandboxRecord,
    mut record: ContainerRecord,
    target_pid: Option<i32>,
) -> Result<ContainerRecord, PodError> {
    let steps = Steps::new(shared, "create container", record.display(), record.id.as_str());
    let outcome = perform(shared, &steps, sandbox, &mut record, target_pid).await;
    steps.ended(outcome.is_ok());
    match outcome {
        Ok(()) => Ok(record),
        Err(error) => {
            teardown::discard_in_the_end(shared, "undo create container", record).await;
            Err(error)
        }
    }
}

async fn perform(
    shared: &Arc<Shared>,
    steps: &Steps<'_>,
    sandbox: &SandboxRecord,
    record: &mut ContainerRecord,
    target_pid: Option<i32>,
) -> Result<(), PodError> {
    steps.run("record", record.save(shared.layout())).await?;
    let rootfs = steps.run("image", shared.drivers.images.lease(record.id.as_str(), &record.image)).await?;
    let identity = steps.run("identity", identify(&record.request, &rootfs)).await?;
    record.user = (identity.uid, identity.gid, identity.additional_gids.clone());
    record.layers.clone_from(&rootfs.layers);
    steps.run("image volumes", image_volumes::hold(&*shared.drivers.images, record)).await?;
    let images = image_volumes::sources(shared.layout(), record);
    let found = sources::resolve(shared, Arc::clone(&record.request), images);
    let mut sources = steps.run("mounts", found).await?;
    let confined = steps.run("confinement", confine_it(shared, sandbox, record, &sources)).await?;
    steps.run("layer", make_layer(shared, sandbox, record)).await?;
    let made = volumes::make(shared, sandbox, record, &rootfs, confined.labels.as_ref());
    let mut volumes = steps.run("volumes", made).await?;
    let pod = sandbox.request.user_namespace();
    if pod.is_some() {
        record.mapped = userns::map_volumes(shared.layout(), record, &mut sources.mounts, &mut volumes);
    }
    let found = Found { identity, sources, confined, volumes, target_pid };
    let mut spec = container_spec(shared, sandbox, record, &rootfs, found)?;
    if pod.is_some() {
        let kept = userns::keep_options(shared.layout(), record, &mut spec);
        kept.map_err(|error| steps.fail("bundle", error))?;
    }
    steps.run("bundle", files::write_bundle(shared.layout().bundle(record.id.as_str()), &spec, pod)).await?;
    record.phase = ContainerPhase::Created;
    steps.run("publish", record.save(shared.layout())).await
}

/// Looks the user up in the image's own account files, whose paths are resolved beneath the image's root.
async fn identify(request: &Arc<ContainerRequest>, rootfs: &image::Rootfs) -> Result<Identity, StepError> {
    let wanted = request.identity(&rootfs.config);
    let layers = rootfs.layers.clone();
    blocking(move || {
        let (passwd, group) = read_accounts(layers)?;
        Ok(spec::identity::resolve(&wanted, passwd.as_deref(), group.as_deref())?)
    })
    .await
}

type Accounts = (Option<Vec<u8>>, Option<Vec<u8>>);

fn read_accounts(layers: Vec<PathBuf>) -> Result<Accounts, StepError> {
    let overlay = sys::mount::Overlay { lowers: layers, readonly: true, ..sys::mount::Overlay::default() };
    let root = sys::beneath::Root::from_fd(sys::overlay_view::open(&overlay)?);
    let passwd = root.read(Path::new("etc/passwd"), ACCOUNTS_LIMIT)?;
    let group = root.read(Path::new("etc/group"), ACCOUNTS_LIMIT)?;
    Ok((passwd, group))
}

async fn make_layer(
    shared: &Shared,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
) -> Result<(), StepError> {
    let pod = sandbox.request.user_namespace();
    let dir = shared.layout().layer_dir(&record.id);
    blocking(move || {
        // The upper directory becomes the container's "/", so everyone may look into it.
        sys::atomic::create_dir_all(&dir.join("upper"), 0o755)?;
        userns::give(&dir.join("upper"), pod)?;
        Ok(sys::atomic::create_dir_all(&dir.join("work"), 0o700)?)
    })
    .await
}

async fn confine_it(
    shared: &Shared,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    sources: &sources::Sources,
) -> Result<Confined, StepError> {
    let facts = shared.settings().facts_of(&sandbox.handler);
    let PodFiles { resolv_conf, hosts, hostname } = PodFiles::of(shared, sandbox);
    let files = vec![resolv_conf, hosts, hostname];
    confine::container(shared, sandbox, &record.request, facts, &sources.mounts, files).await
}

/// What the steps before the bundle have found and made.
struct Found {
    identity: Identity,
    sources: sources::Sources,
    confined: Confined,
    /// Path in the container and directory on the host.
    volumes: Vec<(PathBuf, PathBuf)>,
    target_pid: Option<i32>,
}

fn container_spec(
    shared: &Shared,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    rootfs: &image::Rootfs,
    found: Found,
) -> Result<spec::oci_spec::runtime::Spec, PodError> {
    let files = PodFiles::of(shared, sandbox);
    let place = ContainerPlace {
        id: record.id.clone(),
        sandbox_id: sandbox.id.clone(),
        rootfs: PathBuf::from("rootfs"),
        cgroups_path: record.cgroup.clone(),
        pause_pid: sandbox.pause_pid.unwrap_or_default(),
        target_pid: found.target_pid,
        netns: sandbox.netns.clone(),
        hosts: Some(files.hosts),
        resolv_conf: Some(files.resolv_conf),
        hostname: Some(files.hostname),
        shm: sandbox.shm.clone(),
        image: &rootfs.config,
        image_name: record.image_name.clone(),
        identity: found.identity,
        mounts: found.sources.mounts,
        devices: found.sources.devices,
        volumes: found.volumes,
        seccomp_profile: found.sources.seccomp_profile,
        selinux: found.confined.labels.clone(),
    };
    let settings = shared.settings();
    let handler = settings.handler_of_pod(&sandbox.handler)?;
    let facts = found.confined.facts(&handler.facts(&settings.facts));
    let mut spec = spec::container_spec(&record.request, &sandbox.request, &facts, &place)?;
    found.sources.cdi.apply(&mut spec, handler.features.net_devices)?;
    Ok(spec)
}
