//! What the daemon tells systemd: that it is ready, that it stops, that it is alive.
//!
//! Without systemd (no NOTIFY_SOCKET) nothing is sent and nothing fails. A message that cannot be sent is logged and no
//! more: the service manager draws its own conclusions, and pods are served all the same.
//!
//! NOTIFY_SOCKET stays in this process's environment and must not reach a child: runc would wait for the container to
//! report itself ready. Every program is therefore started with an environment made for it, never with ours.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The server accepts calls.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The server has begun to end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Tells the watchdog that the daemon is alive, as often as it wants to know, until `stop`. Runs as one of the daemon's
/// tasks, so that a runtime whose tasks do not get their turn falls silent. Ends at once without a watchdog.
pub async fn keep_watchdog(stop: CancellationToken) {
    if let Some(limit) = sd_notify::watchdog_enabled() {
        // Dropping the loop while it waits loses nothing; a message is sent in one piece.
        stop.run_until_cancelled(feed(limit / 2, alive)).await;
    }
}

/// Sending blocks while systemd does not read, so it happens where that harms nobody.
async fn alive() {
    if let Err(error) = tokio::task::spawn_blocking(|| send(&[NotifyState::Watchdog])).await {
        tracing::debug!(error = %error, "watchdog message given up");
    }
}

async fn feed(interval: Duration, send: impl AsyncFn()) {
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

    use super::*;

    /// Set in the child that stands for a service of systemd.
    const MANAGED: &str = "CRIMSON_TEST_MANAGED";

    /// Runs itself again with the variables that systemd sets, and reads what systemd would.
    #[tokio::test]
    async fn systemd_hears_of_every_step() {
        if std::env::var_os(MANAGED).is_some() {
            ready();
            let stop = CancellationToken::new();
            let beat = tokio::spawn(keep_watchdog(stop.clone()));
            tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.unwrap_err();
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
        assert_eq!(heard.first().map(String::as_str), Some("READY=1\n"));
        assert!(heard.iter().filter(|message| *message == "WATCHDOG=1\n").count() >= 2, "{heard:?}");
    }

    fn messages_to_the_last(manager: &UnixDatagram) -> Vec<String> {
        manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (mut heard, mut buffer) = (Vec::new(), [0; 256]);
        while heard.last().map(String::as_str) != Some("STOPPING=1\n") {
            let length = manager.recv(&mut buffer).expect("the child stops within 30 s");
            heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_twice_in_its_time() {
        let fed = Cell::new(0);
        let limit = Duration::from_secs(60);
        let feeding = feed(limit / 2, async || fed.set(fed.get() + 1));
        tokio::time::timeout(Duration::from_secs(599), feeding).await.unwrap_err();
        assert_eq!(fed.get(), 20);
    }
}
