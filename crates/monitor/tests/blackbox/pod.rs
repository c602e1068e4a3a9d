//! A pod for one test: temporary directories, a busybox root filesystem, a monitor, and the proof that all is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crilog::{Stream, read_output};
use monitor_api::{
    Connection, CreateRequest, Event, ExecRequest, ExitRecord, MonitorError, Monitors, Overlay,
    ProcessMonitors, RuntimeCommand,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use types::{ContainerId, ExecId, SandboxId};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Pod {
    dir: TempDir,
    pub(crate) sandbox: SandboxId,
    pub(crate) monitors: ProcessMonitors,
    pub(crate) connection: Connection,
    pub(crate) runtime: PathBuf,
    name: String,
    containers: u8,
}

/// The program to test instead of the one that was just built.
pub(crate) fn shipped_monitor() -> Option<PathBuf> {
    std::env::var_os("CRIMSON_MONITOR").map(|path| fs::canonicalize(path).expect("CRIMSON_MONITOR is a file"))
}

/// runc, or what `CRIMSON_RUNTIME` names.
fn runtime() -> PathBuf {
    let named = std::env::var_os("CRIMSON_RUNTIME").map(PathBuf::from);
    let usual = ["/usr/bin/runc", "/usr/sbin/runc"].map(PathBuf::from);
    named.into_iter().chain(usual).find(|path| path.is_file()).expect("runc is installed")
}

/// A container about to be made.
pub(crate) struct Plan {
    pub(crate) request: CreateRequest,
    pub(crate) config: Value,
}

impl Pod {
    pub(crate) async fn new() -> Self {
        Self::with_monitor_started_by("").await
    }

    /// A pod whose monitor is started by way of this command.
    pub(crate) async fn with_monitor_started_by(starter: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("crimson-monitor-test-").tempdir().unwrap();
        // As the daemon does with its state directory.
        sys::mount::private_self_bind(dir.path()).unwrap();
        make_busybox(&dir.path().join("image"));
        let binary = shipped_monitor().unwrap_or_else(|| env!("CARGO_BIN_EXE_crimson-monitor").into());
        let wrapper = format!("#!/bin/sh\nexec {starter} {} \"$@\"\n", binary.display());
        let binary = if starter.is_empty() { binary } else { program(dir.path().join("wrapper"), &wrapper) };
        let monitors = ProcessMonitors { binary, state_dir: dir.path().join("state") };
        let sandbox = SandboxId::from_random(sys::random::bytes());
        let connection = monitors.spawn(&sandbox).await.unwrap();
        let name = format!("crimson-monitor-test-{}", sandbox.short());
        let runtime = runtime();
        Self { dir, sandbox, monitors, connection, runtime, name, containers: 0 }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// A container that runs this shell script.
    pub(crate) fn plan(&mut self, script: &str) -> Plan {
        self.containers += 1;
        let container = ContainerId::from_random([self.containers; 32]);
        let place = |what: &str| self.path(&format!("{what}-{}", self.containers));
        for dir in [place("bundle").join("rootfs"), place("upper"), place("work")] {
            fs::create_dir_all(dir).unwrap();
        }
        let rootfs = Overlay {
            lowers: vec![self.path("image")],
            upper: Some(place("upper")),
            work: Some(place("work")),
            readonly: false,
        };
        let request = CreateRequest {
            container,
            bundle: place("bundle"),
            rootfs: Some(rootfs),
            images: Vec::new(),
            user_namespace: None,
            runtime: RuntimeCommand {
                path: self.runtime.clone(),
                root: self.path("runtime"),
                systemd_cgroup: false,
            },
            log: Some(place("log")),
            terminal: false,
            stdin: false,
            stdin_once: false,
            exit_file: place("exit"),
            timeout_ms: 30_000,
        };
        Plan { request, config: config(script, &format!("/{}/{}", self.name, self.containers)) }
    }

    /// Makes the container and starts it.
    pub(crate) async fn run(&self, plan: &Plan) -> ContainerId {
        self.create(plan).await.unwrap();
        self.connection.monitor.start(&plan.request.container).await.unwrap();
        plan.request.container.clone()
    }

    pub(crate) async fn create(&self, plan: &Plan) -> Result<i32, MonitorError> {
        fs::write(plan.request.bundle.join("config.json"), plan.config.to_string()).unwrap();
        self.connection.monitor.create(plan.request.clone()).await.map(|created| created.pid)
    }

    pub(crate) async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(LIMIT, self.connection.events.recv()).await;
        event.expect("an event comes").expect("the connection is open")
    }

    /// The next event, which must be a container's exit, or tell of log lines that were lost before it.
    pub(crate) async fn exit(&mut self) -> ExitRecord {
        loop {
            match self.event().await {
                Event::Exited(record) => return record,
                Event::LogLinesDropped { .. } => {}
                other @ Event::ExecExited { .. } => panic!("{other:?} instead of an exit"),
            }
        }
    }

    pub(crate) fn process(&self, container: &ContainerId, script: &str) -> ExecRequest {
        let exec = ExecId::from_random(sys::random::bytes());
        let process = self.path(&format!("process-{exec}.json"));
        fs::write(&process, process_of(script).to_string()).unwrap();
        ExecRequest {
            exec,
            container: container.clone(),
            process,
            stdin: false,
            stdout: false,
            stderr: false,
            terminal: false,
            timeout_ms: 30_000,
        }
    }

    /// What the container has printed so far.
    pub(crate) fn printed(plan: &Plan, stream: Stream) -> String {
        let log = fs::read(plan.request.log.as_ref().unwrap()).unwrap();
        String::from_utf8(read_output(&log, stream).unwrap()).unwrap()
    }

    /// Waits until the container has printed this.
    pub(crate) async fn wait_printed(plan: &Plan, text: &str) {
        wait_until(text, || Self::printed(plan, Stream::Stdout).contains(text)).await;
    }

    /// Deletes all containers, ends the monitor and proves that nothing is left.
    pub(crate) async fn finish(mut self) {
        let monitor = self.connection.monitor.clone();
        for state in monitor.list().await.unwrap() {
            monitor.delete(&state.container).await.unwrap();
        }
        monitor.shutdown().await.unwrap();
        while self.connection.events.recv().await.is_some() {}
        assert!(self.monitors.connect(&self.sandbox).await.unwrap().is_none());
        self.assert_nothing_left().await;
    }

    async fn assert_nothing_left(&self) {
        let dir = self.dir.path().to_str().unwrap();
        wait_until("no process", || {
            processes(|text| text.contains(dir) || text.contains(&self.name)).is_empty()
        })
        .await;
        let mounts = sys::mount::list().unwrap().into_iter().map(|mount| mount.mount_point);
        let mounts: Vec<_> = mounts.filter(|point| point.starts_with(dir)).collect();
        assert_eq!(mounts, [self.dir.path()]);
        let pod_files = fs::read_dir(self.path("state/pods").join(self.sandbox.as_str())).unwrap();
        let pod_files: Vec<_> = pod_files.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(pod_files, ["monitor.log"]);
        for bundle in (1..=self.containers).map(|n| self.path(&format!("bundle-{n}"))) {
            let mut files: Vec<_> =
                fs::read_dir(bundle).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            files.sort();
            assert!(files == ["config.json", "rootfs"] || files == ["rootfs"], "{files:?}");
        }
        for cgroup in self.cgroups() {
            // The parent of the containers' cgroups is the daemon's to remove; it must be empty.
            fs::remove_dir(&cgroup).unwrap_or_else(|error| panic!("{}: {error}", cgroup.display()));
        }
    }

    /// The cgroups that execs of our containers have now.
    pub(crate) fn exec_cgroups(&self) -> Vec<PathBuf> {
        let containers = self.cgroups().into_iter().flat_map(|dir| directories(&dir));
        let groups = containers.flat_map(|dir| directories(&dir));
        groups.filter(|dir| dir.to_str().unwrap().contains("crimson-exec-")).collect()
    }

    /// The cgroup of the containers' cgroups, in each hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mounts =
            sys::mount::list().unwrap().into_iter().filter(|mount| mount.fstype.starts_with("cgroup"));
        let dirs = mounts.map(|mount| mount.mount_point.join(&self.name));
        let mut dirs: Vec<_> = dirs.filter(|dir| dir.is_dir()).collect();
        // Two mounts may show one hierarchy.
        dirs.sort();
        dirs.dedup();
        dirs
    }
}

impl Drop for Pod {
    /// A test that failed half-way leaves its processes and cgroups to us; after one that did not there is nothing to do.
    fn drop(&mut self) {
        let left = processes(|text| text.contains(self.sandbox.as_str()) || text.contains(&self.name));
        for (pid, _) in left {
            if let Ok(process) = sys::pidfd::PidFd::open(pid) {
                process.signal(9).ok();
                process.wait_ended(Some(Duration::from_secs(2))).ok();
            }
        }
        for cgroup in self.cgroups() {
            let below = fs::read_dir(&cgroup).into_iter().flatten().flatten().map(|entry| entry.path());
            below
                .filter(|path| path.is_dir())
                .chain([cgroup.clone()])
                .for_each(|dir| drop(fs::remove_dir(dir)));
        }
        sys::mount::unmount(self.dir.path()).ok();
    }
}

/// A program of this text. It is written by a process of its own: what another test starts meanwhile would hold a file of ours
/// open for writing, and it could not be run.
pub(crate) fn program(path: PathBuf, text: &str) -> PathBuf {
    let written = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .args([path.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success());
    path
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

/// What a monitor's open descriptors refer to, such as `pipe:[4711]`. Some are there for a moment only, and outlive the reply to
/// what they were opened for, so their number tells nothing.
pub(crate) fn descriptors(monitor: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().flatten();
    // One that is closed meanwhile has no target any more.
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.map(|target| target.to_string_lossy().into_owned()).collect()
}

/// How many connections a monitor has, with its listening socket.
pub(crate) fn sockets(monitor: i32) -> usize {
    descriptors(monitor).iter().filter(|target| target.starts_with("socket:")).count()
}

/// The processes whose command line and cgroups match, as pid and that text.
pub(crate) fn processes(matches: impl Fn(&str) -> bool) -> Vec<(i32, String)> {
    let own = i32::try_from(std::process::id()).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid != own);
    let read = |pid: i32, file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let text =
        |pid| String::from_utf8_lossy(&[read(pid, "cmdline"), read(pid, "cgroup")].concat()).into_owned();
    pids.map(|pid| (pid, text(pid))).filter(|(_, text)| matches(text)).collect()
}

pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = tokio::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn make_busybox(root: &Path) {
    for dir in ["bin", "proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = root.join("bin/busybox");
    if fs::hard_link("/bin/busybox", &busybox).is_err() {
        // By a process of its own, as every program.
        let copied = Command::new("cp").arg("/bin/busybox").arg(&busybox).status();
        assert!(copied.unwrap().success(), "busybox-static is installed");
    }
    for applet in ["sh", "sleep", "cat", "echo", "seq", "stty", "tty", "tail", "head", "kill", "setsid", "dd"]
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

pub(crate) fn process_of(script: &str) -> Value {
    json!({
        "args": ["/bin/sh", "-c", script],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": true
    })
}

fn config(script: &str, cgroups_path: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process_of(script),
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}
            ]
        }
    })
}
