//! Why devices cannot be had.

use std::path::PathBuf;

use types::{ErrorKind, Kind};

/// A request for devices that cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// Not a name of the form `vendor/class=device`.
    #[error("CDI device {name:?} is not of the form vendor/class=device: {reason}")]
    Name {
        /// What was asked for.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// No usable file describes these devices.
    #[error("unresolvable CDI devices {}{}", names.join(", "), because(problems))]
    Unresolvable {
        /// All that were asked for and not found.
        names: Vec<String>,
        /// What is wrong with files or names that may be the reason.
        problems: Vec<String>,
    },
    /// A device node cannot be made as it is described.
    #[error("CDI device node {}: {reason}", path.display())]
    Node {
        /// The node, on the host.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The OCI runtime does not know a part of the description.
    #[error("CDI edit {0} is not supported by the runtime handler")]
    Unsupported(&'static str),
}

fn because(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) }
}

impl Kind for CdiError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::Unresolvable { .. } | Self::Node { .. } | Self::Unsupported(_) => {
                ErrorKind::FailedPrecondition
            }
        }
    }
}
