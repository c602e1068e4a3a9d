//! Many pods at the same moment.

use std::time::Instant;

use anyhow::{Context, ensure};
use e2e::{Cri, PodSpec, Result};

use crate::host::{self, systemctl};
use crate::load;
use crate::runner::Verdict;
use crate::world::{self, Kind, World};

/// All are started at once, and removed at once. systemd must have no failed unit and in the end no unit of them at all.
pub(crate) async fn many_pods_at_once(world: &World) -> Result<Verdict> {
    let number = if world.kind == Kind::Vm { 5 } else { 50 };
    let cri = world.cri().await?;
    let image = world.image(&cri).await?;
    let before = Spent::now().await?;
    let begun = Instant::now();
    let pods = start(world, &cri, &image, number).await?;
    let started = Spent::now().await?;
    println!("    {number} pods with a container each run after {:.1} s", begun.elapsed().as_secs_f64());
    started.print_since(&before, "start", number);

    for (id, _) in &pods {
        ensure!(host::property(&world::scope(id), "ActiveState").await? == "active", "the scope of {id}");
    }
    let failed = systemctl(&["list-units", "--failed", "--full", "--plain", "--no-legend"]).await?;
    ensure!(failed.is_empty(), "failed units: {failed}");

    let begun = Instant::now();
    remove(&cri, pods.into_iter().map(|(_, pod_id)| pod_id)).await?;
    println!("    and are gone after {:.1} s", begun.elapsed().as_secs_f64());
    Spent::now().await?.print_since(&started, "removal", number);
    Ok(Verdict::Passed)
}

/// Gives of each pod the container's and the pod's id.
async fn start(world: &World, cri: &Cri, image: &str, number: u64) -> Result<Vec<(String, String)>> {
    let starts = (0..number).map(|n| {
        let (cri, image, pod) = (cri.clone(), image.to_owned(), world.pod(&format!("crowd{n}"), "crun"));
        tokio::spawn(async move { one(&cri, &image, &pod).await })
    });
    let mut pods = Vec::new();
    let mut repeated = 0;
    for start in starts.collect::<Vec<_>>() {
        let (id, pod_id, refusals) = start.await??;
        pods.push((id, pod_id));
        repeated += refusals;
    }
    println!("    {repeated} calls repeated");
    Ok(pods)
}

async fn one(cri: &Cri, image: &str, pod: &PodSpec) -> Result<(String, String, usize)> {
    let pod_id = cri.run_pod(pod).await.context("RunPodSandbox")?;
    let (id, refusals) = load::container(cri, &pod_id, image, pod).await?;
    Ok((id, pod_id, refusals))
}

async fn remove(cri: &Cri, pods: impl Iterator<Item = String>) -> Result {
    let removals = pods.map(|id| {
        let cri = cri.clone();
        tokio::spawn(async move {
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await
        })
    });
    for removal in removals.collect::<Vec<_>>() {
        removal.await??;
    }
    Ok(())
}

/// Processor time, in milliseconds.
struct Spent {
    systemd: u64,
    bus: u64,
    crimson: u64,
}

impl Spent {
    async fn now() -> Result<Self> {
        let bus = host::property("dbus.service", "MainPID").await?.parse().context("the bus")?;
        Ok(Self {
            systemd: host::processor_ms(1)?,
            bus: host::processor_ms(bus)?,
            crimson: host::processor_ms(host::main_pid().await?)?,
        })
    }

    fn print_since(&self, before: &Self, what: &str, pods: u64) {
        let each = |now: u64, before: u64| (now.saturating_sub(before)) / pods;
        println!(
            "    processor time per pod, {what}: systemd {} ms, bus {} ms, crimson {} ms",
            each(self.systemd, before.systemd),
            each(self.bus, before.bus),
            each(self.crimson, before.crimson)
        );
    }
}
