//! How fast bytes come out of a container: through exec's standard output and through a forwarded port, over SPDY and
//! WebSocket; and how long it takes to run a command that does nothing.
//!
//!     streaming_rate [--rounds N] [--mib N] [--endpoint SOCKET [--image REFERENCE]]
//!
//! Without an endpoint it starts the daemon beside it. With one, the same client measures another CRI server. Every
//! transfer is compared with its SHA-256. Exec counts from the first byte to the last, so that the start of the process
//! stands in the rows of `true` alone; a forwarded port from the connection to the last byte. Build it optimised, or it measures itself.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use e2e::streaming::{
    Dialer, Protocol, Remote, SPDY, SPDY_FORWARD, Streams, Tunnel, WEBSOCKET_FORWARD, listen_in_network_of,
};
use e2e::{ContainerSpec, Cri, ImageBuilder, Machine, Media, Node, Options, Registry, Result};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// The version that other servers know too.
const WEBSOCKET: Protocol = Protocol::WebSocket("v4.channel.k8s.io");
const PORT: u16 = 7070;
/// How often `true` is run in a round.
const COMMANDS: u32 = 10;
/// A slow server is to be measured, not cut off.
const CALL_LIMIT: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() -> Result {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let machine = Arc::new(match &arguments.endpoint {
        None => Machine::boot().await?,
        Some(_) => Machine::host()?,
    });
    let registry = Registry::start(&machine).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "bench/busybox", "1").await?;
    let reference = arguments.image.clone().unwrap_or(pushed.reference);
    let node = Node::start(Options { machine: Some(Arc::clone(&machine)), ..Options::default() }).await?;
    registry.describe_to(&node.registry_config_dir())?;
    let socket = arguments.endpoint.clone().unwrap_or_else(|| node.socket());
    let cri = Cri::connect_for(&machine.path(&socket), CALL_LIMIT).await?;
    let pod = node.pod("rate");
    let image = cri.pull(&reference).await?;
    let pod_id = cri.run_pod(&pod).await?;
    let measured = async {
        let mut spec = ContainerSpec::lasting("c", &image);
        if let Some(resources) = spec.config.linux.as_mut().and_then(|it| it.resources.as_mut()) {
            resources.memory_limit_in_bytes = 1 << 30;
        }
        let id = cri.run(&pod_id, &spec, &pod).await?;
        let bench = Bench::prepare(&cri, &machine, pod_id.clone(), id, arguments.mib).await?;
        bench.run(arguments.rounds).await
    };
    let verdict = measured.await;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    verdict?.print();
    // The server must have no connection more than before.
    drop(cri);
    node.finish().await
}

/// What is measured and with whom.
struct Bench {
    cri: Cri,
    dialer: Dialer,
    pod: String,
    container: String,
    mib: usize,
    sum: String,
}

impl Bench {
    /// Makes the file in the container and serves the same bytes in the pod's network.
    async fn prepare(
        cri: &Cri,
        machine: &Arc<Machine>,
        pod: String,
        container: String,
        mib: usize,
    ) -> Result<Self> {
        let make = format!(
            "dd if=/dev/urandom of=/data bs=1048576 count={mib} 2>/dev/null; busybox sha256sum /data"
        );
        let line = cri.shell(&container, &make).await?;
        let sum = line.split(' ').next().unwrap_or_default().to_owned();
        let pid = cri.container_pid(&container).await?;
        let root = machine.path(&PathBuf::from(format!("/proc/{pid}/root/data")));
        let bytes = std::fs::read(&root).with_context(|| format!("reading {}", root.display()))?;
        let listener = listen_in_network_of(machine, pid, &format!("127.0.0.1:{PORT}")).await?;
        tokio::spawn(serve(listener, Arc::new(bytes)));
        Ok(Self { cri: cri.clone(), dialer: Dialer::on(machine), pod, container, mib, sum })
    }

    async fn run(&self, rounds: u32) -> Result<Table> {
        let mut table = Table::default();
        for round in 0..=rounds {
            // The first fills caches.
            if round == 1 {
                table = Table::default();
            }
            for (name, protocol) in [("exec cat, SPDY", SPDY), ("exec cat, WebSocket", WEBSOCKET)] {
                table.rate(name, self.mib, self.exec_cat(protocol).await.context(name)?);
            }
            for (name, protocol) in
                [("forwarded port, SPDY", SPDY_FORWARD), ("forwarded port, WebSocket", WEBSOCKET_FORWARD)]
            {
                table.rate(name, self.mib, self.forward(protocol).await.context(name)?);
            }
            for (name, protocol) in [("exec true, SPDY", SPDY), ("exec true, WebSocket", WEBSOCKET)] {
                for _ in 0..COMMANDS {
                    table.time(name, self.exec_true(protocol).await.context(name)?);
                }
            }
        }
        Ok(table)
    }

    async fn exec_cat(&self, protocol: Protocol) -> Result<Duration> {
        let url = self.cri.exec_url(&self.container, &["cat", "/data"], Streams::OUTPUT).await?;
        let mut remote = Remote::open(&self.dialer, &url, protocol, Streams::OUTPUT).await?;
        while remote.heard().stdout.is_empty() && remote.read().await? {}
        let begun = Instant::now();
        let outcome = remote.finish().await?;
        let took = begun.elapsed();
        ensure!(outcome.code()? == 0, "{}", outcome.error);
        self.verify(&outcome.stdout)?;
        Ok(took)
    }

    async fn exec_true(&self, protocol: Protocol) -> Result<Duration> {
        let begun = Instant::now();
        let url = self.cri.exec_url(&self.container, &["true"], Streams::OUTPUT).await?;
        let outcome = Remote::open(&self.dialer, &url, protocol, Streams::OUTPUT).await?.finish().await?;
        ensure!(outcome.code()? == 0, "{}", outcome.error);
        Ok(begun.elapsed())
    }

    async fn forward(&self, protocol: Protocol) -> Result<Duration> {
        let url = self.cri.forward_url(&self.pod, &[PORT]).await?;
        let tunnel = Tunnel::open(&self.dialer, &url, protocol, &[PORT]).await?;
        let begun = Instant::now();
        let mut connection = tunnel.connect(PORT).await?;
        let mut bytes = Vec::with_capacity(self.mib << 20);
        // Not to its end: some servers wait a second with it.
        while bytes.len() < self.mib << 20 {
            bytes.extend(connection.read().await?.context("the connection ends early")?);
        }
        let took = begun.elapsed();
        self.verify(&bytes)?;
        Ok(took)
    }

    fn verify(&self, bytes: &[u8]) -> Result {
        let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(sum == self.sum, "{} bytes with the sum {sum} instead of {}", bytes.len(), self.sum);
        Ok(())
    }
}

/// Sends the bytes to whoever connects.
async fn serve(listener: TcpListener, bytes: Arc<Vec<u8>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let bytes = Arc::clone(&bytes);
        tokio::spawn(async move {
            // A client that leaves is none of ours to judge.
            drop(stream.write_all(&bytes).await);
            drop(stream.shutdown().await);
        });
    }
}

/// What was measured: rows with their unit.
#[derive(Debug, Default)]
struct Table(BTreeMap<&'static str, (&'static str, Vec<f64>)>);

impl Table {
    #[allow(clippy::cast_precision_loss, reason = "it is a few hundred")]
    fn rate(&mut self, name: &'static str, mib: usize, took: Duration) {
        self.0.entry(name).or_insert(("MiB/s", Vec::new())).1.push(mib as f64 / took.as_secs_f64());
    }

    fn time(&mut self, name: &'static str, took: Duration) {
        self.0.entry(name).or_insert(("ms", Vec::new())).1.push(took.as_secs_f64() * 1000.0);
    }

    fn print(self) {
        println!("{:<28} {:>6} {:>9} {:>9} {:>9}", "", "", "least", "median", "most");
        for (name, (unit, mut samples)) in self.0 {
            samples.sort_by(f64::total_cmp);
            let at = |place: usize| samples.get(place).copied().unwrap_or_default();
            let last = samples.len().saturating_sub(1);
            println!("{name:<28} {unit:>6} {:>9.1} {:>9.1} {:>9.1}", at(0), at(last / 2), at(last));
        }
    }
}

/// The command line.
#[derive(Debug)]
struct Arguments {
    rounds: u32,
    mib: usize,
    endpoint: Option<PathBuf>,
    image: Option<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self { rounds: 7, mib: 100, endpoint: None, image: None };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => arguments.rounds = value.parse().context("--rounds takes a number")?,
                "--mib" => arguments.mib = value.parse().context("--mib takes a number")?,
                "--endpoint" => arguments.endpoint = Some(PathBuf::from(value.trim_start_matches("unix://"))),
                "--image" => arguments.image = Some(value),
                other => bail!("{other} is not an option"),
            }
        }
        Ok(arguments)
    }
}
