//! What a pull has made and does not count yet: directories below `ingest/`, gone when their owner is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use types::Digest;

use super::format::{self, LayerFile};
use super::{Store, layout};
use crate::error::ImageError;
use crate::recipe;
use crate::unpack::{Target, Unpacked};

/// A directory for one pull's unfinished work, gone when dropped.
#[derive(Debug)]
pub(crate) struct Ingest {
    path: PathBuf,
}

/// A layer being unpacked inside an [`Ingest`].
#[derive(Debug)]
pub(crate) struct IngestLayer {
    pub(super) path: PathBuf,
}

impl Store {
    /// Starts a pull's unfinished work.
    pub(crate) fn ingest(&self) -> Result<Ingest, ImageError> {
        let path = self.layout.ingest.join(self.next_name("pull"));
        layout::make_directory(&path, 0o700)?;
        Ok(Ingest { path })
    }
}

impl Ingest {
    /// For files of other kinds.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// A directory to unpack the layer at `position` into; what an earlier attempt left in it is removed.
    pub(crate) fn layer(&self, position: usize) -> Result<IngestLayer, ImageError> {
        let path = self.path.join(format!("layer-{position}"));
        layout::delete(&path);
        layout::make_directory(&path, 0o700)?;
        let root = path.join(layout::LAYER_ROOT);
        layout::make_directory(&root, 0o755)?;
        Ok(IngestLayer { path })
    }

    pub(super) fn stage_blobs(
        &self,
        blobs: &[(Digest, Vec<u8>)],
    ) -> Result<Vec<(Digest, PathBuf)>, ImageError> {
        let stage = |(digest, bytes): &(Digest, Vec<u8>)| {
            let path = self.path.join(digest.hex());
            layout::write(&path, bytes)?;
            Ok((digest.clone(), path))
        };
        blobs.iter().map(stage).collect()
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        layout::delete(&self.path);
    }
}

impl IngestLayer {
    /// Where to unpack to.
    pub(crate) fn target(&self) -> Result<Target, ImageError> {
        let root = layout::open_directory(&self.path.join(layout::LAYER_ROOT))?;
        Ok(Target { root, recipe: Some(self.recipe()?) })
    }

    /// The empty file beside the tree that takes what the tree does not show of the archive.
    fn recipe(&self) -> Result<File, ImageError> {
        let path = self.path.join(recipe::FILE);
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|error| ImageError::store("making the recipe of a layer", error))
    }

    /// Writes `layer.json` beside the tree and adds what is not in the tree to the layer's usage.
    pub(super) fn describe(&self, diff_id: &Digest, mut unpacked: Unpacked) -> Result<Unpacked, ImageError> {
        let recipe = self.path.join(recipe::FILE);
        let recipe = std::fs::symlink_metadata(&recipe).map(|_| layout::bytes_of(&recipe)).ok();
        let own = layout::bytes_of(&self.path) + layout::SMALL_FILE_BYTES + recipe.unwrap_or_default();
        let files = 2 + u64::from(recipe.is_some());
        unpacked = Unpacked { bytes: unpacked.bytes + own, inodes: unpacked.inodes + files, ..unpacked };
        let path = self.path.join(layout::LAYER_FILE);
        layout::write(&path, &format::to_json(&LayerFile::new(diff_id, unpacked))?)?;
        Ok(unpacked)
    }
}
