//! A node with 100 pods of three containers each: how fast lists and figures are answered, what an idle server costs, and
//! how soon a container's end is told.
//!
//!     density [--pods N] [--containers N] [--calls N] [--idle SECONDS] [--busy SECONDS] [--endpoint SOCKET --image REFERENCE]
//!
//! Without an endpoint it starts the daemon beside it; lists are then also asked for while pods come and go, images are
//! pulled, one pull gets nothing more from its registry and the OCI runtime of some pods hangs. With an endpoint the same
//! client measures another CRI server, and pods come and go. Build it optimised, or it measures itself.
//!
//! What a call takes is what the client waits for it, the decoding of the answer included. Processor time is that of the
//! server and of what it started for its pods (monitors, shims), not of containers.

#![allow(
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a benchmark prints its table, of numbers that are small"
)]

mod busy;
mod calls;
mod events;
mod idle;
mod load;
mod processes;
#[path = "../sample.rs"]
#[allow(missing_docs, unreachable_pub, dead_code, reason = "shared with other benchmarks")]
mod sample;
mod subject;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use e2e::Result;

use crate::load::Load;
use crate::processes::Family;
use crate::subject::Subject;

/// Caches are filled and what follows a start is over.
const SETTLING: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let subject = Subject::prepare(arguments.endpoint.as_deref(), arguments.image.as_deref()).await?;
    let family = Family::of(subject.pid)?;
    println!("empty: {}", family.memory(0)?);
    let load = Load::start(&subject, arguments.pods, arguments.containers).await;
    let (load, verdict) = match load {
        Ok(load) => {
            let verdict = measure(&subject, &family, &load, &arguments).await;
            (load.pods, verdict)
        }
        Err((begun, error)) => (begun, Err(error)),
    };
    let stopped = load::stop(&subject, load).await;
    verdict.and(stopped)?;
    subject.finish().await
}

async fn measure(subject: &Subject, family: &Family, load: &Load, arguments: &Arguments) -> Result {
    let (pods, containers) = (load.pods.len(), load.containers.len());
    println!("{pods} pods with {containers} containers, started in {:.1} s", load.took.as_secs_f64());
    println!("then:  {}", family.memory(pods)?);
    tokio::time::sleep(SETTLING).await;
    idle::measure(subject, family, arguments.idle).await?;
    println!("\nnothing else goes on");
    calls::measure(&subject.cri, load, arguments.calls, Duration::ZERO).await;
    events::measure(subject).await;
    if !arguments.busy.is_zero() {
        busy::measure(subject, load, arguments.calls, arguments.busy).await?;
    }
    println!("\nin the end: {}", family.memory(pods)?);
    Ok(())
}

/// The command line.
#[derive(Debug)]
struct Arguments {
    pods: usize,
    containers: usize,
    calls: usize,
    idle: Duration,
    busy: Duration,
    endpoint: Option<PathBuf>,
    image: Option<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self {
            pods: 100,
            containers: 3,
            calls: 300,
            idle: Duration::from_secs(30),
            busy: Duration::from_secs(30),
            endpoint: None,
            image: None,
        };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            let number = || value.parse::<usize>().with_context(|| format!("{word} takes a number"));
            match word.as_str() {
                "--pods" => arguments.pods = number()?,
                "--containers" => arguments.containers = number()?,
                "--calls" => arguments.calls = number()?,
                "--idle" => arguments.idle = Duration::from_secs(number()? as u64),
                "--busy" => arguments.busy = Duration::from_secs(number()? as u64),
                "--endpoint" => arguments.endpoint = Some(PathBuf::from(value.trim_start_matches("unix://"))),
                "--image" => arguments.image = Some(value),
                other => bail!("{other} is not an option"),
            }
        }
        Ok(arguments)
    }
}
