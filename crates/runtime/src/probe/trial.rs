//! The life of one probe's container.
//!
//! Everything of it has the probe's name: its directory, which is made first and removed last, and its cgroup or scope. So what is
//! left of one that was cut off is known by the directory alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sys::pidfd::PidFd;

use crate::run::{KILL, RuntimeError, Step, run};
use crate::{Create, RuntimeCommand};

/// What the names of probes begin with; 32 hexadecimal digits follow.
const PREFIX: &str = "crimson-probe-";
/// Where a probe says how to undo it.
const ORDER: &str = "runtime.json";
/// How long killed processes may take to end.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Looks at a cgroup before its processes are given up: new ones may come as fast as we look.
const PASSES: usize = 8;

pub(super) struct Trial {
    runtime: RuntimeCommand,
    id: String,
    dir: PathBuf,
    log: PathBuf,
    pid_file: PathBuf,
}

/// The runtime that a probe tries.
#[derive(Serialize, Deserialize)]
struct Order {
    path: PathBuf,
    systemd_cgroup: bool,
}

impl Trial {
    pub(super) fn new(runtime: &RuntimeCommand, scratch: &Path) -> Self {
        let id = format!("{PREFIX}{}", types::id::hex(&sys::random::bytes::<16>()));
        Self::at(scratch.join(&id), id, runtime)
    }

    fn at(dir: PathBuf, id: String, runtime: &RuntimeCommand) -> Self {
        Self {
            runtime: RuntimeCommand { root: dir.join("state"), ..runtime.clone() },
            log: dir.join("log"),
            pid_file: dir.join("pid"),
            dir,
            id,
        }
    }

    /// The probe that has left this directory, if it is one's. Before it wrote down its runtime it has done nothing; then any
    /// will do.
    pub(super) fn left_at(dir: &Path) -> Option<Self> {
        let id = dir.file_name()?.to_str().filter(|name| is_name(name))?.to_owned();
        let order = std::fs::read(dir.join(ORDER)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Order { path, systemd_cgroup } =
            order.unwrap_or(Order { path: "/bin/false".into(), systemd_cgroup: false });
        let runtime = RuntimeCommand { path, root: PathBuf::new(), systemd_cgroup };
        Some(Self::at(dir.to_owned(), id, &runtime))
    }

    pub(super) fn into_name(self) -> String {
        self.id
    }

    pub(super) fn create(&self, deadline: Instant) -> Result<(), RuntimeError> {
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

    pub(super) fn delete(&self, deadline: Instant) -> Result<(), RuntimeError> {
        let step = Step { log: Some(&self.log), ..Step::new("delete a container", deadline) };
        run(&self.runtime, &self.runtime.delete(&self.id, &self.log), step).map(drop)
    }

    fn write_bundle(&self) -> Result<(), sys::FileError> {
        for mount_point in ["rootfs/proc", "rootfs/dev"] {
            sys::atomic::create_dir_all(&self.dir.join(mount_point), 0o700)?;
        }
        let RuntimeCommand { path, systemd_cgroup, .. } = self.runtime.clone();
        let order = serde_json::to_vec(&Order { path, systemd_cgroup }).unwrap_or_default();
        sys::atomic::write(&self.dir.join(ORDER), &order, 0o600)?;
        sys::atomic::write(&self.dir.join("rootfs/pause"), sys::pause::BINARY, 0o755)?;
        let config = config(&self.id, self.runtime.systemd_cgroup);
        sys::atomic::write(&self.dir.join("config.json"), config.to_string().as_bytes(), 0o600)
    }

    /// Kills the runtime where it is still at work: one of its arguments is the probe's own `--root`.
    pub(super) fn stop_runtime(&self) {
        let root = self.runtime.root.as_os_str().as_encoded_bytes();
        let is_ours = |pid: i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == root)
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| is_ours(*pid)).for_each(|pid| kill_if(pid, is_ours));
    }

    /// Removes what the runtime may have left. Best effort: what is already gone is the usual case.
    pub(super) fn clear(&self) {
        let cgroups = self.cgroups();
        for _ in 0..PASSES {
            let members: Vec<i32> = cgroups.iter().flat_map(|cgroup| members(cgroup)).collect();
            if members.is_empty() {
                break;
            }
            members.into_iter().for_each(|pid| kill_if(pid, |pid| self.holds(pid)));
        }
        for cgroup in cgroups {
            // Fails where it never was, or where a process outlived SIGKILL, which nothing here could mend.
            std::fs::remove_dir(cgroup).ok();
        }
        sys::atomic::remove_tree(&self.dir).ok();
    }

    /// The pid may have been given to another process meanwhile.
    fn holds(&self, pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&self.id))
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = sys::mount::list().unwrap_or_default();
        let hierarchies = mounts.into_iter().filter(|mount| mount.fstype.starts_with("cgroup"));
        let place = if self.runtime.systemd_cgroup {
            Path::new("system.slice").join(format!("{}.scope", self.id))
        } else {
            PathBuf::from(&self.id)
        };
        hierarchies.map(|mount| mount.mount_point.join(&place)).collect()
    }
}

fn is_name(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn members(cgroup: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Kills the process that is meant once it is held, so that it is no other, and waits for its end.
fn kill_if(pid: i32, is_meant: impl Fn(i32) -> bool) {
    let Some(process) = PidFd::open(pid).ok().filter(|_| is_meant(pid)) else { return };
    process.signal(KILL).ok();
    process.wait_ended(Some(KILL_WAIT)).ok();
}

/// The least that both runtimes take for a container. runc makes a missing `/dev` itself, crun refuses. crun up to 1.21
/// crashes with the systemd driver where no resources are named.
fn config(id: &str, systemd_cgroup: bool) -> serde_json::Value {
    let cgroups_path = if systemd_cgroup {
        format!("system.slice:crimson:{}", id.trim_start_matches("crimson-"))
    } else {
        format!("/{id}")
    };
    let mut config = serde_json::json!({
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
    });
    if systemd_cgroup {
        // As for every container: a scope that has failed is forgotten, too.
        config["annotations"] =
            serde_json::json!({"org.systemd.property.CollectMode": "'inactive-or-failed'"});
    }
    config
}
