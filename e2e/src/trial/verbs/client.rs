//! One client: it decides by random numbers what to do next with its pods, and goes on until it is done.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::World;
use super::model::{Container, Ending, Pod};
use crate::cri::{ContainerState, ExecSyncResponse};
use crate::trial::{Random, pod_on};
use crate::{ContainerSpec, Cri, Result, patience};

/// How many pods a client has at most, and containers in each.
const PODS: usize = 3;
const CONTAINERS: usize = 3;
/// One call in so many is given up by its caller, after less than so long.
const IMPATIENT: u64 = 8;
const IMPATIENCE_MILLISECONDS: u64 = 150;
/// For how long a verb is repeated.
const PERSISTENCE_SECONDS: u64 = 90;

/// What one call has come to.
enum Outcome<T> {
    Done(T),
    /// It failed while something was killed or broken.
    Disturbed,
}

/// What a client is called.
pub(super) fn name_of(n: usize) -> String {
    format!("c{n}")
}

#[derive(Debug)]
pub(super) struct Client {
    name: String,
    world: Arc<World>,
    random: Random,
    /// An image that only this client pulls and removes.
    reference: String,
    has_image: bool,
    pub(super) pods: Vec<Pod>,
    serial: usize,
    counts: BTreeMap<&'static str, usize>,
}

impl Client {
    pub(super) fn new(n: usize, world: Arc<World>, random: Random, reference: String) -> Self {
        let (pods, counts) = (Vec::new(), BTreeMap::new());
        Self { name: name_of(n), world, random, reference, has_image: false, pods, serial: 0, counts }
    }

    /// Does verbs until the soak is over.
    pub(super) async fn live(client: Arc<Mutex<Self>>) -> Result {
        let world = Arc::clone(&client.lock().await.world);
        while !world.is_over() {
            let quiet = world.gate.read().await;
            let mut client = client.lock().await;
            client.one_verb().await.with_context(|| format!("client {}", client.name))?;
            drop((client, quiet));
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    pub(super) fn describe(&self) -> String {
        let counts: Vec<String> = self.counts.iter().map(|(verb, count)| format!("{verb} {count}")).collect();
        format!("client {}: {}", self.name, counts.join(", "))
    }

    pub(super) fn has_image(&self) -> Option<&str> {
        self.has_image.then_some(self.reference.as_str())
    }

    /// Removes everything it has, while nothing is disturbed.
    pub(super) async fn remove_all(&mut self) -> Result {
        while !self.pods.is_empty() {
            self.remove_pod(0).await?;
        }
        if self.has_image {
            self.image().await?;
        }
        Ok(())
    }

    async fn one_verb(&mut self) -> Result {
        if self.pods.is_empty() {
            return self.run_pod().await;
        }
        let at = self.random.index(self.pods.len());
        let count = self.pods.get(at).map_or(0, |pod| pod.containers.len());
        match self.random.below(100) {
            0..10 if self.pods.len() < PODS => self.run_pod().await,
            10..32 if count < CONTAINERS => self.create(at).await,
            32..52 => self.start(at).await,
            52..68 => self.exec(at).await,
            68..76 => self.stop(at).await,
            76..83 => self.remove(at).await,
            83..85 => self.stop_pod(at).await,
            85..88 => self.remove_pod(at).await,
            88..97 => self.image().await,
            _ => self.look(at).await,
        }
    }

    async fn run_pod(&mut self) -> Result {
        self.serial += 1;
        let name = format!("{}-{}", self.name, self.serial);
        let spec = pod_on(&self.world.machine, &self.world.dir, &name);
        let id = self
            .persist("run", |cri| {
                let spec = spec.clone();
                async move { cri.run_pod(&spec).await }
            })
            .await?;
        self.pods.push(Pod { spec, id, stopped: false, containers: Vec::new() });
        Ok(())
    }

    async fn create(&mut self, at: usize) -> Result {
        self.serial += 1;
        let name = format!("c{}", self.serial);
        // Less than 128, which is the code of a start that failed.
        let code = i32::try_from(self.random.below(100)).unwrap_or_default();
        let ending = if self.random.below(3) == 0 { Ending::Exits(code) } else { Ending::Lasts };
        // A container goes on when its image is removed.
        let own_image = self.has_image && self.random.below(2) == 0;
        let image = if own_image { self.reference.clone() } else { self.world.image.clone() };
        let spec = match ending {
            Ending::Lasts => ContainerSpec::lasting(&name, &image),
            Ending::Exits(code) => ContainerSpec::shell(&name, &image, &format!("sleep 0.2; exit {code}")),
        };
        let (pod, id, stopped) = self.pod(at)?;
        let made = self
            .attempts(
                "create",
                |cri| {
                    let (pod, id, spec) = (pod.clone(), id.clone(), spec.clone());
                    async move { cri.create(&id, &spec, &pod).await }
                },
                |world, status| {
                    status.code() == Code::FailedPrecondition && (stopped || world.is_doomed(&id))
                },
            )
            .await?;
        match made {
            Some(made) => {
                let containers = &mut self.pods.get_mut(at).context("the pod")?.containers;
                containers.push(Container {
                    id: made,
                    ending,
                    owner: own_image.then(|| self.name.clone()),
                    state: ContainerState::ContainerCreated,
                    failed: false,
                    started_at: None,
                });
            }
            None => ensure!(stopped || self.world.is_doomed(&id), "a ready pod refuses a container"),
        }
        Ok(())
    }

    async fn start(&mut self, at: usize) -> Result {
        let (_, pod_id, stopped) = self.pod(at)?;
        let Some((place, id)) = self.pick(at, ContainerState::ContainerCreated) else { return Ok(()) };
        let before = Instant::now();
        loop {
            match self
                .once("start", |cri| {
                    let id = id.clone();
                    async move { cri.start(&id).await }
                })
                .await
            {
                Ok(Outcome::Done(())) => break,
                Ok(Outcome::Disturbed) => {}
                Err(_) if stopped || self.world.is_doomed(&pod_id) => {}
                Err(error) => return Err(error),
            }
            // It may have been started all the same, or have failed for good.
            let status = self
                .persist("status", |cri| {
                    let id = id.clone();
                    async move { cri.container(&id).await }
                })
                .await?;
            match status.state() {
                ContainerState::ContainerCreated if stopped || self.world.is_doomed(&pod_id) => return Ok(()),
                ContainerState::ContainerCreated => {}
                ContainerState::ContainerRunning => break,
                ContainerState::ContainerExited | ContainerState::ContainerUnknown => {
                    self.container(at, place)?.failed = status.exit_code == 128;
                    break;
                }
            }
            ensure!(before.elapsed() < patience(PERSISTENCE_SECONDS), "container {id} cannot be started");
        }
        let container = self.container(at, place)?;
        container.state =
            if container.failed { ContainerState::ContainerExited } else { ContainerState::ContainerRunning };
        Ok(())
    }

    async fn exec(&mut self, at: usize) -> Result {
        let (_, pod_id, stopped) = self.pod(at)?;
        let Some((place, id)) = self.pick(at, ContainerState::ContainerRunning) else { return Ok(()) };
        let ending = self.container(at, place)?.ending;
        let n = self.random.below(1_000_000);
        let line = format!("echo {n}; exit {}", n % 100);
        let output = self
            .once("exec", |cri| {
                let (id, line) = (id.clone(), line.clone());
                async move { cri.exec_for(&id, &["sh", "-c", &line], 30).await }
            })
            .await;
        let gone = stopped || self.world.is_doomed(&pod_id) || ending != Ending::Lasts;
        match output {
            Ok(Outcome::Done(output)) => check_output(&output, n)
                .or_else(|error| if gone || self.world.is_doomed(&pod_id) { Ok(()) } else { Err(error) }),
            Ok(Outcome::Disturbed) => Ok(()),
            Err(_) if gone || self.world.is_doomed(&pod_id) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn stop(&mut self, at: usize) -> Result {
        let Some((place, id)) = self.any(at) else { return Ok(()) };
        let grace = i64::try_from(self.random.below(3)).unwrap_or_default();
        self.persist("stop", |cri| {
            let id = id.clone();
            async move { cri.stop(&id, grace).await }
        })
        .await?;
        let container = self.container(at, place)?;
        if container.state == ContainerState::ContainerRunning {
            container.state = ContainerState::ContainerExited;
        }
        Ok(())
    }

    async fn remove(&mut self, at: usize) -> Result {
        let Some((place, id)) = self.any(at) else { return Ok(()) };
        self.persist("remove", |cri| {
            let id = id.clone();
            async move { cri.remove(&id).await }
        })
        .await?;
        self.pods.get_mut(at).context("the pod")?.containers.remove(place);
        Ok(())
    }

    async fn stop_pod(&mut self, at: usize) -> Result {
        let (_, id, _) = self.pod(at)?;
        self.persist("stop pod", |cri| {
            let id = id.clone();
            async move { cri.stop_pod(&id).await }
        })
        .await?;
        let pod = self.pods.get_mut(at).context("the pod")?;
        pod.stopped = true;
        for container in pod.containers.iter_mut().filter(|it| it.state == ContainerState::ContainerRunning) {
            container.state = ContainerState::ContainerExited;
        }
        Ok(())
    }

    async fn remove_pod(&mut self, at: usize) -> Result {
        let (_, id, _) = self.pod(at)?;
        if self.random.below(4) > 0 {
            self.stop_pod(at).await?;
        }
        self.persist("remove pod", |cri| {
            let id = id.clone();
            async move { cri.remove_pod(&id).await }
        })
        .await?;
        self.pods.remove(at);
        Ok(())
    }

    /// Pulls its own image, or removes it.
    async fn image(&mut self) -> Result {
        let reference = self.reference.clone();
        if self.has_image {
            self.persist("remove image", |cri| {
                let it = reference.clone();
                async move { cri.forget_image(&it).await }
            })
            .await?;
        } else {
            self.persist("pull", |cri| {
                let it = reference.clone();
                async move { cri.pull(&it).await }
            })
            .await?;
        }
        self.has_image = !self.has_image;
        let there = self
            .persist("image status", |cri| {
                let it = reference.clone();
                async move { cri.image(&it).await }
            })
            .await?;
        ensure!(there.is_some() == self.has_image, "the image is there: {}", there.is_some());
        Ok(())
    }

    async fn look(&mut self, at: usize) -> Result {
        let (_, id, _) = self.pod(at)?;
        self.persist("pod status", |cri| {
            let id = id.clone();
            async move { cri.pod(&id).await }
        })
        .await
        .map(drop)
    }

    fn pod(&self, at: usize) -> Result<(crate::PodSpec, String, bool)> {
        let pod = self.pods.get(at).context("the pod")?;
        Ok((pod.spec.clone(), pod.id.clone(), pod.stopped))
    }

    fn container(&mut self, at: usize, place: usize) -> Result<&mut Container> {
        self.pods.get_mut(at).and_then(|pod| pod.containers.get_mut(place)).context("the container")
    }

    fn any(&mut self, at: usize) -> Option<(usize, String)> {
        let containers = &self.pods.get(at)?.containers;
        let place = self.random.index(containers.len());
        containers.get(place).map(|it| (place, it.id.clone()))
    }

    fn pick(&mut self, at: usize, state: ContainerState) -> Option<(usize, String)> {
        let containers = &self.pods.get(at)?.containers;
        let fitting: Vec<usize> = (0..containers.len())
            .filter(|&n| containers.get(n).is_some_and(|it| it.state == state))
            .collect();
        let place = *fitting.get(self.random.index(fitting.len()))?;
        containers.get(place).map(|it| (place, it.id.clone()))
    }

    /// Calls until it works.
    async fn persist<T, F>(&mut self, verb: &'static str, call: impl Fn(Cri) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Status>>,
    {
        self.attempts(verb, call, |_, _| false).await?.context("refused")
    }

    /// Calls until it works, or until it is refused in a way that is allowed, or the pod is doomed.
    async fn attempts<T, F>(
        &mut self,
        verb: &'static str,
        call: impl Fn(Cri) -> F,
        allowed: impl Fn(&World, &Status) -> bool,
    ) -> Result<Option<T>>
    where
        F: Future<Output = std::result::Result<T, Status>>,
    {
        let begun = Instant::now();
        let mut disturbed = false;
        loop {
            let mark = self.world.mark();
            let limit = self.patience();
            let Ok(result) = tokio::time::timeout(limit, call(self.world.cri())).await else {
                disturbed |= self.world.disturbed_since(mark);
                *self.counts.entry("left").or_default() += 1;
                continue;
            };
            disturbed |= self.world.disturbed_since(mark);
            match result {
                Ok(done) => {
                    *self.counts.entry(verb).or_default() += 1;
                    return Ok(Some(done));
                }
                Err(status) if is_hang(&status) => bail!("{verb} hangs: {status:?}"),
                Err(status) if status.message().contains("reserved") => bail!("{verb}: {status:?}"),
                Err(status) if allowed(&self.world, &status) => return Ok(None),
                Err(status) if !disturbed => {
                    bail!("{verb} fails although nothing was killed or broken: {status:?}")
                }
                Err(status) if begun.elapsed() > patience(PERSISTENCE_SECONDS) => {
                    bail!("{verb} fails again and again: {status:?}")
                }
                Err(_) => *self.counts.entry("repeated").or_default() += 1,
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// How long the caller will wait for one call: mostly until the client's own limit ends it.
    fn patience(&mut self) -> Duration {
        match self.random.below(IMPATIENT) {
            0 => self.random.milliseconds(0, IMPATIENCE_MILLISECONDS),
            _ => patience(PERSISTENCE_SECONDS) * 2,
        }
    }

    /// Calls once.
    async fn once<T, F>(&mut self, verb: &'static str, call: impl Fn(Cri) -> F) -> Result<Outcome<T>>
    where
        F: Future<Output = std::result::Result<T, Status>>,
    {
        let mark = self.world.mark();
        match call(self.world.cri()).await {
            Ok(done) => {
                *self.counts.entry(verb).or_default() += 1;
                Ok(Outcome::Done(done))
            }
            Err(status) if is_hang(&status) => bail!("{verb} hangs: {status:?}"),
            Err(_) if self.world.disturbed_since(mark) => {
                sleep(Duration::from_millis(50)).await;
                Ok(Outcome::Disturbed)
            }
            Err(status) => bail!("{verb} fails although nothing was killed or broken: {status:?}"),
        }
    }
}

/// Whether the client gave up waiting.
fn is_hang(status: &Status) -> bool {
    status.message().contains("Timeout expired") || status.message().contains("timed out waiting")
}

fn check_output(output: &ExecSyncResponse, n: u64) -> Result {
    ensure!(output.stdout == format!("{n}\n").as_bytes(), "{output:?}");
    ensure!(u64::try_from(output.exit_code) == Ok(n % 100), "{output:?}");
    Ok(())
}
