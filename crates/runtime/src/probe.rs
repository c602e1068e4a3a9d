//! Which OCI runtimes this host has and whether they work on it.
//!
//! A runtime that is installed may still be of no use: it may not know the host's cgroup layout or refuse the spec's version.
//! So [`probe`] makes a real container, of the embedded pause program, and deletes it again. It has a deadline as a whole and
//! leaves nothing behind, neither processes nor cgroups nor files, however the runtime behaves.
//!
//! Everything here blocks.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::run::{KILL, RuntimeError, Step, run};
use crate::{Create, RuntimeCommand};

/// How long asking a runtime for its version or features may take.
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

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

/// The runtime's OCI features structure, raw; `None` for a runtime that has no such command.
///
/// # Errors
/// [`RuntimeError`] naming the runtime.
pub fn features(runtime: &RuntimeCommand) -> Result<Option<serde_json::Value>, RuntimeError> {
    match run(runtime, &runtime.features(), Step::new("tell its features", Instant::now() + QUESTION_TIMEOUT))
    {
        Ok(printed) => Ok(serde_json::from_slice(&printed).ok()),
        Err(RuntimeError::Failed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes and deletes a container with this runtime, in a directory of its own beneath `scratch`. Its `root` is not used.
///
/// # Errors
/// [`RuntimeError`] with the runtime's own reason. Nothing is left behind in any case.
pub fn probe(runtime: &RuntimeCommand, scratch: &Path, limit: Duration) -> Result<(), RuntimeError> {
    let id = format!("crimson-probe-{}", types::id::hex(&sys::random::bytes::<16>()));
    let dir = scratch.join(&id);
    let trial = Trial {
        runtime: RuntimeCommand { root: dir.join("state"), ..runtime.clone() },
        log: dir.join("log"),
        pid_file: dir.join("pid"),
        dir,
        id,
    };
    let made = trial.create(Instant::now() + limit);
    let deleted = trial.delete(Instant::now() + limit);
    trial.sweep();
    made.and(deleted)
}

struct Trial {
    runtime: RuntimeCommand,
    id: String,
    dir: PathBuf,
    log: PathBuf,
    pid_file: PathBuf,
}

impl Trial {
    fn create(&self, deadline: Instant) -> Result<(), RuntimeError> {
        self.write_bundle().map_err(RuntimeError::Prepare)?;
        let create = Create {
            id: &self.id,
            bundle: &self.dir,
            pid_file: &self.pid_file,
            console_socket: None,
            log: &self.log,
        };
        let step = Step { log: Some(&self.log), ..Step::new("create a container", deadline) };
        run(&self.runtime, &self.runtime.create(&create), step).map(drop)
    }

    fn delete(&self, deadline: Instant) -> Result<(), RuntimeError> {
        let step = Step { log: Some(&self.log), ..Step::new("delete a container", deadline) };
        run(&self.runtime, &self.runtime.delete(&self.id, &self.log), step).map(drop)
    }

    fn write_bundle(&self) -> Result<(), sys::FileError> {
        for mount_point in ["rootfs/proc", "rootfs/dev"] {
            sys::atomic::create_dir_all(&self.dir.join(mount_point), 0o700)?;
        }
        sys::atomic::write(&self.dir.join("rootfs/pause"), sys::pause::BINARY, 0o755)?;
        let config = config(&self.id, self.runtime.systemd_cgroup);
        sys::atomic::write(&self.dir.join("config.json"), config.to_string().as_bytes(), 0o600)
    }

    /// Removes what the runtime may have left. Best effort: what is already gone is the usual case.
    fn sweep(&self) {
        self.kill_init();
        for cgroup in self.cgroups() {
            // Fails where it never was, or where a process outlived SIGKILL, which nothing here could mend.
            std::fs::remove_dir(cgroup).ok();
        }
        sys::atomic::remove_tree(&self.dir).ok();
    }

    fn kill_init(&self) {
        let pid = std::fs::read_to_string(&self.pid_file).ok().and_then(|text| text.trim().parse().ok());
        let Some(init) = pid.and_then(|pid| sys::pidfd::PidFd::open(pid).ok().filter(|_| self.is_ours(pid)))
        else {
            return;
        };
        init.signal(KILL).ok();
        init.wait_ended(Some(Duration::from_secs(2))).ok();
    }

    /// The pid may have been given to another process once the runtime has killed the init.
    fn is_ours(&self, pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&self.id))
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = sys::mount::list().unwrap_or_default();
        let hierarchies = mounts.into_iter().filter(|mount| mount.fstype.starts_with("cgroup"));
        hierarchies.map(|mount| mount.mount_point.join(&self.id)).collect()
    }
}

/// The least that both runtimes take for a container. runc makes a missing `/dev` itself, crun refuses. crun up to 1.21
/// crashes with the systemd driver where no resources are named.
fn config(id: &str, systemd_cgroup: bool) -> serde_json::Value {
    let cgroups_path = if systemd_cgroup {
        format!("system.slice:crimson:{}", id.trim_start_matches("crimson-"))
    } else {
        format!("/{id}")
    };
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": [], "noNewPrivileges": true},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}
            ]
        }
    })
}
