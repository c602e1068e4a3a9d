//! A command in a running container, whoever waits for its end: ExecSync ([`super::exec`]) or a session ([`super::stream`]).
//!
//! ```text
//! process file ─▶ watch for its end ─▶ start ─▶ process file removed ─▶ runs on the leash of whoever holds `Begun`
//! ```
//!
//! Promises: while somebody holds the [`Leash`] the command may run; dropping it at any moment kills the command with all that it has
//! started, and removes its file. The daemon makes the pipes and hands their far ends to the monitor, so the bytes cross no protocol.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use monitor_api::{ExecRequest, Monitor, StartedExec};
use spec::oci_spec::runtime::{BoxBuilder, Process};
use tokio::sync::oneshot;
use tokio::time::Instant;
use types::ExecId;

use super::Pods;
use super::actor::{ExecExit, Message, PodHandle};
use super::error::{PodError, SharedError, StepError};
use super::pipes::Kept;
use super::record::blocking;
use super::shared::Shared;
use super::steps::Steps;
use super::view::ContainerView;
use crate::tasks::Task;

/// The verb, in errors and logs.
const VERB: &str = "exec in";
/// What is done for a command whose caller does not wait for its end.
const UNDO: &str = "undo exec in";
/// How long a killed command may take to be seen dead.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// How long after a command that was killed its container's end is looked for, and how often.
const CONTAINER_END: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A command and its place.
#[derive(Debug)]
pub(super) struct Command {
    shared: Arc<Shared>,
    handle: PodHandle,
    monitor: Arc<dyn Monitor>,
    id: ExecId,
    container: Arc<ContainerView>,
    task: Task,
}

/// The far ends of a command's streams.
#[derive(Debug)]
pub(super) enum Streams {
    /// What is there is the command's own; what is not is `/dev/null`.
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    /// A terminal, of this many columns and rows where that is known already.
    Terminal(Option<(u16, u16)>),
}

/// A command that runs.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) leash: Leash,
    /// Told its end; closed when its monitor is lost.
    pub(super) exit: oneshot::Receiver<ExecExit>,
    /// The master of its terminal, if it has one.
    pub(super) terminal: Option<OwnedFd>,
}

/// Kills the command if whoever waits leaves, or anything else makes us forget it, before it has ended, and removes its file.
#[derive(Debug)]
pub(super) struct Leash {
    command: Option<Arc<Command>>,
    kept: Vec<Kept>,
}

impl Leash {
    /// Keeps ends of the command's streams open until it has ended or is killed. It would end by itself when they close, and
    /// what it has put into the background would then count as left on purpose.
    pub(super) fn keep(&mut self, ends: impl IntoIterator<Item = Kept>) {
        self.kept.extend(ends);
    }

    /// The command has ended.
    pub(super) fn release(&mut self) {
        self.command = None;
        self.kept.clear();
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let Some(command) = self.command.take() else { return };
        let (shared, kept) = (Arc::clone(&command.shared), std::mem::take(&mut self.kept));
        // The server waits for it when it ends.
        shared.operations.spawn(async move {
            command.undo().await;
            drop(kept);
        });
    }
}

impl Command {
    /// A command to be run in the container.
    pub(super) async fn to_run_in(pods: &Pods, container: &str) -> Result<Arc<Self>, SharedError> {
        let (container, handle, monitor) = pods.use_container(container, "run a command in").await?;
        let (shared, id) = (Arc::clone(&pods.shared), ExecId::from_random(sys::random::bytes()));
        let owner = container.id.to_string();
        let task = shared.in_flight.session(VERB, container.display(), id.to_string(), owner);
        Ok(Arc::new(Self { shared, handle, monitor, id, container, task }))
    }

    /// Starts it.
    pub(super) async fn begin(
        self: &Arc<Self>,
        args: Vec<String>,
        streams: Streams,
    ) -> Result<Begun, PodError> {
        let steps = self.steps();
        let leash = Leash { command: Some(Arc::clone(self)), kept: Vec::new() };
        steps.run("process", self.write_process(args, &streams)).await?;
        let (ended, exit) = oneshot::channel();
        self.handle.tell(Message::Watch(self.id.clone(), ended)).await;
        let started = steps.run("start", self.start(streams)).await;
        steps.attempt("tidy", remove_process(self.process_file())).await;
        Ok(Begun { leash, exit, terminal: started?.terminal })
    }

    /// Kills it and waits until that is seen.
    pub(super) async fn kill(&self, exit: oneshot::Receiver<ExecExit>) -> Result<(), PodError> {
        let kill = async {
            self.monitor.kill_exec(&self.id).await?;
            match tokio::time::timeout(KILL_WAIT, exit).await {
                Ok(_) => Ok(()),
                Err(_) => Err(StepError::Timeout("the command lives on after SIGKILL".to_owned())),
            }
        };
        self.steps().run("kill", kill).await
    }

    /// The command's end will never be known.
    pub(super) fn lost(&self) -> PodError {
        self.steps().fail("wait", StepError::Timeout("the monitor is gone".to_owned()))
    }

    /// Something was tried before the start.
    pub(super) fn not_started(&self, error: StepError) -> PodError {
        self.steps().fail("start", error)
    }

    /// Sets the size of its terminal.
    pub(super) async fn resize(&self, width: u16, height: u16) -> Result<(), monitor_api::MonitorError> {
        self.monitor.resize(&self.container.id, Some(&self.id), width, height).await
    }

    /// What is kept of each stream of output that is caught.
    pub(super) fn output_bytes(&self) -> usize {
        self.shared.settings().exec_output_bytes
    }

    /// Its container's name for people.
    pub(super) fn object(&self) -> String {
        self.container.display()
    }

    /// Whether the command, which was killed, was so because its container has ended. That is known a little later: the
    /// container's first process ends after all others.
    pub(super) async fn went_with_container(&self) -> bool {
        let begun = Instant::now();
        loop {
            let Ok(containers) = self.monitor.list().await else { return true };
            let state = containers.iter().find(|it| it.container == self.container.id);
            if state.is_none_or(|state| state.pid.is_none()) {
                return true;
            }
            if begun.elapsed() >= CONTAINER_END {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn undo(&self) {
        let steps = Steps::new(&self.shared, UNDO, self.object(), self.id.as_str());
        steps.attempt("kill", self.monitor.kill_exec(&self.id)).await;
        steps.attempt("tidy", remove_process(self.process_file())).await;
        self.handle.tell(Message::Forget(self.id.clone())).await;
    }

    fn steps(&self) -> Steps<'_> {
        Steps::of(&self.shared, &self.task)
    }

    fn process_file(&self) -> PathBuf {
        self.container.bundle.join(format!("exec-{}.json", self.id.short()))
    }

    /// The command as the OCI runtime reads it: the container's own process with other arguments.
    async fn write_process(&self, args: Vec<String>, streams: &Streams) -> Result<(), StepError> {
        let (bundle, target) = (self.container.bundle.clone(), self.process_file());
        let terminal = match streams {
            Streams::Terminal(size) => Some(*size),
            Streams::Pipes { .. } => None,
        };
        blocking(move || {
            let what = || "reading the container's config.json";
            let bytes = std::fs::read(bundle.join("config.json")).map_err(StepError::io(what()))?;
            let spec = serde_json::from_slice(&bytes)
                .map_err(|error| StepError::Io { what: what().to_owned(), source: error.into() })?;
            let mut process = spec::process_spec(&spec, &args, terminal.is_some())?;
            set_size(&mut process, terminal.flatten());
            let json = serde_json::to_vec(&process).map_err(|error| StepError::Io {
                what: "encoding a process".to_owned(),
                source: error.into(),
            })?;
            super::files::write_plain(&target, &json)
        })
        .await
    }

    async fn start(&self, streams: Streams) -> Result<StartedExec, StepError> {
        let timeout = self.shared.settings().runtime_timeout;
        let terminal = matches!(streams, Streams::Terminal(_));
        let [stdin, stdout, stderr] = streams.into_ends();
        let request = ExecRequest {
            exec: self.id.clone(),
            container: self.container.id.clone(),
            process: self.process_file(),
            stdin: stdin.is_some(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
            terminal,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let ends = [stdin, stdout, stderr].into_iter().flatten().collect();
        Ok(self.monitor.exec(request, ends).await?)
    }
}

impl Streams {
    fn into_ends(self) -> [Option<OwnedFd>; 3] {
        match self {
            Self::Pipes { stdin, stdout, stderr } => [stdin, stdout, stderr],
            Self::Terminal(_) => [None, None, None],
        }
    }
}

/// The OCI runtime sets the size before the program runs.
fn set_size(process: &mut Process, size: Option<(u16, u16)>) {
    // Building it fails for nothing; without a size the program gets one a moment later.
    let console = |(width, height)| BoxBuilder::default().width(width).height(height).build().ok();
    process.set_console_size(size.and_then(console));
}

/// Removes a process file; one that is not there is none to remove.
async fn remove_process(path: PathBuf) -> Result<(), StepError> {
    blocking(move || Ok(sys::atomic::remove(&path)?)).await
}

/// Removes the process files of commands that a server before this one was running; it took the commands along.
pub(super) async fn tidy(bundle: PathBuf) -> Result<(), StepError> {
    blocking(move || {
        let files = super::strays::children(&bundle)?;
        for file in files.iter().filter(|file| is_process_file(file)) {
            sys::atomic::remove(file)?;
        }
        Ok(())
    })
    .await
}

fn is_process_file(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    name.is_some_and(|name| name.starts_with("exec-") && name.ends_with(".json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_its_size_from_the_beginning() {
        let mut process = Process::default();
        set_size(&mut process, Some((132, 43)));
        let json = serde_json::to_value(&process).unwrap();
        assert_eq!(json["consoleSize"], serde_json::json!({ "width": 132, "height": 43 }));
        set_size(&mut process, None);
        assert!(process.console_size().is_none());
    }
}
