//! Opening the store: what is whole becomes visible, what is not goes.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use super::format::{self, AsideFile, LayerFile, LeaseFile, RecordFile};
use super::layers::{Aside, StoredLayer};
use super::layout::{self, Layout};
use super::{State, Store, StoredImage};
use crate::error::ImageError;
use crate::index::Index;
use crate::unpack::Unpacked;

impl Store {
    /// Opens the store at `root`, making it when it is missing, and removes what interrupted work left.
    pub(crate) fn open(root: &Path, pinned: Vec<String>) -> Result<Arc<Self>, ImageError> {
        let layout = Layout::create(root)?;
        sweep(&layout)?;
        let mut state = State { pinned, resumable: crate::parts::unpacked_layers(root), ..State::default() };
        load_leases(&layout, &mut state)?;
        load_asides(&layout, &mut state)?;
        load_layers(&layout, &mut state)?;
        load_records(&layout, &mut state)?;
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
        match load_layer(layout, &directory) {
            Ok(file) => {
                let layer = StoredLayer { directory, unpacked: file.unpacked(), pins: 0, is_suspect: false };
                state.layers.insert(file.diff_id, layer);
            }
            Err(error) => {
                tracing::warn!(op = "open", layer = directory, error, "a broken layer is removed");
                discard(layout, state, &directory)?;
            }
        }
    }
    Ok(())
}

fn load_layer(layout: &Layout, directory: &str) -> Result<LayerFile, String> {
    let file = read::<LayerFile>(&layout.layers.join(directory).join(layout::LAYER_FILE))?;
    if layout.has_layer(directory) { Ok(file) } else { Err("its files are missing".to_owned()) }
}

/// What containers run on stays until they let go; whose layer it was its name tells.
fn discard(layout: &Layout, state: &mut State, directory: &str) -> Result<(), ImageError> {
    let place = layout.layers.join(directory);
    let owners = state.owners_where(|diff_id| diff_id.hex().starts_with(directory));
    if owners.is_empty() || directory.len() < layout::LAYER_NAME_LEN || !place.is_dir() {
        layout::delete(&place);
    } else {
        state.aside.push(layout.set_aside(&place, Unpacked::default(), owners)?);
    }
    Ok(())
}

/// Collection takes those that nobody leases any more.
fn load_asides(layout: &Layout, state: &mut State) -> Result<(), ImageError> {
    for name in layout::names(&layout.aside)? {
        let path = layout.aside.join(name);
        match read::<AsideFile>(&path.join(layout::ASIDE_FILE)) {
            Ok(file) => {
                state.aside.push(Aside { path, unpacked: file.unpacked(), owners: file.owners });
            }
            Err(error) => {
                tracing::warn!(op = "open", path = %path.display(), error, "a replaced layer is removed");
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

pub(super) fn read<T: for<'de> serde::Deserialize<'de>>(path: &Path) -> Result<T, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    format::from_json(&bytes).map_err(|error| error.to_string())
}
