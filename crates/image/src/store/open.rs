//! Opening the store: what is whole becomes visible, what is not goes.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use super::format::{self, LayerFile, LeaseFile, RecordFile};
use super::layout::{self, Layout};
use super::{State, Store, StoredImage, StoredLayer};
use crate::error::ImageError;
use crate::index::Index;

impl Store {
    /// Opens the store at `root`, making it when it is missing, and removes what interrupted work left.
    pub(crate) fn open(root: &Path, pinned: Vec<String>) -> Result<Arc<Self>, ImageError> {
        let layout = Layout::create(root)?;
        sweep(&layout)?;
        let mut state = State { fixed: layout.own_usage(), pinned, ..State::default() };
        load_layers(&layout, &mut state)?;
        load_records(&layout, &mut state)?;
        load_leases(&layout, &mut state)?;
        load_blobs(&layout, &mut state)?;
        let store = Arc::new(Self {
            layout,
            state: Mutex::new(state),
            index: RwLock::new(Arc::new(Index::default())),
            bytes: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
        });
        store.collect_garbage();
        store.publish(&store.state());
        Ok(store)
    }
}

fn sweep(layout: &Layout) -> Result<(), ImageError> {
    for name in layout::names(&layout.ingest)? {
        layout::delete(&layout.ingest.join(name));
    }
    sys::atomic::sweep(&layout.records).map_err(|error| ImageError::file("cleaning the records", error))
}

fn load_layers(layout: &Layout, state: &mut State) -> Result<(), ImageError> {
    for directory in layout::names(&layout.layers)? {
        let path = layout.layers.join(&directory);
        match read::<LayerFile>(&path.join(layout::LAYER_FILE)) {
            Ok(file) => {
                let layer = StoredLayer { directory, unpacked: file.unpacked(), pins: 0 };
                state.layers.insert(file.diff_id, layer);
            }
            Err(error) => {
                tracing::warn!(op = "open", path = %path.display(), error, "a broken layer is removed");
                layout::delete(&path);
            }
        }
    }
    Ok(())
}

fn load_records(layout: &Layout, state: &mut State) -> Result<(), ImageError> {
    for name in layout::names(&layout.records)? {
        let path = layout.records.join(name);
        match load_record(layout, state, &path) {
            Ok(image) => {
                state.note_file(&path);
                state.images.insert(image.file.id.clone(), image);
            }
            Err(error) => {
                tracing::warn!(op = "open", path = %path.display(), error, "an image that is not whole is dropped");
                layout::delete(&path);
            }
        }
    }
    Ok(())
}

/// The record, if everything it names is there.
fn load_record(layout: &Layout, state: &State, path: &Path) -> Result<StoredImage, String> {
    let file: RecordFile = read(path)?;
    if layout.record(&file.id) != path {
        return Err("it has the name of another image".to_owned());
    }
    if let Some(layer) = file.layers.iter().find(|layer| !state.layers.contains_key(&layer.diff_id)) {
        return Err(format!("layer {} is missing", layer.diff_id));
    }
    for blob in &file.blobs {
        layout.load_blob(blob).map_err(|error| types::error::chain(&error))?;
    }
    let config = layout.load_config(&file.id).map_err(|error| types::error::chain(&error))?;
    Ok(StoredImage { file, config })
}

fn load_leases(layout: &Layout, state: &mut State) -> Result<(), ImageError> {
    for owner in layout::names(&layout.leases)? {
        let path = layout.leases.join(&owner);
        match read::<LeaseFile>(&path) {
            Ok(lease) => {
                state.note_file(&path);
                state.leases.insert(owner, lease);
            }
            Err(error) => {
                tracing::warn!(op = "open", path = %path.display(), error, "an unreadable lease is dropped");
                layout::delete(&path);
            }
        }
    }
    Ok(())
}

fn load_blobs(layout: &Layout, state: &mut State) -> Result<(), ImageError> {
    for name in layout::names(&layout.blobs)? {
        state.note_file(&layout.blobs.join(name));
    }
    Ok(())
}

fn read<T: for<'de> serde::Deserialize<'de>>(path: &Path) -> Result<T, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    format::from_json(&bytes).map_err(|error| error.to_string())
}
