//! Monitors as processes.
//!
//! `state_dir/pods/<sandbox>/` holds `monitor.sock`, `monitor.pid` (process id and start time, written by the monitor) and
//! `monitor.log` (its stderr). The daemon binds and listens itself and hands the listening socket over as the monitor's
//! stdin: a connection made right away waits in the backlog, so nothing polls for readiness, and a refused connection
//! proves that no monitor is alive. The monitor puts itself into a session of its own and ignores what kills the daemon.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::process::Command;
use tokio::runtime::Handle;
use types::SandboxId;

use super::birthplace::Birthplace;
use super::link::establish;
use super::{Connection, Monitors};
use crate::error::MonitorError;

const BACKLOG: i32 = 16;

/// Spawns and finds the monitors of this node.
#[derive(Debug, Clone)]
pub struct ProcessMonitors {
    /// The program `crimson-monitor`.
    pub binary: PathBuf,
    /// The daemon's volatile state directory.
    pub state_dir: PathBuf,
}

/// [`ProcessMonitors`] whose new monitors are in a cgroup of their own, so that neither the server itself nor the pod is charged
/// for them.
#[derive(Debug)]
pub struct PlacedMonitors {
    monitors: ProcessMonitors,
    birthplace: Option<Birthplace>,
    cgroups: Vec<PathBuf>,
}

impl ProcessMonitors {
    /// New monitors are born in the cgroups `by_thread`, which must exist and be of v1, and begin by entering those called
    /// `by_process`, one directory for each hierarchy. Of the latter one that cannot be entered is named in the monitor's log, and
    /// the monitor stays in ours.
    ///
    /// # Errors
    /// The kernel's answer when a thread cannot enter the first.
    pub fn in_cgroups(self, by_thread: Vec<PathBuf>, by_process: Vec<PathBuf>) -> io::Result<PlacedMonitors> {
        let birthplace = if by_thread.is_empty() { None } else { Some(Birthplace::enter(by_thread)?) };
        Ok(PlacedMonitors { monitors: self, birthplace, cgroups: by_process })
    }

    async fn spawn_in(
        &self,
        sandbox: &SandboxId,
        birthplace: Option<&Birthplace>,
        cgroups: &[PathBuf],
    ) -> Result<Connection, MonitorError> {
        if let Some(connection) = self.connect(sandbox).await? {
            return Ok(connection);
        }
        let dir = self.pod_dir(sandbox);
        let listener = listen(&dir).map_err(|source| MonitorError::Prepare { path: dir.clone(), source })?;
        match birthplace {
            Some(birthplace) => self.start_at(birthplace, sandbox, cgroups, listener).await?,
            None => self.start_process(sandbox, &dir, cgroups, listener)?,
        }
        let socket = connect(&dir).map_err(MonitorError::Socket)?.ok_or(MonitorError::Lost)?;
        establish(socket, sandbox).await
    }

    async fn start_at(
        &self,
        birthplace: &Birthplace,
        sandbox: &SandboxId,
        cgroups: &[PathBuf],
        listener: OwnedFd,
    ) -> Result<(), MonitorError> {
        let (this, sandbox, cgroups) = (self.clone(), sandbox.clone(), cgroups.to_owned());
        let runtime = Handle::current();
        let start = move || {
            let _entered = runtime.enter();
            this.start_process(&sandbox, &this.pod_dir(&sandbox), &cgroups, listener)
        };
        let ended = || io::Error::other("the thread that starts monitors has ended");
        birthplace
            .run(start)
            .await
            .unwrap_or_else(|| Err(MonitorError::Spawn { program: self.binary.clone(), source: ended() }))
    }

    fn pod_dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.state_dir.join("pods").join(sandbox.as_str())
    }

    fn start_process(
        &self,
        sandbox: &SandboxId,
        dir: &Path,
        cgroups: &[PathBuf],
        listener: OwnedFd,
    ) -> Result<(), MonitorError> {
        let failed = |source| MonitorError::Spawn { program: self.binary.clone(), source };
        let log = open_log(&dir.join("monitor.log"))?;
        // A monitor outlives us, and with it every descriptor that it would inherit: a listening socket from systemd for one.
        sys::process::close_inherited_on_exec().map_err(failed)?;
        let mut child = Command::new(&self.binary)
            .arg("serve")
            .args(["--sandbox", sandbox.as_str()])
            .arg("--socket")
            .arg(dir.join("monitor.sock"))
            .arg("--pid-file")
            .arg(dir.join("monitor.pid"))
            .args(cgroups.iter().flat_map(|dir| [OsStr::new("--cgroup"), dir.as_os_str()]))
            .current_dir("/")
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(failed)?;
        // The task has one duty, to leave no zombie; that the monitor ended is seen at its connection.
        tokio::spawn(async move { drop(child.wait().await) });
        Ok(())
    }
}

impl PlacedMonitors {
    /// Starts no more monitors where that takes a thread of ours in their cgroup, so that the cgroup can be removed.
    pub fn leave(&self) {
        self.birthplace.iter().for_each(Birthplace::leave);
    }
}

#[async_trait]
impl Monitors for ProcessMonitors {
    async fn spawn(&self, sandbox: &SandboxId) -> Result<Connection, MonitorError> {
        self.spawn_in(sandbox, None, &[]).await
    }

    async fn connect(&self, sandbox: &SandboxId) -> Result<Option<Connection>, MonitorError> {
        match connect(&self.pod_dir(sandbox)).map_err(MonitorError::Socket)? {
            Some(socket) => establish(socket, sandbox).await.map(Some),
            None => Ok(None),
        }
    }
}

#[async_trait]
impl Monitors for PlacedMonitors {
    async fn spawn(&self, sandbox: &SandboxId) -> Result<Connection, MonitorError> {
        // Another server in the same group may have found it empty, and removed it.
        self.cgroups.iter().for_each(|dir| drop(std::fs::create_dir(dir)));
        self.monitors.spawn_in(sandbox, self.birthplace.as_ref(), &self.cgroups).await
    }

    async fn connect(&self, sandbox: &SandboxId) -> Result<Option<Connection>, MonitorError> {
        self.monitors.connect(sandbox).await
    }
}

/// A socket address is limited to 107 bytes, which a state directory of some depth exceeds: the address goes through the
/// directory's descriptor instead.
fn address(dir: &OwnedFd) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/monitor.sock", dir.as_raw_fd()))?)
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700).create(dir)?;
    let dir = open_dir(dir)?;
    match rustix::fs::unlinkat(&dir, "monitor.sock", rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = socket()?;
    rustix::net::bind(&socket, &address(&dir)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// `None` when nothing listens there.
fn connect(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let dir = match open_dir(dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let socket = socket()?;
    match rustix::net::connect(socket.as_fd(), &address(&dir)?) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_log(path: &Path) -> Result<File, MonitorError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options.open(path).map_err(|source| MonitorError::Prepare { path: path.to_owned(), source })
}
