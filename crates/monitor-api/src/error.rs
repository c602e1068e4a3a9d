//! What can go wrong when the daemon talks to a monitor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use types::{ErrorKind, Kind};

use crate::codec::CodecError;
use crate::message::{Refusal, RefusalKind};

/// A failed call to a monitor.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The monitor did not do it.
    #[error("{0}")]
    Refused(Refusal),
    /// The connection ended before the answer came. Whether the request was done is unknown: connect again and list.
    #[error("the connection to the pod's monitor was lost")]
    Lost,
    /// No answer came in time.
    #[error("the pod's monitor did not answer {call} within {after:?}")]
    TimedOut {
        /// The call.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// A monitor could not be started.
    #[error("starting {}", program.display())]
    Spawn {
        /// The monitor's program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pod's state directory could not be prepared.
    #[error("preparing {} for the pod's monitor", path.display())]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket failed.
    #[error("talking to the pod's monitor")]
    Socket(#[source] io::Error),
    /// A message could not be made.
    #[error("making the message for the pod's monitor")]
    Codec(#[source] CodecError),
    /// The monitor answered something else than was asked.
    #[error("the pod's monitor gave an unexpected answer to {0}")]
    Unexpected(&'static str),
    /// The process behind the socket is another sandbox's monitor or speaks another version.
    #[error("the pod's monitor is not usable: {0}")]
    Foreign(String),
}

impl MonitorError {
    /// The refusal's class, when the monitor refused.
    #[must_use]
    pub fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused(refusal) => Some(refusal.kind),
            _ => None,
        }
    }
}

impl Kind for MonitorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => match refusal.kind {
                RefusalKind::NotFound => ErrorKind::NotFound,
                RefusalKind::InvalidState => ErrorKind::FailedPrecondition,
                RefusalKind::RuntimeTimedOut => ErrorKind::DeadlineExceeded,
                RefusalKind::Unsupported => ErrorKind::Unimplemented,
                RefusalKind::RuntimeFailed | RefusalKind::Io | RefusalKind::Unknown => ErrorKind::Internal,
            },
            Self::Lost | Self::Socket(_) => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::DeadlineExceeded,
            Self::Spawn { source, .. } | Self::Prepare { source, .. } => match ErrorKind::of_io(source) {
                ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Internal,
            },
            Self::Codec(_) | Self::Unexpected(_) | Self::Foreign(_) => ErrorKind::Internal,
        }
    }
}
