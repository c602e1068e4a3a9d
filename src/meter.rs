//! What pods and containers use.
//!
//! [`Meter`] reads a group's figures when somebody asks, through descriptors that it keeps, and all that one call needs on one
//! blocking thread, or on a few when it is much. What cannot be read in an instant is found out in the background: the rate at
//! which processors are used, which takes two readings, and the size of writable layers, which takes a walk. Walks are as far
//! apart as they are expensive, so that all of them together take about a hundredth of one processor.
//!
//! A container or pod that vanishes meanwhile has no figures; that is never an error for the others.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cgroup::CgroupDriver;
use rustix::process::{Resource, getrlimit};
use stats::{Allowance, Group, Interface, Rate, StatsError, Usage};
use tokio_util::sync::CancellationToken;
use types::Timestamp;

use crate::pod::Pods;
use crate::pod::view::{ContainerState, ContainerView, PodView, SandboxState, SandboxView};

mod accounts;
mod layers;
mod sum;

pub use self::accounts::{Accounts, ContainerAccount, Counted, PodAccount};
pub use self::layers::LayerSize;
use self::layers::Layers;

/// How often rates are taken, and sizes of layers at most.
const EVERY: Duration = Duration::from_secs(10);
/// What takes long is not repeated before so many times its own length.
const REST: u32 = 100;
/// Threads on which one call is at work.
const THREADS: usize = 4;
/// What one thread does rather than two: some milliseconds' work.
const LEAST_SHARE: usize = 25;

/// Figures of pods and containers.
#[derive(Debug)]
pub struct Meter {
    pods: Pods,
    /// By `cgroupsPath`; a pod's own group by that of its pause container, behind a mark.
    groups: Mutex<HashMap<String, Arc<Metered>>>,
    /// For files of groups.
    allowance: Arc<Allowance>,
    layers: Layers,
    began: Instant,
    /// Periods at whose end memory is given back still.
    large_answers: AtomicU8,
}

/// Which group is meant, by a container's `cgroupsPath`.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// The container's own.
    Own(&'a str),
    /// The one that this pause container's lies in.
    PodOf(&'a str),
}

#[derive(Debug)]
struct Metered {
    group: Group,
    rate: Mutex<Rate>,
    counted: Mutex<Option<accounts::Kept>>,
}

/// A group's figures at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// When they were read.
    pub at: Timestamp,
    /// What they are.
    pub usage: Usage,
    /// Processor time per second, in nanoseconds, lately; `None` before a second reading.
    pub nano_cores: Option<u64>,
}

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerFigures {
    /// Which.
    pub container: Arc<ContainerView>,
    /// Its group's; `None` while it does not run.
    pub figures: Option<Figures>,
    /// Its writable layer, once it was walked.
    pub layer: Option<LayerSize>,
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub struct PodFigures {
    /// Which.
    pub sandbox: Arc<SandboxView>,
    /// Its group's, or the sum of its containers' where the pod has no group of its own.
    pub figures: Option<Figures>,
    /// Interfaces of its network namespace, and when they were read; `None` with the node's network.
    pub network: Option<(Timestamp, Vec<Interface>)>,
    /// Its running containers.
    pub containers: Vec<ContainerFigures>,
}

impl Meter {
    /// Of these pods. Nothing is read until somebody asks or [`Meter::run`] is at work.
    #[must_use]
    pub fn new(pods: Pods) -> Arc<Self> {
        let layers = Layers::new(pods.clone());
        let (groups, allowance) = (Mutex::default(), Allowance::of(spare_descriptors()));
        let large_answers = AtomicU8::new(0);
        Arc::new(Self { pods, groups, allowance, layers, began: Instant::now(), large_answers })
    }

    /// Where the figures of writable layers belong to.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.pods.layout().layers()
    }

    /// Figures of these containers, in their order.
    pub async fn containers(self: &Arc<Self>, wanted: Vec<Arc<ContainerView>>) -> Vec<ContainerFigures> {
        let meter = Arc::clone(self);
        shared_out(wanted, move |container| Some(meter.container(container))).await
    }

    /// Figures of these pods, those of their running containers among them; of what is no sandbox yet, none.
    pub async fn sandboxes(self: &Arc<Self>, wanted: Vec<Arc<PodView>>) -> Vec<PodFigures> {
        let meter = Arc::clone(self);
        shared_out(wanted, move |pod| meter.sandbox(&pod)).await
    }

    /// Takes rates and sizes until it is told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let working = async { tokio::join!(self.each_period(), self.layers.keep_walking(EVERY)) };
        stop.run_until_cancelled(working).await;
    }

    async fn each_period(self: &Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let meter = Arc::clone(self);
            on_thread(move || {
                meter.take_rates();
                meter.give_back();
            })
            .await;
        }
    }

    /// An answer about all pods takes megabytes, of which the next does not come before long: they go back to the kernel, once the
    /// answer was certainly sent.
    fn give_back(&self) {
        let left = self.large_answers.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        if left.is_ok() {
            sys::process::give_back_memory();
        }
    }

    fn container(&self, container: Arc<ContainerView>) -> ContainerFigures {
        let runs = container.state == ContainerState::Running;
        let figures = if runs { self.figures(Place::Own(&container.cgroup)) } else { None };
        let layer = self.layers.size(&container.id);
        ContainerFigures { container, figures, layer }
    }

    fn sandbox(&self, pod: &PodView) -> Option<PodFigures> {
        let sandbox = Arc::clone(pod.sandbox.as_ref()?);
        let running = pod.containers.iter().filter(|container| container.state == ContainerState::Running);
        let containers: Vec<ContainerFigures> =
            running.map(|container| self.container(Arc::clone(container))).collect();
        let ready = sandbox.state == SandboxState::Ready;
        let figures = match &sandbox.request.cgroup_parent() {
            _ if !ready => None,
            Some(_) => self.figures(Place::PodOf(&sandbox.cgroup)),
            None => {
                let pause = self.figures(Place::Own(&sandbox.cgroup));
                sum::of(pause.iter().chain(containers.iter().filter_map(|it| it.figures.as_ref())))
            }
        };
        let network = network(&sandbox).map(|found| (Timestamp::now(), found));
        Some(PodFigures { sandbox, figures, network, containers })
    }

    fn figures(&self, place: Place<'_>) -> Option<Figures> {
        let name = place.name();
        let read = self.metered(&name, place).and_then(|metered| {
            let usage = metered.group.read()?;
            let nano_cores = metered.note(self.began, usage.cpu_nanoseconds);
            Ok(Figures { at: Timestamp::now(), usage, nano_cores })
        });
        read.inspect_err(|error| self.unreadable(&name, error)).ok()
    }

    /// The group, opened now if it was not before.
    fn metered(&self, name: &str, place: Place<'_>) -> Result<Arc<Metered>, StatsError> {
        if let Some(known) = self.groups().get(name) {
            return Ok(Arc::clone(known));
        }
        let directories = place.directories(&*self.pods.drivers().cgroups);
        let opened = Arc::new(Metered::new(Group::open(&directories)?.keeping(&self.allowance)));
        self.groups().insert(name.to_owned(), Arc::clone(&opened));
        Ok(opened)
    }

    fn unreadable(&self, name: &str, error: &StatsError) {
        self.groups().remove(name);
        tracing::debug!(error = types::error::chain(error), "no figures");
    }

    /// Reads the processor time of all that runs, and forgets what does not.
    fn take_rates(&self) {
        let pods = self.pods.list();
        let mut living = HashSet::new();
        for pod in &pods {
            let running =
                pod.containers.iter().filter(|container| container.state == ContainerState::Running);
            let mut places: Vec<_> = running.map(|container| Place::Own(&container.cgroup)).collect();
            if let Some(sandbox) = pod.sandbox.as_ref().filter(|it| it.state == SandboxState::Ready) {
                places.extend([Place::Own(&sandbox.cgroup), Place::PodOf(&sandbox.cgroup)]);
            }
            for place in places {
                let name = place.name();
                let read = self.metered(&name, place).and_then(|metered| {
                    metered.note(self.began, metered.group.cpu_nanoseconds()?);
                    Ok(())
                });
                if read.inspect_err(|error| self.unreadable(&name, error)).is_ok() {
                    living.insert(name);
                }
            }
        }
        self.groups().retain(|name, _| living.contains(name));
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<String, Arc<Metered>>> {
        // Nothing is done under the lock that could leave it half done.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    fn name(self) -> String {
        match self {
            Self::Own(cgroup) => cgroup.to_owned(),
            Self::PodOf(cgroup) => format!("pod of {cgroup}"),
        }
    }

    fn directories(self, cgroups: &dyn CgroupDriver) -> Vec<PathBuf> {
        match self {
            Self::Own(cgroup) => cgroups.directories(cgroup),
            Self::PodOf(cgroup) => {
                let pause = cgroups.directories(cgroup);
                pause.iter().filter_map(|directory| directory.parent()).map(Path::to_owned).collect()
            }
        }
    }
}

impl Metered {
    fn new(group: Group) -> Self {
        Self { group, rate: Mutex::default(), counted: Mutex::default() }
    }

    fn note(&self, began: Instant, cpu: Option<u64>) -> Option<u64> {
        let now = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        cpu.into_iter().for_each(|cpu| rate.note(now, cpu));
        rate.nano_cores()
    }
}

/// A quarter of those that this process may have: connections and pods need theirs.
fn spare_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit / 4).unwrap_or(usize::MAX))
}

/// The interfaces of a pod that is up and has a network of its own.
fn network(sandbox: &SandboxView) -> Option<Vec<Interface>> {
    let up = sandbox.state == SandboxState::Ready && sandbox.netns.is_some();
    let found = stats::interfaces(sandbox.pid.filter(|_| up)?);
    found.inspect_err(|error| tracing::debug!(error = types::error::chain(error), "no interfaces")).ok()
}

/// What is made of each, in their order. Many are shared out between threads: readings wait for the kernel, each for itself.
async fn shared_out<I, T>(wanted: Vec<I>, work: impl Fn(I) -> Option<T> + Send + Sync + 'static) -> Vec<T>
where
    I: Send + 'static,
    T: Send + 'static,
{
    let share = wanted.len().div_ceil(THREADS).max(LEAST_SHARE);
    let (mut wanted, work) = (wanted.into_iter().peekable(), Arc::new(work));
    let mut parts = Vec::new();
    while wanted.peek().is_some() {
        let (part, work): (Vec<I>, _) = (wanted.by_ref().take(share).collect(), Arc::clone(&work));
        parts.push(tokio::task::spawn_blocking(move || {
            part.into_iter().filter_map(|one| work(one)).collect()
        }));
    }
    let mut all: Vec<T> = Vec::new();
    for part in parts {
        let made: Result<Vec<T>, _> = part.await;
        all.extend(made.unwrap_or_default());
    }
    all
}

/// Runs what blocks beside the threads of the server. It does not panic; if it did, there would be nothing to tell.
async fn on_thread<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_shared_out_comes_back_in_order() {
        for count in [0, 1, LEAST_SHARE, LEAST_SHARE + 1, 10 * THREADS * LEAST_SHARE + 3] {
            let made = shared_out((0..count).collect(), |number| Some(number).filter(|it| it % 3 != 0)).await;
            assert_eq!(made, (0..count).filter(|it| it % 3 != 0).collect::<Vec<_>>());
        }
    }
}
