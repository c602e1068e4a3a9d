//! The image store on disk. Everything here blocks and belongs on blocking threads, but for the reading methods.
//!
//! ```text
//! root/images/
//!   records/<64 hex>.json     one per image, named by its id: tags, digests, layers. An image exists when its record does
//!   blobs/sha256/<64 hex>     manifests, indexes and configs as the registry sent them. Layer blobs are not kept: their
//!                             files are on disk once, unpacked; a push from here would have to make them anew
//!   layers/<12 hex>/fs        one unpacked layer, a lower directory for overlay; named by the start of its diff id,
//!                             short because all lower directories of a mount share one page of options
//!   layers/<12 hex>/layer.json  its whole diff id and what it takes on disk
//!   layers/<12 hex>/recipe    what the tree does not show of the layer's archive, so that it can be made and hashed again
//!   leases/<owner>            which layers a container keeps, whatever becomes of the image
//!   aside/<name>              damaged layers that were replaced, and that containers still run on
//!   empty/                    the lower directory of images that have no layers
//!   ingest/                   pulls under way and trees being removed; emptied when the store opens
//!   parts/<boot id>/          what the next process can take up of pulls under way; see `parts`
//! ```
//!
//! Promises:
//! * A record is written only after everything it names is whole, in place and synced (`syncfs`, once per pull).
//! * Removal works the other way round: the record goes first, what nothing refers to then is renamed away and deleted.
//! * Reading (list, resolve, usage) takes what was last published and never waits for the disk.
//! * Usage is added up as layers come and go; no tree is walked.
//!
//! * Removing needs no space: nothing is written before something is gone, and what cannot be renamed away is deleted
//!   where it is.
//! * An image that lost a layer directory or a blob is not handed out: it leaves the list when the store opens or a
//!   container wants it, and a pull of it fetches what is missing. What is damaged more subtly is found by [`damage`].
//!
//! Leases are not synced: they must outlive the daemon, not the kernel, since no container does either. A lease that
//! power loss left unreadable is dropped.

mod collect;
mod contents;
mod damage;
mod format;
mod images;
mod ingest;
mod layers;
mod layout;
mod lease;
mod open;
mod resume;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use types::{Digest, ImageId, Timestamp};

use crate::error::ImageError;
use crate::index::Index;
use crate::record::{ImageRecord, Layer};
use crate::reference::Reference;
pub use damage::{DamagedImage, Fault, Part, damage_on_disk, still_damaged};
pub(crate) use format::parse_config;
use format::{LeaseFile, RecordFile};
pub(crate) use ingest::Ingest;
pub(crate) use layers::Pin;
use layers::{Aside, StoredLayer};
use layout::Layout;
pub use lease::leases_on_disk;

/// What the store takes on its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUsage {
    /// A directory on that file system.
    pub mountpoint: PathBuf,
    /// Bytes taken by images.
    pub used_bytes: u64,
    /// Inodes taken by images.
    pub inodes_used: u64,
    /// When this was true.
    pub timestamp: Timestamp,
}

/// The store. Shared by reference counting because pins point back to it.
#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    state: Mutex<State>,
    index: RwLock<Arc<Index>>,
    bytes: AtomicU64,
    inodes: AtomicU64,
    sequence: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    layers: HashMap<Digest, StoredLayer>,
    images: BTreeMap<ImageId, StoredImage>,
    leases: BTreeMap<String, LeaseFile>,
    aside: Vec<Aside>,
    /// Blobs, records and leases with the bytes they take.
    files: HashMap<PathBuf, u64>,
    /// Patterns of the images to keep.
    pinned: Vec<String>,
    /// Layers that are kept for a pull to go on.
    resumable: HashSet<Digest>,
}

#[derive(Debug)]
struct StoredImage {
    file: RecordFile,
    config: Arc<oci_spec::image::ImageConfiguration>,
}

/// Whether what is about to appear is still wanted.
pub(crate) type Wanted<'a> = dyn Fn() -> Result<(), ImageError> + 'a;

/// A pulled image whose layers are all in place.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) reference: Reference,
    /// The digest that the reference resolved to: the index's if there is one.
    pub(crate) target: Digest,
    /// Digest and bytes of manifest, config and, if there is one, index.
    pub(crate) blobs: Vec<(Digest, Vec<u8>)>,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    pub(crate) layers: Vec<Layer>,
    pub(crate) size: u64,
}

impl Store {
    /// What is stored, as last published.
    pub(crate) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn usage(&self) -> StoreUsage {
        StoreUsage {
            mountpoint: self.layout.root.clone(),
            used_bytes: self.bytes.load(Ordering::Relaxed),
            inodes_used: self.inodes.load(Ordering::Relaxed),
            timestamp: Timestamp::now(),
        }
    }

    /// Goes by other patterns of images to keep.
    pub(crate) fn pin_by(&self, pinned: Vec<String>) {
        let mut state = self.state();
        state.pinned = pinned;
        self.publish(&state);
    }

    /// Shows readers the present state.
    fn publish(&self, state: &State) {
        let records = state.images.values().map(|image| Arc::new(image.public(&state.pinned))).collect();
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Index::new(records));
        self.publish_usage(state);
    }

    fn publish_usage(&self, state: &State) {
        let (bytes, inodes) = state.usage(self.layout.own_usage());
        self.bytes.store(bytes, Ordering::Relaxed);
        self.inodes.store(inodes, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_name(&self, what: &str) -> String {
        format!("{what}-{}", self.sequence.fetch_add(1, Ordering::Relaxed))
    }
}

impl State {
    fn note_file(&mut self, path: &Path) {
        self.files.insert(path.to_owned(), layout::bytes_of(path));
    }

    /// Together with what the directories themselves take.
    fn usage(&self, own: (u64, u64)) -> (u64, u64) {
        let layers = self.layers.values().map(|layer| layer.unpacked);
        let trees = layers.chain(self.aside.iter().map(|aside| aside.unpacked));
        let files = self.files.values().map(|bytes| (*bytes, 1));
        let all = trees.map(|tree| (tree.bytes, tree.inodes)).chain(files);
        all.fold(own, |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

impl StoredImage {
    fn public(&self, pinned: &[String]) -> ImageRecord {
        let file = &self.file;
        let diff_ids: Vec<Digest> = file.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        ImageRecord {
            id: file.id.clone(),
            repo_tags: file.tags.iter().cloned().collect(),
            repo_digests: file.digests.iter().cloned().collect(),
            size: file.size.max(1),
            pinned: crate::pinned::is_pinned(pinned, &file.tags),
            config: Arc::clone(&self.config),
            layers: file.layers.clone(),
            chain_id: crate::record::chain_id(&diff_ids),
            manifest: file.manifest.clone(),
            pulled_at: file.pulled_at,
        }
    }
}

#[cfg(test)]
mod tests;
