//! Failpoints: where a test can break a verb, or end the server in the middle of it. Every step of every verb is one, because
//! [`super::steps`] runs each of them through [`Faults::around`].
//!
//! In a program with debug assertions, as tests run it, the environment variable `CRIMSON_FAILPOINTS` names a directory with
//! two files:
//!
//! * `armed`, which the test writes: in each line `<verb>/<step>=<strike>`. A line strikes once, when its step is reached next,
//!   and is taken out of the file before that, so it is not armed any more for the server that comes after.
//! * `passed`, to which the server adds a line `<verb>/<step>` for each step that it reaches.
//!
//! The strikes: `fail`, the step fails without having done anything; `kill`, the server ends as by `kill -9` before the step's
//! effect; `kill-after`, it does when the step has succeeded and nobody has heard of it.
//!
//! Unit tests arm steps in memory instead, and end the server themselves. In a release build a step is its work and nothing else.

use super::error::StepError;

#[cfg(all(debug_assertions, not(test)))]
pub(super) use self::by_file::Faults;
#[cfg(test)]
pub(super) use self::in_memory::Faults;

/// What happens at a step that is armed.
#[cfg(any(test, debug_assertions))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strike {
    /// It fails without having done anything.
    Fail,
    /// The server ends before the step has an effect.
    Kill,
    /// The server ends when the step has succeeded, and before anything else.
    KillAfter,
}

/// Steps that nothing strikes.
#[cfg(not(any(test, debug_assertions)))]
#[derive(Debug, Default)]
pub(super) struct Faults;

#[cfg(not(any(test, debug_assertions)))]
impl Faults {
    /// Performs a step.
    pub(super) fn around<T>(
        &self,
        _verb: &'static str,
        _step: &'static str,
        work: impl Future<Output = Result<T, StepError>>,
    ) -> impl Future<Output = Result<T, StepError>> {
        work
    }
}

#[cfg(any(test, debug_assertions))]
impl Faults {
    /// Performs a step, or strikes it.
    pub(super) async fn around<T>(
        &self,
        verb: &'static str,
        step: &'static str,
        work: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let strike = self.reach(verb, step);
        match strike {
            Some(Strike::Fail) => return Err(StepError::Injected),
            Some(Strike::Kill) => self.end_server().await,
            Some(Strike::KillAfter) | None => {}
        }
        let done = work.await?;
        if strike == Some(Strike::KillAfter) {
            self.end_server().await;
        }
        Ok(done)
    }
}

/// Failpoints that a test writes into a file.
#[cfg(any(test, debug_assertions))]
#[cfg_attr(test, expect(dead_code, reason = "unit tests arm steps in memory and try out the file alone"))]
mod by_file {
    use std::fs::{self, OpenOptions};
    use std::io::{self, Write as _};
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};

    use super::Strike;

    const VARIABLE: &str = "CRIMSON_FAILPOINTS";

    /// The directory, locked while its files are used.
    #[derive(Debug)]
    pub(in super::super) struct Faults(Option<Mutex<PathBuf>>);

    impl Default for Faults {
        fn default() -> Self {
            Self(std::env::var_os(VARIABLE).map(|dir| Mutex::new(dir.into())))
        }
    }

    impl Faults {
        pub(super) fn reach(&self, verb: &'static str, step: &'static str) -> Option<Strike> {
            let dir = self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
            match reach(&dir, &format!("{verb}/{step}")) {
                Ok(strike) => strike,
                Err(error) => {
                    tracing::error!(dir = %dir.display(), %error, "failpoints cannot be read");
                    None
                }
            }
        }

        pub(super) async fn end_server(&self) {
            let ended =
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            tracing::error!(?ended, "the server ends here");
            std::future::pending().await
        }
    }

    /// Notes that a step is reached, and disarms it.
    pub(super) fn reach(dir: &Path, point: &str) -> io::Result<Option<Strike>> {
        let mut passed = OpenOptions::new().append(true).create(true).open(dir.join("passed"))?;
        passed.write_all(format!("{point}\n").as_bytes())?;
        let file = dir.join("armed");
        let armed = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            armed => armed?,
        };
        let mut lines: Vec<&str> = armed.lines().collect();
        let mut struck = None;
        for (at, line) in lines.iter().enumerate() {
            let (armed, strike) = parse(line)?;
            if armed == point {
                struck = Some((at, strike));
                break;
            }
        }
        let Some((at, strike)) = struck else { return Ok(None) };
        lines.remove(at);
        let rest: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&file, rest)?;
        Ok(Some(strike))
    }

    fn parse(line: &str) -> io::Result<(&str, Strike)> {
        let broken = || io::Error::other(format!("{line:?} is no failpoint"));
        let (point, strike) = line.split_once('=').ok_or_else(broken)?;
        let strike = match strike {
            "fail" => Strike::Fail,
            "kill" => Strike::Kill,
            "kill-after" => Strike::KillAfter,
            _ => return Err(broken()),
        };
        Ok((point, strike))
    }
}

/// Failpoints of unit tests.
#[cfg(test)]
mod in_memory {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::Strike;

    /// A verb and one of its steps.
    pub(in super::super) type Point = (&'static str, &'static str);

    #[derive(Debug, Default)]
    pub(in super::super) struct Faults {
        armed: Mutex<Vec<(Point, Strike)>>,
        /// Every step that was reached.
        pub(in super::super) seen: Mutex<BTreeSet<Point>>,
        /// Told when the server is to end; whoever hears it ends it.
        pub(in super::super) ended: Notify,
        /// Its tasks live on in the test's process; none of them gets any further.
        is_dead: AtomicBool,
    }

    impl Faults {
        pub(super) fn reach(&self, verb: &'static str, step: &'static str) -> Option<Strike> {
            if self.is_dead.load(Ordering::Relaxed) {
                return Some(Strike::Kill);
            }
            self.seen.lock().unwrap().insert((verb, step));
            let mut armed = self.armed.lock().unwrap();
            let at = armed.iter().position(|(point, _)| *point == (verb, step))?;
            Some(armed.remove(at).1)
        }

        pub(super) async fn end_server(&self) {
            self.ended.notify_one();
            std::future::pending().await
        }

        /// No step has an effect from now on.
        pub(in super::super) fn die(&self) {
            self.is_dead.store(true, Ordering::Relaxed);
        }

        /// Makes the step fail once.
        pub(in super::super) fn arm(&self, verb: &'static str, step: &'static str) {
            self.strike((verb, step), Strike::Fail);
        }

        /// Strikes the step once.
        pub(in super::super) fn strike(&self, point: Point, strike: Strike) {
            self.armed.lock().unwrap().push((point, strike));
        }

        /// Whether all that was armed has struck.
        pub(in super::super) fn are_spent(&self) -> bool {
            self.armed.lock().unwrap().is_empty()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::by_file::reach;
    use super::*;

    #[test]
    fn a_line_strikes_once_and_every_step_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(reach(dir.path(), "run sandbox/CNI").unwrap(), None);
        let lines = "run sandbox/CNI=kill-after\nrun sandbox/shm=fail\nrun sandbox/CNI=kill\n";
        std::fs::write(dir.path().join("armed"), lines).unwrap();
        let met: Vec<_> = ["CNI", "netns", "CNI", "CNI", "shm"]
            .iter()
            .map(|step| reach(dir.path(), &format!("run sandbox/{step}")).unwrap())
            .collect();
        assert_eq!(met, [Some(Strike::KillAfter), None, Some(Strike::Kill), None, Some(Strike::Fail)]);
        let passed = std::fs::read_to_string(dir.path().join("passed")).unwrap();
        assert_eq!(passed.lines().count(), 6, "{passed}");
        std::fs::write(dir.path().join("armed"), "run sandbox/CNI=fial").unwrap();
        reach(dir.path(), "run sandbox/CNI").unwrap_err();
    }

    #[tokio::test]
    async fn a_struck_step_has_no_effect_or_nothing_after_it() {
        let point = ("run sandbox", "CNI");
        for (strike, effects) in [(Strike::Fail, 0), (Strike::Kill, 0), (Strike::KillAfter, 1)] {
            let (faults, mut done) = (Faults::default(), 0);
            faults.strike(point, strike);
            let step = faults.around(point.0, point.1, async {
                done += 1;
                Ok(())
            });
            let ended = tokio::select! {
                biased;
                outcome = step => Some(outcome.is_ok()),
                () = faults.ended.notified() => None,
            };
            assert_eq!(ended, (strike == Strike::Fail).then_some(false), "{strike:?}");
            assert_eq!((done, faults.are_spent()), (effects, true), "{strike:?}");
        }
    }
}
