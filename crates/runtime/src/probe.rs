//! Which OCI runtimes this host has and whether they work on it.
//!
//! A runtime that is installed may still be of no use: it may not know the host's cgroup layout or refuse the spec's version.
//! So [`probe`] makes a real container, of the embedded pause program, and deletes it again. It has a deadline as a whole and
//! leaves nothing behind, neither processes nor cgroups nor files, however the runtime behaves. What it leaves when it is killed
//! itself, [`sweep`] finds by its directory, which is there before anything else.
//!
//! Everything here blocks.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::run::{RuntimeError, Step, run};
use crate::{Features, RuntimeCommand};

mod trial;

use trial::Trial;

/// How long asking a runtime for its version or features may take.
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Where runtimes are looked for after the directories of PATH.
const USUAL_PLACES: &[&str] =
    &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The first program called `name` in the directories of `search` (the form of PATH) and the usual places.
#[must_use]
pub fn find(name: &str, search: Option<&OsStr>) -> Option<PathBuf> {
    let given: Vec<PathBuf> = search.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    let places = given.into_iter().chain(USUAL_PLACES.iter().map(PathBuf::from));
    places.filter(|place| place.is_absolute()).map(|place| place.join(name)).find(|file| is_program(file))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The first line that the runtime prints for `--version`, such as `runc version 1.1.5`.
///
/// # Errors
/// [`RuntimeError`] naming the runtime.
pub fn version(runtime: &RuntimeCommand) -> Result<String, RuntimeError> {
    let printed =
        run(runtime, &runtime.version(), Step::new("tell its version", Instant::now() + QUESTION_TIMEOUT))?;
    let text = String::from_utf8_lossy(&printed);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// What the runtime says that it can do; nothing for one that has no such command.
///
/// # Errors
/// [`RuntimeError`] naming the runtime.
pub fn features(runtime: &RuntimeCommand) -> Result<Features, RuntimeError> {
    match run(runtime, &runtime.features(), Step::new("tell its features", Instant::now() + QUESTION_TIMEOUT))
    {
        Ok(printed) => {
            Ok(serde_json::from_slice(&printed).map(|raw| Features::read(&raw)).unwrap_or_default())
        }
        Err(RuntimeError::Failed { .. }) => Ok(Features::default()),
        Err(error) => Err(error),
    }
}

/// Makes and deletes a container with this runtime, in a directory of its own beneath `scratch`. Its `root` is not used.
///
/// # Errors
/// [`RuntimeError`] with the runtime's own reason. Nothing is left behind in any case.
pub fn probe(runtime: &RuntimeCommand, scratch: &Path, limit: Duration) -> Result<(), RuntimeError> {
    let trial = Trial::new(runtime, scratch);
    let made = trial.create(Instant::now() + limit);
    let deleted = trial.delete(Instant::now() + limit);
    trial.clear();
    made.and(deleted)
}

/// Removes what probes in `scratch` have left that were cut off by the end of their server. No other may be under way there.
/// Returns what was found, by name.
pub fn sweep(scratch: &Path, limit: Duration) -> Vec<String> {
    let entries = std::fs::read_dir(scratch).into_iter().flatten().flatten();
    let left: Vec<Trial> = entries.filter_map(|entry| Trial::left_at(&entry.path())).collect();
    for trial in &left {
        trial.stop_runtime();
        // One that was cut off early knows nothing of the container; what there is of it goes all the same.
        trial.delete(Instant::now() + limit).ok();
        // Its server may have been killed after it forked, before the runtime's program was in the new process.
        trial.stop_runtime();
        trial.clear();
    }
    left.into_iter().map(Trial::into_name).collect()
}
