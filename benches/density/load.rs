//! Pods that are there and do nothing.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use e2e::{ContainerSpec, Cri, PodSpec, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::subject::Subject;

/// Pods that are started and stopped side by side.
const SIDE_BY_SIDE: usize = 4;

pub(crate) struct Load {
    /// Ids of the pods.
    pub(crate) pods: Vec<String>,
    /// Ids of their containers.
    pub(crate) containers: Vec<String>,
    /// How long the start took.
    pub(crate) took: Duration,
}

impl Load {
    /// Starts it. An error comes with the pods that are there nevertheless.
    pub(crate) async fn start(
        subject: &Subject,
        pods: usize,
        containers: usize,
    ) -> std::result::Result<Self, (Vec<String>, anyhow::Error)> {
        let began = Instant::now();
        let specs = (0..pods).map(|number| subject.pod(&format!("dense{number}")));
        let begun = Arc::new(std::sync::Mutex::new(Vec::new()));
        let starts = specs.map(|pod| {
            let (cri, image, begun) = (subject.cri.clone(), subject.image.clone(), Arc::clone(&begun));
            async move {
                let id = cri.run_pod(&pod).await.context("RunPodSandbox")?;
                begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(id.clone());
                fill(&cri, &id, &pod, &image, containers).await
            }
        });
        let started = side_by_side(starts).await;
        let pods = begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match started {
            Ok(containers) => Ok(Self { pods, containers: containers.concat(), took: began.elapsed() }),
            Err(error) => Err((pods, error)),
        }
    }
}

async fn fill(cri: &Cri, pod_id: &str, pod: &PodSpec, image: &str, count: usize) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for number in 0..count {
        let container = ContainerSpec::lasting(&format!("c{number}"), image).labelled_by(pod);
        ids.push(cri.run(pod_id, &container, pod).await.context("a container")?);
    }
    Ok(ids)
}

/// Stops and removes pods.
pub(crate) async fn stop(subject: &Subject, pods: Vec<String>) -> Result {
    let stops = pods.into_iter().map(|id| {
        let cri = subject.cri.clone();
        async move {
            cri.stop_pod(&id).await.context("StopPodSandbox")?;
            cri.remove_pod(&id).await.context("RemovePodSandbox")
        }
    });
    side_by_side(stops).await.map(drop)
}

/// What all of them give, or the first error after all have ended.
async fn side_by_side<F, T>(works: impl Iterator<Item = F>) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let turns = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let mut running = JoinSet::new();
    for work in works {
        let turns = Arc::clone(&turns);
        running.spawn(async move {
            let _turn = turns.acquire().await?;
            work.await
        });
    }
    let done = running.join_all().await;
    done.into_iter().collect()
}
