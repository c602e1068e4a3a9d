//! The lock that makes a state directory one daemon's own.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{ListenError, at};

/// Name of the file in the state directory.
const NAME: &str = "crimson.lock";

/// How long a lock may linger that a dead daemon had, or that a living one has just given back, and how often it is tried
/// meanwhile. A program that is being started has the descriptors of the daemon until it is executed, the lock's among them.
const LINGERING: Duration = Duration::from_secs(10);
const GIVEN_BACK: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(10);

/// A lock that lasts until its last clone is dropped or the process ends, however that happens. The file stays:
/// removing it would let a third daemon lock a new file while a second one is about to lock the old.
#[derive(Debug, Clone)]
pub struct StateLock {
    _file: Arc<File>,
}

impl StateLock {
    /// Takes the lock of `state`, or says who has it. Blocks while the lock may only linger.
    pub(super) fn acquire(state: &Path) -> Result<Self, ListenError> {
        let path = state.join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(at("opening", &path))?;
        let begun = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(at("locking", &path)(error.into()));
            }
            let pid = holder(&mut file);
            let patience = if pid.is_none_or(is_alive) { GIVEN_BACK } else { LINGERING };
            if begun.elapsed() >= patience {
                return Err(ListenError::StateInUse { state: state.to_owned(), pid });
            }
            std::thread::sleep(PAUSE);
        }
        sign(&mut file).map_err(at("writing", &path))?;
        Ok(Self { _file: Arc::new(file) })
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The process of the daemon that has `state`, if one has: it says so in the lock file, and has that file open.
///
/// # Errors
/// When the lock file or the process cannot be looked at.
pub fn daemon_on(state: &Path) -> std::io::Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut file = match File::open(state.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let lock = file.metadata()?;
    let Some(pid) = holder(&mut file).filter(|pid| is_alive(*pid)) else { return Ok(None) };
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile is none that is looked for.
        let Ok(open) = std::fs::metadata(descriptor?.path()) else { continue };
        if (open.dev(), open.ino()) == (lock.dev(), lock.ino()) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// The state directory that the daemon `pid` has, if it is one.
///
/// # Errors
/// When the process cannot be looked at.
pub fn state_of(pid: u32) -> std::io::Result<Option<PathBuf>> {
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(open) = std::fs::read_link(descriptor?.path()) else { continue };
        if let Some(state) = open.parent().filter(|_| open.ends_with(NAME))
            && daemon_on(state)? == Some(pid)
        {
            return Ok(Some(state.to_owned()));
        }
    }
    Ok(None)
}

fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| sys::pidfd::start_time(pid).is_ok())
}

fn sign(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}
