//! An image store in memory, for tests of whatever needs images without pulling them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use oci_spec::image::ImageConfiguration;
use types::{ImageId, Timestamp};

use crate::error::ImageError;
use crate::index::Index;
use crate::record::{ImageRecord, Rootfs, chain_id};
use crate::reference::Reference;
use crate::source::ImageSource;

/// Holds the images a test adds, and the leases taken on them.
#[derive(Debug, Default)]
pub struct FakeImages {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    images: Vec<Arc<ImageRecord>>,
    layers: BTreeMap<ImageId, Vec<PathBuf>>,
    leases: BTreeMap<String, ImageId>,
    failure: Option<String>,
}

impl FakeImages {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an image under `reference` whose root file system is `layers`, topmost first.
    ///
    /// # Errors
    /// [`ImageError::Reference`] when the reference is malformed.
    pub fn add(
        &self,
        reference: &str,
        config: ImageConfiguration,
        layers: Vec<PathBuf>,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        let parsed = Reference::parse(reference)
            .map_err(|source| ImageError::Reference { text: reference.to_owned(), source })?;
        let id = ImageId(crate::hash::digest_of(parsed.to_string().as_bytes()));
        let record = Arc::new(ImageRecord {
            repo_tags: parsed.repo_tag().into_iter().collect(),
            repo_digests: vec![parsed.repo_digest(&id.0)],
            size: 1,
            pinned: false,
            config: Arc::new(config),
            layers: Vec::new(),
            chain_id: chain_id(&[]),
            manifest: id.0.clone(),
            pulled_at: Timestamp::now(),
            id,
        });
        let mut state = self.state();
        state.layers.insert(record.id.clone(), layers);
        state.images.push(Arc::clone(&record));
        Ok(record)
    }

    /// Makes the next lease fail for want of disk space, naming `what`.
    pub fn fail_next_lease(&self, what: &str) {
        self.state().failure = Some(what.to_owned());
    }

    /// Takes an image away; leases on it stay.
    pub fn remove(&self, id: &ImageId) {
        self.state().images.retain(|image| &image.id != id);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ImageSource for FakeImages {
    fn resolve(&self, text: &str) -> Option<Arc<ImageRecord>> {
        Index::new(self.state().images.clone()).resolve(text)
    }

    async fn ensure(&self, reference: &str) -> Result<ImageId, ImageError> {
        let found = self.resolve(reference).map(|image| image.id.clone());
        found.ok_or_else(|| ImageError::Unknown(reference.to_owned()))
    }

    async fn lease(&self, owner: &str, image: &ImageId) -> Result<Rootfs, ImageError> {
        let mut state = self.state();
        if let Some(what) = state.failure.take() {
            return Err(ImageError::DiskFull { what });
        }
        let found = state.images.iter().find(|record| &record.id == image).cloned();
        let record = found.ok_or_else(|| ImageError::Unknown(image.to_string()))?;
        state.leases.insert(owner.to_owned(), image.clone());
        Ok(Rootfs {
            layers: state.layers.get(image).cloned().unwrap_or_default(),
            config: Arc::clone(&record.config),
            id: image.clone(),
            chain_id: record.chain_id.clone(),
        })
    }

    async fn release(&self, owner: &str) -> Result<(), ImageError> {
        self.state().leases.remove(owner);
        Ok(())
    }

    fn leases(&self) -> Vec<String> {
        self.state().leases.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn leases_are_kept_until_released() {
        let images = FakeImages::new();
        let added = images.add("busybox", ImageConfiguration::default(), vec!["/lower".into()]).unwrap();
        let found = images.resolve("docker.io/library/busybox:latest").unwrap();
        assert_eq!(found.id, added.id);
        let rootfs = images.lease("c1", &added.id).await.unwrap();
        assert_eq!(rootfs.layers, [PathBuf::from("/lower")]);
        assert_eq!(images.leases(), ["c1"]);
        images.release("c1").await.unwrap();
        images.release("c1").await.unwrap();
        assert!(images.leases().is_empty());
        images.fail_next_lease("c2");
        assert!(matches!(images.lease("c2", &added.id).await, Err(ImageError::DiskFull { .. })));
    }
}
