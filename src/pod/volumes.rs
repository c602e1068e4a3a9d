//! Volumes that the image of a container declares: directories of the container's own, beside its writable layer, which is on the
//! same disk and goes with them when the container is removed.
//!
//! A volume begins as the image has it: content, owners, modes, extended attributes and times are copied once, when the container is
//! made ([`copy`]). Its path is looked up in the image with the image's root as `/`, so that no link leads out of it. What the image
//! lacks begins empty. Where SELinux is on, a volume bears the container's label: it is no part of the root file system's mount, which
//! labels what is in it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spec::selinux::SelinuxLabels;
use spec::volumes::declared;
use sys::beneath::Root;
use sys::mount::Overlay;

use super::error::StepError;
use super::record::{ContainerRecord, SandboxRecord, blocking};
use super::shared::Shared;

mod copy;

pub use copy::CopyError;

/// What becomes of the volumes that images declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageVolumes {
    /// Each is a directory of its own with a copy of what the image has there.
    #[default]
    Bind,
    /// Each is made as a directory of the writable layer where the image lacks it.
    Mkdir,
    /// Nothing.
    Ignore,
}

/// Makes the volumes, labelled as the container's own; gives each one's path in the container with its directory on the host, where
/// it has one.
pub(super) async fn make(
    shared: &Shared,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    rootfs: &image::Rootfs,
    labels: Option<&SelinuxLabels>,
) -> Result<Vec<(PathBuf, PathBuf)>, StepError> {
    let treatment = match shared.settings().image_volumes {
        // The writable layer has the pod's ids and the image has its own: here they cannot be looked at as one.
        ImageVolumes::Mkdir if sandbox.request.user_namespace().is_some() => ImageVolumes::Bind,
        treatment => treatment,
    };
    if treatment == ImageVolumes::Ignore {
        return Ok(Vec::new());
    }
    let paths = declared(&rootfs.config, &record.request)?;
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let layer = shared.layout().layer_dir(&record.id);
    let image = Overlay { lowers: rootfs.layers.clone(), readonly: true, ..Overlay::default() };
    let (uid, gid, _) = record.user;
    if treatment == ImageVolumes::Mkdir {
        return blocking(move || make_directories(&paths, image, &layer, (uid, gid))).await;
    }
    let volumes = paths.into_iter().enumerate();
    let volumes: Vec<_> =
        volumes.map(|(n, path)| (path, layer.join("volumes").join(n.to_string()))).collect();
    let confinement = Arc::clone(&shared.drivers.confinement);
    let label = labels.map(|labels| labels.mount.clone());
    blocking(move || {
        make_copies(&volumes, &image)?;
        if let Some(label) = label {
            volumes.iter().try_for_each(|(_, directory)| confinement.relabel(directory, &label))?;
        }
        Ok(volumes)
    })
    .await
}

fn make_copies(volumes: &[(PathBuf, PathBuf)], image: &Overlay) -> Result<(), StepError> {
    let image = Root::from_fd(sys::overlay_view::open(image)?);
    for (path, directory) in volumes {
        sys::atomic::create_dir_all(directory, 0o755)?;
        if let Some(content) = find(&image, path)? {
            let directory = Root::open(directory)?;
            copy::tree(content.as_fd(), directory.as_fd())
                .map_err(|source| StepError::Volume { path: path.clone(), source: Box::new(source) })?;
        }
    }
    Ok(())
}

/// The directory that the image has at `path`, if anything.
fn find(image: &Root, path: &Path) -> Result<Option<OwnedFd>, StepError> {
    match image.metadata(path)?.map(|metadata| metadata.is_dir()) {
        None => Ok(None),
        Some(true) => Ok(Some(image.find(path)?)),
        Some(false) => Err(StepError::Invalid(format!(
            "the image declares the volume {} and has no directory there",
            path.display()
        ))),
    }
}

/// Makes what the image lacks in the writable layer, for the container's user.
fn make_directories(
    paths: &[PathBuf],
    image: Overlay,
    layer: &Path,
    (uid, gid): (u32, u32),
) -> Result<Vec<(PathBuf, PathBuf)>, StepError> {
    let writable = Overlay {
        upper: Some(layer.join("upper")),
        work: Some(layer.join("work")),
        readonly: false,
        ..image
    };
    let root = Root::from_fd(sys::overlay_view::open(&writable)?);
    for path in paths {
        if find(&root, path)?.is_some() {
            continue;
        }
        let made = root.create_dir_all(path, 0o755)?;
        let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        let flags = rustix::fs::AtFlags::EMPTY_PATH;
        rustix::fs::chownat(&made, "", Some(owner.0), Some(owner.1), flags).map_err(|error| {
            StepError::io(format!("giving away the volume {}", path.display()))(error.into())
        })?;
    }
    Ok(Vec::new())
}
