//! The monitor's own log: its stderr, which the daemon points at a file beside the socket. Only what somebody may have to
//! act on goes there, so the file stays small without rotation.

use std::io::Write;

use crilog::format_timestamp;
use types::Timestamp;

/// Writes one line. If that fails there is nowhere left to say so.
pub(crate) fn line(message: &str) {
    let time = format_timestamp(Timestamp::now());
    let line = format!("{} {message}\n", String::from_utf8_lossy(&time));
    std::io::stderr().write_all(line.as_bytes()).ok();
}

/// Writes a failed operation with its cause.
pub(crate) fn failure(what: &str, error: &(dyn std::error::Error + 'static)) {
    line(&format!("{what}: {}", types::error::chain(error)));
}
