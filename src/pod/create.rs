//! CreateContainer: holds the image, finds out who the process is, checks mounts and devices, lays out the writable layer
//! and writes the OCI bundle. The OCI runtime is called only by StartContainer, so a created container is files alone:
//! it costs no process, survives anything, and can still be changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use spec::{ContainerPlace, ContainerRequest, Identity, NodeFacts};
use types::Timestamp;

use super::error::{PodError, StepError};
use super::files::{self, PodFiles};
use super::phase::ContainerPhase;
use super::record::{ContainerRecord, SandboxRecord, VERSION, blocking};
use super::shared::Shared;
use super::steps::Steps;
use super::{sources, teardown};

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
    match perform(shared, &steps, sandbox, &mut record, target_pid).await {
        Ok(()) => Ok(record),
        Err(error) => {
            if let Err(undo) = teardown::discard_container(shared, &record).await {
                // The record stays; the next start of the server tries again.
                super::actor::log_dropped("a failed container could not be removed", &undo);
            }
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
    let sources = steps.run("mounts", sources::resolve(Arc::clone(&record.request))).await?;
    steps.run("layer", make_layer(shared, record)).await?;
    let spec = container_spec(shared, sandbox, record, &rootfs, identity, sources, target_pid)?;
    steps.run("bundle", files::write_bundle(shared.layout().bundle(record.id.as_str()), &spec)).await?;
    record.phase = ContainerPhase::Created;
    steps.run("publish", record.save(shared.layout())).await
}

/// Looks the user up in the image's own account files, whose paths are resolved beneath the image's root.
async fn identify(request: &Arc<ContainerRequest>, rootfs: &image::Rootfs) -> Result<Identity, StepError> {
    let wanted = request.identity(&rootfs.config);
    let layers = rootfs.layers.clone();
    let (passwd, group) = blocking(move || read_accounts(layers)).await?;
    Ok(spec::identity::resolve(&wanted, passwd.as_deref(), group.as_deref())?)
}

type Accounts = (Option<Vec<u8>>, Option<Vec<u8>>);

fn read_accounts(layers: Vec<PathBuf>) -> Result<Accounts, StepError> {
    let overlay = sys::mount::Overlay { lowers: layers, upper: None, work: None, readonly: true };
    let root = sys::beneath::Root::from_fd(sys::overlay_view::open(&overlay)?);
    let passwd = root.read(Path::new("etc/passwd"), ACCOUNTS_LIMIT)?;
    let group = root.read(Path::new("etc/group"), ACCOUNTS_LIMIT)?;
    Ok((passwd, group))
}

async fn make_layer(shared: &Shared, record: &ContainerRecord) -> Result<(), StepError> {
    let dir = shared.layout().layer_dir(&record.id);
    blocking(move || {
        // The upper directory becomes the container's "/", so everyone may look into it.
        sys::atomic::create_dir_all(&dir.join("upper"), 0o755)?;
        Ok(sys::atomic::create_dir_all(&dir.join("work"), 0o700)?)
    })
    .await
}

fn container_spec(
    shared: &Shared,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    rootfs: &image::Rootfs,
    identity: Identity,
    sources: sources::Sources,
    target_pid: Option<i32>,
) -> Result<spec::oci_spec::runtime::Spec, PodError> {
    let files = PodFiles::of(shared, sandbox);
    let place = ContainerPlace {
        id: record.id.clone(),
        sandbox_id: sandbox.id.clone(),
        rootfs: PathBuf::from("rootfs"),
        cgroups_path: record.cgroup.clone(),
        pause_pid: sandbox.pause_pid.unwrap_or_default(),
        target_pid,
        netns: sandbox.netns.clone(),
        hosts: Some(files.hosts),
        resolv_conf: Some(files.resolv_conf),
        hostname: Some(files.hostname),
        shm: sandbox.shm.clone(),
        image: &rootfs.config,
        image_name: record.image_name.clone(),
        identity,
        mounts: sources.mounts,
        devices: sources.devices,
        volumes: Vec::new(),
        seccomp_profile: sources.seccomp_profile,
        selinux: None,
    };
    let settings = shared.settings();
    let recursive_read_only = settings.handler_of_pod(&sandbox.handler)?.recursive_read_only;
    let facts = NodeFacts { recursive_read_only, ..settings.facts.clone() };
    Ok(spec::container_spec(&record.request, &sandbox.request, &facts, &place)?)
}
