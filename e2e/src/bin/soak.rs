//! `soak [TRIAL…] [--seconds N] [--seed N] [--scale PERCENT] [--only TEXT]`: the trials of a pod's life in the size that the promises are stated in,
//! run as root. Without names all run, one after the other. Each ends with what it measured or with the promise that was
//! broken; the exit status is the verdict.
//!
//! | trial | what it does |
//! |---|---|
//! | `timeouts` | 1000 calls whose callers leave in the middle of making pods, creating and starting containers, pulling images |
//! | `exits` | 200 containers that end by codes and signals while the daemon is killed 50 times |
//! | `logs` | 50 writers of 1000 lines a second; the daemon stopped for 60 s, the disk full for 10 s |
//! | `network` | plugins that are missing, fail, die or hang at ADD, DEL and STATUS |
//! | `recovery` | 100 pods with 200 containers, the daemon killed 5 times |
//! | `commands` | 10 000 ExecSync, a third of them leaving children |
//! | `streams` | 1000 exec sessions and 1000 forwarded connections, a tenth of them cut at random moments |
//! | `hung` | an OCI runtime that hangs at each of its verbs |
//! | `verbs` | random verbs of callers with little patience, kills, and faults of plugins, OCI runtime and registry, for `--seconds`; against a model and `crimson check` |
//!
//! `--seconds` is for `verbs` (300 without it), `--scale` for the sizes of all others,
//! `--only` for those verbs of `hung` and troubles of `network` whose name contains the text. `CRIMSON_BIN_DIR` names the programs.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is the report")]

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use e2e::Result;
use e2e::faulty::Moment;
use e2e::trial::network::Trouble;
use e2e::trial::{Report, commands, exits, hung, logs, network, recovery, streams, timeouts, verbs};

const TRIALS: [&str; 9] =
    ["timeouts", "exits", "logs", "network", "recovery", "commands", "streams", "hung", "verbs"];

/// What the command line asks for.
#[derive(Debug, Clone)]
struct Wishes {
    trials: Vec<String>,
    seconds: u64,
    seed: u64,
    percent: usize,
    only: String,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let verdict = wishes().and_then(|wishes| runtime?.block_on(run(&wishes)));
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn wishes() -> Result<Wishes> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = u64::from(since.subsec_nanos()) ^ since.as_secs();
    let mut wishes = Wishes { trials: Vec::new(), seconds: 300, seed, percent: 100, only: String::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--seconds" => wishes.seconds = value()?.parse()?,
            "--seed" => wishes.seed = value()?.parse()?,
            "--only" => wishes.only = value()?,
            "--scale" => wishes.percent = value()?.parse()?,
            name if TRIALS.contains(&name) => wishes.trials.push(name.to_owned()),
            other => bail!("{other:?} is neither an option nor one of {TRIALS:?}"),
        }
    }
    if wishes.trials.is_empty() {
        wishes.trials = TRIALS.map(str::to_owned).into();
    }
    Ok(wishes)
}

async fn run(wishes: &Wishes) -> Result<bool> {
    println!("seed {}", wishes.seed);
    let mut good = true;
    for name in &wishes.trials {
        let begun = Instant::now();
        println!("{name} …");
        match trial(name, wishes).await {
            Ok(report) => print!("{name}: kept, {:.0?}\n{report}", begun.elapsed()),
            Err(error) => {
                good = false;
                println!("{name}: BROKEN after {:.0?}: {error:#}", begun.elapsed());
            }
        }
    }
    Ok(good)
}

async fn trial(name: &str, wishes: &Wishes) -> Result<Report> {
    let (seed, part) = (wishes.seed, |full: usize| (full * wishes.percent / 100).max(1));
    let seconds = |full: usize| Duration::from_secs(part(full) as u64);
    match name {
        "timeouts" => timeouts::run(timeouts::Plan { timeouts: part(1000), batch: 20, seed }).await,
        "exits" => {
            let tolerance = Duration::from_millis(100);
            let (containers, kills, spread) = (part(200), part(50), seconds(120));
            exits::run(exits::Plan { containers, kills, spread, tolerance, seed }).await
        }
        "logs" => {
            let (stopped, full) = (seconds(60), Duration::from_secs(10));
            let longest_burst = stopped.min(full).min(Duration::from_secs(4)) / 2;
            let (containers, lines_per_second) = (part(50), 1000);
            logs::run(logs::Plan { containers, lines_per_second, stopped, full, longest_burst }).await
        }
        "network" => every_trouble(&wishes.only).await,
        "recovery" => {
            let (version, list) = (Duration::from_millis(200), Duration::from_secs(1));
            let (version_limit, list_limit) = (Some(version), Some(list));
            recovery::run(recovery::Plan { pods: part(100), kills: 5, version_limit, list_limit }).await
        }
        "commands" => {
            commands::run(commands::Plan { commands: part(10_000), parallel: 16, growth_kib: 4096 }).await
        }
        "streams" => {
            let (commands, connections, growth_kib) = (part(1000), part(1000), 4096);
            streams::run(streams::Plan { commands, connections, parallel: 12, growth_kib, seed }).await
        }
        "hung" => every_verb(&wishes.only).await,
        _ => {
            let (time, quiet_every) = (Duration::from_secs(wishes.seconds), Duration::from_secs(20));
            verbs::run(verbs::Plan { time, clients: 4, quiet_every, seed }).await
        }
    }
}

async fn every_trouble(only: &str) -> Result<Report> {
    use Trouble as T;
    let (trouble, plugin_limit) = (Duration::from_secs(20), Duration::from_secs(60));
    let mut report = Report::default();
    if only.is_empty() {
        report.append(network::run_with_trouble(Duration::from_secs(3)).await?);
        report.append(network::hung_status().await?);
    }
    for kind in [T::Missing, T::Failing, T::Dying, T::Hanging, T::Stuck, T::Crashing] {
        if !format!("{kind:?}").contains(only) {
            continue;
        }
        let plan = network::Plan { trouble, plugin_limit };
        report.append(network::stop_with(kind, plan).await.with_context(|| format!("{kind:?}"))?);
    }
    Ok(report)
}

async fn every_verb(only: &str) -> Result<Report> {
    use hung::Verb as V;
    let plan = hung::Plan { create_limit: Duration::from_secs(15), call_limit: Duration::from_secs(240) };
    let mut report = Report::default();
    for verb in [V::CreatePause, V::Create, V::Exec, V::Start, V::Delete, V::DeletePod] {
        if !format!("{verb:?}").contains(only) {
            continue;
        }
        report.append(hung::run_all(&[(verb, Moment::Before), (verb, Moment::After)], plan).await?);
    }
    Ok(report)
}
