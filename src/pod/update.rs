//! UpdateContainerResources: changes the limits of a container, all of them or none.
//!
//! A created container is files alone, so its spec is rewritten. A running one is changed by the OCI runtime, with some help
//! around it: runtimes refuse halfway, leave limits out, or tell systemd other values than they write (docs/adr/0001). What
//! was before is looked at first and put back when a step fails.
//!
//! The intent is on record while this runs; a server that dies in between takes it up again at its next start.

use std::sync::Arc;
use std::time::Duration;

use cgroup::{Limits, SavedLimits};
use spec::oci_spec::runtime::{LinuxResources, Spec};
use spec::{ContainerRequest, NodeFacts, ResourcesUpdate};

use super::error::{PodError, StepError};
use super::phase::ContainerPhase;
use super::record::{ContainerRecord, SandboxRecord, blocking};
use super::shared::Shared;
use super::steps::Steps;

/// How long the OCI runtime may take for one update; its own limit counts where that is shorter.
const LIMIT: Duration = Duration::from_secs(30);
/// The verb in errors and logs.
pub(super) const VERB: &str = "update container";
/// The taking back of a change that was refused.
pub(super) const UNDO: &str = "undo update container";

/// A change of limits, from the record as it was to a request.
#[derive(Debug)]
pub(super) struct Update {
    shared: Arc<Shared>,
    handler: String,
    /// The container as it was.
    record: ContainerRecord,
    target: Arc<ContainerRequest>,
    /// The limits before the change; none where nothing runs, or where an earlier server began the change.
    saved: Option<SavedLimits>,
    resumed: bool,
}

/// Checks the change against the node and what is in force; touches nothing.
pub(super) fn target(
    shared: &Shared,
    handler: &str,
    record: &ContainerRecord,
    update: &ResourcesUpdate,
) -> Result<Arc<ContainerRequest>, PodError> {
    let target = record.request.with_resources(update)?;
    spec::resources::updated_resources(&target, &shared.settings().facts_of(handler))?;
    Ok(Arc::new(target))
}

impl Update {
    /// The change that `record` says is under way.
    pub(super) fn of(
        shared: &Arc<Shared>,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
        resumed: bool,
    ) -> Option<Self> {
        Some(Self {
            shared: Arc::clone(shared),
            handler: sandbox.handler.clone(),
            target: Arc::clone(record.updating.as_ref()?),
            record: record.clone(),
            saved: None,
            resumed,
        })
    }

    /// Which container.
    pub(super) fn id(&self) -> &types::ContainerId {
        &self.record.id
    }

    /// The request that holds when this has succeeded.
    pub(super) fn target(&self) -> &Arc<ContainerRequest> {
        &self.target
    }

    /// Performs the steps. On failure undoes them before the error is returned.
    pub(super) async fn run(&mut self) -> Result<(), PodError> {
        let shared = Arc::clone(&self.shared);
        let steps = Steps::new(&shared, VERB, self.record.display(), self.record.id.as_str());
        let done = match self.record.phase {
            ContainerPhase::Running => self.change_running(&steps).await,
            _ => steps.run("config", self.write_config(&self.target)).await,
        };
        if done.is_err() {
            self.undo().await;
        }
        done
    }

    async fn change_running(&mut self, steps: &Steps<'_>) -> Result<(), PodError> {
        let resources = spec::resources::updated_resources(&self.target, &self.facts())?;
        let mut limits = limits(&resources);
        if !self.resumed {
            self.saved = Some(steps.run("look", self.save(&limits)).await?);
        }
        limits.hugepages = self.changed_hugepages(limits.hugepages);
        steps.run("config", self.write_config(&self.target)).await?;
        steps
            .run("room", self.on_group(&limits, |driver, path, limits| driver.make_room(path, limits)))
            .await?;
        steps.run("OCI update", self.call_runtime(&resources)).await?;
        steps
            .run(
                "huge pages",
                self.on_group(&limits, |driver, path, limits| driver.set_hugepages(path, limits)),
            )
            .await?;
        let announced = self.shared.drivers.cgroups.announce_limits(&self.record.cgroup, &limits);
        steps.run("announce", announced).await?;
        steps.run("oom score", self.set_oom_score(&self.record.request, &self.target)).await
    }

    /// Puts everything back as it was. What cannot be put back is logged; the error that led here is the one to be told.
    pub(super) async fn undo(&self) {
        let steps = Steps::new(&self.shared, UNDO, self.record.display(), self.record.id.as_str());
        steps.attempt("config", self.write_config(&self.record.request)).await;
        if self.record.phase != ContainerPhase::Running {
            return;
        }
        // Its own memory of the limits matters for its next update. What it does not put back, the next lines do.
        steps.attempt("OCI update", self.call_runtime_again()).await;
        if let Some(saved) = &self.saved {
            let restored = self.shared.drivers.cgroups.restore_limits(&self.record.cgroup, saved);
            steps.attempt("restore", restored).await;
        }
        steps.attempt("oom score", self.set_oom_score(&self.target, &self.record.request)).await;
    }

    async fn call_runtime_again(&self) -> Result<(), StepError> {
        self.call_runtime(&spec::resources::updated_resources(&self.record.request, &self.facts())?).await
    }

    fn facts(&self) -> NodeFacts {
        self.shared.settings().facts_of(&self.handler)
    }

    async fn save(&self, limits: &Limits) -> Result<SavedLimits, StepError> {
        let others: Vec<String> = limits.unified.keys().cloned().collect();
        Ok(self.shared.drivers.cgroups.save_limits(&self.record.cgroup, &others).await?)
    }

    /// Huge pages are repeated in every update by kubelet; what stays is not touched.
    fn changed_hugepages(&self, wanted: Vec<(String, u64)>) -> Vec<(String, u64)> {
        let before = self.record.request.wire_resources();
        let had = |size: &str, limit: u64| {
            before.is_some_and(|had| {
                had.hugepage_limits.iter().any(|h| h.page_size == size && h.limit == limit)
            })
        };
        wanted.into_iter().filter(|(size, limit)| !had(size, *limit)).collect()
    }

    /// Rewrites the limits in the bundle's config.json, from which the container is started and its commands are made.
    async fn write_config(&self, request: &Arc<ContainerRequest>) -> Result<(), StepError> {
        let path = self.shared.layout().bundle(self.record.id.as_str()).join("config.json");
        let (facts, request) = (self.facts(), Arc::clone(request));
        blocking(move || {
            let what = || "changing the container's config.json";
            let bytes = std::fs::read(&path).map_err(StepError::io(what()))?;
            let broken =
                |error: serde_json::Error| StepError::Io { what: what().to_owned(), source: error.into() };
            let mut spec: Spec = serde_json::from_slice(&bytes).map_err(broken)?;
            spec::resources::update_spec(&mut spec, &request, &facts)?;
            let json = serde_json::to_vec(&spec).map_err(broken)?;
            // Whoever reads it meanwhile sees the old one or the new one.
            Ok(sys::atomic::write(&path, &json, 0o644)?)
        })
        .await
    }

    async fn call_runtime(&self, resources: &LinuxResources) -> Result<(), StepError> {
        let broken = |error: serde_json::Error| StepError::Io {
            what: "encoding the limits".to_owned(),
            source: error.into(),
        };
        let json = serde_json::to_vec(resources).map_err(broken)?;
        let bundle = self.shared.layout().bundle(self.record.id.as_str());
        let (shared, handler) = (Arc::clone(&self.shared), self.handler.clone());
        let id = self.record.id.clone();
        blocking(move || {
            let settings = shared.settings();
            let handler = settings
                .handler_of_pod(&handler)
                .map_err(|error| StepError::Invalid(types::error::chain(&error)))?;
            let command = runtime::RuntimeCommand {
                path: handler.command.path.clone(),
                root: handler.command.root.clone(),
                systemd_cgroup: handler.command.systemd_cgroup,
            };
            let limit = shared.settings().runtime_timeout.min(LIMIT);
            Ok(runtime::update(&command, id.as_str(), &json, &bundle, limit)?)
        })
        .await
    }

    async fn on_group(
        &self,
        limits: &Limits,
        work: impl FnOnce(&dyn cgroup::CgroupDriver, &str, &Limits) -> Result<(), cgroup::CgroupError>
        + Send
        + 'static,
    ) -> Result<(), StepError> {
        let (driver, path) = (Arc::clone(&self.shared.drivers.cgroups), self.record.cgroup.clone());
        let limits = limits.clone();
        blocking(move || Ok(work(&*driver, &path, &limits)?)).await
    }

    /// The OCI runtime knows no such update, so the processes are changed here; those that chose their own score keep it.
    async fn set_oom_score(&self, from: &ContainerRequest, to: &ContainerRequest) -> Result<(), StepError> {
        let facts = self.facts();
        let score = |request| spec::resources::oom_score_adj(request, &facts);
        let (from, to) = (score(from), score(to));
        if from == to {
            return Ok(());
        }
        self.on_group(&Limits::default(), move |driver, path, _| driver.set_oom_score(path, from, to)).await
    }
}

/// The limits as the cgroup driver takes them. Shares are not among them: both OCI runtimes tell systemd the weight that they
/// write, by conversions of their own.
fn limits(resources: &LinuxResources) -> Limits {
    let (cpu, memory) = (resources.cpu().clone().unwrap_or_default(), resources.memory().unwrap_or_default());
    let hugepages = resources.hugepage_limits().iter().flatten();
    Limits {
        cpu_quota: cpu.quota(),
        cpu_period: cpu.period(),
        cpus: cpu.cpus().clone(),
        mems: cpu.mems().clone(),
        memory: memory.limit(),
        memory_and_swap: memory.swap(),
        hugepages: hugepages
            .map(|limit| (limit.page_size().clone(), u64::try_from(limit.limit()).unwrap_or_default()))
            .collect(),
        unified: resources.unified().clone().unwrap_or_default().into_iter().collect(),
        ..Limits::default()
    }
}
