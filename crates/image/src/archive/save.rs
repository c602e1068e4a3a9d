//! Writing archives.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use types::Digest;

use super::ArchiveFormat;
use super::contents::{Contents, LayerFile, oci_index, to_json};
use super::sink::{DirectorySink, Sink, TarSink};
use crate::error::ImageError;
use crate::hash::Hasher;
use crate::store::Store;

const BUFFER: usize = 256 << 10;

pub(super) fn to_stream(
    store: &Arc<Store>,
    names: &[String],
    format: ArchiveFormat,
    out: impl Write,
) -> Result<(), ImageError> {
    let images = contents(store, names)?;
    let mut sink = TarSink::new(BufWriter::with_capacity(BUFFER, out));
    match format {
        ArchiveFormat::Oci => put_layout(&images, &mut sink)?,
        ArchiveFormat::Docker => put_docker(&images, &mut sink)?,
    }
    sink.finish()
}

pub(super) fn to_directory(store: &Arc<Store>, names: &[String], path: &Path) -> Result<(), ImageError> {
    let images = contents(store, names)?;
    let mut sink = DirectorySink::new(path)?;
    put_layout(&images, &mut sink)?;
    sink.finish();
    Ok(())
}

/// Each image once, by id, with all names it was asked for by.
fn contents(store: &Arc<Store>, names: &[String]) -> Result<Vec<Contents>, ImageError> {
    let mut images = BTreeMap::new();
    for name in names {
        let mut found = Contents::of(store, name)?;
        let known = images.remove(&found.id).map_or_else(Vec::new, |known: Contents| known.names);
        found.names.extend(known);
        found.names.sort_by_key(ToString::to_string);
        found.names.dedup();
        images.insert(found.id.clone(), found);
    }
    Ok(images.into_values().collect())
}

fn put_layout(images: &[Contents], sink: &mut dyn Sink) -> Result<(), ImageError> {
    put_bytes(sink, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put_bytes(sink, "index.json", &oci_index(images)?)?;
    let mut written = HashSet::new();
    for image in images {
        for (digest, bytes) in [(&image.manifest.digest, &image.manifest.bytes), (&image.id.0, &image.config)]
        {
            if written.insert(digest) {
                put_bytes(sink, &blob(digest), bytes)?;
            }
        }
    }
    for layer in images.iter().flat_map(|image| &image.layers) {
        if written.insert(layer.diff_id()) {
            put_layer(sink, &blob(layer.diff_id()), layer)?;
        }
    }
    Ok(())
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn put_docker(images: &[Contents], sink: &mut dyn Sink) -> Result<(), ImageError> {
    let entries: Vec<DockerImage> = images.iter().map(DockerImage::of).collect();
    put_bytes(sink, "manifest.json", &to_json(&entries)?)?;
    for (image, entry) in images.iter().zip(&entries) {
        put_bytes(sink, &entry.config, &image.config)?;
    }
    let mut written = HashSet::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        if written.insert(layer.diff_id()) {
            put_layer(sink, &docker_layer(layer), layer)?;
        }
    }
    Ok(())
}

fn docker_layer(layer: &LayerFile) -> String {
    format!("{}/layer.tar", layer.diff_id().hex())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl DockerImage {
    fn of(image: &Contents) -> Self {
        Self {
            config: format!("{}.json", image.id.0.hex()),
            repo_tags: image.names.iter().map(ToString::to_string).collect(),
            layers: image.layers.iter().map(docker_layer).collect(),
        }
    }
}

fn put_bytes(sink: &mut dyn Sink, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
    sink.put(name, bytes.len() as u64, &mut &*bytes)
}

/// A layer that is not what its diff id says is not handed on.
fn put_layer(sink: &mut dyn Sink, name: &str, layer: &LayerFile) -> Result<(), ImageError> {
    let mut archive = Hashed { input: layer.open()?, hasher: Hasher::new() };
    sink.put(name, layer.size, &mut archive)?;
    let actual = archive.hasher.finish();
    if actual == *layer.diff_id() { Ok(()) } else { Err(layer.changed(&actual)) }
}

struct Hashed<R> {
    input: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}
