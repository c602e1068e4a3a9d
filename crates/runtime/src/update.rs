//! Changing the limits of a running container.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::RuntimeCommand;
use crate::run::{RuntimeError, Step, run};

/// How often an update is tried when the runtime gives up for a reason that passes.
pub const UPDATE_ATTEMPTS: usize = 4;
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// What runc says when it could not freeze a v1 group around a change, which happens when the group is busy.
const PASSING: &str = "unable to freeze";

/// Gives the container `id` the limits in `resources`, the OCI `linux.resources` object as JSON. Two files are made in the
/// directory `scratch` for the time of the call; nobody else may update the same container meanwhile. Blocks.
///
/// # Errors
/// [`RuntimeError`] with the runtime's own reason. What it has changed before it failed is not known then.
pub fn update(
    runtime: &RuntimeCommand,
    id: &str,
    resources: &[u8],
    scratch: &Path,
    limit: Duration,
) -> Result<(), RuntimeError> {
    let (file, log) = (scratch.join("update.json"), scratch.join("update.log"));
    let done = std::fs::write(&file, resources)
        .map_err(RuntimeError::Watch)
        .and_then(|()| attempt(runtime, id, &file, &log, Instant::now() + limit));
    for path in [&file, &log] {
        // A log that was never made is the usual case.
        std::fs::remove_file(path).ok();
    }
    done
}

fn attempt(
    runtime: &RuntimeCommand,
    id: &str,
    file: &Path,
    log: &Path,
    deadline: Instant,
) -> Result<(), RuntimeError> {
    let args = runtime.update(id, file, log);
    for _ in 1..UPDATE_ATTEMPTS {
        let step = Step { log: Some(log), ..Step::new("update a container", deadline) };
        match run(runtime, &args, step) {
            Err(RuntimeError::Failed { message, .. })
                if message.contains(PASSING) && Instant::now() + PAUSE < deadline => {}
            other => return other.map(drop),
        }
        // What it said does not belong to the next attempt.
        std::fs::remove_file(log).ok();
        sleep(PAUSE);
    }
    run(runtime, &args, Step { log: Some(log), ..Step::new("update a container", deadline) }).map(drop)
}
