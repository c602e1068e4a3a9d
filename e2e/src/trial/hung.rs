//! An OCI runtime that hangs: its verb ends by its time limit with a clear error, other pods go on, removal works.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{Report, Stage, together, until};
use crate::cri::ContainerState;
use crate::faulty::{Fault, Moment, Program, real_runtime};
use crate::{ContainerSpec, Cri, PodSpec, Result};

/// The handler whose runtime always works.
const GOOD: &str = "good";
/// Between two lives of other pods.
const PAUSE: Duration = Duration::from_millis(500);

/// Which call of the runtime hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `create` of a pause container: RunPodSandbox.
    CreatePause,
    /// `create` of a container: StartContainer.
    Create,
    /// `start` of a container: StartContainer.
    Start,
    /// `exec`: ExecSync.
    Exec,
    /// `delete` of a container whose process has ended: RemoveContainer.
    Delete,
    /// `delete` of everything: StopPodSandbox.
    DeletePod,
}

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How long the runtime may take to create a container or to begin a command, as the daemon is configured: other pods' runtimes
    /// too.
    pub create_limit: Duration,
    /// How long any call may take until it ends.
    pub call_limit: Duration,
}

/// Has one verb of the runtime hang, before its work is done and, if it is asked for, after.
pub async fn run(verb: Verb, moment: Moment, plan: Plan) -> Result<Report> {
    let good = format!("{GOOD}={}", real_runtime()?.display());
    let config = format!("[limits]\ncreate_timeout_secs = {}\n", plan.create_limit.as_secs());
    let stage = Stage::with_args(&config, vec!["--runtime".to_owned(), good]).await?;
    let cri = stage.node.cri();
    let other = PodSpec { handler: GOOD.to_owned(), ..stage.node.pod("other") };
    let other_id = cri.run_pod(&other).await?;
    let other_c = cri.run(&other_id, &ContainerSpec::lasting("c", &stage.image), &other).await?;
    let victim = Victim::make(&stage, verb).await?;

    let stall = stage.faulty.inject(Program::Runtime, verb.word(), moment, Fault::Hang)?;
    let begun = Instant::now();
    let patient = Cri::connect_for(&stage.node.machine().path(&stage.node.socket()), plan.call_limit).await?;
    let mut call = tokio::spawn(victim.clone().call(patient, verb));
    stage.faulty.wait_for_hung(Program::Runtime, verb.word(), 1).await?;
    let mut worst = Duration::ZERO;
    let outcome = loop {
        worst = worst.max(others_go_on(&stage, &cri, &other_c, plan).await?);
        // Lives one after the other would take all of a small machine.
        match tokio::time::timeout(PAUSE, &mut call).await {
            Ok(outcome) => break outcome?,
            Err(_) if begun.elapsed() < plan.call_limit => {}
            Err(_) => bail!("{verb:?} hangs with its runtime: {:?}", begun.elapsed()),
        }
    };
    let took = begun.elapsed();
    let told = match outcome {
        Ok(()) => "went through without the runtime".to_owned(),
        Err(status) => clear(&status)?,
    };
    // What hung is killed by the daemon or its monitor, not by us: the fault stays until that is seen.
    stall.for_old_calls_only()?;
    let killed = until("the hung runtime is killed", 30, || async { Ok(hanging(&stage)?.is_empty()) }).await;
    killed.with_context(|| format!("{:?}", hanging(&stage)))?;
    victim.remove(&cri).await.context("removal afterwards")?;
    drop(stall);
    ensure!(
        cri.container(&other_c).await?.state() == ContainerState::ContainerRunning,
        "the other pod suffered"
    );
    let mut report = Report::default();
    report.note(format!(
        "{verb:?} {moment:?}: ended after {took:.1?}: {told}; lives of other pods took at most {worst:.2?}"
    ));
    stage.finish().await?;
    Ok(report)
}

/// The processes of wrappers that hang.
fn hanging(stage: &Stage) -> Result<Vec<(u32, String)>> {
    let mut found = stage.node.machine().processes()?;
    // The daemon has the wrapper's path among its arguments.
    found.retain(|(_, line)| {
        line.contains(".lock true") || line.contains("sh /tmp") && line.contains("faulty-runtime")
    });
    Ok(found)
}

/// Several verbs at the same time, each on a node of its own.
pub async fn run_all(verbs: &[(Verb, Moment)], plan: Plan) -> Result<Report> {
    let trials = verbs.iter().map(|&(verb, moment)| async move {
        run(verb, moment, plan).await.with_context(|| format!("{verb:?} {moment:?}"))
    });
    let reports = together(trials).await?;
    Ok(Report(reports.into_iter().flat_map(|report| report.0).collect()))
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::CreatePause | Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Delete | Self::DeletePod => "delete",
        }
    }
}

/// The pod whose runtime hangs.
#[derive(Debug, Clone)]
struct Victim {
    pod: PodSpec,
    pod_id: Option<String>,
    container: Option<String>,
}

impl Victim {
    async fn make(stage: &Stage, verb: Verb) -> Result<Self> {
        let (cri, pod) = (stage.node.cri(), stage.pod("victim"));
        let mut victim = Self { pod, pod_id: None, container: None };
        if verb == Verb::CreatePause {
            return Ok(victim);
        }
        let pod_id = cri.run_pod(&victim.pod).await?;
        let spec = match verb {
            Verb::Delete => ContainerSpec::shell("c", &stage.image, "sleep 0.5; exit 5"),
            _ => ContainerSpec::lasting("c", &stage.image),
        };
        let id = cri.create(&pod_id, &spec, &victim.pod).await?;
        if !matches!(verb, Verb::Create | Verb::Start) {
            cri.start(&id).await?;
        }
        victim.pod_id = Some(pod_id);
        victim.container = Some(id);
        Ok(victim)
    }

    async fn call(self, cri: Cri, verb: Verb) -> std::result::Result<(), Status> {
        let (pod_id, id) = (self.pod_id.unwrap_or_default(), self.container.unwrap_or_default());
        match verb {
            Verb::CreatePause => cri.run_pod(&self.pod).await.map(drop),
            Verb::Create | Verb::Start => cri.start(&id).await,
            Verb::Exec => cri.exec(&id, &["true"]).await.map(drop),
            Verb::Delete => cri.remove(&id).await,
            Verb::DeletePod => cri.stop_pod(&pod_id).await,
        }
    }

    async fn remove(self, cri: &Cri) -> Result {
        for pod in cri.all_pods().await? {
            if pod.metadata == self.pod.config.metadata {
                cri.stop_pod(&pod.id).await.context("StopPodSandbox")?;
                cri.remove_pod(&pod.id).await.context("RemovePodSandbox")?;
            }
        }
        ensure!(cri.all_pods().await?.len() == 1, "the pod is still listed");
        let id = cri.run_pod(&self.pod).await.context("running the pod anew")?;
        cri.stop_pod(&id).await?;
        Ok(cri.remove_pod(&id).await?)
    }
}

/// One life of another pod with the runtime that works, and a look at the one that runs. Who waited for the runtime that hangs
/// would wait for nearly all of its time.
async fn others_go_on(stage: &Stage, cri: &Cri, running: &str, plan: Plan) -> Result<Duration> {
    let begun = Instant::now();
    ensure!(cri.shell(running, "echo here").await? == "here", "another container does not answer");
    let pod = PodSpec { handler: GOOD.to_owned(), ..stage.node.pod("passing") };
    let id = cri.run_pod(&pod).await?;
    cri.run(&id, &ContainerSpec::lasting("c", &stage.image), &pod).await?;
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    let took = begun.elapsed();
    ensure!(took < plan.create_limit.mul_f64(0.8), "another pod's life took {took:?}");
    Ok(took)
}

/// The text of an error that says what happened.
fn clear(status: &Status) -> Result<String> {
    let text = status.message().to_lowercase();
    let says =
        ["timed out", "took longer", "time limit", "within", "deadline", "did not end", "killed after"];
    if !says.iter().any(|word| text.contains(word)) {
        bail!("the error does not speak of the time: {status:?}");
    }
    ensure!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Internal | Code::Unknown | Code::Unavailable),
        "{status:?}"
    );
    Ok(format!("{:?}: {}", status.code(), status.message()))
}
