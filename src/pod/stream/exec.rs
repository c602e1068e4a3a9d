//! Sessions with a command of their own.

use std::sync::Arc;

use async_trait::async_trait;
use streaming::backend::{Control, End, Exec, Process, Reader, Size, Writer};
use tokio::sync::oneshot;

use super::super::Pods;
use super::super::actor::ExecExit;
use super::super::command::{Begun, Command, Leash, Streams};
use super::super::error::{PodError, SharedError, StepError};
use super::super::pipes::{self, Kept, ReadEnd, WriteEnd};

const SIGKILL: i32 = 9;

/// The near ends of the pipes that were asked for.
#[derive(Debug, Default)]
struct Ends {
    stdin: Option<WriteEnd>,
    stdout: Option<ReadEnd>,
    stderr: Option<ReadEnd>,
}

/// Starts the command.
pub(super) async fn begin(pods: &Pods, exec: Exec, size: Option<Size>) -> Result<Process, SharedError> {
    let command = Command::to_run_in(pods, exec.container.as_str()).await?;
    start(&command, exec, size).await.map_err(Arc::new)
}

async fn start(command: &Arc<Command>, exec: Exec, size: Option<Size>) -> Result<Process, PodError> {
    let failed = |error| command.not_started(error);
    let wanted = exec.streams;
    let (mut ends, streams) = if wanted.tty {
        (Ends::default(), Streams::Terminal(size.map(|size| (size.width, size.height))))
    } else {
        Ends::make([wanted.stdin, wanted.stdout, wanted.stderr]).map_err(failed)?
    };
    let Begun { mut leash, exit, terminal } = command.begin(exec.command, streams).await?;
    if let Some(master) = terminal {
        let (output, input) = pipes::terminal(master).map_err(failed)?;
        ends.stdin = wanted.stdin.then_some(input);
        ends.stdout = wanted.stdout.then_some(output);
    }
    leash.keep(ends.kept());
    let running = Running { command: Arc::clone(command), leash, end: Watched::Waiting(exit) };
    Ok(Process {
        stdin: ends.stdin.map(|end| -> Writer { Box::new(end) }),
        stdout: ends.stdout.map(|end| -> Reader { Box::new(end) }),
        stderr: ends.stderr.map(|end| -> Reader { Box::new(end) }),
        control: Box::new(running),
    })
}

impl Ends {
    fn make([stdin, stdout, stderr]: [bool; 3]) -> Result<(Self, Streams), StepError> {
        let (stdin, far_stdin) = stdin.then(pipes::to_write).transpose()?.unzip();
        let (stdout, far_stdout) = stdout.then(pipes::to_read).transpose()?.unzip();
        let (stderr, far_stderr) = stderr.then(pipes::to_read).transpose()?.unzip();
        let far = Streams::Pipes { stdin: far_stdin, stdout: far_stdout, stderr: far_stderr };
        Ok((Self { stdin, stdout, stderr }, far))
    }

    fn kept(&self) -> impl Iterator<Item = Kept> {
        let outputs = [&self.stdout, &self.stderr].into_iter().flatten().map(ReadEnd::keep);
        self.stdin.iter().map(WriteEnd::keep).chain(outputs)
    }
}

/// A command with a client.
#[derive(Debug)]
struct Running {
    command: Arc<Command>,
    leash: Leash,
    end: Watched,
}

/// How much is known of the command's end.
#[derive(Debug)]
enum Watched {
    Waiting(oneshot::Receiver<ExecExit>),
    /// It was killed, perhaps with its container.
    Killed(i32),
    Known(End),
}

#[async_trait]
impl Control for Running {
    async fn resize(&self, size: Size) {
        if let Err(error) = self.command.resize(size.width, size.height).await {
            tracing::debug!(error = types::error::chain(&error), "a terminal keeps its size");
        }
    }

    /// Each wait leaves behind what it has learnt, so it can be given up and begun again.
    async fn ended(&mut self) -> End {
        loop {
            match &mut self.end {
                Watched::Waiting(exit) => {
                    self.end = match exit.await {
                        Ok(ExecExit { code, signal: Some(SIGKILL) }) => Watched::Killed(code),
                        Ok(ExecExit { code, .. }) => Watched::Known(End::Exited(code)),
                        Err(_) => Watched::Known(End::Lost(format!(
                            "the monitor of {} is gone",
                            self.command.object()
                        ))),
                    };
                    if !matches!(self.end, Watched::Known(End::Lost(_))) {
                        self.leash.release();
                    }
                }
                Watched::Killed(code) => {
                    let code = *code;
                    self.end = Watched::Known(if self.command.went_with_container().await {
                        End::Lost(format!("{} has ended", self.command.object()))
                    } else {
                        End::Exited(code)
                    });
                }
                Watched::Known(end) => return end.clone(),
            }
        }
    }
}
