//! What the pod domain needs of an image store.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use types::ImageId;

use crate::error::ImageError;
use crate::record::{ImageRecord, Rootfs};

/// The image store as containers see it: names become root file systems, and a lease keeps one alive.
#[async_trait]
pub trait ImageSource: Send + Sync + Debug {
    /// The image that `text` (id, id prefix, tag, digest reference, bare name) means, if it is stored.
    fn resolve(&self, text: &str) -> Option<Arc<ImageRecord>>;

    /// The image that `reference` names, fetched without credentials if it is not stored.
    async fn ensure(&self, reference: &str) -> Result<ImageId, ImageError>;

    /// Keeps the image's layers until `owner` releases them, across restarts and removal of the image.
    /// Asking again gives the same answer.
    async fn lease(&self, owner: &str, image: &ImageId) -> Result<Rootfs, ImageError>;

    /// Ends the lease of `owner`; one that does not exist is no error.
    async fn release(&self, owner: &str) -> Result<(), ImageError>;

    /// Everyone who holds a lease.
    fn leases(&self) -> Vec<String>;
}
