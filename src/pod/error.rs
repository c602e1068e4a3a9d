//! Why a verb on a pod or container failed.
//!
//! Texts carry names, never random ids or temporary paths: kubelet turns them into events and folds equal ones.

use std::sync::Arc;

use types::{ErrorKind, Kind};

use super::confinement::ConfinementError;
use super::image_volumes::ImageVolumeError;

/// A failure that several callers may be told of: a retry that joined an operation gets the same one.
pub type SharedError = Arc<PodError>;

/// A failed verb.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No sandbox has this id.
    #[error("sandbox {0:?} not found")]
    SandboxNotFound(String),
    /// No container has this id.
    #[error("container {0:?} not found")]
    ContainerNotFound(String),
    /// The id prefix fits more than one object.
    #[error("id {0:?} is ambiguous: more than one object begins with it")]
    AmbiguousId(String),
    /// The image is not on this node.
    #[error("image {0:?} not found: pull it first")]
    ImageNotFound(String),
    /// No runtime handler has this name.
    #[error("runtime handler {0:?} is not configured")]
    UnknownHandler(String),
    /// No OCI runtime works on this host.
    #[error("runtime handler {name:?} is not usable: {reason}")]
    BrokenHandler {
        /// The handler asked for.
        name: String,
        /// What the probe found.
        reason: String,
    },
    /// The object exists and its state does not allow the verb.
    #[error("{object} is {state}: cannot {verb} it")]
    WrongState {
        /// What was addressed, by name.
        object: String,
        /// The state it is in.
        state: &'static str,
        /// The verb that was refused.
        verb: &'static str,
    },
    /// An object of this identity exists and is past the state in which a retry could have it.
    #[error("{object} exists already and is {state}: remove it first")]
    Exists {
        /// The identity.
        object: String,
        /// The state it is in.
        state: &'static str,
    },
    /// The request can never succeed.
    #[error("{0}")]
    Invalid(String),
    /// The request is refused by the translator of configurations.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// An image cannot be mounted.
    #[error(transparent)]
    ImageVolume(#[from] ImageVolumeError),
    /// Devices cannot be had.
    #[error(transparent)]
    Cdi(#[from] cdi::CdiError),
    /// Something cannot be confined.
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    /// A named step of a verb failed; the steps before it have been undone.
    #[error("{}: {step}", sentence(verb, object))]
    Step {
        /// The verb, as in `run sandbox`.
        verb: &'static str,
        /// The object, by name.
        object: String,
        /// The step.
        step: &'static str,
        /// What went wrong in it.
        #[source]
        source: Box<StepError>,
    },
    /// The command of an exec did not end in the time allowed.
    #[error("command in {object} did not end within {seconds} s")]
    ExecTimeout {
        /// The container, by name.
        object: String,
        /// The limit.
        seconds: u64,
    },
    /// The server is shutting down or the pod's task has ended.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What a driver or the host said in a step.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The image store.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// The network.
    #[error(transparent)]
    Network(#[from] cni::CniError),
    /// The monitor or, through it, the OCI runtime.
    #[error(transparent)]
    Monitor(#[from] monitor_api::MonitorError),
    /// The OCI runtime, called without the monitor.
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
    /// The cgroup driver.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    /// The translator of configurations.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// An image cannot be mounted.
    #[error(transparent)]
    ImageVolume(#[from] ImageVolumeError),
    /// A volume that the image declares.
    #[error("volume {path:?} of the image")]
    Volume {
        /// Its path in the container.
        path: std::path::PathBuf,
        /// What could not be copied.
        #[source]
        source: Box<super::volumes::CopyError>,
    },
    /// Devices cannot be had.
    #[error(transparent)]
    Cdi(#[from] cdi::CdiError),
    /// Something cannot be confined.
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    /// A record or another small file.
    #[error(transparent)]
    File(#[from] sys::FileError),
    /// A mount.
    #[error(transparent)]
    Mount(#[from] sys::MountError),
    /// A network namespace.
    #[error(transparent)]
    Netns(#[from] sys::NetnsError),
    /// An operating-system call.
    #[error("{what}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// What the request names on the host cannot serve.
    #[error("{0}")]
    Invalid(String),
    /// A path inside an image.
    #[error(transparent)]
    Beneath(#[from] sys::BeneathError),
    /// Something outlived its deadline.
    #[error("{0}")]
    Timeout(String),
    /// A fault injected by a test.
    #[error("injected fault")]
    Injected,
}

/// `run sandbox` and `sandbox default/web` read as `run sandbox default/web`.
fn sentence(verb: &str, object: &str) -> String {
    let noun = verb.rsplit(' ').next().unwrap_or_default();
    let name = object.strip_prefix(noun).map_or(object, str::trim_start);
    format!("{verb} {name}")
}

impl StepError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Monitor(error) => error.kind(),
            Self::Runtime(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Spec(error) => error.kind(),
            Self::ImageVolume(error) => error.kind(),
            Self::Volume { source, .. } => source.kind(),
            Self::Cdi(error) => error.kind(),
            Self::Confinement(error) => error.kind(),
            Self::File(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Netns(error) => error.kind(),
            Self::Io { source, .. } => match ErrorKind::of_io(source) {
                // A missing file of ours is our fault, not a missing object of the caller.
                ErrorKind::NotFound => ErrorKind::Internal,
                // A path of the request that cannot be one, such as a name beneath a file.
                ErrorKind::Internal if is_bad_path(source) => ErrorKind::InvalidArgument,
                kind => kind,
            },
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Beneath(error) => error.kind(),
            Self::Timeout(_) => ErrorKind::DeadlineExceeded,
            Self::Injected => ErrorKind::Internal,
        }
    }
}

fn is_bad_path(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Io;
    matches!(error.kind(), Io::NotADirectory | Io::InvalidFilename)
}

impl Kind for PodError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::SandboxNotFound(_) | Self::ContainerNotFound(_) | Self::ImageNotFound(_) => {
                ErrorKind::NotFound
            }
            Self::AmbiguousId(_) | Self::UnknownHandler(_) | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::BrokenHandler { .. } | Self::WrongState { .. } => ErrorKind::FailedPrecondition,
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Spec(error) => error.kind(),
            Self::ImageVolume(error) => error.kind(),
            Self::Cdi(error) => error.kind(),
            Self::Confinement(error) => error.kind(),
            // Never NotFound: kubelet takes that code for a missing sandbox or container.
            Self::Step { source, .. } => match source.kind() {
                ErrorKind::NotFound => ErrorKind::Internal,
                kind => kind,
            },
            Self::ExecTimeout { .. } => ErrorKind::DeadlineExceeded,
            Self::ShuttingDown => ErrorKind::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_reads_as_a_sentence() {
        assert_eq!(sentence("run sandbox", "sandbox default/web"), "run sandbox default/web");
        assert_eq!(sentence("exec in", "container \"c\""), "exec in container \"c\"");
    }
}
