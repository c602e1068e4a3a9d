//! What kind of failure an error is, in the words of the protocol edges.
//!
//! Libraries return their own enums; each implements [`Kind`], and one table in `src/service/status.rs` turns the
//! kind into a gRPC code. kubelet branches on that code, so the kind is part of an error's contract.

/// The class of a failure, chosen where the failure is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// Another object already has this identity.
    AlreadyExists,
    /// The request can never succeed as it stands.
    InvalidArgument,
    /// The object is in a state that does not allow the request.
    FailedPrecondition,
    /// An outside party (registry, plugin, monitor) cannot be reached now; a retry may succeed.
    Unavailable,
    /// The time allowed for the operation ran out.
    DeadlineExceeded,
    /// A limit of this server or host is used up (disk, pending tokens, queue).
    ResourceExhausted,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// Credentials are known but not sufficient, or a policy forbids the request.
    PermissionDenied,
    /// The caller gave the operation up.
    Cancelled,
    /// This server does not implement the request.
    Unimplemented,
    /// Anything else: a fault of this server or its host.
    Internal,
}

/// Implemented by every error that may reach a protocol edge.
pub trait Kind: std::error::Error {
    /// The class of this failure.
    fn kind(&self) -> ErrorKind;
}

impl ErrorKind {
    /// The class of an operating-system error, where nothing more specific is known.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::TimedOut => Self::DeadlineExceeded,
            Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory => Self::ResourceExhausted,
            _ => Self::Internal,
        }
    }
}

/// Renders an error followed by the chain of its sources, as log lines and gRPC messages want it.
///
/// Errors in this project never repeat their source in `Display`, so the chain reads once, outermost first.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the record")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn chain_names_each_cause_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "reading the record: disk on fire");
    }
}
