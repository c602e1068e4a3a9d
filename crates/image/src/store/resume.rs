//! Layers of pulls that the end of a process interrupted: kept for whoever pulls the image again.
//!
//! They are whole, since a layer comes into place by a rename, but not synced; of another boot's nothing is kept.

use types::Digest;

use super::Store;

impl Store {
    /// Keeps a layer that a pull has unpacked, until [`Store::forget_resumable`].
    pub(crate) fn keep_resumable(&self, diff_id: &Digest) {
        self.state().resumable.insert(diff_id.clone());
    }

    /// The pull of these layers has ended; what it did not publish is garbage.
    pub(crate) fn forget_resumable<'a>(&self, diff_ids: impl IntoIterator<Item = &'a Digest>) {
        let mut state = self.state();
        for diff_id in diff_ids {
            state.resumable.remove(diff_id);
        }
    }

    /// Layers that are kept for a pull to go on.
    pub(crate) fn resumable(&self) -> Vec<Digest> {
        self.state().resumable.iter().cloned().collect()
    }
}
