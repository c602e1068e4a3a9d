//! RemoveContainer: frees what a stopped container still holds.

use std::sync::Arc;

use monitor_api::Monitor;

use super::error::PodError;
use super::record::{ContainerRecord, SandboxRecord};
use super::shared::Shared;
use super::steps::Steps;
use super::teardown;

/// Performs the steps; each is idempotent, the record goes last.
pub(super) async fn run(
    shared: &Arc<Shared>,
    sandbox: &SandboxRecord,
    record: ContainerRecord,
    monitor: Option<&Arc<dyn Monitor>>,
) -> Result<(), PodError> {
    let steps = Steps::new(shared, "remove container", record.display(), record.id.as_str());
    // What is half removed must not be shown as created after a crash. A full disk keeps nothing from being removed.
    steps.attempt("intent", record.save(shared.layout())).await;
    steps.run("processes", teardown::free_container(shared, &sandbox.handler, &record, monitor)).await?;
    teardown::discard_container(shared, &steps, teardown::ALONE, &record).await
}
