//! How far a pull is: written by its tasks, one atomic number at a time, and read by whoever wants to know.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::manifest::Manifest;

/// A pull under way at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The image, as a normalised reference; credentials are no part of it.
    pub reference: String,
    /// What it is at.
    pub stage: PullStage,
    /// How long ago it began.
    pub age: Duration,
    /// Bytes of layers that are there, by whichever way: downloaded now or before, or shared with another image.
    pub bytes_done: u64,
    /// Bytes of all layers as the registry has them; 0 while that is not known.
    pub bytes_expected: u64,
    /// Layers of the image; 0 while that is not known.
    pub layers: usize,
    /// Layers that are unpacked and in place.
    pub layers_done: usize,
    /// Callers who wait for it; 0 when it is being given up.
    pub waiters: usize,
}

/// What a pull is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullStage {
    /// Finding out which image the reference means.
    Resolving,
    /// Downloading layers, and unpacking behind; or waiting for its turn to.
    Fetching,
    /// All layers have come, some are still being unpacked.
    Unpacking,
    /// Making the image known, or undoing what was done.
    Committing,
}

impl PullStage {
    /// A word for people and machines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Fetching => "fetching",
            Self::Unpacking => "unpacking",
            Self::Committing => "committing",
        }
    }
}

/// One pull, as its tasks see it.
#[derive(Debug)]
pub(crate) struct Progress {
    reference: String,
    begun: Instant,
    waiters: AtomicUsize,
    layers: OnceLock<Vec<LayerProgress>>,
    /// Nothing is fetched any more.
    is_fetched: AtomicBool,
}

/// One layer of it.
#[derive(Debug, Default)]
struct LayerProgress {
    size: u64,
    /// Bytes that have come.
    done: AtomicU64,
    is_stored: AtomicBool,
}

impl Progress {
    pub(crate) fn new(reference: String) -> Self {
        Self {
            reference,
            begun: Instant::now(),
            waiters: AtomicUsize::new(0),
            layers: OnceLock::new(),
            is_fetched: AtomicBool::new(false),
        }
    }

    pub(crate) fn set_waiters(&self, count: usize) {
        self.waiters.store(count, Ordering::Relaxed);
    }

    /// The image is known: its layers are fetched now.
    pub(crate) fn begin_layers(&self, manifest: &Manifest) {
        let layer = |size| LayerProgress { size, ..LayerProgress::default() };
        self.layers.get_or_init(|| manifest.layers.iter().map(|blob| layer(blob.size)).collect());
    }

    /// Where the download of a layer writes down how many of its bytes have come.
    pub(crate) fn done(&self, position: usize) -> Option<&AtomicU64> {
        self.layer(position).map(|layer| &layer.done)
    }

    /// A layer is in place.
    pub(crate) fn layer_stored(&self, position: usize) {
        if let Some(layer) = self.layer(position) {
            layer.done.store(layer.size, Ordering::Relaxed);
            layer.is_stored.store(true, Ordering::Relaxed);
        }
    }

    /// The layers are there, or not to be had.
    pub(crate) fn end_layers(&self) {
        self.is_fetched.store(true, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> PullProgress {
        let layers = self.layers.get().map(Vec::as_slice);
        let known = layers.unwrap_or_default();
        PullProgress {
            reference: self.reference.clone(),
            stage: self.stage(layers),
            age: self.begun.elapsed(),
            bytes_done: known.iter().map(LayerProgress::bytes).sum(),
            bytes_expected: known.iter().map(|layer| layer.size).sum(),
            layers: known.len(),
            layers_done: known.iter().filter(|layer| layer.is_stored.load(Ordering::Relaxed)).count(),
            waiters: self.waiters.load(Ordering::Relaxed),
        }
    }

    fn stage(&self, layers: Option<&[LayerProgress]>) -> PullStage {
        match layers {
            None => PullStage::Resolving,
            Some(_) if self.is_fetched.load(Ordering::Relaxed) => PullStage::Committing,
            Some(layers) if layers.iter().all(|layer| layer.bytes() == layer.size) => PullStage::Unpacking,
            Some(_) => PullStage::Fetching,
        }
    }

    fn layer(&self, position: usize) -> Option<&LayerProgress> {
        self.layers.get()?.get(position)
    }
}

impl LayerProgress {
    /// A server may send more than it said before that is noticed.
    fn bytes(&self) -> u64 {
        self.done.load(Ordering::Relaxed).min(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Document;

    fn manifest(sizes: &[u64]) -> Manifest {
        let blob = |size: &u64| {
            let digest = crate::hash::digest_of(&size.to_le_bytes());
            serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
        };
        let layers: Vec<_> = sizes.iter().map(blob).collect();
        let text = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": crate::hash::digest_of(b"c"), "size": 1},
            "layers": layers,
        });
        match Document::parse(text.to_string().as_bytes()).unwrap() {
            Document::Image(manifest) => manifest,
            Document::Index(_) => panic!("it is an image"),
        }
    }

    #[test]
    fn stages_follow_what_has_come() {
        let progress = Progress::new("a".to_owned());
        assert_eq!((progress.read().stage, progress.read().layers), (PullStage::Resolving, 0));
        progress.begin_layers(&manifest(&[100, 50]));
        let read = progress.read();
        assert_eq!((read.stage, read.bytes_done, read.bytes_expected), (PullStage::Fetching, 0, 150));
        progress.done(0).unwrap().store(70, Ordering::Relaxed);
        progress.layer_stored(1);
        let read = progress.read();
        assert_eq!((read.stage, read.bytes_done, read.layers_done), (PullStage::Fetching, 120, 1));
        progress.done(0).unwrap().store(101, Ordering::Relaxed);
        assert_eq!((progress.read().stage, progress.read().bytes_done), (PullStage::Unpacking, 150));
        progress.end_layers();
        assert_eq!(progress.read().stage, PullStage::Committing);
        assert!(progress.done(2).is_none());
    }
}
