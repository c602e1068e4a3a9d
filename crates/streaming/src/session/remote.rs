//! Exec and attach: one process, its streams and its end.

use std::future::pending;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::activity::Activity;
use super::copy::{Flow, Stop};
use super::sizes::Sizes;
use super::{Bounds, Farewell, GRACE};
use crate::backend::{Attach, Backend, BackendError, Control, End, Exec, Process, Reader, Writer};
use crate::channels::Channels;
use crate::status::Outcome;

/// How long a terminal's first size is waited for, so that the command is started with it. Clients send it at once.
const FIRST_SIZE: Duration = Duration::from_millis(50);

/// Why a session with a process is over.
#[derive(Debug)]
enum Ending {
    Ended(End),
    Refused(BackendError),
    Idle,
    Left,
}

/// Runs a command for a client.
pub(crate) async fn exec(
    backend: &dyn Backend,
    exec: Exec,
    mut channels: Channels,
    bounds: &Bounds,
) -> Farewell {
    let container = exec.container.clone();
    let mut sizes = Sizes::new(channels.resize.take());
    let size = if exec.streams.tty { timeout(FIRST_SIZE, sizes.next()).await.ok() } else { None };
    let ending = match backend.exec(exec, size).await {
        Ok(process) => run(process, &mut channels, sizes, bounds).await,
        Err(error) => Ending::Refused(error),
    };
    tracing::debug!(op = "exec", container = %container, ending = ?ending, "a session has ended");
    let failure = |why| Outcome::Failure(format!("error executing command in container: {why}"));
    let outcome = match ending {
        Ending::Left => return Farewell::Left,
        Ending::Ended(End::Exited(0)) => Outcome::Success,
        Ending::Ended(End::Exited(code)) => Outcome::ExitCode(code),
        Ending::Ended(End::Lost(why)) => failure(why),
        Ending::Refused(error) => failure(error.to_string()),
        Ending::Idle => failure(idle(bounds)),
    };
    tell(channels, &outcome, bounds).await
}

/// Attaches a client to a container.
pub(crate) async fn attach(
    backend: &dyn Backend,
    attach: Attach,
    mut channels: Channels,
    bounds: &Bounds,
) -> Farewell {
    let container = attach.container.clone();
    let sizes = Sizes::new(channels.resize.take());
    let ending = match backend.attach(attach).await {
        Ok(process) => run(process, &mut channels, sizes, bounds).await,
        Err(error) => Ending::Refused(error),
    };
    tracing::debug!(op = "attach", container = %container, ending = ?ending, "a session has ended");
    let failure = |why| Outcome::Failure(format!("error attaching to container: {why}"));
    let outcome = match ending {
        Ending::Left => return Farewell::Left,
        Ending::Ended(End::Exited(_)) => Outcome::Success,
        Ending::Ended(End::Lost(why)) => failure(why),
        Ending::Refused(error) => failure(error.to_string()),
        Ending::Idle => failure(idle(bounds)),
    };
    tell(channels, &outcome, bounds).await
}

fn idle(bounds: &Bounds) -> String {
    format!("no data for {} s", bounds.idle.as_secs())
}

/// Lets the client and the process talk until the process has ended and its output is delivered. The process is let go of
/// when this returns.
async fn run(process: Process, channels: &mut Channels, sizes: Sizes, bounds: &Bounds) -> Ending {
    let Process { stdin, stdout, stderr, mut control } = process;
    let activity = Activity::new();
    let (inward, outward) = (Flow::new(&activity), Flow::new(&activity));
    let ended = async {
        let end = watch(&mut *control, sizes).await;
        outward.ending.cancel();
        end
    };
    let life = async {
        let stdout = deliver(stdout, channels.stdout.take(), &outward);
        let stderr = deliver(stderr, channels.stderr.take(), &outward);
        tokio::join!(ended, stdout, stderr).0
    };
    let input = async {
        feed(channels.stdin.take(), stdin, &inward).await;
        pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = channels.gone.cancelled() => Ending::Left,
        () = bounds.stop.cancelled() => Ending::Ended(End::Lost("the server is stopping".to_owned())),
        () = activity.silence(bounds.idle) => Ending::Idle,
        end = life => Ending::Ended(end),
        () = input => Ending::Left,
    }
}

/// Passes sizes on until the process has ended.
async fn watch(control: &mut dyn Control, mut sizes: Sizes) -> End {
    loop {
        tokio::select! {
            end = control.ended() => return end,
            size = sizes.next() => control.resize(size).await,
        }
    }
}

/// From the client to the process.
async fn feed(client: Option<Reader>, process: Option<Writer>, flow: &Flow) {
    let Some(mut client) = client else { return };
    let Some(mut process) = process else { return flow.discard(&mut client).await };
    match flow.copy(&mut client, &mut process).await {
        Stop::End => drop(process.shutdown().await),
        Stop::Writing => {
            drop(process);
            flow.discard(&mut client).await;
        }
        // If the client has left, the session ends before its process is told that the input does.
        Stop::Reading(_) => sleep(GRACE).await,
    }
}

/// From the process to the client.
async fn deliver(process: Option<Reader>, client: Option<Writer>, flow: &Flow) {
    if let Some(mut process) = process {
        let Some(mut client) = client else { return flow.discard(&mut process).await };
        if let Stop::Writing = flow.copy(&mut process, &mut client).await {
            drop(client);
            return flow.discard(&mut process).await;
        }
        drop(client.shutdown().await);
    }
}

/// Tells the client how its session ended.
async fn tell(mut channels: Channels, outcome: &Outcome, bounds: &Bounds) -> Farewell {
    let text = outcome.render(channels.status);
    let told = async {
        channels.error.write_all(&text).await?;
        channels.error.shutdown().await
    };
    tokio::select! {
        biased;
        () = channels.gone.cancelled() => Farewell::Left,
        told = timeout(bounds.idle, told) => if matches!(told, Ok(Ok(()))) { Farewell::Told } else { Farewell::Left },
    }
}
