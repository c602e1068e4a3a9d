//! Running one plugin program: found by name in the plugin directories, fed its configuration on stdin, in a process
//! group of its own, with a cleared environment, bounded output, and an end.
//!
//! A process that a plugin leaves behind neither holds its result up nor is killed: some plugins start daemons.
//!
//! A run for a pod is not killed because nobody waits for it any more, as when this process ends: plugins do not stand
//! being killed half-way (host-local leaves a lease that belongs to nobody). Its stdin is named after the sandbox, by
//! which [`crate::orphan`] finds it again.

use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use std::{fs, io};

use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use sys::spawn::Program;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};
use types::SandboxId;

use crate::capture::{Capture, CaptureError, Excess};
use crate::error::CniError;
use crate::orphan;

/// Most bytes that a result may have.
pub(crate) const STDOUT_LIMIT: usize = 1 << 20;
/// Most bytes of stderr that are kept.
const STDERR_LIMIT: usize = 64 << 10;
/// Most bytes of output that an error repeats.
const ERROR_TAIL: usize = 1024;
/// Where plugins find the programs they call (iptables, ip …); this process's own PATH is not theirs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a killed plugin is waited for before the reaper is left to it.
pub(crate) const REAP: Duration = Duration::from_secs(1);
/// A program that is being replaced cannot be started for a moment.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(25);

/// What a plugin can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Verb {
    /// All there are.
    pub(crate) const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// The end of an operation, and how long the operation was allowed to take in all, for the error's text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }
}

/// One run of a plugin.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) verb: Verb,
    /// The sandbox it is about; None for a question about the node, which ends when nobody waits for the answer.
    pub(crate) sandbox: Option<&'a SandboxId>,
    pub(crate) env: &'a [(&'static str, String)],
    pub(crate) config: &'a [u8],
    pub(crate) deadline: Deadline,
}

/// The program of the plugin type `plugin`.
pub(crate) fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, CniError> {
    let mut candidates = dirs.iter().map(|dir| dir.join(plugin));
    let missing = || CniError::PluginMissing { plugin: plugin.to_owned(), dirs: dirs.to_vec() };
    candidates.find(|path| is_program(path)).ok_or_else(missing)
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

impl Run<'_> {
    /// Runs `program` and returns what it wrote to stdout.
    pub(crate) async fn execute(&self, program: &Path) -> Result<Vec<u8>, CniError> {
        let start = Instant::now();
        let mut running = Running::start(self, program).await?;
        let ended = timeout_at(self.deadline.at, running.wait_end()).await;
        let status = match ended {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(running.abandon(self.capture_error(error)).await),
            Err(_) => return Err(running.abandon(self.deadline_error()).await),
        };
        let (stdout, stderr) = running.into_output();
        self.log(start, status, &stderr);
        if status.success() { Ok(stdout) } else { Err(self.failure(status, &stdout, &stderr)) }
    }

    fn log(&self, start: Instant, status: ExitStatus, stderr: &[u8]) {
        tracing::debug!(
            op = self.verb.as_str(),
            step = self.plugin,
            elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            status = %status,
            stderr = %String::from_utf8_lossy(stderr),
            "cni plugin ran"
        );
    }

    /// The plugin's own report, or what can be said without one.
    fn failure(&self, status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> CniError {
        let (plugin, command) = (self.plugin.to_owned(), self.verb.as_str());
        match serde_json::from_slice::<Report>(stdout) {
            Ok(Report { code, msg, details }) if code != 0 || !msg.is_empty() => {
                CniError::Plugin { plugin, command, code, message: msg, details }
            }
            _ => {
                let output = tail(if stderr.trim_ascii().is_empty() { stdout } else { stderr });
                CniError::Died { plugin, command, status: status.to_string(), output }
            }
        }
    }

    fn capture_error(&self, error: CaptureError) -> CniError {
        let (plugin, command) = (self.plugin.to_owned(), self.verb.as_str());
        match error {
            CaptureError::Full => CniError::Flood { plugin, command, limit: STDOUT_LIMIT },
            CaptureError::Io(source) => CniError::Io { plugin, source },
        }
    }

    fn deadline_error(&self) -> CniError {
        CniError::Deadline {
            plugin: self.plugin.to_owned(),
            command: self.verb.as_str(),
            limit: self.deadline.limit,
        }
    }

    fn start_error(&self, source: io::Error) -> CniError {
        CniError::Start { plugin: self.plugin.to_owned(), source }
    }
}

/// The error report of a plugin.
#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// A started plugin.
#[derive(Debug)]
struct Running {
    child: Child,
    /// What to do with the plugin when this is dropped before its end.
    kill_on_drop: bool,
    group: Option<Pid>,
    stdout: Capture,
    stderr: Capture,
}

impl Running {
    async fn start(run: &Run<'_>, program: &Path) -> Result<Self, CniError> {
        let mut tries = BUSY_TRIES;
        loop {
            match Self::spawn(run, program) {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries > 0 => {
                    tries -= 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                other => return other.map_err(|error| run.start_error(error)),
            }
        }
    }

    fn spawn(run: &Run<'_>, program: &Path) -> io::Result<Self> {
        let (stdout, stdout_end) = output()?;
        let (stderr, stderr_end) = output()?;
        let program = run
            .env
            .iter()
            .fold(Program::new(program, Path::new("/")), |program, (name, value)| program.env(name, value));
        let program =
            program.env("PATH", PATH).stdin(config_file(run)?).stdout(stdout_end).stderr(stderr_end);
        let command = program.own_process_group().into_command().map_err(io::Error::other)?;
        // The command holds our copies of the streams' other ends; it ends with the statement.
        let child = Command::from(command).spawn()?;
        Ok(Self {
            kill_on_drop: run.sandbox.is_none(),
            group: child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
            child,
            stdout: Capture::new(stdout, STDOUT_LIMIT, Excess::Refuse),
            stderr: Capture::new(stderr, STDERR_LIMIT, Excess::Drop),
        })
    }

    /// Waits for the program's own end, taking its output meanwhile. Every arm may be dropped: waiting for a child and
    /// waiting for readiness lose nothing.
    async fn wait_end(&mut self) -> Result<ExitStatus, CaptureError> {
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status.map_err(CaptureError::Io)?,
                filled = self.stdout.fill(), if self.stdout.is_open() => filled?,
                filled = self.stderr.fill(), if self.stderr.is_open() => filled?,
            }
        };
        self.group = None;
        self.stdout.take_available()?;
        self.stderr.take_available()?;
        Ok(status)
    }

    /// Kills the program and everything in its group, waits a little for its end, and gives `error` back.
    async fn abandon(mut self, error: CniError) -> CniError {
        self.kill();
        if timeout(REAP, self.child.wait()).await.is_err() {
            tracing::warn!(error = %error, "killed cni plugin does not end");
        }
        self.group = None;
        error
    }

    /// The group is killed only while its leader has not been waited for, so its number cannot be somebody else's.
    fn kill(&self) {
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(pid = group.as_raw_nonzero(), error = %error, "cni plugin was gone when it was to be killed");
        }
    }

    fn into_output(mut self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout.take_bytes(), self.stderr.take_bytes())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.kill_on_drop {
            self.kill();
        }
    }
}

/// A pipe: our end, and the program's.
fn output() -> io::Result<(Receiver, OwnedFd)> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_owned_fd(ours)?, theirs))
}

/// The configuration as a file in memory: no task has to feed a pipe, and a plugin that does not read loses nobody's
/// time.
fn config_file(run: &Run<'_>) -> io::Result<OwnedFd> {
    let name = run.sandbox.map_or_else(|| "cni-config".to_owned(), orphan::stdin_name);
    let mut file = fs::File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(run.config)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

fn tail(bytes: &[u8]) -> String {
    let bytes = bytes.trim_ascii();
    let start = bytes.len().saturating_sub(ERROR_TAIL);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, pass, write_program};

    const PLENTY: Duration = Duration::from_secs(60);

    struct Case {
        bench: Bench,
    }

    impl Case {
        fn new(script: &str) -> Self {
            let bench = Bench::new();
            write_program(&bench.path("bin/p"), &format!("#!/bin/sh\n{script}\n"));
            Self { bench }
        }

        async fn run(&self, config: &[u8], limit: Duration) -> Result<Vec<u8>, CniError> {
            let env = [("CNI_COMMAND", "ADD".to_owned())];
            let deadline = Deadline::after(limit);
            let run = Run { plugin: "p", verb: Verb::Add, sandbox: None, env: &env, config, deadline };
            run.execute(&find("p", &[self.bench.path("none"), self.bench.path("bin")])?).await
        }

        async fn quickly(&self) -> Result<Vec<u8>, CniError> {
            self.run(b"{}", PLENTY).await
        }

        /// Has the plugin start a process and wait for it; the process's id comes when it runs.
        fn starts_one(&self) -> tokio::task::JoinHandle<String> {
            let fifo = self.bench.path("log/fifo");
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            let script = format!("#!/bin/sh\nsleep 1000 & echo $! > {}; wait\n", fifo.display());
            write_program(&self.bench.path("bin/p"), &script);
            // Opening the fifo ends when the plugin has written: no sleep is needed to know that it runs.
            tokio::task::spawn_blocking(move || fs::read_to_string(fifo).unwrap())
        }
    }

    #[tokio::test]
    async fn the_plugin_sees_its_configuration_and_a_bare_environment() {
        let case = Case::new("cat; env | sort; pwd; ps -o pgid= -p $$ 2>/dev/null; exit 0");
        let out = String::from_utf8(case.run(b"{\"a\":1}\n", PLENTY).await.unwrap()).unwrap();
        let mut lines = out.lines();
        assert_eq!(lines.next(), Some("{\"a\":1}"));
        let env: Vec<_> = lines.take_while(|line| line.contains('=')).collect();
        assert!(
            env.contains(&"CNI_COMMAND=ADD") && env.contains(&format!("PATH={PATH}").as_str()),
            "{env:?}"
        );
        assert!(env.iter().all(|line| !line.starts_with("CARGO") && !line.starts_with("HOME")), "{env:?}");
        assert!(out.contains("\n/\n"), "{out}");
    }

    #[tokio::test]
    async fn a_large_configuration_that_nobody_reads_is_no_trouble() {
        let config = vec![b' '; 1 << 20];
        let case = Case::new("echo done");
        assert_eq!(case.run(&config, PLENTY).await.unwrap(), b"done\n");
    }

    #[tokio::test]
    async fn an_error_report_becomes_a_typed_error() {
        let case =
            Case::new(r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"later","details":"busy"}'; exit 1"#);
        let error = case.quickly().await.unwrap_err();
        let expected = r#"cni plugin "p" failed ADD with code 11: later (busy)"#;
        assert_eq!(error.to_string(), expected);
        assert_eq!(types::Kind::kind(&error), types::ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_death_without_report_tells_the_end_of_the_output() {
        let error = Case::new("echo oops >&2; exit 3").quickly().await.unwrap_err().to_string();
        assert!(error.ends_with("failed ADD with exit status: 3 and no error report: oops"), "{error}");
        let error = Case::new("echo panic; kill -9 $$").quickly().await.unwrap_err().to_string();
        assert!(error.contains("signal: 9") && error.ends_with(": panic"), "{error}");
    }

    #[tokio::test]
    async fn a_plugin_that_floods_is_killed() {
        let case = Case::new("exec yes");
        let error = case.quickly().await.unwrap_err();
        assert!(matches!(error, CniError::Flood { limit: STDOUT_LIMIT, .. }), "{error}");
        let case = Case::new("head -c 3000000 /dev/zero >&2; echo fine");
        assert_eq!(case.quickly().await.unwrap(), b"fine\n");
    }

    #[tokio::test]
    async fn a_hanging_plugin_dies_with_its_whole_group_at_the_deadline() {
        let case = Case::new("");
        let child = case.starts_one();
        let (ended, child) = tokio::join!(case.quickly(), async {
            let child = child.await.unwrap();
            pass(PLENTY).await;
            child
        });
        let error = ended.unwrap_err();
        assert!(matches!(error, CniError::Deadline { command: "ADD", .. }), "{error}");
        wait_gone(child.trim()).await;
    }

    #[tokio::test]
    async fn a_question_about_the_node_ends_with_the_asker() {
        let case = Case::new("");
        let child = case.starts_one();
        let child = tokio::select! {
            _ = case.quickly() => panic!("the plugin does not end by itself"),
            child = child => child.unwrap(),
        };
        wait_gone(child.trim()).await;
    }

    #[tokio::test]
    async fn a_process_left_behind_does_not_hold_the_result_up() {
        let case = Case::new("sleep 1000 & echo $!");
        let out = String::from_utf8(case.quickly().await.unwrap()).unwrap();
        let left: i32 = out.trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_missing_program_is_named_with_the_directories() {
        let bench = Bench::new();
        fs::write(bench.path("bin/data"), "not executable").unwrap();
        fs::create_dir(bench.path("bin/dir")).unwrap();
        for name in ["nothing", "data", "dir"] {
            let error = find(name, &["/nowhere".into(), bench.path("bin")]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cni plugin {name:?} is in none of /nowhere, ")), "{error}");
        }
    }

    #[expect(deprecated, reason = "its successor is unsafe; an `OwnedFd` cannot change its descriptor")]
    /// Waits until process `pid` is dead: its pidfd becomes readable, or it cannot be opened any more.
    async fn wait_gone(pid: &str) {
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        if let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK) {
            let fd = tokio::io::unix::AsyncFd::new(fd).unwrap();
            let dead = timeout(PLENTY, fd.readable()).await;
            assert!(dead.is_ok(), "process {pid:?} still lives");
        }
    }
}
