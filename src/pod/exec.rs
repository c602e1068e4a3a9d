//! ExecSync: runs a command in a container, with its output caught, its time limited and nothing of it left behind.
//!
//! The daemon makes the pipes and hands their far ends to the monitor, so the bytes cross no protocol. A grandchild that
//! keeps a pipe open cannot keep the caller: after the command's own end the pipes are read for a bounded time more.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use monitor_api::{ExecRequest, Monitor};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use types::ExecId;

use super::Pods;
use super::actor::{ExecExit, Message, PodHandle};
use super::error::{PodError, SharedError, StepError};
use super::record::blocking;
use super::shared::Shared;
use super::steps::Steps;
use super::view::ContainerView;

/// How long output is still read after the command has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed command may take to be seen dead.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// The most of both streams together: a client of the CRI takes messages of 16 MiB, and the rest of the answer has to fit too.
const ANSWER: usize = (16 << 20) - (4 << 10);

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + n when signal n ended it.
    pub exit_code: i32,
    /// Standard output, up to the configured limit.
    pub stdout: Vec<u8>,
    /// Standard error, up to the configured limit.
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    /// Cuts the streams so that both together fit; neither has to give way below half of the room.
    fn fit(mut self, room: usize) -> Self {
        self.stdout.truncate(room.saturating_sub(self.stderr.len()).max(room / 2));
        self.stderr.truncate(room.saturating_sub(self.stdout.len()));
        self
    }
}

impl Pods {
    /// Runs `command` in a running container and waits for its end, or `limit`.
    ///
    /// # Errors
    /// When the container does not exist or does not run, the command cannot be started, or the limit passes; the
    /// command and its children are dead then.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, SharedError> {
        if command.is_empty() {
            return Err(Arc::new(PodError::Invalid("cmd must not be empty".to_owned())));
        }
        let (container, handle) = self.find_container(id)?;
        let asked = handle.call(|reply| Message::Use(container.id.clone(), "run a command in", reply)).await;
        let monitor = asked.unwrap_or_else(|| Err(Arc::new(PodError::ContainerNotFound(id.to_owned()))))?;
        let exec = Exec {
            shared: Arc::clone(&self.shared),
            handle,
            monitor,
            id: ExecId::from_random(sys::random::bytes()),
            container,
        };
        exec.run(command, limit).await.map_err(Arc::new)
    }
}

struct Exec {
    shared: Arc<Shared>,
    handle: PodHandle,
    monitor: Arc<dyn Monitor>,
    id: ExecId,
    container: Arc<ContainerView>,
}

/// The near ends of the command's pipes.
struct Output {
    stdout: Receiver,
    stderr: Receiver,
}

/// Kills the command if the caller leaves, or anything else makes us forget it, before it has ended, and removes its file.
struct Leash<'a>(Option<&'a Exec>);

impl Drop for Leash<'_> {
    fn drop(&mut self) {
        let Some(exec) = self.0 else { return };
        let (monitor, handle, id) = (Arc::clone(&exec.monitor), exec.handle.clone(), exec.id.clone());
        let process = exec.process_file();
        exec.shared.tasks.spawn(async move {
            if let Err(error) = monitor.kill_exec(&id).await {
                tracing::debug!(exec.id = %id, error = types::error::chain(&error), "killing an abandoned command");
            }
            remove_process(process).await;
            handle.tell(Message::ForgetExec(id)).await;
        });
    }
}

/// Removes a process file; one that is not there is none to remove.
async fn remove_process(path: PathBuf) {
    if let Err(error) = blocking(move || Ok(sys::atomic::remove(&path)?)).await {
        super::actor::log_dropped("a process file could not be removed", &error);
    }
}

impl Exec {
    async fn run(&self, command: Vec<String>, limit: Option<Duration>) -> Result<ExecOutput, PodError> {
        let object = format!("container {:?}", self.container.request.name());
        let steps = Steps::new(&self.shared, "exec in", object.clone(), self.id.as_str());
        let mut leash = Leash(Some(self));
        steps.run("process", self.write_process(command)).await?;
        let (ended, exit) = oneshot::channel();
        self.handle.tell(Message::WatchExec(self.id.clone(), ended)).await;
        let started = steps.run("start", self.start()).await;
        remove_process(self.process_file()).await;
        let output = started?;
        let cap = self.shared.settings().exec_output_bytes;
        let caught = catch(output, exit, cap, limit).await;
        match caught {
            Caught::Ended(output) => {
                leash.0 = None;
                Ok(output.fit(ANSWER))
            }
            Caught::Lost => Err(steps.fail("wait", StepError::Timeout("the monitor is gone".to_owned()))),
            Caught::LimitPassed(exit) => {
                steps.run("kill", self.kill(exit)).await?;
                leash.0 = None;
                let seconds = limit.unwrap_or_default().as_secs();
                Err(PodError::ExecTimeout { object, seconds })
            }
        }
    }

    fn process_file(&self) -> PathBuf {
        self.container.bundle.join(format!("exec-{}.json", self.id.short()))
    }

    /// The command as the OCI runtime reads it: the container's own process with other arguments.
    async fn write_process(&self, command: Vec<String>) -> Result<(), StepError> {
        let (bundle, target) = (self.container.bundle.clone(), self.process_file());
        blocking(move || {
            let what = || "reading the container's config.json";
            let bytes = std::fs::read(bundle.join("config.json")).map_err(StepError::io(what()))?;
            let spec = serde_json::from_slice(&bytes)
                .map_err(|error| StepError::Io { what: what().to_owned(), source: error.into() })?;
            let process = spec::process_spec(&spec, &command, false)?;
            let json = serde_json::to_vec(&process).map_err(|error| StepError::Io {
                what: "encoding a process".to_owned(),
                source: error.into(),
            })?;
            super::files::write_plain(&target, &json)
        })
        .await
    }

    async fn start(&self) -> Result<Output, StepError> {
        let (stdout, far_stdout) = pipe()?;
        let (stderr, far_stderr) = pipe()?;
        let timeout = self.shared.settings().runtime_timeout;
        let request = ExecRequest {
            exec: self.id.clone(),
            container: self.container.id.clone(),
            process: self.process_file(),
            stdin: false,
            stdout: true,
            stderr: true,
            terminal: false,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        self.monitor.exec(request, vec![far_stdout, far_stderr]).await?;
        Ok(Output { stdout, stderr })
    }

    async fn kill(&self, exit: oneshot::Receiver<ExecExit>) -> Result<(), StepError> {
        self.monitor.kill_exec(&self.id).await?;
        match tokio::time::timeout(KILL_WAIT, exit).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StepError::Timeout("the command lives on after SIGKILL".to_owned())),
        }
    }
}

fn pipe() -> Result<(Receiver, OwnedFd), StepError> {
    let broken = || StepError::io("making a pipe");
    let (near, far) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| broken()(error.into()))?;
    let near = Receiver::from_owned_fd(near).map_err(broken())?;
    Ok((near, far))
}

enum Caught {
    Ended(ExecOutput),
    LimitPassed(oneshot::Receiver<ExecExit>),
    Lost,
}

/// Reads both streams until the command has ended and they are empty, or until the limit.
async fn catch(
    output: Output,
    mut exit: oneshot::Receiver<ExecExit>,
    cap: usize,
    limit: Option<Duration>,
) -> Caught {
    let Output { mut stdout, mut stderr } = output;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let outcome = {
        let reading = async {
            tokio::join!(read_capped(&mut stdout, &mut out, cap), read_capped(&mut stderr, &mut err, cap))
        };
        tokio::pin!(reading);
        let deadline = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        let mut drained = false;
        let outcome = loop {
            // What is dropped here loses nothing: bytes read stand in `out` and `err`, the exit stays in its channel.
            tokio::select! {
                ended = &mut exit => break Some(ended),
                _ = &mut reading, if !drained => drained = true,
                () = &mut deadline => break None,
            }
        };
        let ended = matches!(outcome, Some(Ok(_)));
        if ended && !drained && tokio::time::timeout(DRAIN, &mut reading).await.is_err() {
            tracing::debug!("a child of an ended command keeps its output open");
        }
        outcome
    };
    match outcome {
        None => Caught::LimitPassed(exit),
        Some(Err(_)) => Caught::Lost,
        Some(Ok(ExecExit { code })) => {
            Caught::Ended(ExecOutput { exit_code: code, stdout: out, stderr: err })
        }
    }
}

/// Reads to the end, keeping at most `cap` bytes: a command that writes more goes on undisturbed.
async fn read_capped(pipe: &mut Receiver, kept: &mut Vec<u8>, cap: usize) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = pipe.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let room = cap.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn output_beyond_the_cap_is_read_and_dropped() {
        let (mut near, far) = pipe().unwrap();
        let writer =
            std::thread::spawn(move || std::fs::File::from(far).write_all(&[b'x'; 200_000]).unwrap());
        let mut kept = Vec::new();
        read_capped(&mut near, &mut kept, 1000).await.unwrap();
        writer.join().unwrap();
        assert_eq!(kept.len(), 1000);
    }

    #[test]
    fn an_answer_never_exceeds_what_a_client_takes() {
        let fitted = |stdout: usize, stderr: usize| {
            let output = ExecOutput { exit_code: 0, stdout: vec![b'o'; stdout], stderr: vec![b'e'; stderr] };
            let output = output.fit(100);
            (output.stdout.len(), output.stderr.len())
        };
        assert_eq!(fitted(60, 40), (60, 40));
        assert_eq!(fitted(101, 0), (100, 0));
        assert_eq!(fitted(200, 30), (70, 30));
        assert_eq!(fitted(30, 200), (30, 70));
        assert_eq!(fitted(200, 200), (50, 50));
    }

    #[tokio::test]
    async fn a_pipe_held_open_does_not_hold_the_caller() {
        let (stdout, far_stdout) = pipe().unwrap();
        let (stderr, far_stderr) = pipe().unwrap();
        drop(far_stderr);
        let mut held = std::fs::File::from(far_stdout);
        held.write_all(b"early").unwrap();
        let (ended, exit) = oneshot::channel();
        ended.send(ExecExit { code: 3 }).unwrap();
        let Caught::Ended(output) = catch(Output { stdout, stderr }, exit, 100, None).await else {
            panic!("the command has ended");
        };
        assert_eq!((output.exit_code, output.stdout), (3, b"early".to_vec()));
        drop(held);
    }
}
