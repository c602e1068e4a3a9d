//! Failures of the network driver.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use types::{ErrorKind, Kind};

/// CNI's error code for "ask again later".
pub(crate) const TRY_AGAIN_LATER: u32 = 11;

/// Why a pod could not be attached, detached or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// No valid configuration is loaded.
    #[error("cni plugin not initialized: {0}")]
    NotInitialized(String),
    /// What the caller said about the pod cannot be passed to plugins.
    #[error("the pod's {what} cannot be used for its network: {reason}")]
    InvalidPod {
        /// Which property.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A plugin's program is nowhere.
    #[error("cni plugin {plugin:?} is in none of {}", join(dirs))]
    PluginMissing {
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A plugin's program could not be started.
    #[error("cni plugin {plugin:?} cannot be started")]
    Start {
        /// The plugin's type.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin reported an error in CNI's format.
    #[error("cni plugin {plugin:?} failed {command} with code {code}: {}", sentence(message, details))]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// The verb it was asked for.
        command: &'static str,
        /// CNI's or the plugin's own code.
        code: u32,
        /// Short text.
        message: String,
        /// Longer text, often empty.
        details: String,
    },
    /// A plugin failed without reporting an error in CNI's format.
    #[error("cni plugin {plugin:?} failed {command} with {status} and no error report: {output}")]
    Died {
        /// The plugin's type.
        plugin: String,
        /// The verb it was asked for.
        command: &'static str,
        /// Exit status or signal.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A plugin was killed because time was up.
    #[error("cni plugin {plugin:?} did not finish {command} within {limit:?}")]
    Deadline {
        /// The plugin that was running.
        plugin: String,
        /// The verb it was asked for.
        command: &'static str,
        /// The time that the whole operation had.
        limit: Duration,
    },
    /// A plugin wrote more than anybody reads.
    #[error("cni plugin {plugin:?} wrote more than {limit} bytes as result of {command}")]
    Flood {
        /// The plugin's type.
        plugin: String,
        /// The verb it was asked for.
        command: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// A plugin succeeded but its result is not one.
    #[error("cni plugin {plugin:?} answered {command} with something that is no cni result")]
    Result {
        /// The plugin's type.
        plugin: String,
        /// The verb it was asked for.
        command: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Talking to a plugin failed.
    #[error("cni plugin {plugin:?} cannot be waited for")]
    Io {
        /// The plugin's type.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// ADD succeeded but gave the pod's interface no address.
    #[error("network {network:?} gave interface {interface} no address")]
    NoAddress {
        /// The network's name.
        network: String,
        /// The interface.
        interface: String,
    },
    /// CHECK was asked for a pod that has no record.
    #[error("the pod is not attached to a network")]
    NotAttached,
    /// This process is shutting down. What was begun goes on or is undone after the next start.
    #[error("the network operation was interrupted by a shutdown")]
    Interrupted,
    /// GC found no moment without another operation.
    #[error("network garbage collection found no quiet moment within {0:?}")]
    Busy(Duration),
    /// The record of an attachment could not be read, written or removed.
    #[error("the network record of the pod cannot be {action}")]
    Record {
        /// `read`, `written` or `removed`.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A directory of the driver cannot be used.
    #[error("network directory {path:?} cannot be used")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Several things failed that do not depend on each other.
    #[error("{}", several(.0))]
    Several(Vec<CniError>),
}

impl CniError {
    /// One error for a list of failures, or success for an empty one.
    pub(crate) fn collect(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Self::Several(failures)),
        }
    }
}

impl Kind for CniError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotInitialized(_) | Self::PluginMissing { .. } | Self::Busy(_) => ErrorKind::Unavailable,
            Self::Plugin { code, .. } if *code == TRY_AGAIN_LATER => ErrorKind::Unavailable,
            Self::InvalidPod { .. } => ErrorKind::InvalidArgument,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::NotAttached => ErrorKind::NotFound,
            Self::Interrupted => ErrorKind::Cancelled,
            Self::Several(failures) => failures.first().map_or(ErrorKind::Internal, Kind::kind),
            Self::Start { .. }
            | Self::Plugin { .. }
            | Self::Died { .. }
            | Self::Flood { .. }
            | Self::Result { .. }
            | Self::Io { .. }
            | Self::NoAddress { .. }
            | Self::Record { .. }
            | Self::Directory { .. } => ErrorKind::Internal,
        }
    }
}

fn join(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn sentence(message: &str, details: &str) -> String {
    if details.is_empty() { message.to_owned() } else { format!("{message} ({details})") }
}

fn several(failures: &[CniError]) -> String {
    failures.iter().map(|failure| types::error::chain(failure)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(code: u32, details: &str) -> CniError {
        CniError::Plugin {
            plugin: "bridge".to_owned(),
            command: "ADD",
            code,
            message: "no more addresses".to_owned(),
            details: details.to_owned(),
        }
    }

    #[test]
    fn only_code_11_is_worth_a_retry() {
        assert_eq!(plugin(11, "").kind(), ErrorKind::Unavailable);
        assert_eq!(plugin(7, "").kind(), ErrorKind::Internal);
    }

    #[test]
    fn messages_name_plugin_verb_and_code() {
        let text = plugin(100, "range 10.0.0.0/30").to_string();
        assert_eq!(
            text,
            r#"cni plugin "bridge" failed ADD with code 100: no more addresses (range 10.0.0.0/30)"#
        );
    }

    #[test]
    fn collected_failures_are_all_told() {
        assert!(CniError::collect(Vec::new()).is_ok());
        assert!(matches!(CniError::collect(vec![CniError::NotAttached]), Err(CniError::NotAttached)));
        let error = CniError::collect(vec![plugin(11, ""), CniError::NotAttached]).unwrap_err();
        assert!(error.to_string().ends_with("; the pod is not attached to a network"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
