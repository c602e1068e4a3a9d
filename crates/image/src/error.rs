//! What can go wrong with images, classified for the protocol edge.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use types::{Digest, ErrorKind, ImageId, Kind};

use crate::auth::AuthError;
use crate::reference::{Reference, ReferenceError};
use crate::unpack::UnpackError;

/// A failed image operation.
///
/// The messages of [`ImageError::Unavailable`] begin with `RegistryUnavailable: `, which kubelet matches.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference is malformed.
    #[error("image reference {text:?} is malformed")]
    Reference {
        /// The text that was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: ReferenceError,
    },
    /// The credentials are malformed.
    #[error("credentials for {reference} are malformed")]
    Credentials {
        /// The image.
        reference: String,
        /// What is wrong with them.
        #[source]
        source: AuthError,
    },
    /// The registry wants other credentials, or any.
    #[error("{host} refuses to serve {reference} with these credentials: {detail}")]
    Unauthenticated {
        /// The image.
        reference: String,
        /// The registry that refused.
        host: String,
        /// The registry's own words, shortened.
        detail: String,
    },
    /// The registry knows the credentials and forbids the access.
    #[error("{host} forbids access to {reference}: {detail}")]
    Denied {
        /// The image.
        reference: String,
        /// The registry that refused.
        host: String,
        /// The registry's own words, shortened.
        detail: String,
    },
    /// The registry does not have the image, or one of its blobs.
    #[error("{host} has no {what} of {reference}")]
    NotFound {
        /// The image.
        reference: String,
        /// The registry that answered.
        host: String,
        /// `manifest` or `blob sha256:…`.
        what: String,
    },
    /// The registry cannot be reached, or is failing.
    #[error("RegistryUnavailable: {host} cannot serve {reference}: {detail}")]
    Unavailable {
        /// The image.
        reference: String,
        /// The registry.
        host: String,
        /// What happened.
        detail: String,
    },
    /// The registry answered something that is not the distribution protocol.
    #[error("{host} broke the registry protocol while serving {reference}: {detail}")]
    Protocol {
        /// The image.
        reference: String,
        /// The registry.
        host: String,
        /// What it did.
        detail: String,
    },
    /// Content does not have the digest or size it is announced with.
    #[error("{what} of {reference} is corrupt: {detail}")]
    Corrupt {
        /// The image.
        reference: String,
        /// Which manifest, config or layer.
        what: String,
        /// What was expected and what came.
        detail: String,
    },
    /// The image is of a kind this server does not run.
    #[error("{reference} cannot be used as an image: {detail}")]
    Unsupported {
        /// The image.
        reference: String,
        /// Why.
        detail: String,
    },
    /// The index has no manifest for the platform.
    #[error("{reference} has no image for {platform}")]
    NoPlatform {
        /// The image.
        reference: String,
        /// The platform wanted.
        platform: String,
    },
    /// A layer's archive is malformed or hostile.
    #[error("layer {layer} of {reference} cannot be unpacked")]
    Unpack {
        /// The image.
        reference: String,
        /// The layer's digest.
        layer: Digest,
        /// The entry and what is wrong with it.
        #[source]
        source: UnpackError,
    },
    /// The store's file system is full.
    #[error("no space is left for {what} in the image store")]
    DiskFull {
        /// What was being written.
        what: String,
    },
    /// No stored image answers to this name.
    #[error("image {0:?} is not known")]
    Unknown(String),
    /// The image was whole once, and somebody took a layer of it away.
    #[error("layer {layer} of image {image} is missing on disk, the image has to be pulled again")]
    Damaged {
        /// The image.
        image: ImageId,
        /// The layer's diff id.
        layer: Digest,
    },
    /// The owner of a lease is not a plain name.
    #[error("{0:?} cannot own a lease: expected letters, digits, '.', '_' and '-'")]
    Owner(String),
    /// A registry's `hosts.toml` cannot be used.
    #[error("registry configuration {path} cannot be used")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store's directory cannot be read or written.
    #[error("{op} in the image store failed")]
    Store {
        /// What was being done, with the name of the object.
        op: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The store is being closed.
    #[error("the image store is shutting down")]
    Closed,
    /// Everyone who waited for the pull left before it ended.
    #[error("the pull of {reference} was given up by its callers")]
    Abandoned {
        /// The image.
        reference: String,
    },
    /// The image was removed by its name while it was being pulled.
    #[error("the pull of {reference} was stopped because the image was removed meanwhile")]
    Removed {
        /// The image.
        reference: String,
    },
    /// The failure of a pull that several calls may have waited for.
    #[error(transparent)]
    Shared(Arc<ImageError>),
}

impl ImageError {
    /// A failed file operation of the store; a full disk is told apart.
    pub(crate) fn store(op: impl Into<String>, source: io::Error) -> Self {
        let op = op.into();
        if is_full(&source) { Self::DiskFull { what: op } } else { Self::Store { op, source } }
    }

    /// The same with the image's name in it.
    pub(crate) fn of_image(self, reference: &Reference) -> Self {
        let name = reference.to_string();
        match self {
            Self::DiskFull { what } if !what.contains(&name) => {
                Self::DiskFull { what: format!("{what} for {name}") }
            }
            Self::Store { op, source } if !op.contains(&name) => {
                Self::Store { op: format!("{op} for {name}"), source }
            }
            other => other,
        }
    }

    pub(crate) fn lost_layer(image: &ImageId, layer: &Digest) -> Self {
        Self::Damaged { image: image.clone(), layer: layer.clone() }
    }

    /// The same for the durable file operations of `sys`.
    pub(crate) fn file(op: impl Into<String>, source: sys::FileError) -> Self {
        let op = op.into();
        if source.kind() == ErrorKind::ResourceExhausted {
            return Self::DiskFull { what: op };
        }
        Self::Store { op, source: io::Error::other(source) }
    }
}

/// Whether the error says that no space (or no quota) is left.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Kind for ImageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference { .. } | Self::Credentials { .. } | Self::Unsupported { .. } | Self::Owner(_) => {
                ErrorKind::InvalidArgument
            }
            Self::Unpack { source, .. } if source.is_of_content() => ErrorKind::InvalidArgument,
            Self::Unauthenticated { .. } => ErrorKind::Unauthenticated,
            Self::Denied { .. } => ErrorKind::PermissionDenied,
            Self::NotFound { .. } | Self::NoPlatform { .. } | Self::Unknown(_) | Self::Damaged { .. } => {
                ErrorKind::NotFound
            }
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::DiskFull { .. } => ErrorKind::ResourceExhausted,
            Self::Hosts { .. } => ErrorKind::FailedPrecondition,
            Self::Unpack { .. } | Self::Protocol { .. } | Self::Corrupt { .. } | Self::Store { .. } => {
                ErrorKind::Internal
            }
            Self::Closed | Self::Abandoned { .. } | Self::Removed { .. } => ErrorKind::Cancelled,
            Self::Shared(inner) => inner.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_begins_with_the_prefix_kubelet_matches() {
        let error = ImageError::Unavailable {
            reference: "docker.io/library/a:latest".into(),
            host: "registry-1.docker.io".into(),
            detail: "connection refused".into(),
        };
        let shared = ImageError::Shared(Arc::new(error));
        assert!(types::error::chain(&shared).starts_with("RegistryUnavailable: "));
        assert_eq!(shared.kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(ImageError::store("writing", full).kind(), ErrorKind::ResourceExhausted);
        assert_eq!(ImageError::store("writing", io::Error::other("x")).kind(), ErrorKind::Internal);
        let reference = Reference::parse("a:1").unwrap();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let named = ImageError::store("the work on it", full).of_image(&reference).of_image(&reference);
        assert_eq!(
            named.to_string(),
            "no space is left for the work on it for docker.io/library/a:1 in the image store"
        );
    }
}
