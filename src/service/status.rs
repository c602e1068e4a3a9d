//! The one table from error kinds to gRPC codes. kubelet branches on these.

use tonic::{Code, Status};
use types::{ErrorKind, Kind};

/// The gRPC code of a failure's class.
pub(super) fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
    }
}

/// The answer for a failure: its code and its chain of causes.
pub(super) fn status(error: &(impl Kind + 'static)) -> Status {
    let message = types::error::chain(error);
    let kind = error.kind();
    tracing::debug!(error = message, ?kind, "request failed");
    Status::new(code(kind), message)
}

/// Beginnings of PullImage's messages that kubelet looks for.
const PULL_PREFIXES: [&str; 2] = ["RegistryUnavailable", "SignatureValidationFailed"];

/// The answer for a failed pull. kubelet takes the code off the message of `Unknown` errors only, and a message that begins
/// with "rpc error: code = …" is not matched: what it is to recognise goes without a better code.
pub(super) fn pull_status(error: &(impl Kind + 'static)) -> Status {
    let status = status(error);
    if PULL_PREFIXES.iter().any(|prefix| status.message().starts_with(prefix)) {
        return Status::unknown(status.message());
    }
    status
}

/// The answer to a method that this server does not have yet.
pub(super) fn unimplemented<T>(method: &'static str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{method} is not implemented by this version of crimson")))
}

/// The answer to a request that lacks a field.
pub(super) fn missing(field: &'static str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodError;

    #[test]
    fn messages_that_kubelet_matches_by_prefix_keep_it() {
        let error = PodError::Spec(spec::SpecError::RroUnsupported { path: "/x".to_owned() });
        assert!(status(&error).message().starts_with("RROUnsupported"));
    }

    #[test]
    fn a_pull_that_found_no_registry_has_the_code_that_kubelet_takes_off() {
        let (reference, host, detail) = ("r/a:1".to_owned(), "r".to_owned(), "refused".to_owned());
        let error = image::ImageError::Unavailable { reference, host, detail };
        let answer = pull_status(&error);
        assert!(answer.code() == Code::Unknown && answer.message().starts_with("RegistryUnavailable: "));
        assert_eq!(status(&error).code(), Code::Unavailable);
        assert_eq!(pull_status(&image::ImageError::Unknown("x".to_owned())).code(), Code::NotFound);
    }

    #[test]
    fn a_missing_object_is_not_found() {
        assert_eq!(status(&PodError::ContainerNotFound("x".to_owned())).code(), Code::NotFound);
        assert_eq!(status(&PodError::AmbiguousId("x".to_owned())).code(), Code::InvalidArgument);
    }
}
