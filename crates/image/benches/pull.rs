//! How long a pull of some 230 MB of gzip in eight layers takes from a registry on loopback, and what it costs.
//!
//!     cargo bench -p image --bench pull [-- ROUNDS]
//!
//! The pull runs in a process of its own, so that its processor time and memory are not the registry's or the builder's.
//! Half of what the files hold does not compress, as in images of programs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints its table and stops at an error"
)]

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/images/builder.rs"]
mod builder;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/images/registry.rs"]
mod registry;

use std::path::Path;
use std::time::Instant;

use image::{Images, PullRequest, StoreConfig};

use builder::{Built, Family, LayerBuilder, noise};
use registry::{Access, Registry};

const LAYERS: usize = 8;
const FILES: usize = 400;
const FILE: usize = 140_000;

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
    let layers: Vec<Vec<u8>> = (0..LAYERS).map(layer).collect();
    let image = Built::new(Family::Oci, &layers);
    let sizes = (megabytes(image.blobs.iter()), megabytes(layers.iter()));
    println!("{} MB in {LAYERS} layers, {} MB unpacked, {} files", sizes.0, sizes.1, LAYERS * FILES);
    registry.push("bench", "1", &image);
    drop((image, layers));
    let reference = format!("{}/bench:1", registry.address);
    for round in 0..rounds {
        let root = directory.path().join(format!("store-{round}"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let status = child.arg("pull").arg(&root).arg(&reference).status().unwrap();
        assert!(status.success());
        std::fs::remove_dir_all(&root).unwrap();
    }
}

fn megabytes<'a>(parts: impl Iterator<Item = &'a Vec<u8>>) -> usize {
    parts.map(Vec::len).sum::<usize>() / 1_000_000
}

/// Files of which each is half noise, half text; no two layers are the same.
fn layer(number: usize) -> Vec<u8> {
    let random = noise(FILE * FILES / 2 + number * 1000);
    let text: Vec<u8> = b"the quick brown fox jumps over the lazy dog\n".repeat(FILE / 2 / 44);
    let random = random.get(number * 1000..).unwrap();
    let files = random.chunks(FILE / 2).enumerate();
    files
        .fold(LayerBuilder::new(), |layer, (file, noise)| {
            let name = format!("usr/{number}/{}/{file}", file % 20);
            layer.entry(&name, |_| {}, &[noise, &text].concat())
        })
        .build()
}

fn pull(root: &Path, reference: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let request = PullRequest { reference: reference.to_owned(), ..PullRequest::default() };
    let begun = Instant::now();
    runtime.block_on(async {
        let images =
            Images::open(StoreConfig { root: root.to_owned(), ..StoreConfig::default() }).await.unwrap();
        images.pull(request).await.unwrap();
    });
    let wall = begun.elapsed();
    println!("{:.2} s, {:.2} s of processor time, {} MB resident at most", wall.as_secs_f64(), cpu(), peak());
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
