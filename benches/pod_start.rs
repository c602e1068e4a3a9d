//! How long it takes from PullImage's return to a running pod on an idle machine, in all and step by step.
//!
//!     pod_start [--rounds N] [--endpoint SOCKET [--image REFERENCE]]
//!
//! Without an endpoint it starts the daemon beside it and reads the steps (netns, CNI, monitor, pause, mount, OCI create,
//! OCI start) from the daemon's log. With one, the same client measures another CRI server by its calls alone.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use e2e::{
    ContainerSpec, Cri, ImageBuilder, Machine, Media, Node, Options, PodSpec, Registry, Result, parse_steps,
};

/// Rounds before the counted ones, which fill caches.
const WARM_UP: u32 = 2;

#[tokio::main]
async fn main() -> Result {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let machine = match &arguments.endpoint {
        None => Arc::new(Machine::boot().await?),
        Some(_) => Arc::new(Machine::host()?),
    };
    let registry = Registry::start(&machine).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "bench/busybox", "1").await?;
    let reference = arguments.image.clone().unwrap_or(pushed.reference);
    let node = Node::start(Options { machine: Some(machine), ..Options::default() }).await?;
    registry.describe_to(&node.registry_config_dir())?;
    let cri = match &arguments.endpoint {
        None => node.cri(),
        Some(socket) => Cri::connect(socket).await?,
    };
    let mut table = Table::default();
    for round in 0..WARM_UP + arguments.rounds {
        if round == WARM_UP {
            table = Table { log_begins: node.log().len(), ..Table::default() };
        }
        one_pod(&cri, &node.pod(&format!("bench{round}")), &reference, &mut table).await?;
    }
    table.print(&node.log(), arguments.rounds);
    node.finish().await
}

/// One pod's life; the calls up to the running container count.
async fn one_pod(cri: &Cri, pod: &PodSpec, reference: &str, table: &mut Table) -> Result {
    let image = cri.pull(reference).await?;
    let begun = Instant::now();
    let pod_id = cri.run_pod(pod).await?;
    let ran = Instant::now();
    let id = cri.create(&pod_id, &ContainerSpec::lasting("c", &image), pod).await?;
    let created = Instant::now();
    cri.start(&id).await?;
    let started = Instant::now();
    cri.exec(&id, &["true"]).await?;
    let executed = Instant::now();
    cri.stop(&id, 5).await?;
    let stopped = Instant::now();
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    let removed = Instant::now();
    for (name, from, to) in [
        ("RunPodSandbox", begun, ran),
        ("CreateContainer", ran, created),
        ("StartContainer", created, started),
        ("pulled image to running pod", begun, started),
        ("ExecSync true", started, executed),
        ("StopContainer", executed, stopped),
        ("StopPodSandbox + RemovePodSandbox", stopped, removed),
    ] {
        table.calls.push((name, (to - from).as_secs_f64() * 1000.0));
    }
    Ok(())
}

/// What was measured.
#[derive(Debug, Default)]
struct Table {
    calls: Vec<(&'static str, f64)>,
    log_begins: usize,
}

impl Table {
    fn print(&self, log: &str, rounds: u32) {
        println!("{rounds} rounds, milliseconds\n\n{:<40} {:>9} {:>9}", "call", "median", "p90");
        let mut rows: Vec<(&str, Vec<f64>)> = Vec::new();
        for (name, elapsed) in &self.calls {
            match rows.iter_mut().find(|row| row.0 == *name) {
                Some(row) => row.1.push(*elapsed),
                None => rows.push((name, vec![*elapsed])),
            }
        }
        for (name, samples) in rows {
            print_row(name, samples);
        }
        let mut steps: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for step in parse_steps(log.get(self.log_begins..).unwrap_or_default()) {
            steps.entry((step.op, step.step)).or_default().push(step.elapsed_ms);
        }
        if !steps.is_empty() {
            println!("\n{:<40} {:>9} {:>9}", "step", "median", "p90");
        }
        for ((op, step), samples) in steps {
            print_row(&format!("{op}: {step}"), samples);
        }
    }
}

fn print_row(name: &str, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let at = |tenths: usize| {
        samples.get(samples.len().saturating_sub(1) * tenths / 10).copied().unwrap_or_default()
    };
    println!("{name:<40} {:>9.1} {:>9.1}", at(5), at(9));
}

/// The command line.
#[derive(Debug)]
struct Arguments {
    rounds: u32,
    endpoint: Option<PathBuf>,
    image: Option<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self { rounds: 20, endpoint: None, image: None };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => arguments.rounds = value.parse().context("--rounds takes a number")?,
                "--endpoint" => arguments.endpoint = Some(PathBuf::from(value.trim_start_matches("unix://"))),
                "--image" => arguments.image = Some(value),
                other => bail!("{other} is not an option"),
            }
        }
        Ok(arguments)
    }
}
