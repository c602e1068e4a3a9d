//! The soak: clients that do random verbs, somebody who kills and breaks at random, and a model that knows what must be true.
//!
//! Each client has pods and an image of its own and repeats, as the kubelet does, what was cut off or what it had no patience
//! for, until it is done. So it always knows what there must be, and the model is exact: at quiet points the lists must say
//! neither more nor less. An error is allowed only when something was killed or broken while the call was under way. What the random numbers decide comes from the seed; how calls
//! and kills interleave is the machine's.

mod client;
mod disturber;
mod model;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::{Random, Report, Stage, own_image};
use crate::{Cri, Machine, Result};
use client::Client;
use disturber::Disturber;

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How long it takes, but for the end.
    pub time: Duration,
    /// How many clients there are.
    pub clients: usize,
    /// Between two quiet points, at most.
    pub quiet_every: Duration,
    /// Where the random numbers come from.
    pub seed: u64,
}

/// How large the layer is that makes a client's image its own.
const LAYER: usize = 512 << 10;

/// What clients and disturber share.
#[derive(Debug)]
struct World {
    cri: RwLock<Cri>,
    machine: Arc<Machine>,
    dir: std::path::PathBuf,
    image: String,
    /// Clients hold it while they do a verb; whoever wants quiet takes it whole.
    gate: tokio::sync::RwLock<()>,
    /// How many disturbances have begun, and how many have ended.
    begun: AtomicU64,
    ended: AtomicU64,
    /// Pods whose monitor was killed.
    doomed: Mutex<BTreeSet<String>>,
    over: AtomicBool,
}

impl World {
    fn cri(&self) -> Cri {
        self.cri.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn use_cri(&self, cri: Cri) {
        *self.cri.write().unwrap_or_else(PoisonError::into_inner) = cri;
    }

    fn is_doomed(&self, pod: &str) -> bool {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).contains(pod)
    }

    fn doom(&self, pod: &str) {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned());
    }

    /// A mark to ask later with [`World::disturbed_since`].
    fn mark(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether anything was killed or broken after the mark was taken, or was being killed then.
    fn disturbed_since(&self, mark: u64) -> bool {
        self.begun.load(Ordering::SeqCst) > mark
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Runs the soak.
pub async fn run(plan: Plan) -> Result<Report> {
    soak(plan).await.with_context(|| format!("seed {}", plan.seed))
}

async fn soak(plan: Plan) -> Result<Report> {
    let stage = Stage::set("").await?;
    let proxy = stage.proxy().await?;
    let mut random = Random::new(plan.seed);
    let world = Arc::new(World {
        cri: RwLock::new(stage.node.cri()),
        machine: Arc::clone(stage.node.machine()),
        dir: stage.node.dir().to_owned(),
        image: stage.image.clone(),
        gate: tokio::sync::RwLock::new(()),
        begun: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        doomed: Mutex::default(),
        over: AtomicBool::new(false),
    });
    let mut clients = Vec::new();
    for n in 0..plan.clients {
        let image = own_image(&mut random, &client::name_of(n), LAYER)?;
        let pushed = stage.registry.push(image, "own", &n.to_string()).await?;
        let client = Client::new(n, Arc::clone(&world), random.fork(), proxy.reference_of(&pushed));
        clients.push(Arc::new(tokio::sync::Mutex::new(client)));
    }
    let tasks: Vec<_> = clients.iter().map(|client| tokio::spawn(Client::live(Arc::clone(client)))).collect();
    let mut disturber = Disturber::new(stage, proxy, Arc::clone(&world), random.fork());
    let disturbed = disturb(&mut disturber, &plan, &clients, &tasks).await;
    world.over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await?.context("a client")?;
    }
    disturbed?;
    let mut report = Report::default();
    report.note(disturber.describe());
    for client in &clients {
        let mut client = client.lock().await;
        client.remove_all().await?;
        report.note(client.describe());
    }
    disturber.into_stage().finish().await?;
    Ok(report)
}

/// Disturbs until the time is over or a client has failed, with quiet points between.
async fn disturb(
    disturber: &mut Disturber,
    plan: &Plan,
    clients: &[Arc<tokio::sync::Mutex<Client>>],
    tasks: &[tokio::task::JoinHandle<Result>],
) -> Result {
    let end = Instant::now() + plan.time;
    while Instant::now() < end && !tasks.iter().any(tokio::task::JoinHandle::is_finished) {
        let quiet = end.min(Instant::now() + plan.quiet_every);
        while Instant::now() < quiet && !tasks.iter().any(tokio::task::JoinHandle::is_finished) {
            disturber.disturb().await?;
        }
        if !tasks.iter().any(tokio::task::JoinHandle::is_finished) {
            model::compare(disturber, clients).await.context("at a quiet point")?;
        }
    }
    Ok(())
}
