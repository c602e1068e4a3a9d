//! Looking into an overlay without mounting it anywhere.
//!
//! The view is a descriptor. It stands in no mount table, nothing has to be unmounted, and when the last copy of the
//! descriptor is closed, also by a crash, the overlay is gone.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::MountError;
use crate::mount::overlay::Layers;
use crate::mount::{Overlay, on_private_thread};

/// Opens the merged root directory of `overlay`, for use with [`crate::beneath::Root::from_fd`]. The descriptor is of the
/// `O_PATH` kind: it can be looked up in and opened from, not read itself.
///
/// Without `upper`, or with `readonly`, nothing can be changed through it, except when there is only one directory at all:
/// the view is then that directory.
///
/// # Errors
/// [`MountError`] naming the layer that cannot be opened, or the topmost one when the kernel refuses the overlay.
pub fn open(overlay: &Overlay) -> Result<OwnedFd, MountError> {
    let layers = Layers::of(overlay)?;
    if let Some(only) = layers.single() {
        return open_root(only);
    }
    let topmost = || overlay.lowers.first().cloned().unwrap_or_else(PathBuf::new);
    match layers.detached().map_err(|e| MountError::new("view overlay with", &topmost(), e))? {
        Some(view) => Ok(view),
        None => by_private_namespace(overlay),
    }
}

/// For kernels that cannot give a detached overlay: mounts it over a directory of the host in a namespace that ends with the
/// call; the descriptor keeps the mount. The layers are opened in there once more, because the kernel takes no layer from a
/// mount of another namespace.
pub(crate) fn by_private_namespace(overlay: &Overlay) -> Result<OwnedFd, MountError> {
    let place = Path::new("/proc");
    on_private_thread(|| {
        let failed = |e| MountError::new("view overlay at", place, e);
        Layers::of(overlay)?.mount_by_options(place).map_err(failed)?;
        open_root(place)
    })?
}

fn open_root(path: &Path) -> Result<OwnedFd, MountError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| MountError::new("open", path, e))
}
