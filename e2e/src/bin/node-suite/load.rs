//! Pods that come and go all the time, by clients that ask again as the kubelet does when a call fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use e2e::cri::ContainerState;
use e2e::{ContainerSpec, Cri, PodSpec, Result, patience};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::host;
use crate::world::{Kind, World};

/// How long one call is repeated before the server counts as broken.
const INSIST_SECONDS: u64 = 40;
/// At which time of its life a message is worth no further byte.
const NOTE_BYTES: usize = 200;

/// Lives of pods, going on.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    lives: AtomicUsize,
    /// Refusals by what they said, with their number.
    refusals: Mutex<BTreeMap<String, usize>>,
}

impl Load {
    /// Begins, and waits until the first life is over.
    pub(crate) async fn begin(world: &World, cri: &Cri) -> Result<Self> {
        let image = world.image(cri).await?;
        let shared = Arc::new(Shared::default());
        let (workers, round) = if world.kind == Kind::Vm { (2, 40) } else { (3, 400) };
        let workers = (0..workers).map(|worker| {
            let handler = if worker % 2 == 0 { "crun" } else { "runc" };
            let pods = (0..round).map(|life| world.pod(&format!("load{worker}-{life}"), handler)).collect();
            tokio::spawn(work(Arc::clone(&shared), cri.clone(), image.clone(), pods))
        });
        let load = Self { workers: workers.collect(), shared };
        load.more_lives(1).await?;
        Ok(load)
    }

    /// Waits until that many more lives are over.
    pub(crate) async fn more_lives(&self, number: usize) -> Result {
        let wanted = self.shared.lives.load(Ordering::Relaxed) + number;
        host::until("pods come and go", INSIST_SECONDS, async || {
            if self.workers.iter().any(JoinHandle::is_finished) {
                bail!("a client has given up");
            }
            Ok(self.shared.lives.load(Ordering::Relaxed) >= wanted)
        })
        .await
    }

    /// Lets every life that has begun come to its end, and says what was met.
    pub(crate) async fn end(mut self) -> Result {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut outcome = Ok(());
        for worker in self.workers.drain(..) {
            let ended = worker.await.context("a client")?;
            outcome = outcome.and(ended);
        }
        let refusals = self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        println!(
            "    load: {} lives, {} calls repeated",
            self.shared.lives.load(Ordering::Relaxed),
            refusals.values().sum::<usize>()
        );
        refusals.iter().for_each(|(text, times)| println!("      {times} × {text}"));
        outcome
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.workers.iter().for_each(JoinHandle::abort);
    }
}

async fn work(shared: Arc<Shared>, cri: Cri, image: String, pods: Vec<PodSpec>) -> Result {
    for pod in pods {
        if shared.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        life(&shared, &cri, &image, &pod).await?;
        shared.lives.fetch_add(1, Ordering::Relaxed);
    }
    bail!("the load has run out of pods")
}

/// The life of a pod with one container.
async fn life(shared: &Shared, cri: &Cri, image: &str, pod: &PodSpec) -> Result {
    let pod_id = shared.insist("RunPodSandbox", || cri.run_pod(pod)).await?;
    let id = shared.running_container(cri, &pod_id, image, pod).await?;
    shared.insist("ExecSync", || cri.exec(&id, &["true"])).await?;
    shared.insist("StopContainer", || cri.stop(&id, 2)).await?;
    shared.insist("RemoveContainer", || cri.remove(&id)).await?;
    shared.insist("StopPodSandbox", || cri.stop_pod(&pod_id)).await?;
    shared.insist("RemovePodSandbox", || cri.remove_pod(&pod_id)).await
}

/// Runs a container in a pod that is there, asking again as the kubelet would.
pub(crate) async fn container(
    cri: &Cri,
    pod_id: &str,
    image: &str,
    pod: &PodSpec,
) -> Result<(String, usize)> {
    let shared = Shared::default();
    let id = shared.running_container(cri, pod_id, image, pod).await?;
    let refusals = shared.refusals.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
    Ok((id, refusals))
}

impl Shared {
    /// Repeats a call until it succeeds.
    async fn insist<T, F>(&self, method: &str, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Status>>,
    {
        let deadline = tokio::time::Instant::now() + patience(INSIST_SECONDS);
        loop {
            let status = match call().await {
                Ok(reply) => return Ok(reply),
                Err(status) => status,
            };
            self.note(method, &status);
            if tokio::time::Instant::now() > deadline {
                return Err(status).context(format!("{method} again and again"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A container that was cut off while it was being started is started again if it can be, else replaced.
    async fn running_container(&self, cri: &Cri, pod_id: &str, image: &str, pod: &PodSpec) -> Result<String> {
        for attempt in 0..20 {
            let spec = ContainerSpec::lasting("c", image).attempt(attempt);
            let id = self.insist("CreateContainer", || cri.create(pod_id, &spec, pod)).await?;
            if self.started(cri, &id).await? {
                return Ok(id);
            }
            self.insist("RemoveContainer", || cri.remove(&id)).await?;
        }
        bail!("no container of twenty could be started")
    }

    async fn started(&self, cri: &Cri, id: &str) -> Result<bool> {
        let deadline = tokio::time::Instant::now() + patience(INSIST_SECONDS);
        loop {
            let Err(status) = cri.start(id).await else { return Ok(true) };
            self.note("StartContainer", &status);
            let seen = self.insist("ContainerStatus", || cri.container(id)).await?;
            match seen.state() {
                ContainerState::ContainerRunning => return Ok(true),
                ContainerState::ContainerCreated if tokio::time::Instant::now() > deadline => {
                    return Err(status).context(format!("container {id} can not be started"));
                }
                ContainerState::ContainerCreated => tokio::time::sleep(Duration::from_millis(100)).await,
                ContainerState::ContainerExited => return Ok(false),
                ContainerState::ContainerUnknown => bail!("nobody knows the state of {id}: {seen:?}"),
            }
        }
    }

    fn note(&self, method: &str, status: &Status) {
        let mut text = format!("{method}: {:?}: {}", status.code(), status.message());
        for id in text
            .split(|c: char| !c.is_ascii_hexdigit())
            .filter(|it| it.len() == 64)
            .map(str::to_owned)
            .collect::<Vec<_>>()
        {
            text = text.replace(&id, "<id>");
        }
        let text = text.chars().take(NOTE_BYTES).collect();
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(text).or_default() += 1;
    }
}
