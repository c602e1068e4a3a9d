//! One daemon under test with everything that is its own: machine, directories, network, log.
//!
//! A test ends with [`Node::finish`], which proves that nothing leaked. A node that is dropped without it (the test has
//! failed) prints the end of the daemon's log and takes everything down with its machine.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_cri::v1::{ContainerState, ContainerStatus, PodSandboxStatusRequest};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::notify::Notify;
use crate::{
    CgroupDriver, ContainerSpec, Cri, Machine, Network, PodSpec, Registry, Result, Snapshot, patience,
    process,
};

/// How long a daemon may take to get ready, to stop, or to settle after a test.
const PATIENCE_SECONDS: u64 = 30;

/// How much of the log a failed test prints.
const LOG_TAIL_LINES: usize = 150;

/// What differs from a plain node.
#[derive(Debug, Default)]
pub struct Options {
    /// Run on this machine rather than on a new one.
    pub machine: Option<Arc<Machine>>,
    /// Start without a CNI conf list.
    pub without_network: bool,
    /// Use the networks described in this directory rather than one of the node's own.
    pub cni_conf_dir: Option<PathBuf>,
    /// Contents of the configuration file.
    pub config: String,
    /// Further command line arguments.
    pub args: Vec<String>,
    /// The level of the daemon's log; empty is `debug`.
    pub log_level: String,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
    /// A command that becomes the daemon: its words, before the daemon's own.
    pub starter: Vec<String>,
    /// Give the storage a file system of its own with this many MiB.
    pub root_mib: Option<u32>,
    /// Where the product's binaries are, if not beside the test.
    pub binaries: Option<PathBuf>,
}

/// A daemon and what belongs to it.
#[derive(Debug)]
pub struct Node {
    machine: Arc<Machine>,
    network: Network,
    options: Options,
    daemon: Option<Daemon>,
    cri: Option<Cri>,
    baseline: Snapshot,
    fds_when_ready: Vec<String>,
    finished: bool,
    dir: TempDir,
}

/// A running daemon process.
#[derive(Debug)]
struct Daemon {
    child: Child,
    pid: u32,
    notify: Notify,
}

/// The directory with the product's binaries: `CRIMSON_BIN_DIR`, or the one the running test program was built into.
pub fn binary_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CRIMSON_BIN_DIR") {
        return std::path::absolute(PathBuf::from(dir)).context("making CRIMSON_BIN_DIR absolute");
    }
    let own = std::env::current_exe().context("finding the test's own path")?;
    let dir = own.parent().context("a program in a directory")?;
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_owned())
}

impl Node {
    /// Starts a plain node on a machine of its own.
    pub async fn boot() -> Result<Self> {
        Self::start(Options::default()).await
    }

    /// Starts a node and a registry that it knows, on one machine.
    pub async fn boot_with_registry() -> Result<(Self, Registry)> {
        Self::start_with_registry(Options::default()).await
    }

    /// Like [`Node::boot_with_registry`] with options.
    pub async fn start_with_registry(mut options: Options) -> Result<(Self, Registry)> {
        let machine = match options.machine.take() {
            Some(machine) => machine,
            None => Arc::new(Machine::boot().await?),
        };
        let registry = Registry::start(&machine).await?;
        options.machine = Some(machine);
        let mut node = Self::prepare(options).await?;
        registry.describe_to(&node.registry_config_dir())?;
        node.begin().await?;
        Ok((node, registry))
    }

    /// Starts a node.
    pub async fn start(options: Options) -> Result<Self> {
        let mut node = Self::prepare(options).await?;
        node.begin().await?;
        Ok(node)
    }

    async fn prepare(mut options: Options) -> Result<Self> {
        let machine = match options.machine.take() {
            Some(machine) => machine,
            None => Arc::new(Machine::boot().await?),
        };
        // Short, since unix socket paths end at 108 bytes.
        let dir = tempfile::Builder::new().prefix("ce-").tempdir().context("making the node's directory")?;
        let mut network = Network::plan(dir.path(), machine.token())?;
        match options.cni_conf_dir.take() {
            Some(conf_dir) => network.conf_dir = conf_dir,
            None if options.without_network => {}
            None => network.enable()?,
        }
        fs::write(dir.path().join("config.toml"), &options.config)?;
        fs::create_dir(dir.path().join("certs.d"))?;
        if let Some(mib) = options.root_mib {
            let root = dir.path().join("root");
            fs::create_dir(&root)?;
            let target = root.display().to_string();
            machine
                .output("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m,mode=711"), "tmpfs", &target])
                .await?;
        }
        Ok(Self {
            machine,
            network,
            options,
            daemon: None,
            cri: None,
            baseline: Snapshot::default(),
            fds_when_ready: Vec::new(),
            finished: false,
            dir,
        })
    }

    /// The first start, after which the state is what every later state is compared with.
    async fn begin(&mut self) -> Result {
        self.spawn().await?;
        self.baseline = Snapshot::take(self).await?;
        Ok(())
    }

    /// The client.
    ///
    /// # Panics
    /// When the daemon has never been started.
    #[must_use]
    pub fn cri(&self) -> Cri {
        self.cri.clone().expect("the daemon has been started")
    }

    /// The machine that the node runs on.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The node's CNI network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The directory under which everything of the node lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `--root`
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir().join("root")
    }

    /// `--state`
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// `--socket`
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir().join("run/crimson.sock")
    }

    /// `--registry-config-dir`
    #[must_use]
    pub fn registry_config_dir(&self) -> PathBuf {
        self.dir().join("certs.d")
    }

    /// The processes that look after the node's pods, as the machine numbers them.
    pub fn monitors(&self) -> Result<Vec<u32>> {
        let dir = self.dir().display().to_string();
        let mut found = self.machine.processes()?;
        found.retain(|(_, line)| line.contains("crimson-monitor") && line.contains(&dir));
        // A program that one of them starts looks like it for a moment, but has not written down its id.
        found.retain(|(pid, line)| {
            let file = line.split_once(" --pid-file ").and_then(|(_, rest)| rest.split(' ').next());
            let text = file.and_then(|file| fs::read_to_string(self.machine.path(Path::new(file))).ok());
            text.and_then(|text| text.split_whitespace().next()?.parse().ok()) == Some(*pid)
        });
        Ok(found.into_iter().map(|(pid, _)| pid).collect())
    }

    /// The process id of the daemon, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(|daemon| daemon.pid)
    }

    /// Everything the daemon has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A pod of this node with names of its own.
    #[must_use]
    pub fn pod(&self, name: &str) -> PodSpec {
        let uid = format!("{name}-{}", self.machine.token());
        let parent = self.machine.cgroups().pod_parent(&uid);
        PodSpec::new(name, &uid, parent, &self.dir().join("logs").join(name))
    }

    /// What a container has logged, line by line: stream, tag, content. A line that is being written does not count yet.
    pub fn container_log(&self, pod: &str, path: &str) -> Result<Vec<(String, String, String)>> {
        let path = self.dir().join("logs").join(pod).join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let parse = |line: &str| {
            let mut fields = line.splitn(4, ' ');
            let time = fields.next().unwrap_or_default();
            ensure!(time.len() > 20 && time.contains('T'), "no RFC 3339 time in {line:?}");
            let mut next = || {
                fields.next().map(str::to_owned).with_context(|| format!("a field is missing in {line:?}"))
            };
            Ok((next()?, next()?, next()?))
        };
        let whole = text.rfind('\n').and_then(|end| text.get(..=end)).unwrap_or_default();
        whole.lines().map(parse).collect()
    }

    /// Waits until a container has ended; gives its last status.
    pub async fn exited(&self, id: &str) -> Result<ContainerStatus> {
        let cri = self.cri();
        let wait = async {
            loop {
                let status = cri.container(id).await?;
                if status.state() == ContainerState::ContainerExited {
                    return Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience(PATIENCE_SECONDS), wait)
            .await
            .with_context(|| format!("container {id} does not end"))?
    }

    /// Waits until the end of a container is on record, which is the monitor's doing: no daemon has to run.
    pub async fn end_is_recorded(&self, id: &str) -> Result {
        let record = self.machine.path(&self.state().join("containers").join(id).join("exit.json"));
        let wait = async {
            while !record.try_exists()? {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        tokio::time::timeout(patience(PATIENCE_SECONDS), wait)
            .await
            .with_context(|| format!("there is no {}", record.display()))?
    }

    /// Runs a container and waits until it has ended; gives its last status.
    pub async fn run_to_end(
        &self,
        pod_id: &str,
        container: &ContainerSpec,
        pod: &PodSpec,
    ) -> Result<ContainerStatus> {
        let id = self.cri().run(pod_id, container, pod).await?;
        self.exited(&id).await
    }

    /// Fetches a page from inside the machine's network.
    pub async fn fetch(&self, url: &str) -> Result<crate::HttpReply> {
        let url = url.to_owned();
        self.machine.in_network(move || crate::http_get(&url)).await?
    }

    /// Kills the daemon at once, as a crash would.
    pub async fn kill9(&mut self) -> Result {
        self.remember_ids();
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        process::signal(daemon.pid, Signal::KILL)?;
        daemon.child.wait().await?;
        Ok(())
    }

    /// Waits until the daemon has ended by itself, as by [`Node::kill9`].
    pub async fn died(&mut self) -> Result<ExitStatus> {
        let daemon = self.daemon.as_mut().context("the daemon does not run")?;
        let status = tokio::time::timeout(patience(PATIENCE_SECONDS), daemon.child.wait()).await;
        let status = status.context("the daemon lives on")??;
        self.remember_ids();
        self.daemon = None;
        Ok(status)
    }

    /// Starts the daemon again after [`Node::kill9`] or [`Node::stop`].
    pub async fn restart(&mut self) -> Result {
        self.spawn().await
    }

    /// Asks the daemon to end and waits until it has.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.remember_ids();
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        process::signal(daemon.pid, Signal::TERM)?;
        match tokio::time::timeout(patience(PATIENCE_SECONDS), daemon.child.wait()).await {
            Ok(status) => {
                // Only an end with all its steps says so, and had said it before it was over.
                daemon.notify.hear("STOPPING=1", patience(10)).await?;
                Ok(status?)
            }
            Err(_) => {
                process::signal(daemon.pid, Signal::KILL)?;
                bail!(
                    "the daemon did not end within {PATIENCE_SECONDS} s (CRIMSON_E2E_SLOW times that) of SIGTERM"
                )
            }
        }
    }

    /// Waits until the state of the machine is that of the beginning again, or says what is left over.
    pub async fn assert_nothing_leaked(&self) -> Result {
        self.remember_ids();
        let deadline = tokio::time::Instant::now() + patience(PATIENCE_SECONDS);
        loop {
            let left = Snapshot::take(self).await?.since(&self.baseline);
            if left.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes all pods and images, proves that nothing leaked, stops the daemon, proves that it ends well.
    pub async fn finish(mut self) -> Result {
        if self.daemon.is_none() {
            self.restart().await?;
        }
        let cri = self.cri();
        for pod in cri.all_pods().await? {
            cri.stop_pod(&pod.id).await?;
            cri.remove_pod(&pod.id).await?;
        }
        for image in cri.all_images().await? {
            cri.forget_image(&image.id).await?;
        }
        self.assert_nothing_leaked().await?;
        let status = self.stop().await?;
        ensure!(status.success(), "after SIGTERM the daemon ended with {status}");
        self.finished = true;
        Ok(())
    }

    /// Takes down the network namespaces of the pods there are, so that on the host they are told from strangers'.
    pub async fn remember_network_namespaces(&self) -> Result {
        let cri = self.cri();
        for pod in cri.all_pods().await? {
            let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: true };
            for text in cri.pod_sandbox_status(request).await?.info.values() {
                let names = text.split("/netns/").skip(1).filter_map(|rest| rest.split(['"', '\\']).next());
                names.for_each(|name| cri.remember(name));
            }
        }
        Ok(())
    }

    /// Removes what a daemon on the host has left when it can not be asked any more: processes, mounts, namespaces, bridge.
    fn clear_host(&self) {
        let seen = self.cri.as_ref().map(Cri::seen).unwrap_or_default();
        crate::rescue::clear(self.dir(), &self.network.bridge, &seen);
    }

    /// What the daemon's descriptors referred to when it had got ready, and what they refer to now.
    pub(crate) fn descriptors(&self) -> Result<(Vec<String>, Vec<String>)> {
        let now = self.pid().map_or_else(|| Ok(Vec::new()), process::descriptors)?;
        Ok((self.fds_when_ready.clone(), now))
    }

    /// The daemon's program.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        let dir = self.options.binaries.clone().map_or_else(binary_dir, Ok)?;
        Ok(dir.join("crimson"))
    }

    /// The daemon's program with a subcommand, to be run on the machine.
    pub fn daemon_command(&self, subcommand: &str) -> Result<Command> {
        let mut command = self.machine.command(self.program()?);
        command.args(subcommand.split(' '));
        Ok(command)
    }

    fn serve_command(&self) -> Result<Command> {
        let Some((first, rest)) = self.options.starter.split_first() else {
            return self.daemon_command("serve");
        };
        let mut command = self.machine.command(first);
        command.args(rest).arg(self.program()?).arg("serve");
        Ok(command)
    }

    async fn spawn(&mut self) -> Result {
        let notify = Notify::bind(self.dir())?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let dir = self.dir();
        let mut command = self.serve_command()?;
        command.arg("--config").arg(dir.join("config.toml"));
        command
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(self.state())
            .arg("--socket")
            .arg(self.socket());
        command.arg("--cni-conf-dir").arg(&self.network.conf_dir);
        for plugins in crate::network::PLUGIN_DIRS {
            command.args(["--cni-bin-dir", plugins]);
        }
        let level = Some(self.options.log_level.as_str()).filter(|level| !level.is_empty());
        let level = level.unwrap_or("debug");
        command.args(["--cgroup-driver", CgroupDriver::asked_for().flag(), "--log-level", level]);
        command.args(crate::setting::runtime_flags()?);
        command.arg("--registry-config-dir").arg(self.registry_config_dir()).args(&self.options.args);
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command.env("NOTIFY_SOCKET", notify.path()).env("RUST_BACKTRACE", "1");
        command.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        let mut child = command.spawn().context("starting the daemon")?;
        tokio::select! {
            ready = notify.hear("READY=1", patience(PATIENCE_SECONDS)) => ready?,
            status = child.wait() => bail!("the daemon ended at start with {}:\n{}", status?, self.log_tail()),
        }
        let outer = child.id().context("the daemon has ended")?;
        let pid = if self.machine.has_own_processes() { process::only_child(outer)? } else { outer };
        self.daemon = Some(Daemon { child, pid, notify });
        let cri = Cri::connect(&self.machine.path(&self.socket())).await?;
        for id in self.cri.iter().flat_map(Cri::seen) {
            cri.remember(&id);
        }
        self.cri = Some(cri.clone());
        // One answered call, so that what a first connection opens counts as the resting state.
        cri.all_pods().await?;
        self.fds_when_ready = process::descriptors(pid)?;
        Ok(())
    }

    /// Takes down the ids of whatever has a directory now: a pod whose creation was cut short has been named to nobody.
    fn remember_ids(&self) {
        let Some(cri) = &self.cri else { return };
        for kind in ["pods", "containers"] {
            for parent in [self.root(), self.state()] {
                let Ok(entries) = fs::read_dir(self.machine.path(&parent.join(kind))) else { continue };
                for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
                    if name.len() == 64 {
                        cri.remember(&name);
                    }
                }
            }
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("daemon.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let skip = log.lines().count().saturating_sub(LOG_TAIL_LINES);
        log.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Node {
    #[allow(clippy::print_stderr, reason = "a failed test shows what the daemon said")]
    fn drop(&mut self) {
        if !self.finished {
            eprintln!("--- end of the daemon's log ---\n{}\n--- end of log ---", self.log_tail());
        }
        if let Some(daemon) = self.daemon.take() {
            // It may have ended by itself.
            drop(process::signal(daemon.pid, Signal::KILL));
        }
        if !self.machine.is_private() {
            self.remember_ids();
            self.clear_host();
        }
    }
}
