//! The side of whoever asks for a reload: `crimson reload`, and through it `systemctl reload crimson`.
//!
//! Returns when the new configuration is in force, or with the reason why it is not. The daemon is found by its lock on the
//! state directory, signalled through a descriptor of that very process, and answers with a file. An answer counts only if the
//! reading began after the request: one that was under way may have missed the latest edit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sys::pidfd::PidFd;

use super::{Outcome, now_usec};
use crate::listener;

/// How often the answer is looked for.
const PAUSE: Duration = Duration::from_millis(10);

/// Why a reload has not taken place, or not been seen to.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody has the state directory.
    #[error("no crimson daemon runs on {}", .0.display())]
    NoDaemon(PathBuf),
    /// The process has no state directory.
    #[error("process {0} is no crimson daemon")]
    NotADaemon(u32),
    /// The daemon cannot be found or signalled.
    #[error("asking the daemon on {}", .0.display())]
    Ask(PathBuf, #[source] io::Error),
    /// The daemon has ended.
    #[error("the daemon (pid {0}) has ended before it had reloaded")]
    Ended(u32),
    /// The daemon does not answer.
    #[error("the daemon (pid {pid}) has not reloaded within {} s", limit.as_secs())]
    Late {
        /// Its process.
        pid: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// The daemon has refused.
    #[error("the old configuration stays in force: {0}")]
    Refused(String),
}

/// The state directory of the daemon `pid`.
///
/// # Errors
/// When that process is none.
pub fn state_of(pid: u32) -> Result<PathBuf, RequestError> {
    listener::state_of(pid).ok().flatten().ok_or(RequestError::NotADaemon(pid))
}

/// Has the daemon on `state` reload, and waits for that, `limit` at most.
///
/// # Errors
/// When the old configuration stays in force, or no answer comes.
pub fn reload(state: &Path, limit: Duration) -> Result<Outcome, RequestError> {
    let failed = |error| RequestError::Ask(state.to_owned(), error);
    let find = || listener::daemon_on(state).map_err(failed);
    let pid = find()?.ok_or_else(|| RequestError::NoDaemon(state.to_owned()))?;
    let process = i32::try_from(pid).map_err(|_| RequestError::NoDaemon(state.to_owned()))?;
    let daemon = PidFd::open(process).map_err(failed)?;
    if find()? != Some(pid) {
        return Err(RequestError::Ended(pid));
    }
    let asked = now_usec();
    daemon.signal(rustix::process::Signal::HUP.as_raw()).map_err(failed)?;
    let deadline = Instant::now() + limit;
    loop {
        match answer(state) {
            Some(outcome) if outcome.begun_usec >= asked => return verdict(outcome),
            _ if !daemon.is_alive() => return Err(RequestError::Ended(pid)),
            _ if Instant::now() >= deadline => return Err(RequestError::Late { pid, limit }),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

/// The latest answer; files are replaced as a whole.
fn answer(state: &Path) -> Option<Outcome> {
    serde_json::from_slice(&fs::read(Outcome::file(state)).ok()?).ok()
}

fn verdict(outcome: Outcome) -> Result<Outcome, RequestError> {
    match outcome.error {
        Some(error) => Err(RequestError::Refused(error)),
        None => Ok(outcome),
    }
}

impl Outcome {
    /// What `crimson reload` prints.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = match self.applied.as_slice() {
            [] => "reloaded, nothing new is in force\n".to_owned(),
            keys => format!("reloaded, now in force: {}\n", keys.join(", ")),
        };
        if !self.waiting.is_empty() {
            text.push_str(&format!("restart crimson to apply: {}\n", self.waiting.join(", ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_daemon_there_is_nobody_to_ask() {
        let state = tempfile::tempdir().unwrap();
        let error = reload(state.path(), Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, RequestError::NoDaemon(_)), "{error}");
        // A pid that somebody else has by now.
        std::fs::write(state.path().join("crimson.lock"), "1\n").unwrap();
        let error = reload(state.path(), Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, RequestError::NoDaemon(_)), "{error}");
        assert!(matches!(state_of(1), Err(RequestError::NotADaemon(1))));
    }

    #[test]
    fn a_refusal_is_an_error_and_the_rest_is_reported() {
        let refused = Outcome { error: Some("line 3".to_owned()), ..Outcome::default() };
        assert_eq!(verdict(refused).unwrap_err().to_string(), "the old configuration stays in force: line 3");
        let outcome = Outcome {
            applied: vec!["log.level".to_owned()],
            waiting: vec!["root".to_owned()],
            ..Outcome::default()
        };
        assert_eq!(outcome.report(), "reloaded, now in force: log.level\nrestart crimson to apply: root\n");
        assert_eq!(verdict(outcome.clone()).unwrap(), outcome);
    }
}
