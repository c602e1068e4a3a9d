//! After a restart: what the records say, joined with what the monitors know, becomes the truth again.
//!
//! A sandbox or container that was being made is undone; one that was being removed goes on being removed; a running
//! one goes on running under its monitor and is listed as such. What a dead monitor leaves is killed and shown as
//! ended. Then everything that no record owns is swept away.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use monitor_api::{Connection, ContainerState, Phase};
use tokio::task::JoinSet;
use types::{ContainerId, SandboxId};

use super::Pods;
use super::actor::{Actor, Message, Recovered, Reply, exits};
use super::error::StepError;
use super::phase::{ContainerPhase, SandboxPhase};
use super::record::{Broken, ContainerRecord, Loaded, SandboxRecord, blocking, load};
use super::run_sandbox::pause_id;
use super::shared::Shared;
use super::start;
use super::steps::Steps;
use super::strays::{self, Stray, World, children};
use super::teardown::{self, Failures, Pause, RECOVER, Target};
use super::view::PodView;

/// What becomes of a container at the start of a server, in logs.
const CONTAINER: &str = "recover container";

/// What recovery found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// Sandboxes that live on.
    pub sandboxes: usize,
    /// Containers that live on.
    pub containers: usize,
    /// Sandboxes whose making or removal had been interrupted, now gone.
    pub undone: usize,
    /// Records that cannot be read; they are left for the operator.
    pub broken: usize,
}

impl Pods {
    /// Brings back what the disk remembers. Call once, before any verb.
    ///
    /// # Errors
    /// When the record directory cannot be read at all.
    pub async fn recover(&self) -> Result<Recovery, StepError> {
        // Nothing is to be told with a time that an earlier server has given out: its last one is read here.
        self.shared.now();
        let dirs = self.record_dirs().await?;
        let mut pods = JoinSet::new();
        for dir in dirs {
            let pods_of_node = self.clone();
            pods.spawn(async move { pods_of_node.recover_pod(dir).await });
        }
        let mut total = Recovery::default();
        while let Some(outcome) = pods.join_next().await {
            match outcome {
                Ok(found) => total.add(found),
                Err(error) => tracing::error!(%error, "recovering a pod failed"),
            }
        }
        sweep(&self.shared).await;
        Ok(total)
    }

    async fn record_dirs(&self) -> Result<Vec<PathBuf>, StepError> {
        let records = self.shared.layout().records();
        blocking(move || {
            sys::atomic::create_dir_all(&records, 0o700)?;
            children(&records)
        })
        .await
    }

    async fn recover_pod(&self, dir: PathBuf) -> Recovery {
        let shared = &self.shared;
        let what = format!("reading {}", dir.display());
        let source = dir.clone();
        let loaded = match blocking(move || load(&source).map_err(StepError::io(what))).await {
            Ok(loaded) => loaded,
            Err(error) => {
                super::actor::log_dropped("a pod's records could not be read", &error);
                return Recovery { broken: 1, ..Recovery::default() };
            }
        };
        for Broken { path, reason, .. } in &loaded.broken {
            tracing::error!(path = %path.display(), reason, "a record cannot be read and is left as it is");
        }
        let broken = loaded.broken.len();
        let Loaded { sandbox, containers, .. } = loaded;
        let Some(record) = sandbox else {
            if broken == 0 {
                discard_ownerless(shared, containers, dir).await;
            }
            return Recovery { broken, ..Recovery::default() };
        };
        shared.advance(record.created_at);
        let shown = Arc::new(PodView::of(&record, containers.iter(), shared.layout()));
        shared.events.remember(Arc::clone(&shown));
        let task = shared.in_flight.begin(RECOVER, super::display(&record.request), record.id.to_string());
        let asked = task.stage("monitor");
        let connection = match shared.drivers.monitors.connect(&record.id).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(pod.id = %record.id, error = types::error::chain(&error), "the monitor does not answer");
                None
            }
        };
        drop(asked);
        // What follows has steps of its own.
        drop(task);
        let found = if matches!(record.phase, SandboxPhase::Creating | SandboxPhase::Removing) {
            shared.events.remove(shown, drop);
            undo(shared, record, containers, connection).await
        } else {
            self.resume(record, containers, connection).await
        };
        Recovery { broken, ..found }
    }

    /// Brings a made sandbox back to life with its true state.
    async fn resume(
        &self,
        mut record: SandboxRecord,
        containers: Vec<ContainerRecord>,
        connection: Option<Connection>,
    ) -> Recovery {
        let shared = &self.shared;
        let known = ask(&record.id, connection.as_ref()).await;
        known.values().for_each(|state| shared.figures.losses.recover(state));
        if connection.is_none() {
            if record.phase == SandboxPhase::Ready {
                shared.figures.monitors.lost();
            }
            let target =
                Target { record: record.clone(), containers: containers.clone(), monitor: None, view: None };
            let mut failures = Failures::new(shared, RECOVER, &target);
            // What cannot be ended now is logged, and tried again when the pod is stopped.
            teardown::end_processes(shared, &target, &mut failures).await;
        }
        let was_stopping = record.phase == SandboxPhase::Stopping;
        if was_stopping {
            // Nobody works on that stop any more: it is begun anew below, and a caller's joins it.
            record.phase = SandboxPhase::NotReady;
        }
        let pause = known.get(&pause_id(&record));
        if record.phase == SandboxPhase::Ready && pause.is_none_or(|pause| pause.phase != Phase::Running) {
            record.phase = SandboxPhase::NotReady;
            record.pause_pid = None;
            let steps = teardown::steps_of(shared, RECOVER, &record);
            steps.attempt("publish", record.save(shared.layout())).await;
        }
        let (mut kept, mut unheard) = (Vec::new(), BTreeSet::new());
        for container in containers {
            let seen = known.get(&container.id).cloned();
            let not_told = match container.phase {
                ContainerPhase::Running => !start::was_heard(shared, &container).await,
                _ => !container.started_at.is_set(),
            };
            if let Some(container) = settle(shared, &record, container, seen, connection.as_ref()).await {
                if not_told && container.started_at.is_set() {
                    unheard.insert(container.id.clone());
                }
                kept.push(container);
            }
        }
        let found = Recovery { sandboxes: 1, containers: kept.len(), ..Recovery::default() };
        let (id, key) = (record.id.clone(), record.request.key().clone());
        let ids = kept.iter().map(|container| container.id.clone()).collect();
        let is_dead = record.phase != SandboxPhase::Ready
            && !was_stopping
            && kept.iter().all(|container| container.phase != ContainerPhase::Running);
        if is_dead && shared.drivers.network.cached().contains(&record.id) {
            // It goes on by itself.
            drop(teardown::detach(shared, RECOVER, &record));
        }
        shared.levels.remember(&record);
        let handle = Actor::spawn(shared, Recovered { record, containers: kept, unheard, connection });
        shared.directory().enter(id, key, ids, handle.clone());
        if was_stopping {
            let (nobody, _) = Reply::channel();
            handle.tell(Message::StopSandbox(nobody)).await;
        }
        found
    }
}

impl Recovery {
    fn add(&mut self, other: Self) {
        self.sandboxes += other.sandboxes;
        self.containers += other.containers;
        self.undone += other.undone;
        self.broken += other.broken;
    }
}

/// What the monitor knows of its containers.
pub(super) async fn ask(
    id: &SandboxId,
    connection: Option<&Connection>,
) -> HashMap<ContainerId, ContainerState> {
    let Some(connection) = connection else { return HashMap::new() };
    match connection.monitor.list().await {
        Ok(states) => states.into_iter().map(|state| (state.container.clone(), state)).collect(),
        Err(error) => {
            tracing::warn!(pod.id = %id, error = types::error::chain(&error), "the monitor does not list");
            HashMap::new()
        }
    }
}

/// Undoes a sandbox that was being made, or ends the removal of one.
async fn undo(
    shared: &Arc<Shared>,
    record: SandboxRecord,
    containers: Vec<ContainerRecord>,
    connection: Option<Connection>,
) -> Recovery {
    let monitor = connection.as_ref().map(|connection| Arc::clone(&connection.monitor));
    let target = Target { record, containers, monitor, view: None };
    if let Err(error) = teardown::remove(shared, RECOVER, &target).await {
        let error = types::error::chain(&error);
        tracing::error!(pod.id = %target.record.id, error, "an interrupted sandbox could not be removed; trying again");
        teardown::retry_removal(shared, RECOVER, target);
    }
    Recovery { undone: 1, ..Recovery::default() }
}

/// The container's record made true, or `None` when it is gone.
async fn settle(
    shared: &Arc<Shared>,
    sandbox: &SandboxRecord,
    mut container: ContainerRecord,
    seen: Option<ContainerState>,
    connection: Option<&Connection>,
) -> Option<ContainerRecord> {
    shared.advance(container.created_at);
    let monitor = connection.map(|connection| &connection.monitor);
    let steps = Steps::new(shared, CONTAINER, container.display(), container.id.as_str());
    // Twice if need be: what an interrupted start has left would be in the way of the next one.
    let free = async |container: &ContainerRecord| {
        for _ in 0..2 {
            let freed = teardown::free_container(shared, &sandbox.handler, container, monitor);
            if steps.attempt("processes", freed).await {
                return;
            }
        }
    };
    match container.phase {
        ContainerPhase::Creating | ContainerPhase::Removing => {
            free(&container).await;
            teardown::discard_in_the_end(shared, CONTAINER, container).await;
            return None;
        }
        ContainerPhase::Exited => {
            if seen.is_some() {
                free(&container).await;
            }
            return Some(container);
        }
        ContainerPhase::Created | ContainerPhase::Starting | ContainerPhase::Running => {}
    }
    let was_running = container.phase == ContainerPhase::Running;
    match seen {
        Some(state) if state.phase == Phase::Running => {
            container.phase = ContainerPhase::Running;
            container.pid = state.pid;
            container.started_at = state.started_at;
            let bundle = shared.layout().bundle(container.id.as_str());
            steps.attempt("tidy", super::command::tidy(bundle)).await;
        }
        Some(ContainerState { exit: Some(exit), .. }) => {
            container.started_at = exit.started_at;
            container.exit = Some(exits::exit_of(&exit));
        }
        None if was_running => {
            let exit = teardown::read_exit(shared.layout(), &container.id).await;
            let exit = exit.map_or_else(|| exits::lost_exit(shared.now()), |exit| exits::exit_of(&exit));
            container.exit = Some(exit);
        }
        // It has never run, so it can be started. What an interrupted start has left would be in the way: a monitor
        // does not list what its runtime is still creating.
        Some(_) | None => {
            free(&container).await;
            container.phase = ContainerPhase::Created;
        }
    }
    if container.exit.is_some() {
        container.phase = ContainerPhase::Exited;
        container.pid = None;
        free(&container).await;
    }
    steps.attempt("publish", container.save(shared.layout())).await;
    Some(container)
}

/// Records of containers whose sandbox has no record: what they hold is freed.
async fn discard_ownerless(shared: &Arc<Shared>, containers: Vec<ContainerRecord>, dir: PathBuf) {
    for container in containers {
        let handler = shared.settings().default_handler.clone();
        let steps = Steps::new(shared, CONTAINER, container.display(), container.id.as_str());
        steps.attempt("processes", teardown::free_container(shared, &handler, &container, None)).await;
        teardown::discard_in_the_end(shared, CONTAINER, container).await;
    }
    let forget = blocking(move || Ok::<(), StepError>(sys::atomic::remove_tree(&dir)?));
    Steps::new(shared, RECOVER, "a sandbox without a record".to_owned(), "").attempt("record", forget).await;
}

/// Removes what no record owns. Networks, and the namespaces that their plugins may still need, go in the background: a hung
/// plugin must not delay the start.
async fn sweep(shared: &Arc<Shared>) {
    let world = World::of(shared);
    let strays = match blocking(move || world.look()).await {
        Ok(strays) => strays,
        Err(error) => return super::actor::log_dropped("what nobody owns could not be looked for", &error),
    };
    let places = [shared.layout().pods(), shared.layout().bundles()];
    let mut namespaces = Vec::new();
    for stray in strays {
        match stray {
            Stray::Record { .. } | Stray::Network { .. } => {}
            // What else is mounted in our directory is for the operator to judge.
            Stray::Mount { ref path } if !places.iter().any(|place| path.starts_with(place)) => {}
            Stray::Namespace { .. } => namespaces.push(stray),
            stray => remove_stray(shared, &stray).await,
        }
    }
    collect_networks(shared, namespaces);
}

async fn remove_stray(shared: &Arc<Shared>, stray: &Stray) {
    tracing::warn!(%stray, "removing what nobody owns");
    Steps::new(shared, "sweep", stray.to_string(), "")
        .attempt(stray.word(), strays::remove(shared, stray))
        .await;
}

/// Detaches networks of pods that are gone, as often as it takes, and then removes the namespaces.
fn collect_networks(shared: &Arc<Shared>, namespaces: Vec<Stray>) {
    let shared = Arc::clone(shared);
    shared.clone().tasks.spawn(async move {
        let mut pause = Pause::default();
        let pending = &shared.figures.pending;
        let place = pending.enter("sweep", "networks of pods that are gone".to_owned(), "", "networks");
        loop {
            let valid: Vec<SandboxId> = shared.directory().sandboxes.keys().cloned().collect();
            let steps = Steps::new(&shared, "sweep", "networks of pods that are gone".to_owned(), "");
            if place.attempt(&steps, "networks", shared.drivers.network.gc(&valid)).await {
                break;
            }
            let _pause = steps.waits("pause before it is tried again");
            let known: BTreeSet<SandboxId> = shared.directory().sandboxes.keys().cloned().collect();
            if shared.drivers.network.cached().iter().all(|id| known.contains(id)) {
                break;
            }
            pause.wait().await;
        }
        place.at("namespaces");
        for namespace in namespaces {
            remove_stray(&shared, &namespace).await;
        }
    });
}
