//! Repair: what is damaged of an image is fetched again, under the id it has.
//!
//! The image is pulled by one of its digests, so that nothing else can come in its place, with the credentials that the
//! node has for everyone. What is whole is not fetched. Only what has come and proved right replaces what is damaged; when
//! nothing comes, nothing has changed.

use std::sync::Arc;

use types::{Digest, ImageId};

use crate::error::ImageError;
use crate::images::{Images, blocking};
use crate::pull::PullRequest;
use crate::reference::Reference;
use crate::store::DamagedImage;

impl Images {
    /// Fetches the damaged parts of an image. Its id and its names stay, and containers keep the files they run on.
    /// Of an image whose record could not be read nothing is left to repair once the store is open.
    ///
    /// # Errors
    /// The error of the last pull when no digest of the image leads to it any more.
    pub async fn repair(&self, image: &DamagedImage) -> Result<(), ImageError> {
        let Some(id) = &image.id else { return Ok(()) };
        let _suspicion = self.shared.store.suspect(image.layers());
        let mut failure = ImageError::Unknown(id.to_string());
        for name in sources(image) {
            let request = PullRequest { reference: name.to_string(), ..PullRequest::default() };
            match self.pull(request).await {
                Ok(pulled) if pulled == *id => return self.name_again(image, id, &name).await,
                // The index at this digest leads this machine to another image.
                Ok(_) => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// A store that opened with the damage had to forget the names.
    async fn name_again(
        &self,
        image: &DamagedImage,
        id: &ImageId,
        pulled: &Reference,
    ) -> Result<(), ImageError> {
        let Some(target) = pulled.digest().cloned() else { return Ok(()) };
        let store = Arc::clone(&self.shared.store);
        let (id, tags) = (id.clone(), image.tags.clone());
        blocking(&self.shared.tasks, move || {
            // Whoever has got such a name meanwhile keeps it.
            for tag in tags.iter().filter(|tag| store.index().resolve(tag).is_none()) {
                if let Ok(reference) = Reference::parse(tag) {
                    store.add_name(&id, &reference, &target, &|| Ok(()))?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// The digests it was pulled by, then its own manifest's in the same repositories.
fn sources(image: &DamagedImage) -> Vec<Reference> {
    let known: Vec<Reference> = image.digests.iter().filter_map(|name| Reference::parse(name).ok()).collect();
    let by_manifest = |manifest: &Digest| {
        let name = |known: &Reference| Reference::parse(&known.repo_digest(manifest)).ok();
        known.iter().filter_map(name).collect::<Vec<_>>()
    };
    let more: Vec<Reference> =
        image.manifest.iter().flat_map(by_manifest).filter(|it| !known.contains(it)).collect();
    known.into_iter().chain(more).collect()
}
