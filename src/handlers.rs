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
/// Where probes are made, in the state directory.
const SCRATCH: &str = "probe";
/// The first kernel that can make a mount read-only with everything beneath it.
pub(crate) const RRO_SINCE: (u32, u32) = (5, 12);

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
    answered: bool,
    version: String,
    features: runtime::Features,
}

/// Probes the configured runtimes, or those found on PATH.
#[must_use]
pub fn find(config: &Config, layout: &Layout, systemd_cgroup: bool) -> Handlers {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let memory = layout.state().join(MEMORY);
    let scratch = layout.state().join(SCRATCH);
    for probe in runtime::probe::sweep(&scratch, PROBE_LIMIT) {
        tracing::info!(probe, "what a probe has left that was cut off is removed");
    }
    let known = recall(&memory);
    let mut found = Vec::new();
    let mut all = BTreeMap::new();
    let mut first = None;
    let maps_ids = can_map_ids(layout.root());
    for (name, path) in config.runtime.candidates(&search) {
        let command = monitor_api::RuntimeCommand { root: layout.runtime_root(&name), path, systemd_cgroup };
        let finding = examine(&command, &scratch, &known);
        finding.log(&name);
        if finding.broken.is_none() {
            first.get_or_insert_with(|| name.clone());
        }
        let rules = config.runtime.rules(&name);
        all.insert(
            name.clone(),
            Handler {
                rules,
                user_namespaces: maps_ids && finding.features.user_namespaces,
                ..finding.handler(name, command)
            },
        );
        found.push(finding);
    }
    remember(&memory, &found);
    let chosen = config.runtime.default.as_ref().map(|name| name.as_str().to_owned());
    Handlers { all, default: chosen.or(first).unwrap_or_default() }
}

fn examine(command: &monitor_api::RuntimeCommand, scratch: &Path, known: &[Finding]) -> Finding {
    let (modified, bytes) = fingerprint(&command.path);
    let same = |finding: &&Finding| {
        finding.program == command.path
            && finding.modified == modified
            && finding.bytes == bytes
            && finding.systemd_cgroup == command.systemd_cgroup
    };
    if let Some(finding) = known.iter().find(same).filter(|finding| finding.is_final()) {
        return finding.clone();
    }
    let runtime = runtime::RuntimeCommand {
        path: command.path.clone(),
        root: command.root.clone(),
        systemd_cgroup: command.systemd_cgroup,
    };
    let broken = runtime::probe::probe(&runtime, scratch, PROBE_LIMIT).err();
    let (version, features) = (runtime::probe::version(&runtime), runtime::probe::features(&runtime));
    let silent = version.as_ref().err().or(features.as_ref().err()).map(|error| types::error::chain(error));
    if let Some(error) = &silent {
        tracing::warn!(path = %command.path.display(), error, "OCI runtime does not say what it can do");
    }
    Finding {
        program: command.path.clone(),
        modified,
        bytes,
        systemd_cgroup: command.systemd_cgroup,
        broken: broken.map(|error| types::error::chain(&error)),
        answered: silent.is_none(),
        // One that tells nothing is taken for one that can do nothing special.
        version: version.unwrap_or_default(),
        features: features.unwrap_or_default(),
    }
}

impl Finding {
    /// Whether asking again would tell nothing new. A runtime that does not work, or not quickly enough, may do so next time.
    fn is_final(&self) -> bool {
        self.broken.is_none() && self.answered
    }

    fn log(&self, handler: &str) {
        let (path, version) = (self.program.display(), self.version.as_str());
        match &self.broken {
            None => tracing::info!(%path, handler, version, "OCI runtime works"),
            Some(error) => tracing::warn!(%path, handler, version, error, "OCI runtime does not work"),
        }
        let ids: Vec<&str> = runtime::Advisory::of(version).iter().map(|advisory| advisory.id).collect();
        if !ids.is_empty() {
            let ids = ids.join(" ");
            tracing::warn!(
                handler,
                version,
                ids,
                "OCI runtime has known vulnerabilities, unless its distributor mended them"
            );
        }
    }

    /// The handler, as far as kernel and runtime can do it together.
    fn handler(&self, name: String, command: monitor_api::RuntimeCommand) -> Handler {
        Handler {
            broken: self.broken.clone(),
            recursive_read_only: self.features.recursive_read_only && kernel_at_least(RRO_SINCE),
            version: self.version.clone(),
            features: self.features.clone(),
            ..Handler::new(name, command)
        }
    }
}

/// Whether layers beneath `root` can be mounted with the owners that a pod's user namespace shows; tried, as it is a matter of the
/// kernel, of the file system and of what this process may do.
fn can_map_ids(root: &Path) -> bool {
    match sys::mount::probe_idmap(root) {
        Ok(()) => true,
        Err(error) => {
            let error = types::error::chain(&error);
            tracing::warn!(path = %root.display(), error, "no pod can have a user namespace of its own");
            false
        }
    }
}

fn kernel_at_least(least: (u32, u32)) -> bool {
    kernel_version(&rustix::system::uname().release().to_string_lossy()) >= least
}

/// Major and minor version in the kernel's release, such as `6.1.0-18-amd64`.
pub(crate) fn kernel_version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
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
    fn what_a_probe_found_is_remembered_and_an_older_memory_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(MEMORY);
        let found = Finding {
            program: "/r".into(),
            modified: (1, 2),
            bytes: 3,
            systemd_cgroup: false,
            broken: None,
            answered: true,
            version: "runc version 1.1.5".to_owned(),
            features: runtime::Features { told: true, ..runtime::Features::default() },
        };
        remember(&file, std::slice::from_ref(&found));
        assert_eq!(recall(&file), [found]);
        // As a server wrote it that did not ask for versions.
        let old = r#"[{"program":"/r","modified":[1,2],"bytes":3,"systemd_cgroup":false,"broken":null,"recursive_read_only":true}]"#;
        std::fs::write(&file, old).unwrap();
        assert_eq!(recall(&file), []);
    }

    #[test]
    fn what_did_not_answer_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let program = PathBuf::from("/bin/true");
        let command = monitor_api::RuntimeCommand {
            path: program.clone(),
            root: dir.path().join("root"),
            systemd_cgroup: false,
        };
        let (modified, bytes) = fingerprint(&program);
        let remembered = |broken: Option<&str>, answered| Finding {
            program: program.clone(),
            modified,
            bytes,
            systemd_cgroup: false,
            broken: broken.map(str::to_owned),
            answered,
            version: "remembered".to_owned(),
            features: runtime::Features::default(),
        };
        for (finding, is_kept) in [
            (remembered(None, true), true),
            (remembered(None, false), false),
            (remembered(Some("no"), true), false),
        ] {
            let examined = examine(&command, dir.path(), &[finding]);
            assert_eq!(examined.version == "remembered", is_kept, "{examined:?}");
        }
    }

    #[test]
    fn kernel_versions_compare_by_number() {
        assert!(kernel_at_least((3, 0)));
        assert!(!kernel_at_least((999, 0)));
        assert_eq!(kernel_version("6.1.0-18-amd64"), (6, 1));
        assert!(kernel_version("5.4-custom") < RRO_SINCE);
    }
}
