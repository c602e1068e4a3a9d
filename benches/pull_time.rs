//! How long PullImage takes for an image of 450 MB in eight layers from a registry on loopback, and what it costs the
//! server: processor time with that of its helpers, and the most memory it had resident.
//!
//!     pull_time [--rounds N] [--packing gzip|zstd] [--endpoint SOCKET [--registry HOST:PORT]]
//!
//! Without an endpoint it starts the daemon beside it and also reads from its log where the time of the layers went.
//! With one, the same client measures another CRI server. The registry is one of its own unless a running one is named:
//! servers differ in whom they trust to speak plain HTTP.

#![allow(
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark prints its table, and its image is made of random sizes"
)]

#[allow(missing_docs, unreachable_pub, reason = "shared with the benchmark of the library")]
mod sample;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use e2e::{Cri, ImageBuilder, Layer, Machine, Media, Node, Options, Packing, Registry, Result};
use sample::Sample;

/// What servers remove behind the caller's back is over by then.
const PAUSE: Duration = Duration::from_secs(3);
/// A slow server is to be measured, not cut off.
const CALL_LIMIT: Duration = Duration::from_secs(600);
/// Fields of the event with which the daemon's log describes a layer.
const PARTS: [&str; 4] = ["network_ms", "decompress_ms", "hash_ms", "write_ms"];

#[tokio::main]
async fn main() -> Result {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let machine = match &arguments.endpoint {
        None => Arc::new(Machine::boot().await?),
        Some(_) => Arc::new(Machine::host()?),
    };
    let registry = Registry::start(&machine).await?;
    let image = image(arguments.packing)?;
    let pushed = match &arguments.registry {
        None => registry.push(image, "bench/pull", "1").await?,
        Some(host) => {
            let host = host.clone();
            tokio::task::spawn_blocking(move || image.push(&host, "bench/pull", "1")).await??
        }
    };
    println!("{:<10} {:>9} {:>14} {:>14}", "", "wall s", "processor s", "resident MiB");
    match &arguments.endpoint {
        Some(socket) => {
            let server =
                Server { cri: Cri::connect_for(socket, CALL_LIMIT).await?, pid: owner(socket).await? };
            server.measure(&pushed.reference, arguments.rounds).await
        }
        None => {
            let node = Node::start(Options { machine: Some(machine), ..Options::default() }).await?;
            registry.describe_to(&node.registry_config_dir())?;
            let cri = Cri::connect_for(&node.socket(), CALL_LIMIT).await?;
            let server = Server { cri, pid: node.pid().context("a running daemon")? };
            server.measure(&pushed.reference, arguments.rounds).await?;
            print_parts(&node.log());
            node.finish().await
        }
    }
}

fn image(packing: Packing) -> Result<ImageBuilder> {
    let sample = Sample::new();
    let mut image = ImageBuilder::new(Media::Oci).packed(packing);
    for number in 0..sample::LAYERS.len() {
        image = image.layer(Layer::of_archive(sample.layer(number)?));
    }
    Ok(image)
}

/// The process that listens on a socket.
async fn owner(socket: &PathBuf) -> Result<u32> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let pid = stream.peer_cred()?.pid().context("the server's process id")?;
    u32::try_from(pid).context("a process id")
}

/// The server that is measured.
struct Server {
    cri: Cri,
    pid: u32,
}

impl Server {
    async fn measure(&self, reference: &str, rounds: u32) -> Result {
        let mut table: Vec<[f64; 3]> = Vec::new();
        for round in 0..rounds {
            self.cri.forget_image(reference).await?;
            tokio::time::sleep(PAUSE).await;
            let measured = self.round(reference).await?;
            print_row(&format!("round {}", round + 1), measured);
            table.push(measured);
        }
        self.cri.forget_image(reference).await?;
        print_row("median", std::array::from_fn(|column| median(&table, column)));
        Ok(())
    }

    async fn round(&self, reference: &str) -> Result<[f64; 3]> {
        rustix::fs::sync();
        // The kernel then forgets the peak so far.
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5")?;
        let spent = self.processor_seconds()?;
        let begun = Instant::now();
        self.cri.pull(reference).await?;
        let wall = begun.elapsed().as_secs_f64();
        Ok([wall, self.processor_seconds()? - spent, self.peak_mebibytes()?])
    }

    /// User and system time of the process and of its children that have ended.
    fn processor_seconds(&self) -> Result<f64> {
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let (_, fields) = stat.rsplit_once(") ").context("a name in parentheses")?;
        let times = fields.split(' ').skip(11).take(4).map(|field| field.parse::<f64>());
        Ok(times.sum::<std::result::Result<f64, _>>()? / TICKS_PER_SECOND)
    }

    fn peak_mebibytes(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

fn print_row(name: &str, [wall, processor, resident]: [f64; 3]) {
    println!("{name:<10} {wall:>9.2} {processor:>14.2} {resident:>14.0}");
}

fn median(table: &[[f64; 3]], column: usize) -> f64 {
    let mut values: Vec<f64> = table.iter().filter_map(|row| row.get(column).copied()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// What the layers spent their time with; they come side by side, so that only the shares mean something.
fn print_parts(log: &str) {
    let mut parts: BTreeMap<&str, f64> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("crimson::step")) {
        for name in PARTS {
            *parts.entry(name).or_default() += field(line, name).unwrap_or_default();
        }
    }
    let all: f64 = parts.values().sum();
    println!("\nof the layers' time:");
    for name in PARTS {
        let part = parts.get(name).copied().unwrap_or_default();
        println!("  {:<10} {:>4.0} %", name.trim_end_matches("_ms"), 100.0 * part / all.max(1.0));
    }
}

/// A number in a line of the log, in either of its formats.
fn field(line: &str, name: &str) -> Option<f64> {
    let (_, rest) =
        line.split_once(&format!("{name}=")).or_else(|| line.split_once(&format!("\"{name}\":")))?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// The command line.
#[derive(Debug)]
struct Arguments {
    rounds: u32,
    packing: Packing,
    endpoint: Option<PathBuf>,
    registry: Option<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self { rounds: 5, packing: Packing::Gzip, endpoint: None, registry: None };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match (word.as_str(), value.as_str()) {
                ("--rounds", _) => arguments.rounds = value.parse().context("--rounds takes a number")?,
                ("--packing", "gzip") => arguments.packing = Packing::Gzip,
                ("--packing", "zstd") => arguments.packing = Packing::Zstd,
                ("--endpoint", path) => {
                    arguments.endpoint = Some(PathBuf::from(path.trim_start_matches("unix://")));
                }
                ("--registry", _) => arguments.registry = Some(value),
                _ => bail!("{word} {value} is not an option"),
            }
        }
        Ok(arguments)
    }
}
