//! The network of real plugins.
//!
//! | step of setup | what a crash right after it leaves | who cleans up |
//! |---|---|---|
//! | record written | a record, nothing else | teardown, gc: DEL of all plugins |
//! | some plugins of ADD ran | a record without result | the same |
//! | all plugins ran, result not written | a record without result | the same |
//! | result written | an attachment | the same, with the result |
//!
//! Each operation is a task of its own: a caller that goes away does not stop it, and the next operation on the sandbox
//! waits for it. A failed ADD is undone at once, by DEL of the plugins that had been started; if that fails too, the record stays.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;
use types::SandboxId;

use crate::chain::{self, Chain, Subject};
use crate::config::CniConfig;
use crate::counts::Counts;
use crate::discover::{self, Source};
use crate::error::CniError;
use crate::gate::{Gate, Operation};
use crate::network::{Attachment, Network, NetworkStatus};
use crate::orphan;
use crate::plugin::{Deadline, Verb};
use crate::pod::PodNetwork;
use crate::published::{self, Health, Published};
use crate::record::{Lookup, Record, Records};
use crate::result;
use crate::syncer::{self, Rhythm};

/// The longest that a collection keeps pods from being attached.
const GC_LIMIT: Duration = Duration::from_secs(15);
/// How long a reload waits for the plugins of another directory to say how they are.
const SETTLE_LIMIT: Duration = Duration::from_secs(6);
/// How many stale attachments are undone at a time.
const GC_PARALLEL: usize = 8;

/// Connects pods by running CNI plugins. Its tasks end with it, or with the token given to [`Cni::open`].
#[derive(Debug)]
pub struct Cni {
    inner: Arc<Inner>,
    rhythm: Rhythm,
    tasks: DropGuard,
}

/// What a reload replaces; each step of an operation takes the one in force.
#[derive(Debug, Clone)]
struct Setup {
    config: CniConfig,
    chain: Chain,
    state: watch::Receiver<Published>,
    /// Ends the tasks that keep `state` true when the last setup with it goes.
    _watching: Arc<DropGuard>,
}

impl Setup {
    async fn begin(config: CniConfig, counts: Arc<Counts>, rhythm: Rhythm, end: CancellationToken) -> Self {
        let chain = Chain { bin_dirs: config.bin_dirs.clone(), counts };
        let state = syncer::spawn(config.conf_dir.clone(), chain.clone(), rhythm, end.clone()).await;
        Self { config, chain, state, _watching: Arc::new(end.drop_guard()) }
    }

    /// Waits until the plugins were asked how they are; a reload shall not make the node unready for a moment.
    async fn settle(&mut self) {
        let asked = |state: &Published| state.network.is_none() || state.health != Health::Unknown;
        // One that stays unknown is shown as such.
        drop(tokio::time::timeout(SETTLE_LIMIT, self.state.wait_for(asked)).await);
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.config.operation_timeout)
    }

    fn network(&self) -> Result<Arc<Source>, CniError> {
        let state = self.state.borrow();
        let none = || CniError::NotInitialized(state.why_none(&self.config.conf_dir));
        state.network.clone().ok_or_else(none)
    }
}

#[derive(Debug)]
struct Inner {
    setup: watch::Sender<Arc<Setup>>,
    records: Records,
    gate: Gate,
    /// Sandboxes that this process attached and did not begin to detach.
    live: Mutex<BTreeSet<SandboxId>>,
    /// Sandboxes that were on record at start and not worked on since: an earlier life's plugins may still run.
    inherited: Mutex<BTreeSet<SandboxId>>,
}

impl Cni {
    /// Opens the record directory, takes a first look at the configuration, and starts watching it until `shutdown`.
    /// A missing or invalid configuration is no error: see [`Network::status`].
    ///
    /// # Errors
    /// When the record directory cannot be made.
    pub async fn open(config: CniConfig, shutdown: CancellationToken) -> Result<Self, CniError> {
        Self::with_rhythm(config, Rhythm::default(), &shutdown).await
    }

    pub(crate) async fn with_rhythm(
        config: CniConfig,
        rhythm: Rhythm,
        shutdown: &CancellationToken,
    ) -> Result<Self, CniError> {
        let records = Records::open(config.cache_dir.clone()).await?;
        let end = shutdown.child_token();
        let setup = Setup::begin(config, Arc::default(), rhythm.clone(), end.child_token()).await;
        let inherited =
            Mutex::new(records.list().map_err(|error| records.unusable(error))?.into_iter().collect());
        let (gate, live) = (Gate::default(), Mutex::default());
        let setup = watch::Sender::new(Arc::new(setup));
        let inner = Arc::new(Inner { setup, records, gate, live, inherited });
        Ok(Self { inner, rhythm, tasks: end.drop_guard() })
    }

    /// Works by other directories and limits from now on. Operations under way end as they began; where records lie and
    /// what interfaces are called does not change.
    pub async fn reconfigure(&self, config: CniConfig) {
        let old = self.inner.setup();
        let CniConfig { cache_dir, interface, .. } = old.config.clone();
        let config = CniConfig { cache_dir, interface, ..config };
        let same = config.conf_dir == old.config.conf_dir && config.bin_dirs == old.config.bin_dirs;
        let next = if same {
            Setup { config, ..Setup::clone(&old) }
        } else {
            let end = self.tasks.token().child_token();
            let mut next = Setup::begin(config, self.counts(), self.rhythm.clone(), end).await;
            next.settle().await;
            next
        };
        self.inner.setup.send_replace(Arc::new(next));
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        self.inner.counts()
    }

    /// Waits until [`Network::status`] satisfies `wanted`; None when the driver was shut down first.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&NetworkStatus) -> bool) -> Option<NetworkStatus> {
        let setup = self.inner.setup();
        let (mut state, dir) = (setup.state.clone(), &setup.config.conf_dir);
        let state = state.wait_for(|state| wanted(&state.status(dir))).await.ok()?;
        Some(state.status(dir))
    }
}

#[async_trait]
impl Network for Cni {
    async fn setup(&self, pod: &PodNetwork) -> Result<Attachment, CniError> {
        let (inner, pod) = (Arc::clone(&self.inner), pod.clone());
        finish(tokio::spawn(async move { inner.attach_new(&pod).await }.in_current_span())).await
    }

    async fn teardown(&self, pod: &PodNetwork) -> Result<(), CniError> {
        let (inner, pod) = (Arc::clone(&self.inner), pod.clone());
        finish(tokio::spawn(async move { inner.teardown(&pod).await }.in_current_span())).await
    }

    async fn check(&self, pod: &PodNetwork) -> Result<(), CniError> {
        let (inner, pod) = (Arc::clone(&self.inner), pod.clone());
        finish(tokio::spawn(async move { inner.check(&pod).await }.in_current_span())).await
    }

    async fn gc(&self, valid: &[SandboxId]) -> Result<(), CniError> {
        let (inner, valid) = (Arc::clone(&self.inner), valid.to_vec());
        finish(tokio::spawn(async move { inner.gc(&valid).await })).await
    }

    fn status(&self) -> NetworkStatus {
        let setup = self.inner.setup();
        setup.state.borrow().status(&setup.config.conf_dir)
    }

    fn describe(&self) -> Value {
        let setup = self.inner.setup();
        let config = &setup.config;
        let network = setup.state.borrow().network.clone();
        let networks: Vec<Value> =
            network.iter().map(|network| network.describe(&config.interface)).collect();
        json!({
            "PluginDirs": config.bin_dirs,
            "PluginConfDir": config.conf_dir,
            "PluginMaxConfNum": 1,
            "Prefix": "eth",
            "Networks": networks,
        })
    }

    fn cached(&self) -> Vec<SandboxId> {
        self.inner.recorded()
    }
}

/// Waits for an operation. Its panic is the caller's; it is cancelled only by the end of the runtime.
async fn finish<T>(operation: JoinHandle<Result<T, CniError>>) -> Result<T, CniError> {
    match operation.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(CniError::Interrupted),
        },
    }
}

impl Inner {
    fn setup(&self) -> Arc<Setup> {
        Arc::clone(&self.setup.borrow())
    }

    fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.setup().chain.counts)
    }

    async fn attach_new(&self, pod: &PodNetwork) -> Result<Attachment, CniError> {
        chain::check_arguments(pod)?;
        let netns = netns_of_new(pod)?;
        let refused = |error: &CniError| self.counts().refused(Verb::Add, error);
        let network = self.network_of(pod).await.inspect_err(refused)?;
        let _operation = self.enter(&pod.sandbox).await?;
        self.undo_earlier(pod).await?;
        self.setup().chain.check_programs(&network.list).inspect_err(refused)?;
        let mut record = self.intend(pod, &network).await?;
        match self.attach(&mut record, netns).await {
            Ok(attachment) => Ok(attachment),
            Err(error) => {
                self.roll_back(&record).await;
                Err(error)
            }
        }
    }

    /// Waits until nothing else works on the sandbox, neither in this life nor from an earlier one.
    async fn enter(&self, sandbox: &SandboxId) -> Result<Operation<'_>, CniError> {
        let operation = self.gate.enter(sandbox).await;
        if self.inherited().contains(sandbox) {
            orphan::wait_for_end(sandbox, self.deadline()).await?;
            self.inherited().remove(sandbox);
        }
        Ok(operation)
    }

    /// What an earlier attempt for the same sandbox left is undone before the next one.
    async fn undo_earlier(&self, pod: &PodNetwork) -> Result<(), CniError> {
        self.detach(&pod.sandbox, Some(pod)).await
    }

    /// Writes down what is about to be done.
    async fn intend(&self, pod: &PodNetwork, network: &Source) -> Result<Record, CniError> {
        let record = Record {
            pod: pod.clone(),
            interface: self.setup().config.interface.clone(),
            list: network.list.clone(),
            started: None,
            result: None,
        };
        self.live().insert(pod.sandbox.clone());
        if let Err(error) = self.records.write(&record).await {
            self.live().remove(&pod.sandbox);
            return Err(error);
        }
        Ok(record)
    }

    async fn attach(&self, record: &mut Record, netns: String) -> Result<Attachment, CniError> {
        let subject = Subject::new(&record.pod, netns, &record.interface);
        let added = self.setup().chain.add(&record.list, &subject, self.deadline()).await;
        let result = added.map_err(|failure| {
            record.started = Some(failure.started);
            failure.error
        })?;
        record.result = Some(result.clone());
        let last = record.list.plugins.last().map(|plugin| plugin.kind.as_str()).unwrap_or_default();
        let attachment = result::attachment(&record.list.name, last, &record.interface, result)?;
        self.records.write(record).await?;
        Ok(attachment)
    }

    /// Undoes a failed setup. The record goes only when that worked.
    async fn roll_back(&self, record: &Record) {
        let sandbox = &record.pod.sandbox;
        self.live().remove(sandbox);
        if let Err(error) = self.undo(record, record.pod.netns.as_deref()).await {
            tracing::warn!(
                pod.id = %sandbox,
                error = types::error::chain(&error),
                "failed network setup is not undone yet"
            );
        }
    }

    async fn teardown(&self, pod: &PodNetwork) -> Result<(), CniError> {
        let _operation = self.enter(&pod.sandbox).await?;
        self.detach(&pod.sandbox, Some(pod)).await
    }

    /// Undoes what is on record for the sandbox; nothing on record is success.
    async fn detach(&self, sandbox: &SandboxId, pod: Option<&PodNetwork>) -> Result<(), CniError> {
        self.live().remove(sandbox);
        match self.records.read(sandbox).await? {
            Lookup::None => Ok(()),
            Lookup::Found(record) => {
                let netns = pod.map_or(&record.pod, |pod| pod).netns.clone();
                self.undo(&record, netns.as_deref()).await
            }
            Lookup::Unreadable(error) => {
                tracing::warn!(pod.id = %sandbox, error = types::error::chain(&error), "network record is damaged");
                self.detach_blindly(sandbox, pod).await
            }
        }
    }

    /// DEL and the end of the record.
    async fn undo(&self, record: &Record, netns: Option<&Path>) -> Result<(), CniError> {
        let deadline = self.deadline();
        let mut deleted = self.delete(record, netns, deadline).await;
        if record.result.is_none() && matches!(deleted, Err(CniError::Plugin { .. } | CniError::Died { .. }))
        {
            // A plugin that was killed half-way through ADD may stumble once over what it did not get to make: bridge
            // removes the interface, fails at a firewall chain that is not there, and succeeds when asked again.
            deleted = self.delete(record, netns, deadline).await;
        }
        deleted?;
        self.records.remove(&record.pod.sandbox).await
    }

    async fn delete(
        &self,
        record: &Record,
        netns: Option<&Path>,
        deadline: Deadline,
    ) -> Result<(), CniError> {
        let subject = Subject::new(&record.pod, netns_if_alive(netns), &record.interface);
        let count = record.started.unwrap_or(record.list.plugins.len());
        self.setup().chain.del(&record.list, count, &subject, record.result.as_ref(), deadline).await
    }

    /// With a damaged record the present network is the best guess at what has to be undone. Without one nothing can
    /// be done but to forget.
    async fn detach_blindly(&self, sandbox: &SandboxId, pod: Option<&PodNetwork>) -> Result<(), CniError> {
        if let (Ok(network), Some(pod)) = (self.network(), pod) {
            let interface = self.setup().config.interface.clone();
            let list = network.list.clone();
            let record = Record { pod: pod.clone(), interface, list, started: None, result: None };
            return self.undo(&record, pod.netns.as_deref()).await;
        }
        self.records.remove(sandbox).await
    }

    async fn check(&self, pod: &PodNetwork) -> Result<(), CniError> {
        let _operation = self.enter(&pod.sandbox).await?;
        let Lookup::Found(record) = self.records.read(&pod.sandbox).await? else {
            return Err(CniError::NotAttached);
        };
        let Some(result) = &record.result else { return Err(CniError::NotAttached) };
        let subject = Subject::new(&record.pod, netns_if_alive(pod.netns.as_deref()), &record.interface);
        self.setup().chain.check(&record.list, &subject, result, self.deadline()).await
    }

    async fn gc(self: &Arc<Self>, valid: &[SandboxId]) -> Result<(), CniError> {
        let failures = collect_stale(self, valid).await;
        let collected = self.collect_unknown(valid).await;
        CniError::collect(failures.into_iter().chain(collected.err()).collect())
    }

    /// Lets the plugins release what belongs to no valid attachment; nothing else runs meanwhile.
    async fn collect_unknown(&self, valid: &[SandboxId]) -> Result<(), CniError> {
        let Ok(network) = self.network() else { return Ok(()) };
        if !network.list.version.has_gc_and_status() || network.list.disable_gc {
            return Ok(());
        }
        let _alone = self.gate.enter_alone(self.deadline()).await?;
        let valid: BTreeSet<SandboxId> = valid.iter().cloned().chain(self.live().iter().cloned()).collect();
        let valid: Vec<SandboxId> = valid.into_iter().collect();
        let Setup { config, chain, .. } = &*self.setup();
        let deadline = Deadline::after(GC_LIMIT.min(config.operation_timeout));
        chain.gc(&network.list, &valid, &config.interface, deadline).await
    }

    fn network(&self) -> Result<Arc<Source>, CniError> {
        self.setup().network()
    }

    /// The network of a pod that is to be set up. A directory of its own is read now, since nobody watches it.
    async fn network_of(&self, pod: &PodNetwork) -> Result<Arc<Source>, CniError> {
        let Some(dir) = pod.conf_dir.clone() else { return self.network() };
        let looked = tokio::task::spawn_blocking({
            let dir = dir.clone();
            move || discover::look(&dir)
        });
        let found = looked.await.map_err(|_| CniError::Interrupted)?;
        let why_none = published::why_none(found.missing, &found.problems, &dir);
        found.network.map(Arc::new).ok_or(CniError::NotInitialized(why_none))
    }

    fn recorded(&self) -> Vec<SandboxId> {
        self.records.list().unwrap_or_else(|error| {
            let path = &self.setup().config.cache_dir;
            tracing::warn!(path = %path.display(), error = %error, "network records cannot be listed");
            Vec::new()
        })
    }

    fn deadline(&self) -> Deadline {
        self.setup().deadline()
    }

    fn inherited(&self) -> MutexGuard<'_, BTreeSet<SandboxId>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, BTreeSet<SandboxId>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Detaches every recorded sandbox that nobody needs, several at a time.
async fn collect_stale(inner: &Arc<Inner>, valid: &[SandboxId]) -> Vec<CniError> {
    // Listed before asking which are live: a record that is seen here was preceded by its mark.
    let recorded = inner.recorded();
    let stale = |id: &SandboxId| !valid.contains(id) && !inner.live().contains(id);
    let mut waiting = recorded.into_iter().filter(stale).collect::<Vec<_>>().into_iter();
    let mut running = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        while running.len() < GC_PARALLEL
            && let Some(sandbox) = waiting.next()
        {
            let inner = Arc::clone(inner);
            running.spawn(async move {
                let _operation = inner.enter(&sandbox).await?;
                inner.detach(&sandbox, None).await
            });
        }
        match running.join_next().await {
            None => return failures,
            Some(Ok(done)) => failures.extend(done.err()),
            Some(Err(_)) => failures.push(CniError::Interrupted),
        }
    }
}

fn netns_of_new(pod: &PodNetwork) -> Result<String, CniError> {
    let refuse = |reason: String| CniError::InvalidPod { what: "network namespace", reason };
    let path = pod.netns.as_deref().ok_or_else(|| refuse("it has none".to_owned()))?;
    path.to_str().map(str::to_owned).ok_or_else(|| refuse("its path is not text".to_owned()))
}

/// The namespace for DEL and CHECK, empty when it is gone.
fn netns_if_alive(path: Option<&Path>) -> String {
    let alive = path.filter(|path| sys::netns::is_namespace(path).unwrap_or(true));
    alive.and_then(Path::to_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
