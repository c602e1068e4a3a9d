//! Collection: what no image, lease or running pull refers to goes at once.

use std::collections::HashSet;
use std::path::PathBuf;

use types::Digest;

use super::layers::Aside;
use super::{State, Store, layout};

/// Trees that were renamed out of the store and are still to be deleted, outside of the lock.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Trash(Vec<PathBuf>);

impl Trash {
    pub(super) fn of(path: PathBuf) -> Self {
        Self(vec![path])
    }

    pub(super) fn delete(self) {
        self.0.iter().for_each(|path| layout::delete(path));
    }
}

impl Store {
    pub(super) fn collect(&self, state: &mut State) -> Trash {
        self.collect_blobs(state);
        let layers: Vec<PathBuf> =
            state.unused_layers().iter().filter_map(|diff_id| self.discard(state, diff_id)).collect();
        Trash(layers.into_iter().chain(state.unused_asides()).collect())
    }

    /// Renames a layer away, so that its place is free for a pull that needs it again. A file system that has no room even
    /// for that gets it by deleting the layer at its place, whoever has to wait.
    fn discard(&self, state: &mut State, diff_id: &Digest) -> Option<PathBuf> {
        let place = self.layout.layers.join(&state.layers.get(diff_id)?.directory);
        let trash = self.layout.ingest.join(self.next_name("trash"));
        let renamed = layout::rename(&place, &trash);
        if let Err(error) = &renamed {
            let error = types::error::chain(error);
            tracing::warn!(op = "collect", error, "an unused layer is deleted at its place");
            // Without this file nobody takes the rest for a layer.
            layout::delete(&place.join(layout::LAYER_FILE));
            layout::delete(&place);
        }
        if renamed.is_ok() || !place.try_exists().unwrap_or(true) {
            state.layers.remove(diff_id);
        }
        renamed.ok().map(|()| trash)
    }

    fn collect_blobs(&self, state: &mut State) {
        let used: HashSet<PathBuf> =
            state.used_blobs().iter().map(|digest| self.layout.blob(digest)).collect();
        let is_unused = |path: &&PathBuf| path.starts_with(&self.layout.blobs) && !used.contains(*path);
        let unused: Vec<PathBuf> = state.files.keys().filter(is_unused).cloned().collect();
        for path in unused {
            layout::delete(&path);
            state.files.remove(&path);
        }
    }
}

impl State {
    fn unused_layers(&self) -> Vec<Digest> {
        let of_images =
            self.images.values().flat_map(|image| image.file.layers.iter().map(|layer| &layer.diff_id));
        let of_leases = self.leases.values().flat_map(|lease| &lease.layers);
        let used: HashSet<&Digest> = of_images.chain(of_leases).chain(&self.resumable).collect();
        let unused = self.layers.iter().filter(|(diff_id, layer)| layer.pins == 0 && !used.contains(diff_id));
        unused.map(|(diff_id, _)| diff_id.clone()).collect()
    }

    fn unused_asides(&mut self) -> impl Iterator<Item = PathBuf> + use<> {
        let leases = &self.leases;
        let is_unused = |aside: &mut Aside| !aside.owners.iter().any(|owner| leases.contains_key(owner));
        let unused: Vec<Aside> = self.aside.extract_if(.., is_unused).collect();
        unused.into_iter().map(|aside| aside.path)
    }

    fn used_blobs(&self) -> HashSet<&Digest> {
        let of_images = self.images.values().flat_map(|image| &image.file.blobs);
        // A lease needs the config, which has the image's id as its digest.
        of_images.chain(self.leases.values().map(|lease| &lease.image.0)).collect()
    }
}
