//! The lock that makes a state directory one daemon's own.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::{ListenError, at};

/// Name of the file in the state directory.
const NAME: &str = "crimson.lock";

/// A lock that lasts until its last clone is dropped or the process ends, however that happens. The file stays:
/// removing it would let a third daemon lock a new file while a second one is about to lock the old.
#[derive(Debug, Clone)]
pub struct StateLock {
    _file: Arc<File>,
}

impl StateLock {
    /// Takes the lock of `state`, or says who has it.
    pub(super) fn acquire(state: &Path) -> Result<Self, ListenError> {
        let path = state.join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(at("opening", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ListenError::StateInUse { state: state.to_owned(), pid: holder(&mut file) });
            }
            Err(error) => return Err(at("locking", &path)(error.into())),
        }
        sign(&mut file).map_err(at("writing", &path))?;
        Ok(Self { _file: Arc::new(file) })
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn sign(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}
