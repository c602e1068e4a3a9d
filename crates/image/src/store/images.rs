//! Images: made to exist, renamed, removed. The record is what counts; it comes last and goes first.

use std::sync::Arc;

use types::{Digest, ImageId};

use super::collect::Trash;
use super::format::{self, RecordFile};
use super::ingest::Ingest;
use super::{NewImage, State, Store, StoredImage, Wanted, layout};
use crate::error::ImageError;
use crate::reference::Reference;

impl Store {
    /// Makes an image exist. Its layers must be pinned by the caller until this returns. `wanted` is asked under the
    /// lock, when all is in place but the record: what it refuses leaves no trace once garbage is collected.
    pub(crate) fn commit_image(
        &self,
        image: NewImage,
        ingest: &Ingest,
        wanted: &Wanted<'_>,
    ) -> Result<ImageId, ImageError> {
        let id = ImageId(image.config.clone());
        let staged = ingest.stage_blobs(&image.blobs)?;
        self.layout.sync_filesystem()?;
        let mut state = self.state();
        for (digest, path) in staged {
            let place = self.layout.blob(&digest);
            layout::rename(&path, &place)?;
            state.note_file(&place);
        }
        self.layout.sync_blobs()?;
        wanted()?;
        self.take_tag_from_others(&mut state, &image.reference, &id)?;
        let mut known = state.images.get(&id).map(|image| image.file.clone());
        if let Some(known) = &mut known {
            // What another name needed and somebody damaged comes back when that name is pulled.
            known.blobs.retain(|blob| self.layout.load_blob(blob).is_ok());
        }
        self.save_record(&mut state, RecordFile::of(&image, known))?;
        self.publish(&state);
        Ok(id)
    }

    /// Adds a name to an image that is whole. `false` when it is not stored (any more), or lacks a layer: then it has to
    /// be pulled.
    pub(crate) fn add_name(
        &self,
        id: &ImageId,
        reference: &Reference,
        target: &Digest,
        wanted: &Wanted<'_>,
    ) -> Result<bool, ImageError> {
        let mut state = self.state();
        wanted()?;
        let Some(known) = state.images.get(id) else { return Ok(false) };
        if !self.is_whole(&state, &known.file) {
            return Ok(false);
        }
        let mut file = known.file.clone();
        if file.add_name(reference, target) {
            self.take_tag_from_others(&mut state, reference, id)?;
            self.save_record(&mut state, file)?;
            self.publish(&state);
        }
        Ok(true)
    }

    /// As far as a look at directories and small files tells.
    fn is_whole(&self, state: &State, file: &RecordFile) -> bool {
        let is_there = |diff_id| state.layers.get(diff_id).is_some_and(|layer| self.is_usable(layer));
        let has_layers = file.layers.iter().all(|layer| is_there(&layer.diff_id));
        let is_whole = has_layers && file.blobs.iter().all(|blob| self.layout.load_blob(blob).is_ok());
        if !is_whole {
            tracing::warn!(op = "pull", "image.id" = %file.id, "the stored image is damaged and fetched again");
        }
        is_whole
    }

    /// Removes the image that `text` means, with all its names. One that is not stored is no error.
    pub(crate) fn remove(&self, text: &str) -> Result<(), ImageError> {
        let trash = {
            let mut state = self.state();
            let Some(image) = self.index().resolve(text) else { return Ok(()) };
            let trash = self.forget(&mut state, &image.id)?;
            tracing::info!(op = "remove", "image.ref" = image.name(), "image removed");
            trash
        };
        trash.delete();
        Ok(())
    }

    /// Takes the image from the list and renames away what nothing refers to then.
    pub(super) fn forget(&self, state: &mut State, id: &ImageId) -> Result<Trash, ImageError> {
        let path = self.layout.record(id);
        sys::atomic::remove(&path).map_err(|e| ImageError::file(format!("removing image {id}"), e))?;
        state.files.remove(&path);
        state.images.remove(id);
        let trash = self.collect(state);
        self.publish(state);
        Ok(trash)
    }

    /// Removes what failed or abandoned pulls left that nothing refers to.
    pub(crate) fn collect_garbage(&self) {
        let trash: Trash = {
            let mut state = self.state();
            let trash = self.collect(&mut state);
            self.publish_usage(&state);
            trash
        };
        trash.delete();
    }

    /// A tag names one image: the one pulled last.
    fn take_tag_from_others(
        &self,
        state: &mut State,
        reference: &Reference,
        owner: &ImageId,
    ) -> Result<(), ImageError> {
        let Some(tag) = reference.repo_tag() else { return Ok(()) };
        let has_it = |image: &&StoredImage| image.file.id != *owner && image.file.tags.contains(&tag);
        let others: Vec<RecordFile> =
            state.images.values().filter(has_it).map(|image| image.file.clone()).collect();
        for mut file in others {
            file.tags.remove(&tag);
            self.save_record(state, file)?;
        }
        Ok(())
    }

    fn save_record(&self, state: &mut State, file: RecordFile) -> Result<(), ImageError> {
        let config = match state.images.get(&file.id) {
            Some(image) => Arc::clone(&image.config),
            None => self.layout.load_config(&file.id)?,
        };
        let path = self.layout.record(&file.id);
        sys::atomic::write(&path, &format::to_json(&file)?, 0o600)
            .map_err(|error| ImageError::file(format!("recording image {}", file.id), error))?;
        state.note_file(&path);
        state.images.insert(file.id.clone(), StoredImage { file, config });
        Ok(())
    }
}
