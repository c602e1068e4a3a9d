//! What the daemon tells systemd: that it is ready, reloads, stops, is alive, and in one line how it is.
//!
//! Without systemd (no NOTIFY_SOCKET) nothing is sent and nothing fails. A message that cannot be sent is logged and no
//! more: the service manager draws its own conclusions, and pods are served all the same.
//!
//! NOTIFY_SOCKET stays in this process's environment and must not reach a child: runc would wait for the container to
//! report itself ready. Every program is therefore started with an environment made for it, never with ours.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// How many times within its limit the watchdog is fed: the daemon is given up only when that many checks in a row fail.
const MEALS: u32 = 4;

/// The server accepts calls.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The configuration is being read again; [`ready`] ends that.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => {
            send(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")]);
        }
        // Newer versions of systemd take the one for an error without the other.
        Err(error) => tracing::warn!(error = %error, "systemd not told of the reload"),
    }
}

/// The server has begun to end.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping; containers go on")]);
}

/// A status ends at its first line break.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}

/// Tells the watchdog that the daemon is alive, several times within its limit, until `stop`; each time only if `check`
/// finds it so before the next. Runs as one of the daemon's tasks, so that a runtime whose tasks do not get their turn falls
/// silent. Ends at once without a watchdog.
pub async fn keep_watchdog<C>(stop: CancellationToken, check: impl Fn() -> C)
where
    C: Future<Output = Result<(), String>>,
{
    if let Some(limit) = sd_notify::watchdog_enabled() {
        let interval = limit / MEALS;
        // Dropping the loop while it waits loses nothing; a message is sent in one piece.
        stop.run_until_cancelled(feed(interval, || meal(interval, check()))).await;
    }
}

async fn meal(limit: Duration, check: impl Future<Output = Result<(), String>>) {
    match tokio::time::timeout(limit, check).await {
        Ok(Ok(())) => alive().await,
        Ok(Err(reason)) => tracing::warn!(error = reason, "the watchdog is not fed"),
        Err(_) => tracing::warn!(error = "a check of the server takes too long", "the watchdog is not fed"),
    }
}

/// Sending blocks while systemd does not read, so it happens where that harms nobody.
async fn alive() {
    if let Err(error) = tokio::task::spawn_blocking(|| send(&[NotifyState::Watchdog])).await {
        tracing::debug!(error = %error, "watchdog message given up");
    }
}

async fn feed<F: Future<Output = ()>>(interval: Duration, send: impl Fn() -> F) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        send().await;
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(error = %error, "systemd not notified");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// Set in the child that stands for a service of systemd.
    const MANAGED: &str = "CRIMSON_TEST_MANAGED";

    /// Runs itself again with the variables that systemd sets, and reads what systemd would.
    #[tokio::test]
    async fn systemd_hears_of_every_step() {
        if std::env::var_os(MANAGED).is_some() {
            ready("one\ntwo");
            reloading();
            let (stop, checks) = (CancellationToken::new(), Arc::new(Semaphore::new(0)));
            let check = {
                let checks = Arc::clone(&checks);
                move || {
                    checks.add_permits(1);
                    std::future::ready(Ok(()))
                }
            };
            let beat = tokio::spawn(keep_watchdog(stop.clone(), check));
            // Each comes when the watchdog has heard of the one before.
            checks.acquire_many(3).await.unwrap().forget();
            stop.cancel();
            beat.await.unwrap();
            stopping();
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "notify::tests::systemd_hears_of_every_step"])
            .envs([(MANAGED, "1"), ("WATCHDOG_USEC", "20000"), ("NOTIFY_SOCKET", path.to_str().unwrap())])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let heard = messages_to_the_last(&manager);
        assert!(child.wait().unwrap().success());
        assert_eq!(heard[0], "READY=1\nSTATUS=one; two\n");
        assert!(heard[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        assert!(heard.iter().filter(|message| *message == "WATCHDOG=1\n").count() >= 2, "{heard:?}");
    }

    fn messages_to_the_last(manager: &UnixDatagram) -> Vec<String> {
        manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (mut heard, mut buffer) = (Vec::new(), [0; 256]);
        while !heard.last().is_some_and(|message: &String| message.starts_with("STOPPING=1\n")) {
            let length = manager.recv(&mut buffer).expect("the child stops within a minute");
            heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_holds_up_no_later_one() {
        let asked = Cell::new(0);
        let limit = Duration::from_secs(15);
        let feeding = feed(limit, || {
            asked.set(asked.get() + 1);
            meal(limit, std::future::pending())
        });
        tokio::time::timeout(Duration::from_secs(100), feeding).await.unwrap_err();
        assert!(asked.get() >= 4, "{}", asked.get());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_in_a_steady_rhythm() {
        let fed = Cell::new(0);
        let feeding = feed(Duration::from_secs(30), || {
            fed.set(fed.get() + 1);
            std::future::ready(())
        });
        tokio::time::timeout(Duration::from_secs(599), feeding).await.unwrap_err();
        assert_eq!(fed.get(), 20);
    }
}
