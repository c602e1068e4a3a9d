//! Layers in place: found, kept from collection, added, and replaced when they are damaged.
//!
//! A damaged layer is replaced by pulling an image that has it again: once it is under suspicion no pull finds it any more,
//! and the one that brings it takes its place. Containers may run on the damaged directory. Its files stay where overlay
//! looks for them, since a rename of the whole directory is nothing that a mount notices, until those containers let go.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::Digest;

use super::collect::Trash;
use super::format::{self, AsideFile};
use super::ingest::IngestLayer;
use super::layout::{self, Layout};
use super::{State, Store};
use crate::error::ImageError;
use crate::unpack::Unpacked;

/// A layer in its place.
#[derive(Debug)]
pub(super) struct StoredLayer {
    pub(super) directory: String,
    pub(super) unpacked: Unpacked,
    /// Pulls that need this layer and have no record yet.
    pub(super) pins: usize,
    /// No pull takes it as it is; see [`Store::suspect`].
    pub(super) is_suspect: bool,
}

/// A damaged layer that was replaced while containers ran on it.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) path: PathBuf,
    pub(super) unpacked: Unpacked,
    /// The leases it is kept for.
    pub(super) owners: BTreeSet<String>,
}

/// A layer that cannot be collected while this value lives.
#[derive(Debug)]
pub(crate) struct Pin {
    store: Arc<Store>,
    diff_id: Digest,
}

/// Layers that are known to be damaged and are to be fetched again while this value lives.
#[derive(Debug)]
pub(crate) struct Suspicion {
    store: Arc<Store>,
    diff_ids: Vec<Digest>,
}

impl Store {
    /// The layer, if it is stored, kept from collection.
    pub(crate) fn pin_layer(self: &Arc<Self>, diff_id: &Digest) -> Option<Pin> {
        let mut state = self.state();
        let is_usable = state.layers.get(diff_id).is_some_and(|layer| self.is_usable(layer));
        if is_usable { self.pin(&mut state, diff_id) } else { None }
    }

    fn pin(self: &Arc<Self>, state: &mut State, diff_id: &Digest) -> Option<Pin> {
        state.layers.get_mut(diff_id)?.pins += 1;
        Some(Pin { store: Arc::clone(self), diff_id: diff_id.clone() })
    }

    /// Whether a pull can take the layer as it is. Somebody may have emptied `layers/` beneath us.
    pub(super) fn is_usable(&self, layer: &StoredLayer) -> bool {
        !layer.is_suspect && self.layout.has_layer(&layer.directory)
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
        let mut trash = Trash::default();
        let pins = match state.layers.get(diff_id) {
            Some(known) if self.is_usable(known) => None,
            Some(known) => {
                let pins = known.pins;
                trash = self.displace(&mut state, diff_id)?;
                Some(pins)
            }
            None => Some(0),
        };
        if let Some(pins) = pins {
            let directory = state.layer_name(diff_id);
            layout::rename(&layer.path, &self.layout.layers.join(&directory))?;
            let stored = StoredLayer { directory, unpacked, pins, is_suspect: false };
            state.layers.insert(diff_id.clone(), stored);
            self.publish_usage(&state);
        }
        // Pinned under the same lock: another pull's failure may collect at any time.
        let pin = self.pin(&mut state, diff_id).ok_or_else(|| ImageError::Unknown(diff_id.to_string()));
        drop(state);
        trash.delete();
        pin
    }

    /// Frees the place of a layer that is damaged or gone. What containers run on stays elsewhere.
    fn displace(&self, state: &mut State, diff_id: &Digest) -> Result<Trash, ImageError> {
        let Some(layer) = state.layers.get(diff_id) else { return Ok(Trash::default()) };
        let (place, unpacked) = (self.layout.layers.join(&layer.directory), layer.unpacked);
        let trash = if place.try_exists().unwrap_or(true) {
            self.move_away(state, &place, unpacked, state.owners_of(diff_id))?
        } else {
            Trash::default()
        };
        state.layers.remove(diff_id);
        Ok(trash)
    }

    fn move_away(
        &self,
        state: &mut State,
        place: &Path,
        unpacked: Unpacked,
        owners: BTreeSet<String>,
    ) -> Result<Trash, ImageError> {
        if owners.is_empty() {
            let path = self.layout.ingest.join(self.next_name("trash"));
            layout::rename(place, &path)?;
            return Ok(Trash::of(path));
        }
        state.aside.push(self.layout.set_aside(place, unpacked, owners)?);
        Ok(Trash::default())
    }

    /// From now on no pull takes these layers as they are: the next that needs one fetches it.
    pub(crate) fn suspect(self: &Arc<Self>, diff_ids: Vec<Digest>) -> Suspicion {
        self.state().mark(&diff_ids, true);
        Suspicion { store: Arc::clone(self), diff_ids }
    }
}

impl Layout {
    /// Moves a layer's directory where it is kept for `owners` only. Not synced, since no owner outlives a power loss.
    pub(super) fn set_aside(
        &self,
        place: &Path,
        unpacked: Unpacked,
        owners: BTreeSet<String>,
    ) -> Result<Aside, ImageError> {
        let file = AsideFile::new(owners, unpacked);
        layout::write(&place.join(layout::ASIDE_FILE), &format::to_json(&file)?)?;
        let path = self.aside.join(format!("{:016x}", u64::from_ne_bytes(sys::random::bytes())));
        layout::rename(place, &path)?;
        Ok(Aside { path, unpacked: file.unpacked(), owners: file.owners })
    }
}

impl State {
    /// A free name for a layer's directory: as much of the diff id as makes it unique.
    pub(super) fn layer_name(&self, diff_id: &Digest) -> String {
        let taken = |name: &str| self.layers.values().any(|layer| layer.directory == name);
        let prefixes = (layout::LAYER_NAME_LEN..64).filter_map(|len| diff_id.hex().get(..len));
        prefixes.into_iter().find(|name| !taken(name)).unwrap_or(diff_id.hex()).to_owned()
    }

    fn owners_of(&self, diff_id: &Digest) -> BTreeSet<String> {
        self.owners_where(|layer| layer == diff_id)
    }

    /// Everyone who leases such a layer.
    pub(super) fn owners_where(&self, is_meant: impl Fn(&Digest) -> bool) -> BTreeSet<String> {
        let having = self.leases.iter().filter(|(_, lease)| lease.layers.iter().any(&is_meant));
        having.map(|(owner, _)| owner.clone()).collect()
    }

    fn mark(&mut self, diff_ids: &[Digest], is_suspect: bool) {
        for diff_id in diff_ids {
            if let Some(layer) = self.layers.get_mut(diff_id) {
                layer.is_suspect = is_suspect;
            }
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

impl Drop for Suspicion {
    fn drop(&mut self) {
        self.store.state().mark(&self.diff_ids, false);
    }
}
