//! Runs the tests one by one, and says of each how it went and how long it took.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use e2e::{Result, patience};

use crate::world::{Kind, World};
use crate::{host, leaks};

/// How much of the service's log a failed test shows.
const JOURNAL_LINES: &str = "120";

/// One test.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// What it may take on a usual machine.
    pub(crate) seconds: u64,
    pub(crate) nodes: Nodes,
    /// The boot of the node in which it runs.
    pub(crate) boot: u32,
    pub(crate) run: for<'a> fn(&'a World) -> Running<'a>,
}

/// A test under way.
type Running<'a> = Pin<Box<dyn Future<Output = Result<Verdict>> + 'a>>;

/// On which nodes a test makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// Every one.
    Any,
    /// Only one with a kernel of its own.
    Vm,
}

/// How a test ended that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It holds, and nothing of it is left.
    Passed,
    /// It holds, and what is left is meant for the next boot.
    LeavesPods,
    /// It cannot run here, for this reason.
    NotHere(String),
}

/// A test from its name, seconds, nodes, boot and function.
macro_rules! test {
    ($name:literal, $seconds:literal, $nodes:expr, $boot:literal, $run:path) => {
        $crate::runner::Test {
            name: $name,
            seconds: $seconds,
            nodes: $nodes,
            boot: $boot,
            run: |world| Box::pin($run(world)),
        }
    };
}
pub(crate) use test;

/// What has been counted.
#[derive(Debug, Default)]
struct Counts {
    passed: usize,
    failed: Vec<&'static str>,
    not_here: Vec<String>,
}

/// Runs what the arguments choose; gives the number of failures.
pub(crate) async fn run(tests: &[Test], arguments: Vec<String>) -> Result<usize> {
    let (flags, wanted): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|it| it.starts_with("--"));
    if flags.iter().any(|flag| flag == "--list") {
        tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(0);
    }
    let boot = world_boot();
    let installed = std::fs::metadata("/usr/bin/crimson").is_ok();
    let chosen = |test: &&Test| {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|text| test.name.contains(text.as_str()));
        // Without the first nothing else can run.
        test.boot == boot && (is_wanted || (!installed && test.name == tests[0].name))
    };
    let chosen: Vec<&Test> = tests.iter().filter(chosen).collect();
    let begun = Instant::now();
    let mut counts = Counts::default();
    if !chosen.is_empty() {
        let world = World::set().await?;
        for test in chosen {
            one(test, &world, &mut counts).await;
        }
    }
    counts.not_here.iter().for_each(|line| println!("not run here: {line}"));
    counts.failed.iter().for_each(|name| println!("FAILED: {name}"));
    println!(
        "node-suite: {} passed, {} failed, {} not run here, {:.1} s",
        counts.passed,
        counts.failed.len(),
        counts.not_here.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(counts.failed.len())
}

fn world_boot() -> u32 {
    std::env::var("NODE_BOOT").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

async fn one(test: &Test, world: &World, counts: &mut Counts) {
    println!("test {} ...", test.name);
    let (begun, since) = (Instant::now(), host::now());
    let verdict = verdict(test, world).await;
    let seconds = begun.elapsed().as_secs_f64();
    match verdict {
        Ok(Verdict::Passed | Verdict::LeavesPods) => {
            counts.passed += 1;
            println!("test {} ... ok ({seconds:.1} s)", test.name);
        }
        Ok(Verdict::NotHere(reason)) => {
            println!("test {} ... not here: {reason}", test.name);
            counts.not_here.push(format!("{}: {reason}", test.name));
        }
        Err(error) => {
            counts.failed.push(test.name);
            println!("test {} ... FAILED ({seconds:.1} s)\n    {error:#}", test.name);
            println!(
                "--- the service's journal ---\n{}\n--- end ---",
                host::journal_since(since, JOURNAL_LINES).await
            );
            recover(world).await;
        }
    }
}

/// The test itself within its time, and then nothing may be left of it.
async fn verdict(test: &Test, world: &World) -> Result<Verdict> {
    if test.nodes == Nodes::Vm && world.kind != Kind::Vm {
        return Ok(Verdict::NotHere("it needs a kernel of its own".to_owned()));
    }
    let limit = patience(test.seconds);
    let verdict = tokio::time::timeout(limit, (test.run)(world))
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no end within {} s", limit.as_secs())))?;
    if verdict == Verdict::Passed {
        leaks::assert_none(world).await?;
    }
    Ok(verdict)
}

/// Brings the service back to where the next test expects it, as far as that goes.
async fn recover(world: &World) {
    if let Err(error) = world.clear().await {
        println!("    and then: {error:#}");
    }
}
