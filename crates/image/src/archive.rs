//! Images in files: save, load and tag.
//!
//! Two forms are written and read: an OCI image layout (as a tar archive or a directory) and the archive of
//! `docker save`, each with one or several images.
//!
//! Promises:
//! * Saving the same image gives the same bytes. Layers are uncompressed, made from their recipes; the image's id and
//!   its diff ids are those of the store. The manifest is the stored one where its layers can be made again, as those of
//!   a loaded archive can; else one that refers to the same layers uncompressed. So *save, load, save* ends with the
//!   digests it began with.
//! * An archive that is loaded is as untrusted as a registry: every blob must have its digest, sizes are bounded, names go
//!   through [`Reference`], layers through the same unpacking as a pull's. Images appear when all of them are whole;
//!   what fails leaves nothing.
//! * An image without a name in its archive gets `localhost/loaded` with its digest.

mod contents;
mod docker;
mod layout;
mod load;
mod save;
mod sink;
mod source;
mod spool;

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use types::ImageId;

pub(crate) use contents::{Contents, Document, LayerFile, oci_manifest};

use crate::error::ImageError;
use crate::images::{Images, blocking};
use crate::reference::Reference;

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI image layout, which containerd, podman, skopeo and others read.
    Oci,
    /// What `docker save` wrote before it wrote OCI layouts.
    Docker,
}

/// An image that came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    /// Its id.
    pub id: ImageId,
    /// The names it got.
    pub names: Vec<String>,
}

impl Images {
    /// Writes the images that `names` mean into a tar archive. A tag brings that name along, an id or a digest all tags
    /// of its image.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] for a name of no image, [`ImageError::Corrupt`] when a layer is not what it was or was
    /// unpacked before there were recipes, [`ImageError::Store`] when reading or writing fails. What was written is then
    /// of no use.
    pub async fn save<W: Write + Send + 'static>(
        &self,
        names: &[String],
        format: ArchiveFormat,
        out: W,
    ) -> Result<(), ImageError> {
        let (store, names) = (Arc::clone(&self.shared.store), names.to_vec());
        blocking(&self.shared.tasks, move || save::to_stream(&store, &names, format, out)).await
    }

    /// Writes the images that `names` mean as an OCI layout into a directory, which must be empty or missing.
    ///
    /// # Errors
    /// As [`Images::save`]; what was written is removed.
    pub async fn save_to_directory(&self, names: &[String], directory: &Path) -> Result<(), ImageError> {
        let (store, names, directory) =
            (Arc::clone(&self.shared.store), names.to_vec(), directory.to_owned());
        blocking(&self.shared.tasks, move || save::to_directory(&store, &names, &directory)).await
    }

    /// Takes in all images of an archive: a tar archive of either form, plain or compressed by gzip or zstd.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] when it is no such archive, [`ImageError::Corrupt`] when something in it is not what
    /// its digest says, [`ImageError::Unpack`] for a malformed or hostile layer, [`ImageError::NoPlatform`] when it has
    /// nothing for this machine, and those of the store.
    pub async fn load<R: Read + Send + 'static>(&self, archive: R) -> Result<Vec<LoadedImage>, ImageError> {
        let shared = Arc::clone(&self.shared);
        blocking(&self.shared.tasks, move || load::from_stream(&shared, archive)).await
    }

    /// Takes in all images of an OCI layout in a directory, or of an archive in a file.
    ///
    /// # Errors
    /// As [`Images::load`].
    pub async fn load_path(&self, path: &Path) -> Result<Vec<LoadedImage>, ImageError> {
        let (shared, path) = (Arc::clone(&self.shared), path.to_owned());
        blocking(&self.shared.tasks, move || load::from_path(&shared, &path)).await
    }

    /// Gives the image that `image` means another name; a tag that another image has moves to this one.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] when there is no such image, [`ImageError::Reference`] for a name that is none,
    /// [`ImageError::Unsupported`] for one without a tag of its own, [`ImageError::Store`] when it cannot be recorded.
    pub async fn tag(&self, image: &str, name: &str) -> Result<(), ImageError> {
        let reference = parse(name)?;
        if reference.tag().is_none() {
            let detail = "a digest cannot be given to it, only a tag".to_owned();
            return Err(ImageError::Unsupported { reference: name.to_owned(), detail });
        }
        let unknown = || ImageError::Unknown(image.to_owned());
        let found = self.resolve(image).ok_or_else(unknown)?;
        let target = contents::target_of(&found);
        let store = Arc::clone(&self.shared.store);
        let id = found.id.clone();
        let is_there =
            blocking(&self.shared.tasks, move || store.add_name(&id, &reference, &target, &|| Ok(())))
                .await?;
        if is_there { Ok(()) } else { Err(unknown()) }
    }
}

fn parse(text: &str) -> Result<Reference, ImageError> {
    Reference::parse(text).map_err(|source| ImageError::Reference { text: text.to_owned(), source })
}
