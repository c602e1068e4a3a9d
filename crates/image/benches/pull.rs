//! How long pulls of an image of 450 MB in eight layers take from a registry on loopback, and what they cost.
//!
//!     cargo bench -p image --bench pull [-- ROUNDS]
//!
//! Each pull runs in a process of its own, so that its processor time and memory are not the registry's or the
//! builder's. The parts are times of the clock, summed over layers that come side by side: their shares count.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark prints its table and stops at an error"
)]

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/images/builder.rs"]
mod builder;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/images/registry.rs"]
mod registry;
#[allow(missing_docs, unreachable_pub, reason = "shared with the benchmark of whole servers")]
#[path = "../../../benches/sample.rs"]
mod sample;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use image::{Images, PullRequest, StoreConfig};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use builder::{Built, Family, digest};
use registry::{Access, Registry};
use sample::Sample;

/// Fields of the event that a finished layer leaves in the log.
const PARTS: [&str; 4] = ["network_ms", "decompress_ms", "hash_ms", "write_ms"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.as_slice() {
        [verb, root, reference] if verb == "pull" => pull(Path::new(root), reference),
        [rounds] => measure(rounds.parse().unwrap()),
        _ => measure(3),
    }
}

fn measure(rounds: usize) {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start(directory.path(), "bench", &Access::default());
    for compression in ["gzip", "zstd"] {
        let (image, unpacked) = image(compression);
        let sizes = (megabytes(image.blobs.iter().map(Vec::len)), megabytes(unpacked.into_iter()));
        println!("{compression}: {} MB in {} layers, {} MB unpacked", sizes.0, sample::LAYERS.len(), sizes.1);
        registry.push("bench", compression, &image);
        drop(image);
        let reference = format!("{}/bench:{compression}", registry.address);
        for round in 0..rounds {
            let root = directory.path().join(format!("store-{round}"));
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            assert!(child.arg("pull").arg(&root).arg(&reference).status().unwrap().success());
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
}

fn megabytes(sizes: impl Iterator<Item = usize>) -> usize {
    sizes.sum::<usize>() / 1_000_000
}

/// The image, and the sizes of its layers unpacked.
fn image(compression: &str) -> (Built, Vec<usize>) {
    let sample = Sample::new();
    let layer = |number| {
        let archive = sample.layer(number).unwrap();
        (digest(&archive), archive.len(), compress(compression, &archive))
    };
    let mut layers = Vec::new();
    std::thread::scope(|scope| {
        let layer = &layer;
        let threads: Vec<_> =
            (0..sample::LAYERS.len()).map(|number| scope.spawn(move || layer(number))).collect();
        layers.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    });
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{compression}");
    let describe = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
    let diff_ids: Vec<&String> = layers.iter().map(|(diff_id, ..)| diff_id).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": Family::Oci.manifest(),
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|(_, _, blob)| describe(&media_type, blob)).collect::<Vec<Value>>(),
    });
    let sizes = layers.iter().map(|(_, size, _)| *size).collect();
    let blobs = std::iter::once(config).chain(layers.into_iter().map(|(.., blob)| blob)).collect();
    (Built { family: Family::Oci, manifest: manifest.to_string().into_bytes(), blobs }, sizes)
}

/// As builders do unless told otherwise.
fn compress(compression: &str, archive: &[u8]) -> Vec<u8> {
    if compression == "zstd" {
        return zstd::encode_all(archive, 3).unwrap();
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

fn pull(root: &Path, reference: &str) {
    let parts = Parts::default();
    let subscriber = tracing_subscriber::registry().with(parts.clone());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let request = PullRequest { reference: reference.to_owned(), ..PullRequest::default() };
    let begun = Instant::now();
    runtime.block_on(async {
        let config = StoreConfig { root: root.to_owned(), ..StoreConfig::default() };
        Images::open(config).await.unwrap().pull(request).await.unwrap();
    });
    let wall = begun.elapsed().as_secs_f64();
    println!("{wall:.2} s, {:.2} s of processor time, {} MB resident at most; {parts}", cpu(), peak());
}

/// What the layers of a pull spent their time with.
#[derive(Clone, Default)]
struct Parts(Arc<Mutex<BTreeMap<&'static str, f64>>>);

impl<S: tracing::Subscriber> Layer<S> for Parts {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Parts {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if PARTS.contains(&field.name()) {
            *self.0.lock().unwrap().entry(field.name()).or_default() += value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl std::fmt::Display for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.0.lock().unwrap();
        let all: f64 = parts.values().sum();
        for name in PARTS {
            let part = parts.get(name).copied().unwrap_or_default();
            write!(f, "{} {:.0} % ", name.trim_end_matches("_ms"), 100.0 * part / all.max(1.0))?;
        }
        Ok(())
    }
}

/// User and system time of this process, from the kernel's ticks.
fn cpu() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields.get(at).unwrap().parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1000
}
