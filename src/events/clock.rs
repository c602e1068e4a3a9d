//! Times that only go forward.
//!
//! The latest one is written to a file of the volatile directory before it is given out, without waiting for any disk: it is
//! there for the next server, and gone with a reboot. Then the times in the records count ([`Clock::advance`]), and
//! no subscriber has seen any other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use types::Timestamp;

/// Later than any time that can have been given out: damage.
const NEVER: i64 = i64::MAX / 2;

/// Gives out times, each later than the one before.
#[derive(Debug)]
pub(super) struct Clock {
    last: i64,
    mark: Mark,
}

/// Where the latest time is remembered.
#[derive(Debug)]
enum Mark {
    Unopened(PathBuf),
    Open(File),
    /// It cannot be written; said once.
    Broken,
}

impl Clock {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { last: 0, mark: Mark::Unopened(path) }
    }

    /// The wall clock's time, unless it has given out a later one.
    pub(super) fn next(&mut self) -> Timestamp {
        self.open();
        self.last = Timestamp::now().0.max(self.last + 1);
        if let Mark::Open(file) = &self.mark
            && let Err(error) = file.write_all_at(&self.last.to_le_bytes(), 0)
        {
            self.give_up(&error);
        }
        Timestamp(self.last)
    }

    pub(super) fn advance(&mut self, seen: Timestamp) {
        self.last = self.last.max(seen.0.min(NEVER));
    }

    fn open(&mut self) {
        let Mark::Unopened(path) = &self.mark else { return };
        match open(path) {
            Ok((file, last)) => {
                self.mark = Mark::Open(file);
                self.advance(last);
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the time of the latest event cannot be remembered for the next server");
        self.mark = Mark::Broken;
    }
}

/// The file and what it holds.
fn open(path: &Path) -> io::Result<(File, Timestamp)> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut bytes = [0; 8];
    let last = match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => i64::from_le_bytes(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
        Err(error) => return Err(error),
    };
    Ok((file, Timestamp(if (0..NEVER).contains(&last) { last } else { 0 })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_forward_over_restarts_and_steps_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        // As if the wall clock had been an hour ahead until now.
        let ahead = Timestamp(Timestamp::now().0 + 3600 * 1_000_000_000);
        let mut last = ahead;
        for run in 0..3 {
            let mut clock = Clock::new(path.clone());
            if run == 0 {
                clock.advance(ahead);
            }
            for _ in 0..100 {
                let next = clock.next();
                assert!(next > last, "run {run}");
                last = next;
            }
        }
        assert_eq!(last.0, ahead.0 + 300, "no later than it must be");
    }

    #[test]
    fn a_mark_that_is_damaged_or_cannot_be_kept_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        for content in [&b""[..], b"1234", &i64::MAX.to_le_bytes(), &(-1_i64).to_le_bytes()] {
            std::fs::write(&path, content).unwrap();
            let (before, next) = (Timestamp::now(), Clock::new(path.clone()).next());
            assert!(before <= next && next <= Timestamp::now(), "{content:?}");
        }
        let mut clock = Clock::new(dir.path().join("absent/clock"));
        assert!(clock.next() < clock.next());
    }
}
