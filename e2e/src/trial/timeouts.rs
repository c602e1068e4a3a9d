//! Callers that leave in the middle: each comes back and gets the same thing.

mod pulls;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, ensure};
use tonic::{Code, Status};

use super::{Random, Report, Stage, together, until};
use crate::faulty::{Fault, Moment, Program};
use crate::{ContainerSpec, Cri, PodSpec, Result};

/// How many calls each pod or container loses in the middle.
const TIMEOUTS_EACH: usize = 2;

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many calls time out at least.
    pub timeouts: usize,
    /// How many pods are made at the same time.
    pub batch: usize,
    /// Where the random moments come from.
    pub seed: u64,
}

/// Calls of RunPodSandbox that time out in a hanging plugin, of CreateContainer that are dropped at random moments, of
/// StartContainer that time out in a hanging OCI runtime, of PullImage that time out before a registry that went quiet.
pub async fn run(plan: Plan) -> Result<Report> {
    let stage = Stage::set("").await?;
    let mut random = Random::new(plan.seed);
    let mut tally = Tally::default();
    let mut pulls = pulls::Pulls::prepare(&stage).await?;
    let mut batch = 0;
    while tally.total() < plan.timeouts {
        let pods: Vec<PodSpec> =
            (0..plan.batch).map(|n| stage.pod(&format!("impatient-{batch}-{n}"))).collect();
        one_batch(&stage, &pods, &mut random, &mut tally)
            .await
            .with_context(|| format!("batch {batch}, seed {}", plan.seed))?;
        let images = plan.batch.div_ceil(5);
        let left = pulls.one_batch(&stage, batch, images, &mut random).await;
        tally.pull += left.with_context(|| format!("pulls of batch {batch}, seed {}", plan.seed))?;
        stage.node.assert_nothing_leaked().await.with_context(|| format!("batch {batch}"))?;
        batch += 1;
    }
    let mut report = Report::default();
    report.note(format!(
        "{} calls timed out (RunPodSandbox {}, CreateContainer {}, StartContainer {}, PullImage {}); every retry got the one id",
        tally.total(),
        tally.run,
        tally.create,
        tally.start,
        tally.pull
    ));
    report.note(format!("{} starts had ended when their retry came, which was told so", tally.late));
    stage.finish().await?;
    Ok(report)
}

#[derive(Debug, Default)]
struct Tally {
    run: usize,
    create: usize,
    start: usize,
    pull: usize,
    late: usize,
}

impl Tally {
    fn total(&self) -> usize {
        self.run + self.create + self.start + self.pull
    }
}

async fn one_batch(stage: &Stage, pods: &[PodSpec], random: &mut Random, tally: &mut Tally) -> Result {
    let cri = stage.node.cri();
    let pod_ids = run_pods(stage, pods, tally).await?;
    let mut containers = Vec::new();
    for (pod, pod_id) in pods.iter().zip(&pod_ids) {
        let spec = ContainerSpec::lasting("c", &stage.image);
        containers.push(create(&cri, pod_id, &spec, pod, random, tally).await?);
    }
    let listed = cri.all_containers().await?.len();
    ensure!(listed == containers.len(), "{listed} containers for {} identities", containers.len());
    start(stage, &containers, tally).await?;
    together(pod_ids.into_iter().map(|id| remove(cri.clone(), id))).await?;
    ensure!(
        cri.all_pods().await?.is_empty() && cri.all_containers().await?.is_empty(),
        "removed, but listed"
    );
    Ok(())
}

/// The pods' ids, which everybody who asks gets.
async fn run_pods(stage: &Stage, pods: &[PodSpec], tally: &mut Tally) -> Result<Vec<String>> {
    let cri = stage.node.cri();
    let stall = stage.faulty.inject(Program::Bridge, "ADD", Moment::Before, Fault::Hang)?;
    let hung = stage.faulty.hung(Program::Bridge, "ADD");
    for round in 0..TIMEOUTS_EACH {
        let calls = pods.iter().cloned().map(|pod| {
            let cri = cri.clone();
            async move { times_out(Duration::from_millis(150), cri.run_pod(&pod)).await }
        });
        tally.run += together(calls).await.with_context(|| format!("round {round}"))?.len();
    }
    // Those whose call was dropped before the daemon had read it are asked for by the retry below.
    let retries: Vec<_> = pods
        .iter()
        .flat_map(|pod| [pod.clone(), pod.clone()])
        .map(|pod| {
            let cri = cri.clone();
            tokio::spawn(async move { cri.run_pod(&pod).await })
        })
        .collect();
    stage.faulty.wait_for_hung(Program::Bridge, "ADD", hung + pods.len()).await?;
    let begun = records(stage)?;
    ensure!(begun.len() == pods.len(), "{} pods are being made for {} identities", begun.len(), pods.len());
    stall.lift();
    let mut ids = Vec::new();
    for retry in retries {
        ids.push(retry.await??);
    }
    let ids: Vec<String> = ids
        .chunks(2)
        .map(|pair| match pair {
            [first, second] if first == second => Ok(first.clone()),
            other => Err(anyhow::anyhow!("two retries of one call got {other:?}")),
        })
        .collect::<Result<_>>()?;
    ensure!(ids.iter().cloned().collect::<BTreeSet<_>>() == begun, "retries got other pods than were begun");
    for (pod, id) in pods.iter().zip(&ids) {
        ensure!(cri.run_pod(pod).await? == *id, "a third retry got another pod");
    }
    ensure!(cri.all_pods().await?.len() == pods.len(), "more pods than identities");
    let adds = stage.faulty.hung(Program::Bridge, "ADD") - hung;
    ensure!(adds == pods.len(), "{adds} calls of ADD for {} pods", pods.len());
    Ok(ids)
}

/// The sandboxes that have a record.
fn records(stage: &Stage) -> Result<BTreeSet<String>> {
    let dir = stage.node.machine().path(&stage.node.root().join("pods"));
    let entries = std::fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Creates a container by calls of which the first ones are dropped at a random moment.
async fn create(
    cri: &Cri,
    pod_id: &str,
    spec: &ContainerSpec,
    pod: &PodSpec,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<String> {
    for _ in 0..TIMEOUTS_EACH {
        let moment = Duration::from_micros(random.below(9000));
        if tokio::time::timeout(moment, cri.create(pod_id, spec, pod)).await.is_err() {
            tally.create += 1;
        }
    }
    let (first, second) = tokio::join!(cri.create(pod_id, spec, pod), cri.create(pod_id, spec, pod));
    let (first, second) = (first?, second?);
    ensure!(first == second, "two retries of one create got {first} and {second}");
    Ok(first)
}

/// Starts the containers by calls of which the first ones time out in the OCI runtime.
async fn start(stage: &Stage, containers: &[String], tally: &mut Tally) -> Result {
    let cri = stage.node.cri();
    let stall = stage.faulty.inject(Program::Runtime, "create", Moment::Before, Fault::Hang)?;
    let hung = stage.faulty.hung(Program::Runtime, "create");
    for _ in 0..TIMEOUTS_EACH {
        let calls = containers.iter().cloned().map(|id| {
            let cri = cri.clone();
            async move { times_out(Duration::from_millis(150), cri.start(&id)).await }
        });
        tally.start += together(calls).await?.len();
    }
    let retries: Vec<_> = containers
        .iter()
        .map(|id| {
            let (cri, id) = (cri.clone(), id.clone());
            tokio::spawn(async move { cri.start(&id).await })
        })
        .collect();
    stage.faulty.wait_for_hung(Program::Runtime, "create", hung + containers.len()).await?;
    stall.lift();
    for retry in retries {
        match retry.await? {
            Ok(()) => {}
            // It came when the start had ended: then there is nothing to join.
            Err(status) if status.code() == Code::FailedPrecondition => tally.late += 1,
            Err(status) => return Err(status.into()),
        }
    }
    for id in containers {
        until("a container whose start was retried runs", 30, || async {
            Ok(cri.container(id).await?.state() == crate::cri::ContainerState::ContainerRunning)
        })
        .await?;
    }
    let creates = stage.faulty.hung(Program::Runtime, "create") - hung;
    ensure!(creates == containers.len(), "{creates} calls of the runtime for {} starts", containers.len());
    Ok(())
}

/// Stops and removes a pod by several calls at once, which all succeed.
async fn remove(cri: Cri, id: String) -> Result {
    let (first, second) = tokio::join!(cri.stop_pod(&id), cri.stop_pod(&id));
    first.and(second).context("two calls of StopPodSandbox")?;
    let calls = tokio::join!(cri.remove_pod(&id), cri.remove_pod(&id), cri.remove_pod(&id));
    calls.0.and(calls.1).and(calls.2).context("three calls of RemovePodSandbox")?;
    Ok(())
}

/// A call that must still be under way when its caller leaves.
async fn times_out<T>(limit: Duration, call: impl Future<Output = std::result::Result<T, Status>>) -> Result {
    match tokio::time::timeout(limit, call).await {
        Err(_) => Ok(()),
        Ok(Ok(_)) => anyhow::bail!("a call ended although its stage hangs"),
        Ok(Err(status)) => Err(status).context("a call failed although its stage only hangs"),
    }
}
