//! What is stored, for those who hand it on. Layers are to be pinned meanwhile.

use std::path::PathBuf;

use types::Digest;

use super::Store;
use crate::error::ImageError;

impl Store {
    /// A manifest, an index or a config, verified.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.layout.load_blob(digest)
    }

    /// Where a layer's tree and recipe are.
    pub(crate) fn layer_directory(&self, diff_id: &Digest) -> Option<PathBuf> {
        let state = self.state();
        state.layers.get(diff_id).map(|layer| self.layout.layers.join(&layer.directory))
    }
}
