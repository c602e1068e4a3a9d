//! Many ExecSync calls, of which a third leave children in the background.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Code;

use super::held::Held;
use super::{Footprint, Report, Stage, together};
use crate::cri::NamespaceMode;
use crate::{ContainerSpec, Cri, PodSpec, Result, code_of, patience};

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many commands are run.
    pub commands: usize,
    /// How many at a time.
    pub parallel: usize,
    /// By how many KiB the daemon and a monitor may have grown in the end, compared with the state after a tenth.
    pub growth_kib: u64,
}

/// Commands that end, that leave children which hold their output or do not, and that exceed their time.
pub async fn run(plan: Plan) -> Result<Report> {
    let stage = Stage::set("").await?;
    let containers = Containers::start(&stage).await?;
    let before = Held::by(&stage.node)?;
    let begun = Instant::now();
    let tenth = (plan.commands / 10).max(plan.parallel);
    containers.run_commands(&stage, 0, tenth, plan.parallel).await?;
    before.comes_back(&stage.node).await?;
    let early = Held::by(&stage.node)?;
    containers.run_commands(&stage, tenth, plan.commands, plan.parallel).await?;
    let took = begun.elapsed();
    before.comes_back(&stage.node).await?;
    let late = Held::by(&stage.node)?;
    let mut report = Report::default();
    let grown = |late: Footprint, early: Footprint| late.resident_kib.saturating_sub(early.resident_kib);
    report.note(format!(
        "{} commands in {took:.1?}: no descriptor, process or file is left; threads of the daemon {} at first, {} after a tenth, {} in the end",
        plan.commands, before.daemon.threads, early.daemon.threads, late.daemon.threads
    ));
    report.note(format!(
        "resident: daemon {} KiB at first, {} KiB after a tenth, {} KiB in the end; monitor {} KiB, {} KiB, {} KiB",
        before.daemon.resident_kib,
        early.daemon.resident_kib,
        late.daemon.resident_kib,
        before.monitor.resident_kib,
        early.monitor.resident_kib,
        late.monitor.resident_kib
    ));
    ensure!(
        grown(late.daemon, early.daemon) <= plan.growth_kib,
        "the daemon's memory grows: {early:?} {late:?}"
    );
    ensure!(
        grown(late.monitor, early.monitor) <= plan.growth_kib,
        "the monitor's memory grows: {early:?} {late:?}"
    );
    stage.finish().await?;
    Ok(report)
}

/// One container with process ids of its own and one that shares the pod's.
pub(super) struct Containers {
    pub(super) ids: Vec<String>,
}

impl Containers {
    pub(super) async fn start(stage: &Stage) -> Result<Self> {
        let cri = stage.node.cri();
        let own = stage.pod("own");
        let mut shared = stage.pod("shared");
        share(&mut shared);
        let (own_id, shared_id) = (cri.run_pod(&own).await?, cri.run_pod(&shared).await?);
        let spec = ContainerSpec::lasting("c", &stage.image);
        let in_shared = spec.clone().secured(|context| {
            if let Some(options) = &mut context.namespace_options {
                options.pid = NamespaceMode::Pod.into();
            }
        });
        let first = cri.run(&own_id, &spec, &own).await?;
        let second = cri.run(&shared_id, &in_shared, &shared).await?;
        let ids = vec![first, second];
        // What a first command of each brings about, and stays.
        for id in &ids {
            cri.shell(id, "true").await?;
        }
        Ok(Self { ids })
    }

    async fn run_commands(&self, stage: &Stage, from: usize, to: usize, parallel: usize) -> Result {
        let turns = Arc::new(Semaphore::new(parallel));
        let commands = (from..to).map(|n| {
            let (cri, turns) = (stage.node.cri(), Arc::clone(&turns));
            let id = self.ids.get(n % self.ids.len()).cloned().unwrap_or_default();
            async move {
                let _turn = turns.acquire().await?;
                command(&cri, &id, n).await.with_context(|| format!("command {n}"))
            }
        });
        together(commands).await.map(drop)
    }
}

fn share(pod: &mut PodSpec) {
    if let Some(options) = pod.namespace_options() {
        options.pid = NamespaceMode::Pod.into();
    }
}

/// One command; which kind it is depends on its number.
async fn command(cri: &Cri, id: &str, n: usize) -> Result {
    let begun = Instant::now();
    match n % 12 {
        // Children that hold the output: they outlive the command, and end by themselves a little later.
        0 | 6 => {
            let hold = patience(6);
            let line = format!("sleep {} & echo left", hold.as_secs());
            let output = cri.exec(id, &["sh", "-c", &line]).await?;
            ensure!(output.stdout == b"left\n" && output.exit_code == 0, "{output:?}");
            ensure!(begun.elapsed() < hold, "a child that holds the output holds the caller");
        }
        3 | 9 => {
            let line = format!("sleep 1 >/dev/null 2>&1 </dev/null & echo {n}; exit {}", n % 200);
            let output = cri.exec(id, &["sh", "-c", &line]).await?;
            ensure!(output.stdout == format!("{n}\n").as_bytes(), "{output:?}");
            ensure!(usize::try_from(output.exit_code) == Ok(n % 200), "{output:?}");
        }
        // Its time is over: it and its children are dead then.
        5 if n.is_multiple_of(5) => {
            let reply = cri.exec_for(id, &["sh", "-c", "sleep 3600 & sleep 3600"], 1).await;
            ensure!(code_of(&reply) == Code::DeadlineExceeded, "{reply:?}");
            ensure!(begun.elapsed() < patience(30), "a limit of 1 s took {:?}", begun.elapsed());
        }
        // Its caller leaves.
        7 if n.is_multiple_of(7) => {
            let call = cri.exec(id, &["sh", "-c", "sleep 3600 & sleep 3600"]);
            ensure!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err(), "it ended");
        }
        _ => {
            let line = format!("echo {n}; echo {n} >&2; exit {}", n % 200);
            let output = cri.exec(id, &["sh", "-c", &line]).await?;
            let text = format!("{n}\n");
            ensure!(output.stdout == text.as_bytes() && output.stderr == text.as_bytes(), "{output:?}");
            ensure!(usize::try_from(output.exit_code) == Ok(n % 200), "{output:?}");
        }
    }
    Ok(())
}
