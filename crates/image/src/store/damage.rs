//! What is damaged: images on record compared with their digests, as the disk has them.
//!
//! Nothing is opened for writing and nothing is held, so that this can be asked beside a server at work. What such a server
//! removes meanwhile looks damaged; a second look at the same record tells.
//!
//! Blobs are hashed. Of a layer the very archive is made again from its files and its recipe, which must have the layer's
//! diff id; the tree must have as many files as were unpacked.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use types::{Digest, ImageId};

use super::format::{LayerFile, RecordFile};
use super::layout::{self, Layout};
use super::open::read;
use crate::hash::Hasher;

/// An image on record that is not what its digests say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedImage {
    /// The record's file.
    pub record: PathBuf,
    /// The image; unknown when the record cannot be read.
    pub id: Option<ImageId>,
    /// The digest of its manifest.
    pub manifest: Option<Digest>,
    /// Its names with tags.
    pub tags: Vec<String>,
    /// Its names with digests.
    pub digests: Vec<String>,
    /// What is wrong; never empty.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub part: Part,
    /// What.
    pub detail: String,
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The record itself.
    Record,
    /// A manifest, an index or the config.
    Blob(Digest),
    /// A layer, by its diff id.
    Layer(Digest),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            Part::Record => write!(f, "record: {}", self.detail),
            Part::Blob(digest) => write!(f, "blob {digest}: {}", self.detail),
            Part::Layer(digest) => write!(f, "layer {digest}: {}", self.detail),
        }
    }
}

impl DamagedImage {
    /// What people call it.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.tags.first().or(self.digests.first()).cloned();
        name.unwrap_or_else(|| self.record.display().to_string())
    }

    /// The layers with faults.
    #[must_use]
    pub fn layers(&self) -> Vec<Digest> {
        let layer = |fault: &Fault| match &fault.part {
            Part::Layer(diff_id) => Some(diff_id.clone()),
            Part::Record | Part::Blob(_) => None,
        };
        self.faults.iter().filter_map(layer).collect()
    }
}

/// Every damaged image of the store at `root`. Reads all files of all images.
///
/// # Errors
/// When a directory of the store cannot be read; a store that is not there has no images.
pub fn damage_on_disk(root: &Path) -> io::Result<Vec<DamagedImage>> {
    let layout = Layout::at(root);
    let records: Vec<PathBuf> =
        names(&layout.records)?.into_iter().map(|name| layout.records.join(name)).collect();
    examine(layout, &records)
}

/// Those of `found` that are damaged still, and on record.
///
/// # Errors
/// As [`damage_on_disk`].
pub fn still_damaged(root: &Path, found: &[DamagedImage]) -> io::Result<Vec<DamagedImage>> {
    let records: Vec<PathBuf> = found.iter().map(|image| image.record.clone()).collect();
    examine(Layout::at(root), &records)
}

fn examine(layout: Layout, records: &[PathBuf]) -> io::Result<Vec<DamagedImage>> {
    let mut examination = Examination { directories: HashMap::new(), checked: HashMap::new(), layout };
    examination.find_layers()?;
    let is_record = |path: &&PathBuf| path.file_name().is_some_and(|name| !sys::atomic::is_temporary(name));
    Ok(records.iter().filter(is_record).filter_map(|record| examination.image(record)).collect())
}

/// Layers are shared, and each is looked at once.
struct Examination {
    layout: Layout,
    directories: HashMap<Digest, (String, LayerFile)>,
    checked: HashMap<Digest, Result<(), String>>,
}

impl Examination {
    /// A layer that cannot say which it is is missing to those who need it.
    fn find_layers(&mut self) -> io::Result<()> {
        for directory in names(&self.layout.layers)? {
            let path = self.layout.layers.join(&directory).join(layout::LAYER_FILE);
            if let Ok(file) = read::<LayerFile>(&path) {
                self.directories.insert(file.diff_id.clone(), (directory, file));
            }
        }
        Ok(())
    }

    fn image(&mut self, record: &Path) -> Option<DamagedImage> {
        let file = match read::<RecordFile>(record) {
            Ok(file) => file,
            // Removed by a server at work.
            Err(_) if !record.try_exists().unwrap_or(true) => return None,
            Err(detail) => return Some(DamagedImage::unreadable(record, detail)),
        };
        let mut faults = Vec::new();
        if self.layout.record(&file.id) != record {
            let detail = "it has the name of another image".to_owned();
            faults.push(Fault { part: Part::Record, detail });
        }
        let blobs = file.blobs.iter().map(|blob| (Part::Blob(blob.clone()), self.blob(blob)));
        let blobs: Vec<_> = blobs.collect();
        let layers = file.layers.iter().map(|layer| &layer.diff_id);
        let layers: Vec<_> =
            layers.map(|diff_id| (Part::Layer(diff_id.clone()), self.layer(diff_id))).collect();
        for (part, outcome) in blobs.into_iter().chain(layers) {
            faults.extend(outcome.err().map(|detail| Fault { part, detail }));
        }
        (!faults.is_empty()).then(|| DamagedImage {
            record: record.to_owned(),
            id: Some(file.id),
            manifest: Some(file.manifest),
            tags: file.tags.into_iter().collect(),
            digests: file.digests.into_iter().collect(),
            faults,
        })
    }

    fn blob(&self, digest: &Digest) -> Result<(), String> {
        self.layout.load_blob(digest).map(drop).map_err(|error| root_cause(&error))
    }

    fn layer(&mut self, diff_id: &Digest) -> Result<(), String> {
        if let Some(known) = self.checked.get(diff_id) {
            return known.clone();
        }
        let outcome = match self.directories.get(diff_id) {
            Some((directory, file)) => self.tree(directory, file),
            None => Err("it is missing".to_owned()),
        };
        self.checked.insert(diff_id.clone(), outcome.clone());
        outcome
    }

    fn tree(&self, directory: &str, file: &LayerFile) -> Result<(), String> {
        let place = self.layout.layers.join(directory);
        let root = || {
            let root = layout::open_directory(&place.join(layout::LAYER_ROOT));
            root.map_err(|_| "its files are missing".to_owned())
        };
        let archive = crate::recipe::read(&place, root()?).map_err(|error| types::error::chain(&error))?;
        let actual = digest_of(archive).map_err(|error| error.to_string())?;
        if actual != file.diff_id {
            return Err(format!("its content has the digest {actual}"));
        }
        let found = inodes_in(&place).map_err(|error| error.to_string())?;
        match file.unpacked().inodes {
            expected if expected == found => Ok(()),
            expected => Err(format!("it takes {found} inodes, not {expected}")),
        }
    }
}

/// Files and directories, itself included; one with several names counts once.
fn inodes_in(directory: &Path) -> io::Result<u64> {
    let mut seen = HashSet::from([std::fs::symlink_metadata(directory)?.ino()]);
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            seen.insert(entry.metadata()?.ino());
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(seen.len() as u64)
}

impl DamagedImage {
    fn unreadable(record: &Path, detail: String) -> Self {
        let fault = Fault { part: Part::Record, detail };
        let (tags, digests) = (Vec::new(), Vec::new());
        Self { record: record.to_owned(), id: None, manifest: None, tags, digests, faults: vec![fault] }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

fn digest_of(mut content: impl io::Read) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
