//! Container logs as kubelet reads them: one line each of
//!
//! ```text
//! 2026-01-31T12:00:00.123456789Z stdout F the content
//! ```
//!
//! with `F` for the end of a line of output and `P` for a piece of one that goes on.
//!
//! * [`Splitter`] cuts a stream of bytes into pieces, the same ones however the bytes arrive;
//! * [`LogWriter`] writes the pieces of two streams into one file, and never fails towards the container;
//! * [`LogBehind`] has a thread do that, for file systems that may hang;
//! * [`parse_line`] and [`read_output`] read such files.

mod behind;
mod reader;
mod splitter;
mod timestamp;
mod writer;

use std::fmt;

pub use behind::LogBehind;
pub use reader::{Line, ParseError, parse_line, read_output};
pub use splitter::{DEFAULT_LIMIT, Piece, Splitter};
pub use timestamp::{TIMESTAMP_LEN, format_timestamp, parse_timestamp};
pub use writer::LogWriter;

/// Where a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Its standard output, or its terminal.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Stream {
    /// The stream's name in a log line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a piece ends a line of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// The line ends here.
    Full,
    /// The line goes on, or the stream ended without a newline.
    Partial,
}

impl Tag {
    /// The tag's letter in a log line.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Full => 'F',
            Self::Partial => 'P',
        }
    }
}
