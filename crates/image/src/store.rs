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
//!   leases/<owner>            which layers a container keeps, whatever becomes of the image
//!   empty/                    the lower directory of images that have no layers
//!   ingest/                   pulls under way and trees being removed; emptied when the store opens
//! ```
//!
//! Promises:
//! * A record is written only after everything it names is whole, in place and synced (`syncfs`, once per pull).
//! * Removal works the other way round: the record goes first, what nothing refers to then is renamed away and deleted.
//! * Reading (list, resolve, usage) takes what was last published and never waits for the disk.
//! * Usage is added up as layers come and go; no tree is walked.
//!
//! Leases are not synced: they must outlive the daemon, not the kernel, since no container does either. A lease that
//! power loss left unreadable is dropped.

mod collect;
mod format;
mod layout;
mod lease;
pub use lease::leases_on_disk;
mod open;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use types::{Digest, ImageId, Timestamp};

use crate::error::ImageError;
use crate::index::Index;
use crate::record::{ImageRecord, Layer};
use crate::reference::Reference;
use crate::unpack::Unpacked;
pub(crate) use format::parse_config;
use format::{LayerFile, LeaseFile, RecordFile};
use layout::Layout;

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
    /// Blobs, records and leases with the bytes they take.
    files: HashMap<PathBuf, u64>,
    /// Patterns of the images to keep.
    pinned: Vec<String>,
    /// What the store takes when it is empty.
    fixed: (u64, u64),
}

#[derive(Debug)]
struct StoredLayer {
    directory: String,
    unpacked: Unpacked,
    /// Pulls that need this layer and have no record yet.
    pins: usize,
}

#[derive(Debug)]
struct StoredImage {
    file: RecordFile,
    config: Arc<oci_spec::image::ImageConfiguration>,
}

/// A layer that cannot be collected while this value lives.
#[derive(Debug)]
pub(crate) struct Pin {
    store: Arc<Store>,
    diff_id: Digest,
}

/// Whether what is about to appear is still wanted.
pub(crate) type Wanted<'a> = dyn Fn() -> Result<(), ImageError> + 'a;

/// A directory for one pull's unfinished work, gone when dropped.
#[derive(Debug)]
pub(crate) struct Ingest {
    path: PathBuf,
}

/// A layer being unpacked inside an [`Ingest`].
#[derive(Debug)]
pub(crate) struct IngestLayer {
    path: PathBuf,
}

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

    /// Starts a pull's unfinished work.
    pub(crate) fn ingest(&self) -> Result<Ingest, ImageError> {
        let path = self.layout.ingest.join(self.next_name("pull"));
        layout::make_directory(&path, 0o700)?;
        Ok(Ingest { path })
    }

    /// The layer, if it is stored, kept from collection.
    pub(crate) fn pin_layer(self: &Arc<Self>, diff_id: &Digest) -> Option<Pin> {
        self.pin(&mut self.state(), diff_id)
    }

    fn pin(self: &Arc<Self>, state: &mut State, diff_id: &Digest) -> Option<Pin> {
        state.layers.get_mut(diff_id)?.pins += 1;
        Some(Pin { store: Arc::clone(self), diff_id: diff_id.clone() })
    }

    /// Moves an unpacked and verified layer into place.
    pub(crate) fn commit_layer(
        self: &Arc<Self>,
        layer: IngestLayer,
        diff_id: &Digest,
        unpacked: Unpacked,
    ) -> Result<Pin, ImageError> {
        let unpacked = layer.describe(diff_id, unpacked)?;
        let mut state = self.state();
        if !state.layers.contains_key(diff_id) {
            let directory = state.layer_name(diff_id);
            layout::rename(&layer.path, &self.layout.layers.join(&directory))?;
            state.layers.insert(diff_id.clone(), StoredLayer { directory, unpacked, pins: 0 });
            self.publish_usage(&state);
        }
        // Pinned under the same lock: another pull's failure may collect at any time.
        self.pin(&mut state, diff_id).ok_or_else(|| ImageError::Unknown(diff_id.to_string()))
    }

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
        let known = state.images.get(&id).map(|image| image.file.clone());
        self.save_record(&mut state, RecordFile::of(&image, known))?;
        self.publish(&state);
        Ok(id)
    }

    /// Adds a name to an image that is already whole. `false` when the image is not stored (any more).
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
        let mut file = known.file.clone();
        if file.add_name(reference, target) {
            self.take_tag_from_others(&mut state, reference, id)?;
            self.save_record(&mut state, file)?;
            self.publish(&state);
        }
        Ok(true)
    }

    /// Removes the image that `text` means, with all its names. One that is not stored is no error.
    pub(crate) fn remove(&self, text: &str) -> Result<(), ImageError> {
        let trash = {
            let mut state = self.state();
            let Some(image) = self.index().resolve(text) else { return Ok(()) };
            let path = self.layout.record(&image.id);
            sys::atomic::remove(&path)
                .map_err(|e| ImageError::file(format!("removing image {}", image.id), e))?;
            state.files.remove(&path);
            state.images.remove(&image.id);
            tracing::info!(op = "remove", "image.ref" = image.name(), "image removed");
            let trash = self.collect(&mut state);
            self.publish(&state);
            trash
        };
        trash.delete();
        Ok(())
    }

    /// Removes what failed or abandoned pulls left that nothing refers to.
    pub(crate) fn collect_garbage(&self) {
        let trash = {
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
        let (bytes, inodes) = state.usage();
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
    /// A free name for a layer's directory: as much of the diff id as makes it unique.
    fn layer_name(&self, diff_id: &Digest) -> String {
        let taken = |name: &str| self.layers.values().any(|layer| layer.directory == name);
        let prefixes = (layout::LAYER_NAME_LEN..64).filter_map(|len| diff_id.hex().get(..len));
        prefixes.into_iter().find(|name| !taken(name)).unwrap_or(diff_id.hex()).to_owned()
    }

    fn note_file(&mut self, path: &Path) {
        self.files.insert(path.to_owned(), layout::bytes_of(path));
    }

    fn usage(&self) -> (u64, u64) {
        let layers = self.layers.values().map(|layer| (layer.unpacked.bytes, layer.unpacked.inodes));
        let files = self.files.values().map(|bytes| (*bytes, 1));
        layers.chain(files).fold(self.fixed, |sum, one| (sum.0 + one.0, sum.1 + one.1))
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

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(layer) = self.store.state().layers.get_mut(&self.diff_id) {
            layer.pins = layer.pins.saturating_sub(1);
        }
    }
}

impl Ingest {
    /// A directory to unpack the layer at `position` into.
    pub(crate) fn layer(&self, position: usize) -> Result<IngestLayer, ImageError> {
        let path = self.path.join(format!("layer-{position}"));
        layout::make_directory(&path, 0o700)?;
        let root = path.join(layout::LAYER_ROOT);
        layout::make_directory(&root, 0o755)?;
        Ok(IngestLayer { path })
    }

    fn stage_blobs(&self, blobs: &[(Digest, Vec<u8>)]) -> Result<Vec<(Digest, PathBuf)>, ImageError> {
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
    /// The empty directory to unpack into.
    pub(crate) fn root(&self) -> Result<OwnedFd, ImageError> {
        layout::open_directory(&self.path.join(layout::LAYER_ROOT))
    }

    /// Writes `layer.json` beside the tree and adds both directories' share to the layer's usage.
    fn describe(&self, diff_id: &Digest, mut unpacked: Unpacked) -> Result<Unpacked, ImageError> {
        let path = self.path.join(layout::LAYER_FILE);
        let own = layout::bytes_of(&self.path) + layout::SMALL_FILE_BYTES;
        unpacked = Unpacked { bytes: unpacked.bytes + own, inodes: unpacked.inodes + 2, ..unpacked };
        layout::write(&path, &format::to_json(&LayerFile::new(diff_id, unpacked))?)?;
        Ok(unpacked)
    }
}

#[cfg(test)]
mod tests;
