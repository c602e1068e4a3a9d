//! A machine of one's own: private mount, network and process namespaces on the host's kernel.
//!
//! States: *booting* (until its first process has set the namespaces up and said so) and *up*. It goes down when the
//! value is dropped or the test process dies in any way: its first process reads a pipe whose other end is ours, ends at
//! end of file, and the kernel then kills every process of the machine; its mounts, links, firewall rules and network
//! namespaces go with it. [`Machine::host`] is the host itself, for the demo, which is to be seen from outside.
//!
//! With the systemd cgroup driver a machine has the host's process ids, since systemd must know the processes it is told of.
//! Then the machine's processes are known by their namespaces and their cgroup, and dropping the value kills them.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::cgroups::Cgroups;
use crate::{CgroupDriver, Result, process, run_token};

/// What the first process does: shared propagation as systemd sets it, `/run/netns` of its own, a loopback and a link with
/// a default route. Then it waits for end of file, and as a shell it reaps whatever falls to it meanwhile.
const BOOT: &str = "\
set -e
mount --make-rshared /
mkdir -p /run/netns
mount -t tmpfs -o mode=755 tmpfs /run/netns
mount --make-shared /run/netns
ip link set lo up
ip link add uplink0 type veth peer name uplink1
ip address add 198.51.100.2/24 dev uplink0
ip link set uplink1 up
ip link set uplink0 up
ip route add default via 198.51.100.1
echo up
cat >/dev/null
";

/// Where daemons, registries and probes of one test run.
#[derive(Debug)]
pub struct Machine {
    token: String,
    cgroups: Cgroups,
    namespaces: Option<Namespaces>,
}

/// The holder of the namespaces: `unshare`, whose child is the machine's process 1.
#[derive(Debug)]
struct Namespaces {
    init: u32,
    /// Whether they number processes of their own.
    own_processes: bool,
    _keeps_it_up: ChildStdin,
    _unshare: Child,
}

impl Machine {
    /// Boots a machine with namespaces of its own.
    pub async fn boot() -> Result<Self> {
        let token = run_token();
        let cgroups = Cgroups::create(&token)?;
        let own_processes = CgroupDriver::asked_for() == CgroupDriver::Cgroupfs;
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--net", "--fork", "--kill-child"])
            .args(if own_processes { ["--pid", "--mount-proc"].as_slice() } else { &[] })
            .args(["sh", "-c", BOOT])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .process_group(0)
            .spawn()
            .context("starting unshare (util-linux)")?;
        let stdin = unshare.stdin.take().context("pipe to the machine")?;
        let stdout = unshare.stdout.take().context("pipe from the machine")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        if line.as_deref() != Some("up") {
            bail!("the machine did not boot: {line:?}");
        }
        let init = process::only_child(unshare.id().context("unshare has ended")?)?;
        let namespaces = Some(Namespaces { init, own_processes, _keeps_it_up: stdin, _unshare: unshare });
        Ok(Self { token, cgroups, namespaces })
    }

    /// The host itself.
    pub fn host() -> Result<Self> {
        let token = run_token();
        Ok(Self { cgroups: Cgroups::create(&token)?, token, namespaces: None })
    }

    /// The name of this run, part of everything the machine's users create outside the namespaces.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The value of `cgroup_parent` for a pod of this run.
    #[must_use]
    pub fn pod_parent(&self, uid: &str) -> String {
        self.cgroups.pod_parent(uid)
    }

    /// The cgroups that belong to this run.
    #[must_use]
    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Whether the machine is namespaces of its own rather than the host.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.namespaces.is_some()
    }

    /// Whether the machine numbers its processes by itself: then `nsenter` has a child, and else it becomes the program.
    pub(crate) fn has_own_processes(&self) -> bool {
        self.namespaces.as_ref().is_some_and(|it| it.own_processes)
    }

    /// A command that will run inside the machine. Its process id seen from here is that of the child of `nsenter`.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.namespaces {
            None => Command::new(program),
            Some(namespaces) => {
                let mut enter = Command::new("nsenter");
                enter.args(["-t", &namespaces.init.to_string(), "-m", "-n"]);
                enter.args(namespaces.own_processes.then_some("-p")).arg("--").arg(program);
                enter
            }
        };
        // A group of its own, so that Ctrl-C reaches the test or demo alone, which then ends the others in order.
        command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true).process_group(0);
        command
    }

    /// Runs a program of the machine to its end and returns what it printed.
    pub async fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output =
            self.command(program).args(args).output().await.with_context(|| format!("running {program}"))?;
        if !output.status.success() {
            bail!("{program} {args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The path under which this process sees a path of the machine.
    #[must_use]
    pub fn path(&self, inside: &Path) -> PathBuf {
        match &self.namespaces {
            None => inside.to_owned(),
            Some(namespaces) => {
                let root = PathBuf::from(format!("/proc/{}/root", namespaces.init));
                root.join(inside.strip_prefix("/").unwrap_or(inside))
            }
        }
    }

    /// The mount table of the machine.
    pub fn mountinfo(&self) -> Result<String> {
        let pid = self.namespaces.as_ref().map_or_else(|| "self".to_owned(), |it| it.init.to_string());
        std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).context("reading the machine's mount table")
    }

    /// All processes of the machine, nested containers included, as it numbers them; on the host itself everybody's.
    pub(crate) fn processes(&self) -> Result<Vec<(u32, String)>> {
        let mut found = process::list(&self.path(Path::new("/proc")))?;
        if let Some(namespaces) = self.namespaces.as_ref().filter(|it| !it.own_processes) {
            let homes = ["mnt", "net"].map(|kind| (kind, process::namespace(namespaces.init, kind)));
            found.retain(|(pid, _)| {
                homes.iter().any(|(kind, home)| home.is_some() && process::namespace(*pid, kind) == *home)
                    || self.cgroups.holds(*pid)
            });
        }
        Ok(found)
    }

    /// Runs blocking work on a thread of its own inside the machine's network.
    pub async fn in_network<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let namespace = match &self.namespaces {
            None => None,
            Some(it) => Some(
                File::open(format!("/proc/{}/ns/net", it.init)).context("opening the network namespace")?,
            ),
        };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("in-network".to_owned()).spawn(move || {
            let entered = namespace
                .as_ref()
                .map_or(Ok(()), |it| move_into_link_name_space(it.as_fd(), Some(LinkNameSpaceType::Network)));
            // The receiver is gone when the test was cancelled: nobody waits for the answer then.
            drop(sender.send(entered.map(|()| work())));
        })?;
        receiver.await.context("the worker thread ended early")?.context("entering the machine's network")
    }
}

impl Drop for Machine {
    /// The kernel ends what runs in process ids of the machine's own; what has the host's is ended here.
    fn drop(&mut self) {
        if self.is_private() && !self.has_own_processes() {
            for _ in 0..20 {
                let left = self.processes().unwrap_or_default();
                if left.is_empty() {
                    break;
                }
                for (pid, _) in left {
                    // Gone by itself meanwhile.
                    drop(process::signal(pid, rustix::process::Signal::KILL));
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}
