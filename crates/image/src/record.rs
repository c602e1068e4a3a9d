//! What is known about a stored image, as the rest of the server sees it.

use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use types::{Digest, ImageId, Timestamp};

/// One image that is whole on disk. Immutable: a change of tags publishes a new record.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    /// The digest of the image's config.
    pub id: ImageId,
    /// `registry/repository:tag`, sorted; empty for an image whose tags all moved on.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest` of the manifest or index as it was pulled, sorted; never empty.
    pub repo_digests: Vec<String>,
    /// Bytes of the compressed layers and the config; never 0.
    pub size: u64,
    /// Whether the configuration asks to keep this image.
    pub pinned: bool,
    /// The image's config.
    pub config: Arc<ImageConfiguration>,
    /// The layers, lowest first, as the manifest lists them.
    pub layers: Vec<Layer>,
    /// The chain id of all layers.
    pub chain_id: Digest,
    /// The digest of the image's manifest (of this platform, not of the index).
    pub manifest: Digest,
    /// When the image first became whole here.
    pub pulled_at: Timestamp,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The digest of the uncompressed archive: the layer's identity in the store.
    pub diff_id: Digest,
    /// The digest of the blob in the registry.
    pub digest: Digest,
    /// Bytes of the blob in the registry.
    pub size: u64,
    /// The blob's media type as the manifest says it.
    pub media_type: String,
}

/// The user an image's process runs as when the container does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// The image does not say: root, but not *known* to be root.
    Unset,
    /// By number.
    Uid(i64),
    /// By name, to be looked up in the image's `/etc/passwd`.
    Name(String),
}

/// What a container's root file system is made of, kept for it by a lease.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// Directories for overlay's `lowerdir`, topmost first; never empty.
    pub layers: Vec<PathBuf>,
    /// The image's config.
    pub config: Arc<ImageConfiguration>,
    /// The image.
    pub id: ImageId,
    /// The chain id of all layers.
    pub chain_id: Digest,
}

impl ImageRecord {
    /// The config's user, without its group.
    #[must_use]
    pub fn user(&self) -> ImageUser {
        let user = self.config.config().as_ref().and_then(|config| config.user().as_deref());
        ImageUser::parse(user.unwrap_or_default())
    }

    /// The name people know the image by: its first tag, else its first digest.
    #[must_use]
    pub fn name(&self) -> &str {
        self.repo_tags.first().or(self.repo_digests.first()).map_or(self.id.0.as_str(), String::as_str)
    }
}

impl ImageUser {
    fn parse(text: &str) -> Self {
        let user = text.split(':').next().unwrap_or_default();
        match user.parse::<i64>() {
            _ if user.is_empty() => Self::Unset,
            Ok(uid) => Self::Uid(uid),
            Err(_) => Self::Name(user.to_owned()),
        }
    }
}

/// The chain id of layers: each step hashes the chain so far with the next diff id.
#[must_use]
pub fn chain_id(diff_ids: &[Digest]) -> Digest {
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else {
        return crate::hash::digest_of(b"");
    };
    ids.fold(first.clone(), |chain, id| crate::hash::digest_of(format!("{chain} {id}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_split_from_its_group() {
        for (text, expected) in [
            ("", ImageUser::Unset),
            ("0", ImageUser::Uid(0)),
            ("65534:65534", ImageUser::Uid(65534)),
            ("nobody:nogroup", ImageUser::Name("nobody".into())),
        ] {
            assert_eq!(ImageUser::parse(text), expected);
        }
    }

    #[test]
    fn chain_of_one_layer_is_its_diff_id() {
        let a = crate::hash::digest_of(b"a");
        let b = crate::hash::digest_of(b"b");
        assert_eq!(chain_id(std::slice::from_ref(&a)), a);
        assert_eq!(chain_id(&[a.clone(), b.clone()]), crate::hash::digest_of(format!("{a} {b}").as_bytes()));
    }
}
