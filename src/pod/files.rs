//! The small files of pods and bundles: resolv.conf, hosts, hostname, config.json.

use std::path::{Path, PathBuf};

use monitor_api::Overlay;
use spec::oci_spec::runtime::Spec;
use spec::{Dns, UserNamespace};

use super::error::StepError;
use super::record::{SandboxRecord, blocking};
use super::shared::Shared;
use super::userns;

/// What containers of a pod have bound over `/etc/…`.
#[derive(Debug, Clone)]
pub(super) struct PodFiles {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    pub(super) hostname: PathBuf,
}

impl PodFiles {
    pub(super) fn of(shared: &Shared, record: &SandboxRecord) -> Self {
        let dir = shared.layout().pod_dir(&record.id);
        Self {
            resolv_conf: dir.join("resolv.conf"),
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
        }
    }
}

/// Makes the pod's directories and files.
pub(super) async fn make_pod_files(shared: &Shared, record: &SandboxRecord) -> Result<(), StepError> {
    let dir = shared.layout().pod_dir(&record.id);
    let files = PodFiles::of(shared, record);
    let resolv_conf = resolv_conf(&record.request.dns())?;
    let hostname = record.request.effective_hostname(&shared.settings().facts.hostname).to_owned();
    let log_directory = PathBuf::from(record.request.log_directory());
    let pod = record.request.user_namespace();
    blocking(move || {
        userns::make_directory(&dir, pod)?;
        if !log_directory.as_os_str().is_empty() {
            sys::atomic::create_dir_all(&log_directory, 0o755)?;
        }
        write_plain(&files.resolv_conf, &resolv_conf)?;
        write_plain(&files.hosts, &read_or_empty(Path::new("/etc/hosts"))?)?;
        write_plain(&files.hostname, format!("{hostname}\n").as_bytes())?;
        [files.resolv_conf, files.hosts, files.hostname].iter().try_for_each(|file| userns::give(file, pod))
    })
    .await
}

/// The pod's resolver configuration; without any of its own it is a copy of the host's.
fn resolv_conf(dns: &Dns<'_>) -> Result<Vec<u8>, StepError> {
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return read_or_empty(Path::new("/etc/resolv.conf"));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text.into_bytes())
}

/// Writes the OCI bundle of a container; `rootfs` is where the monitor's helper mounts its overlay.
pub(super) async fn write_bundle(
    bundle: PathBuf,
    spec: &Spec,
    pod: Option<UserNamespace>,
) -> Result<(), StepError> {
    let json = serde_json::to_vec(spec)
        .map_err(|error| StepError::Io { what: "encoding config.json".to_owned(), source: error.into() })?;
    blocking(move || {
        userns::make_directory(&bundle, pod)?;
        sys::atomic::create_dir_all(&bundle.join("rootfs"), 0o755)?;
        write_plain(&bundle.join("config.json"), &json)
    })
    .await
}

/// An overlay without a writable layer.
pub(super) fn read_only(lowers: Vec<PathBuf>) -> Overlay {
    Overlay { lowers, upper: None, work: None, readonly: true }
}

/// Volatile files need not survive a power cut, so they are not synced.
pub(super) fn write_plain(path: &Path, bytes: &[u8]) -> Result<(), StepError> {
    std::fs::write(path, bytes).map_err(StepError::io(format!("writing {}", path.display())))
}

fn read_or_empty(path: &Path) -> Result<Vec<u8>, StepError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(StepError::io(format!("reading {}", path.display()))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_pods_own_settings() {
        let strings = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let (servers, searches, options) =
            (strings(&["10.0.0.10", "1.1.1.1"]), strings(&["a.b", "c"]), strings(&["ndots:5"]));
        let dns = Dns { servers: &servers, searches: &searches, options: &options };
        let text = String::from_utf8(resolv_conf(&dns).unwrap()).unwrap();
        assert_eq!(text, "search a.b c\nnameserver 10.0.0.10\nnameserver 1.1.1.1\noptions ndots:5\n");
    }
}
