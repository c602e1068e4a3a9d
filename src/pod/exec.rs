//! ExecSync: runs a command in a container, with its output caught, its time limited and nothing of it left behind.
//!
//! A grandchild that keeps a pipe open cannot keep the caller: after the command's own end the pipes are read for a bounded time
//! more.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use super::Pods;
use super::actor::ExecExit;
use super::command::{Begun, Command, Streams};
use super::error::{PodError, SharedError, StepError};
use super::pipes::{self, ReadEnd};

/// How long output is still read after the command has ended.
const DRAIN: Duration = Duration::from_secs(1);

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
        let exec = Exec(Command::to_run_in(self, id).await?);
        exec.run(command, limit).await.map_err(Arc::new)
    }
}

struct Exec(Arc<Command>);

/// The near ends of the command's pipes.
struct Output {
    stdout: ReadEnd,
    stderr: ReadEnd,
}

impl Exec {
    async fn run(&self, args: Vec<String>, limit: Option<Duration>) -> Result<ExecOutput, PodError> {
        let command = &self.0;
        let (output, streams) = pipes().map_err(|error| command.not_started(error))?;
        let Begun { mut leash, exit, .. } = command.begin(args, streams).await?;
        leash.keep([&output.stdout, &output.stderr].map(ReadEnd::keep));
        match catch(output, exit, command.output_bytes(), limit).await {
            Caught::Ended(output) => {
                leash.release();
                Ok(output.fit(ANSWER))
            }
            Caught::Lost => Err(command.lost()),
            Caught::LimitPassed(exit) => {
                command.kill(exit).await?;
                leash.release();
                let seconds = limit.unwrap_or_default().as_secs();
                Err(PodError::ExecTimeout { object: command.object(), seconds })
            }
        }
    }
}

fn pipes() -> Result<(Output, Streams), StepError> {
    let (stdout, far_stdout) = pipes::to_read()?;
    let (stderr, far_stderr) = pipes::to_read()?;
    let streams = Streams::Pipes { stdin: None, stdout: Some(far_stdout), stderr: Some(far_stderr) };
    Ok((Output { stdout, stderr }, streams))
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
        Some(Ok(ExecExit { code, .. })) => {
            Caught::Ended(ExecOutput { exit_code: code, stdout: out, stderr: err })
        }
    }
}

/// Reads to the end, keeping at most `cap` bytes: a command that writes more goes on undisturbed.
async fn read_capped(pipe: &mut ReadEnd, kept: &mut Vec<u8>, cap: usize) -> io::Result<()> {
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
        let (mut near, far) = pipes::to_read().unwrap();
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
        let (stdout, far_stdout) = pipes::to_read().unwrap();
        let (stderr, far_stderr) = pipes::to_read().unwrap();
        drop(far_stderr);
        let mut held = std::fs::File::from(far_stdout);
        held.write_all(b"early").unwrap();
        let (ended, exit) = oneshot::channel();
        ended.send(ExecExit { code: 3, signal: None }).unwrap();
        let Caught::Ended(output) = catch(Output { stdout, stderr }, exit, 100, None).await else {
            panic!("the command has ended");
        };
        assert_eq!((output.exit_code, output.stdout), (3, b"early".to_vec()));
        drop(held);
    }
}
