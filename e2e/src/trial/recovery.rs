//! How soon a daemon that was killed tells the truth again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::Instant;

use super::{Report, Stage, together};
use crate::cri::{Container, ContainerState, ContainerStatus, PodSandbox, VersionRequest};
use crate::{ContainerSpec, Cri, Result};

/// How many pods are made at a time.
const PARALLEL: usize = 4;

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many pods there are, with two containers each.
    pub pods: usize,
    /// How often the daemon is killed.
    pub kills: usize,
    /// Within which time Version must answer, if that is asked for.
    pub version_limit: Option<Duration>,
    /// Within which time the lists must be right, if that is asked for.
    pub list_limit: Option<Duration>,
}

/// Pods and containers before and after a crash, and the time until they are listed again.
pub async fn run(plan: Plan) -> Result<Report> {
    let mut stage = Stage::set("").await?;
    let mut pods = Vec::new();
    for first in (0..plan.pods).step_by(PARALLEL) {
        let batch = (first..plan.pods.min(first + PARALLEL)).map(|n| {
            let (cri, pod, image) = (stage.node.cri(), stage.pod(&format!("kept-{n}")), stage.image.clone());
            async move {
                let id = cri.run_pod(&pod).await?;
                for name in ["a", "b"] {
                    cri.run(&id, &ContainerSpec::lasting(name, &image), &pod).await?;
                }
                Ok(id)
            }
        });
        pods.extend(together(batch).await?);
    }
    let before = World::look(&stage.node.cri()).await?;
    ensure!((before.pods.len(), before.containers.len()) == (plan.pods, 2 * plan.pods), "not all are there");
    let mut report = Report::default();
    for _ in 0..plan.kills {
        stage.node.kill9().await?;
        let asking =
            tokio::spawn(first_answers(stage.node.machine().path(&stage.node.socket()), Instant::now()));
        stage.node.restart().await?;
        let (version, list) = asking.await??;
        report.note(format!(
            "{} pods, {} containers: Version answered after {version:.0?}, both lists after {list:.0?}",
            plan.pods,
            2 * plan.pods
        ));
        let after = World::look(&stage.node.cri()).await?;
        ensure!(before == after, "after a crash it is\n{after:?}\nand was\n{before:?}");
        ensure!(plan.version_limit.is_none_or(|limit| version <= limit), "Version took {version:?}");
        ensure!(plan.list_limit.is_none_or(|limit| list <= limit), "the lists took {list:?}");
    }
    together(pods.into_iter().map(|id| {
        let cri = stage.node.cri();
        async move {
            cri.stop_pod(&id).await?;
            Ok(cri.remove_pod(&id).await?)
        }
    }))
    .await?;
    stage.finish().await?;
    Ok(report)
}

/// Everything that is told of pods and containers.
#[derive(Debug, PartialEq)]
struct World {
    pods: Vec<PodSandbox>,
    containers: Vec<Container>,
    statuses: Vec<ContainerStatus>,
    processes: Vec<u32>,
}

impl World {
    async fn look(cri: &Cri) -> Result<Self> {
        let (mut pods, mut containers) = (cri.all_pods().await?, cri.all_containers().await?);
        pods.sort_by(|a, b| a.id.cmp(&b.id));
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        let (mut statuses, mut processes) = (Vec::new(), Vec::new());
        for container in &containers {
            let status = cri.container(&container.id).await?;
            ensure!(status.state() == ContainerState::ContainerRunning, "{status:?}");
            statuses.push(status);
            processes.push(cri.container_pid(&container.id).await?);
        }
        Ok(Self { pods, containers, statuses, processes })
    }
}

/// When the new daemon, which is started now, answers Version, and when both lists.
async fn first_answers(socket: PathBuf, begun: Instant) -> Result<(Duration, Duration)> {
    let ask = async {
        let cri = loop {
            // The old daemon's socket refuses until the new one listens.
            match Cri::connect(&socket).await {
                Ok(cri) => match cri.version(VersionRequest::default()).await {
                    Ok(_) => break cri,
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                },
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        let version = begun.elapsed();
        cri.all_pods().await?;
        cri.all_containers().await?;
        Ok((version, begun.elapsed()))
    };
    tokio::time::timeout(crate::patience(60), ask).await.context("no daemon answers")?
}
