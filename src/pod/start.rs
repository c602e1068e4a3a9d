//! StartContainer: has the OCI runtime create and start the process; a failure leaves the container exited, with the
//! reason where kubelet looks for it.

use std::path::PathBuf;
use std::sync::Arc;

use monitor_api::{CreateRequest, Monitor, Overlay};

use super::error::{PodError, StepError};
use super::phase::ContainerPhase;
use super::record::{ContainerRecord, Exit, ExitReason, SandboxRecord, blocking};
use super::shared::Shared;
use super::steps::Steps;
use super::{files, image_volumes, teardown, userns};

/// StartContainer, in errors and logs.
const VERB: &str = "start container";

/// What the caller gets: the record as it is now, with the error if there was one.
pub(super) type Outcome = Result<Box<ContainerRecord>, (Box<ContainerRecord>, PodError)>;

/// The exit code of a container that could not be started, as containerd has it.
const START_FAILED: i32 = 128;

/// Performs the steps.
pub(super) async fn run(
    shared: &Arc<Shared>,
    sandbox: &SandboxRecord,
    mut record: ContainerRecord,
    monitor: Arc<dyn Monitor>,
) -> Outcome {
    let object = record.display();
    let id = record.id.to_string();
    let steps = Steps::new(shared, VERB, object, &id);
    let outcome = perform(shared, &steps, sandbox, &mut record, &monitor).await;
    steps.ended(outcome.is_ok());
    match outcome {
        Ok(()) => Ok(Box::new(record)),
        Err(error) => {
            fail(shared, sandbox, &mut record, &monitor, &error).await;
            Err((Box::new(record), error))
        }
    }
}

async fn perform(
    shared: &Arc<Shared>,
    steps: &Steps<'_>,
    sandbox: &SandboxRecord,
    record: &mut ContainerRecord,
    monitor: &Arc<dyn Monitor>,
) -> Result<(), PodError> {
    let request = create_request(shared, sandbox, record)?;
    let created = steps.run("OCI create", monitor.create(request)).await?;
    steps.part("mount", created.mount);
    record.pid = Some(created.pid);
    record.started_at = steps.run("OCI start", monitor.start(&record.id)).await?;
    record.phase = ContainerPhase::Running;
    steps.run("publish", record.save(shared.layout())).await
}

fn create_request(
    shared: &Shared,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
) -> Result<CreateRequest, PodError> {
    let settings = shared.settings();
    let handler = settings.handler_of_pod(&sandbox.handler)?;
    let bundle = shared.layout().bundle(record.id.as_str());
    let timeout_ms = u64::try_from(settings.runtime_timeout.as_millis()).unwrap_or(u64::MAX);
    Ok(CreateRequest {
        container: record.id.clone(),
        rootfs: Some(overlay(shared, record)),
        images: image_volumes::mounts(shared.layout(), record),
        user_namespace: userns::of_container(sandbox, record),
        runtime: handler.command.clone(),
        log: record.log_path.clone(),
        terminal: record.request.tty(),
        stdin: record.request.stdin(),
        stdin_once: record.request.stdin_once(),
        exit_file: bundle.join("exit.json"),
        timeout_ms,
        bundle,
    })
}

fn overlay(shared: &Shared, record: &ContainerRecord) -> Overlay {
    let layer: PathBuf = shared.layout().layer_dir(&record.id);
    Overlay {
        lowers: record.layers.clone(),
        upper: Some(layer.join("upper")),
        work: Some(layer.join("work")),
        readonly: false,
    }
}

/// Notes that a caller has been told that the container is started. The next server tells the first who asks where nobody was,
/// as it may be that this one died between the record and the answer.
pub(super) async fn note_heard(shared: &Shared, record: &ContainerRecord) {
    let steps = Steps::new(shared, VERB, record.display(), record.id.as_str());
    let path = heard(shared, record);
    steps.attempt("heard", blocking(move || files::write_plain(&path, b""))).await;
}

/// Whether that has been noted.
pub(super) async fn was_heard(shared: &Shared, record: &ContainerRecord) -> bool {
    let path = heard(shared, record);
    let noted = blocking(move || path.try_exists().map_err(StepError::io("looking into a bundle")));
    noted.await.unwrap_or(false)
}

fn heard(shared: &Shared, record: &ContainerRecord) -> PathBuf {
    shared.layout().bundle(record.id.as_str()).join("heard")
}

/// Leaves the container exited, with nothing of it in the OCI runtime.
async fn fail(
    shared: &Arc<Shared>,
    sandbox: &SandboxRecord,
    record: &mut ContainerRecord,
    monitor: &Arc<dyn Monitor>,
    error: &PodError,
) {
    let steps = Steps::new(shared, "undo start container", record.display(), record.id.as_str());
    let freed = teardown::free_container(shared, &sandbox.handler, record, Some(monitor));
    steps.attempt("processes", freed).await;
    record.phase = ContainerPhase::Exited;
    record.pid = None;
    record.exit = Some(Exit {
        code: START_FAILED,
        reason: ExitReason::StartError,
        message: types::error::chain(error),
        finished_at: shared.now(),
    });
    steps.attempt("record", record.save(shared.layout())).await;
}
