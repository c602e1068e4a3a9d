//! Leases: what a container needs of an image stays until the container lets go of it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use oci_spec::image::ImageConfiguration;
use types::ImageId;

use super::collect::Trash;
use super::format::{self, LeaseFile};
use super::{State, Store, layout};
use crate::error::ImageError;
use crate::record::{Rootfs, chain_id};

const MAX_OWNER: usize = 128;

/// Everyone who holds a lease in the store at `root`, read without opening it: a server may be at work there.
///
/// # Errors
/// When the directory cannot be read; a store that is not there has none.
pub fn leases_on_disk(root: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root.join(layout::LEASES)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

impl Store {
    pub(crate) fn lease(&self, owner: &str, image: &ImageId) -> Result<Rootfs, ImageError> {
        check_owner(owner)?;
        let mut state = self.state();
        if let Some(lease) = state.leases.get(owner).filter(|lease| lease.image == *image) {
            return self.rootfs(&state, lease);
        }
        let stored = state.images.get(image).ok_or_else(|| ImageError::Unknown(image.to_string()))?;
        let lease = LeaseFile::new(&stored.file);
        match self.rootfs(&state, &lease) {
            Ok(rootfs) => {
                let had_another = self.save_lease(&mut state, owner, lease)?;
                let trash = if had_another { self.collect(&mut state) } else { Trash::default() };
                self.publish_usage(&state);
                drop(state);
                trash.delete();
                Ok(rootfs)
            }
            Err(error) => {
                // Whoever looks for the image from now on finds that it has to be pulled.
                let trash = self.forget(&mut state, image)?;
                drop(state);
                trash.delete();
                Err(error)
            }
        }
    }

    pub(crate) fn release(&self, owner: &str) -> Result<(), ImageError> {
        check_owner(owner)?;
        let trash = {
            let mut state = self.state();
            if !state.leases.contains_key(owner) {
                return Ok(());
            }
            let path = self.layout.leases.join(owner);
            remove_if_there(&path)
                .map_err(|e| ImageError::store(format!("releasing the lease of {owner}"), e))?;
            state.files.remove(&path);
            let Some(lease) = state.leases.remove(owner) else { return Ok(()) };
            // While the image is stored its layers stay anyway.
            let is_stored = state.images.contains_key(&lease.image) && state.aside.is_empty();
            let trash = if is_stored { Trash::default() } else { self.collect(&mut state) };
            self.publish_usage(&state);
            trash
        };
        trash.delete();
        Ok(())
    }

    pub(crate) fn leases(&self) -> Vec<String> {
        self.state().leases.keys().cloned().collect()
    }

    /// Whether it took the place of another.
    fn save_lease(&self, state: &mut State, owner: &str, lease: LeaseFile) -> Result<bool, ImageError> {
        let path = self.layout.leases.join(owner);
        let staged = self.layout.ingest.join(self.next_name("lease"));
        let written = layout::write(&staged, &format::to_json(&lease)?);
        if let Err(error) = written.and_then(|()| layout::rename(&staged, &path)) {
            layout::delete(&staged);
            return Err(error);
        }
        state.note_file(&path);
        Ok(state.leases.insert(owner.to_owned(), lease).is_some())
    }

    fn rootfs(&self, state: &State, lease: &LeaseFile) -> Result<Rootfs, ImageError> {
        Ok(Rootfs {
            layers: self.lower_directories(state, lease)?,
            config: self.config_of(state, &lease.image)?,
            id: lease.image.clone(),
            chain_id: chain_id(&lease.layers),
        })
    }

    fn config_of(&self, state: &State, image: &ImageId) -> Result<Arc<ImageConfiguration>, ImageError> {
        match state.images.get(image) {
            Some(stored) => Ok(Arc::clone(&stored.config)),
            None => self.layout.load_config(image),
        }
    }

    /// Topmost first. Overlay refuses a directory named twice; of a layer that an image has twice the upper one hides
    /// the lower one entirely, so that it alone counts.
    fn lower_directories(&self, state: &State, lease: &LeaseFile) -> Result<Vec<PathBuf>, ImageError> {
        let mut seen = HashSet::new();
        let mut directories = Vec::new();
        for diff_id in lease.layers.iter().rev().filter(|diff_id| seen.insert(*diff_id)) {
            let layer = state.layers.get(diff_id).filter(|layer| self.layout.has_layer(&layer.directory));
            let layer = layer.ok_or_else(|| ImageError::lost_layer(&lease.image, diff_id))?;
            directories.push(self.layout.layer_root(&layer.directory));
            if layer.unpacked.opaque_root {
                break;
            }
        }
        if directories.is_empty() {
            directories.push(self.layout.empty.clone());
        }
        Ok(directories)
    }
}

fn check_owner(owner: &str) -> Result<(), ImageError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let good =
        !owner.is_empty() && !owner.starts_with('.') && owner.len() <= MAX_OWNER && owner.bytes().all(plain);
    if good { Ok(()) } else { Err(ImageError::Owner(owner.to_owned())) }
}

fn remove_if_there(path: &std::path::Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
