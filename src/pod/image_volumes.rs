//! Images that a container has mounted beside its own: found when the container is intended, held by leases from its
//! making to its removal, mounted by the monitor's helper whenever the OCI runtime creates the container.
//!
//! A container has one lease for each image, `<container>.<n>`, where `n` counts the container's image mounts and is that
//! of the first one with this image. The record names the images before the first lease is taken, so whatever undoes the
//! container finds them all. Nothing is mounted on the host, and nothing but the leases outlives the container's processes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use monitor_api::ImageMount;
use serde::{Deserialize, Serialize};
use spec::ContainerRequest;
use types::{ErrorKind, ImageId, Kind};

use super::error::StepError;
use super::layout::Layout;
use super::record::{ContainerRecord, blocking};

/// One image that is mounted, as the record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Where the container sees it.
    path: PathBuf,
    /// Directory inside the image; empty for all of it.
    sub_path: PathBuf,
    /// What the caller called the image.
    name: String,
    /// The image.
    pub image: ImageId,
    /// Its layers, topmost first; none before the image is leased.
    #[serde(default)]
    layers: Vec<PathBuf>,
}

/// Why an image cannot be mounted. kubelet matches the first word of each message.
#[derive(Debug, thiserror::Error)]
pub enum ImageVolumeError {
    /// It is not on this node.
    #[error("ImageVolumeMountFailed: image {image:?} for {path:?} not found: pull it first")]
    Absent {
        /// What the caller called the image.
        image: String,
        /// Path of the mount inside the container.
        path: PathBuf,
    },
    /// What is to be mounted of it is not there.
    #[error("ImageVolumeMountFailed: sub path {sub_path:?} {fault} in image {image:?} for {path:?}")]
    SubPath {
        /// What the caller called the image.
        image: String,
        /// Path of the mount inside the container.
        path: PathBuf,
        /// What was looked for.
        sub_path: PathBuf,
        /// What was found instead.
        fault: &'static str,
    },
    /// The image cannot be held or looked into.
    #[error("ImageVolumeMountFailed: image {image:?} for {path:?}")]
    Unusable {
        /// What the caller called the image.
        image: String,
        /// Path of the mount inside the container.
        path: PathBuf,
        /// What the store or the kernel said.
        #[source]
        source: Box<StepError>,
    },
}

impl Kind for ImageVolumeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent { .. } => ErrorKind::NotFound,
            Self::SubPath { .. } => ErrorKind::InvalidArgument,
            // A layer that is missing is no missing object of the caller.
            Self::Unusable { source, .. } => match source.kind() {
                ErrorKind::NotFound => ErrorKind::Internal,
                kind => kind,
            },
        }
    }
}

impl ImageVolume {
    /// Its only layer, which is mounted as it is; several become an overlay.
    pub(super) fn lone_layer(&self) -> Option<&Path> {
        match self.layers.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    fn absent(&self) -> ImageVolumeError {
        ImageVolumeError::Absent { image: self.name.clone(), path: self.path.clone() }
    }

    fn unusable(&self, source: StepError) -> ImageVolumeError {
        let (image, path) = (self.name.clone(), self.path.clone());
        ImageVolumeError::Unusable { image, path, source: Box::new(source) }
    }

    /// Looks for the sub path, with links in the image followed as if its root were `/`.
    fn check(&self) -> Result<(), ImageVolumeError> {
        let found = self.look().map_err(|error| self.unusable(error))?;
        let fault = match found.map(|metadata| metadata.is_dir()) {
            Some(true) => return Ok(()),
            Some(false) => "is not a directory",
            None => "does not exist",
        };
        let (image, path, sub_path) = (self.name.clone(), self.path.clone(), self.sub_path.clone());
        Err(ImageVolumeError::SubPath { image, path, sub_path, fault })
    }

    fn look(&self) -> Result<Option<std::fs::Metadata>, StepError> {
        let overlay = sys::mount::Overlay {
            lowers: self.layers.clone(),
            readonly: true,
            ..sys::mount::Overlay::default()
        };
        let root = sys::beneath::Root::from_fd(sys::overlay_view::open(&overlay)?);
        Ok(root.metadata(&self.sub_path)?)
    }
}

/// The images that the request mounts, in the order in which it does.
pub(super) fn find(
    images: &dyn image::ImageSource,
    request: &ContainerRequest,
) -> Result<Vec<ImageVolume>, ImageVolumeError> {
    let mounts = request.mounts().into_iter().filter_map(|mount| Some((mount.image?, mount.container_path)));
    mounts
        .map(|(wanted, path)| match images.resolve(&wanted.image) {
            Some(found) => Ok(ImageVolume {
                path,
                sub_path: wanted.sub_path,
                name: wanted.image,
                image: found.id.clone(),
                layers: Vec::new(),
            }),
            None => Err(ImageVolumeError::Absent { image: wanted.image, path }),
        })
        .collect()
}

/// Leases every image, notes its layers in the record and makes sure that there is something to mount.
pub(super) async fn hold(
    images: &dyn image::ImageSource,
    record: &mut ContainerRecord,
) -> Result<(), StepError> {
    let owners = owners(record);
    for (volume, owner) in record.image_volumes.iter_mut().zip(owners) {
        let leased = images.lease(&owner, &volume.image).await.map_err(|error| match error {
            // It went after the request was looked at.
            image::ImageError::Unknown(_) => volume.absent(),
            error => volume.unusable(error.into()),
        });
        volume.layers = leased?.layers;
    }
    let volumes = record.image_volumes.clone();
    blocking(move || Ok(volumes.iter().try_for_each(ImageVolume::check)?)).await
}

/// Ends the leases of a container that was made or should have been.
pub(super) async fn release(
    images: &dyn image::ImageSource,
    record: &ContainerRecord,
) -> Result<(), StepError> {
    for owner in BTreeSet::from_iter(owners(record)) {
        images.release(&owner).await?;
    }
    Ok(())
}

/// Who holds the image of each mount.
fn owners(record: &ContainerRecord) -> Vec<String> {
    let volumes = &record.image_volumes;
    let first = |volume: &ImageVolume| volumes.iter().position(|other| other.image == volume.image);
    volumes.iter().filter_map(first).map(|first| format!("{}.{first}", record.id)).collect()
}

/// The id of whatever holds a lease, for a sandbox or container itself the owner as it is.
pub(super) fn holder(owner: &str) -> &str {
    owner.split_once('.').map_or(owner, |(id, _)| id)
}

/// Where the images are while the OCI runtime creates the container, in the order of the request's image mounts.
pub(super) fn sources(layout: &Layout, record: &ContainerRecord) -> Vec<PathBuf> {
    (0..record.image_volumes.len()).map(|n| layout.image_mount(&record.id, n)).collect()
}

/// What the monitor's helper mounts there.
pub(super) fn mounts(layout: &Layout, record: &ContainerRecord) -> Vec<ImageMount> {
    let places = sources(layout, record).into_iter().zip(&record.image_volumes);
    places
        .map(|(target, volume)| ImageMount {
            target,
            layers: volume.layers.clone(),
            sub_path: volume.sub_path.clone(),
        })
        .collect()
}
