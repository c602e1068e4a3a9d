//! Which OCI runtimes this host has, and which of them work here.
//!
//! Each candidate has to create a container once before pods may use it: a runtime that is installed is not yet one that
//! gets along with this kernel and its cgroups. What a probe found is remembered in the state directory until the program
//! changes, so that a restart does not wait for it again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::pod::{Handler, Layout};

/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// File of remembered probes in the state directory.
const MEMORY: &str = "runtimes.json";

/// The handlers and the name of the default one.
#[derive(Debug)]
pub struct Handlers {
    /// All, working or not, by name.
    pub all: BTreeMap<String, Handler>,
    /// What "" stands for; empty when none works.
    pub default: String,
}

/// What one probe found about one program in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    program: PathBuf,
    modified: (i64, i64),
    bytes: u64,
    systemd_cgroup: bool,
    broken: Option<String>,
    recursive_read_only: bool,
}

/// Probes the configured runtimes, or those found on PATH.
#[must_use]
pub fn find(config: &Config, layout: &Layout, systemd_cgroup: bool) -> Handlers {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let memory = layout.state().join(MEMORY);
    let known = recall(&memory);
    let mut found = Vec::new();
    let mut all = BTreeMap::new();
    let mut first = None;
    for (name, path) in config.runtime.candidates(&search) {
        let command = monitor_api::RuntimeCommand { root: layout.runtime_root(&name), path, systemd_cgroup };
        let finding = examine(&command, layout, &known);
        match &finding.broken {
            None => tracing::info!(path = %command.path.display(), handler = name, "OCI runtime works"),
            Some(reason) => {
                tracing::warn!(path = %command.path.display(), handler = name, error = reason, "OCI runtime does not work");
            }
        }
        if finding.broken.is_none() {
            first.get_or_insert_with(|| name.clone());
        }
        let handler = Handler {
            name: name.clone(),
            command,
            broken: finding.broken.clone(),
            recursive_read_only: finding.recursive_read_only,
        };
        found.push(finding);
        all.insert(name, handler);
    }
    remember(&memory, &found);
    let chosen = config.runtime.default.as_ref().map(|name| name.as_str().to_owned());
    Handlers { all, default: chosen.or(first).unwrap_or_default() }
}

fn examine(command: &monitor_api::RuntimeCommand, layout: &Layout, known: &[Finding]) -> Finding {
    let (modified, bytes) = fingerprint(&command.path);
    let same = |finding: &&Finding| {
        finding.program == command.path
            && finding.modified == modified
            && finding.bytes == bytes
            && finding.systemd_cgroup == command.systemd_cgroup
    };
    if let Some(finding) = known.iter().find(same).filter(|finding| finding.broken.is_none()) {
        return finding.clone();
    }
    let runtime = runtime::RuntimeCommand {
        path: command.path.clone(),
        root: command.root.clone(),
        systemd_cgroup: command.systemd_cgroup,
    };
    let scratch = layout.state().join("probe");
    let broken = runtime::probe::probe(&runtime, &scratch, PROBE_LIMIT).err();
    Finding {
        program: command.path.clone(),
        modified,
        bytes,
        systemd_cgroup: command.systemd_cgroup,
        broken: broken.map(|error| types::error::chain(&error)),
        recursive_read_only: has_recursive_read_only(&runtime),
    }
}

/// Whether the runtime says that it knows the mount option `rro`; the kernel has it since 5.12.
fn has_recursive_read_only(runtime: &runtime::RuntimeCommand) -> bool {
    let features = runtime::probe::features(runtime).ok().flatten().unwrap_or_default();
    let options = features.get("mountOptions").and_then(|options| options.as_array());
    let known = options.is_some_and(|options| options.iter().any(|option| option == "rro"));
    known && kernel_at_least(5, 12)
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version >= (major, minor)
}

fn fingerprint(path: &Path) -> ((i64, i64), u64) {
    std::fs::metadata(path).map(|data| ((data.mtime(), data.mtime_nsec()), data.len())).unwrap_or_default()
}

fn recall(path: &Path) -> Vec<Finding> {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn remember(path: &Path, findings: &[Finding]) {
    let Ok(bytes) = serde_json::to_vec(findings) else { return };
    if let Err(error) = sys::atomic::write(path, &bytes, 0o600) {
        tracing::debug!(error = types::error::chain(&error), "probes are not remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_by_number() {
        assert!(kernel_at_least(3, 0));
        assert!(!kernel_at_least(999, 0));
    }
}
