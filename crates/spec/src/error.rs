//! Why a request cannot be translated.

use types::{ErrorKind, Kind};

/// A request that this node cannot or must not run, or a record that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A required field is absent or empty.
    #[error("{field} is missing")]
    Missing {
        /// The CRI field.
        field: &'static str,
    },
    /// A field has a value that can never be honoured.
    #[error("{field} {value:?} is not valid: {reason}")]
    Invalid {
        /// The CRI field.
        field: &'static str,
        /// What was sent.
        value: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Two fields contradict each other.
    #[error("{field}: {reason}")]
    Conflict {
        /// The CRI field.
        field: &'static str,
        /// The contradiction.
        reason: &'static str,
    },
    /// A user name that the image's passwd file does not have.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// A group name that the image's group file does not have.
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    /// A kernel parameter that a pod may not set.
    #[error("sysctl {name:?} is not allowed: {reason}")]
    Sysctl {
        /// The parameter.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A host feature that the request demands is absent.
    #[error("{what} is not available on this node: {reason}")]
    Unavailable {
        /// The feature, with the value asked for.
        what: String,
        /// What is missing.
        reason: &'static str,
    },
    /// The OCI runtime cannot make mounts recursively read-only. kubelet matches the first word of this message.
    #[error("RROUnsupported: the runtime handler cannot mount {path:?} recursively read-only")]
    RroUnsupported {
        /// Path of the mount inside the container.
        path: String,
    },
    /// An image cannot be mounted as it was asked for. kubelet matches the first word of this message.
    #[error("ImageVolumeMountFailed: mount {path:?}: {reason}")]
    ImageVolume {
        /// Path of the mount inside the container.
        path: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A seccomp profile that is not JSON of the OCI form.
    #[error("seccomp profile {path:?} is not valid")]
    SeccompProfile {
        /// The profile, as the request named it.
        path: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// Neither the request nor the image says what to run.
    #[error(
        "no command specified: the container config and image {image:?} have neither command nor entrypoint"
    )]
    NoCommand {
        /// The image.
        image: String,
    },
    /// A stored OCI spec without its process part.
    #[error("the container's runtime spec has no process")]
    NoProcess,
    /// A stored request that cannot be decoded.
    #[error("stored {what} request cannot be decoded")]
    Record {
        /// `sandbox` or `container`.
        what: &'static str,
        /// What the decoder said.
        #[source]
        source: prost::DecodeError,
    },
    /// A stored request that lacks its metadata.
    #[error("stored {what} request has no metadata")]
    RecordMetadata {
        /// `sandbox` or `container`.
        what: &'static str,
    },
}

impl Kind for SpecError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. }
            | Self::Invalid { .. }
            | Self::Conflict { .. }
            | Self::UnknownUser(_)
            | Self::UnknownGroup(_)
            | Self::Sysctl { .. }
            | Self::ImageVolume { .. }
            | Self::SeccompProfile { .. }
            | Self::NoCommand { .. } => ErrorKind::InvalidArgument,
            Self::Unavailable { .. } | Self::RroUnsupported { .. } => ErrorKind::FailedPrecondition,
            Self::NoProcess | Self::Record { .. } | Self::RecordMetadata { .. } => ErrorKind::Internal,
        }
    }
}

impl SpecError {
    /// Shorthand for [`SpecError::Invalid`].
    pub(crate) fn invalid(field: &'static str, value: impl Into<String>, reason: &'static str) -> Self {
        Self::Invalid { field, value: value.into(), reason }
    }
}
