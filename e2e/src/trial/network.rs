//! Pods whose network plugins are missing, fail or hang: nobody waits for them, and what they hold is given back.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::Instant;

use super::{Report, Stage, until};
use crate::cri::{PodSandboxState, StatusRequest, VersionRequest};
use crate::faulty::{self, Fault, Injected, Moment, Program};
use crate::{ContainerSpec, Result, patience};

/// How long StopPodSandbox may take beyond the grace of the containers, which is none.
const STOP_LIMIT_SECONDS: u64 = 10;
/// How long an address may stay leased after its plugin is back.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);
/// How long the daemon waits for a STATUS.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// What is wrong with the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is not installed any more.
    Missing,
    /// It ends with an error.
    Failing,
    /// It is killed.
    Dying,
    /// It hangs, and goes on when it is back.
    Hanging,
    /// It hangs for ever; only new calls work again.
    Stuck,
    /// It hangs, and the daemon is killed meanwhile.
    Crashing,
}

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How long the plugin is in trouble after StopPodSandbox has returned.
    pub trouble: Duration,
    /// How long one plugin may take, as the daemon is configured.
    pub plugin_limit: Duration,
}

/// StopPodSandbox and RemovePodSandbox with a plugin in trouble, which then comes back.
pub async fn stop_with(trouble: Trouble, plan: Plan) -> Result<Report> {
    let mut stage = Stage::set(&format!("[cni]\ntimeout_secs = {}\n", plan.plugin_limit.as_secs())).await?;
    let cri = stage.node.cri();
    let pod = stage.pod("troubled");
    let pod_id = cri.run_pod(&pod).await?;
    cri.run(&pod_id, &ContainerSpec::lasting("c", &stage.image), &pod).await?;
    let address = cri.pod_ip(&pod_id).await?;
    ensure!(stage.node.network().leased().contains(&address), "{address} is leased");

    let in_force = Wrong::put(&stage, trouble)?;
    let begun = Instant::now();
    cri.stop_pod(&pod_id).await?;
    let stopped = begun.elapsed();
    ensure!(stopped < patience(STOP_LIMIT_SECONDS), "StopPodSandbox took {stopped:?}");
    ensure!(cri.pod(&pod_id).await?.state() == PodSandboxState::SandboxNotready, "it is not stopped");
    let begun = Instant::now();
    cri.remove_pod(&pod_id).await?;
    let removed = begun.elapsed();
    ensure!(removed < patience(STOP_LIMIT_SECONDS), "RemovePodSandbox took {removed:?}");
    ensure!(cri.all_pods().await?.is_empty(), "a removed pod is listed");
    if trouble == Trouble::Crashing {
        stage.node.kill9().await?;
        stage.node.restart().await?;
    }
    tokio::time::sleep(plan.trouble).await;
    ensure!(stage.node.network().leased().contains(&address), "{address} is released without its plugin");

    let old_call = in_force.end(trouble)?;
    let begun = Instant::now();
    let released = until("the address is released", RELEASE_LIMIT.as_secs(), || async {
        Ok(!stage.node.network().leased().contains(&address))
    })
    .await;
    let released = released.map(|()| begun.elapsed())?;
    drop(old_call);
    let mut report = Report::default();
    report.note(format!(
        "{trouble:?}: StopPodSandbox {stopped:.2?}, RemovePodSandbox {removed:.2?}, address released {released:.2?} after the plugin's return"
    ));
    stage.finish().await?;
    Ok(report)
}

/// A plugin in trouble.
enum Wrong {
    Gone(#[allow(dead_code, reason = "dropping it brings the plugin back")] faulty::Hidden),
    Faulty(Injected),
}

impl Wrong {
    fn put(stage: &Stage, trouble: Trouble) -> Result<Self> {
        let inject = |fault| stage.faulty.inject(Program::Bridge, "DEL", Moment::Before, fault);
        Ok(match trouble {
            Trouble::Missing => Self::Gone(stage.faulty.hide(Program::Bridge)?),
            Trouble::Failing => Self::Faulty(inject(Fault::Fail)?),
            Trouble::Dying => Self::Faulty(inject(Fault::Die)?),
            Trouble::Hanging | Trouble::Stuck | Trouble::Crashing => Self::Faulty(inject(Fault::Hang)?),
        })
    }

    /// Brings the plugin back. What is returned keeps an old call hanging.
    fn end(self, trouble: Trouble) -> Result<Option<Injected>> {
        match self {
            Self::Faulty(injected) if trouble == Trouble::Stuck => {
                injected.for_old_calls_only()?;
                Ok(Some(injected))
            }
            Self::Gone(_) | Self::Faulty(_) => Ok(None),
        }
    }
}

/// RunPodSandbox with a plugin that is missing, fails, dies or hangs: a clear error, nothing left behind, and a retry works.
pub async fn run_with_trouble(plugin_limit: Duration) -> Result<Report> {
    let mut report = Report::default();
    let stage = Stage::set(&format!("[cni]\ntimeout_secs = {}\n", plugin_limit.as_secs())).await?;
    let cri = stage.node.cri();
    // Its address makes the plugins' own things, which stay, part of what was there before.
    let first = cri.run_pod(&stage.pod("first")).await?;
    let leased = stage.node.network().leased();
    for (program, moment) in [
        (Program::Bridge, Moment::Before),
        (Program::Bridge, Moment::After),
        (Program::Portmap, Moment::Before),
        (Program::Portmap, Moment::After),
    ] {
        for fault in [Fault::Fail, Fault::Die, Fault::Hang] {
            let what = format!("{program:?} {moment:?} {fault:?}");
            let pod = stage.pod("unlucky");
            let injected = stage.faulty.inject(program, "ADD", moment, fault)?;
            let begun = Instant::now();
            let refused = cri.run_pod(&pod).await;
            let took = begun.elapsed();
            let status = match refused {
                Ok(_) => anyhow::bail!("{what}: the pod runs"),
                Err(status) => status,
            };
            ensure!(took < plugin_limit + patience(10), "{what}: RunPodSandbox took {took:?}");
            ensure!(
                status.message().contains(program_type(program)),
                "{what}: the plugin is not named: {status}"
            );
            ensure!(cri.all_pods().await?.len() == 1, "{what}: the pod is listed");
            drop(injected);
            until(&format!("{what}: its address is released"), 60, || async {
                Ok(stage.node.network().leased() == leased)
            })
            .await?;
            let id = cri.run_pod(&pod).await.with_context(|| format!("{what}: again"))?;
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await?;
        }
    }
    report.note(
        "ADD of either plugin failed, died and hung before and after its work: undone, and a retry works",
    );
    cri.stop_pod(&first).await?;
    cri.remove_pod(&first).await?;
    stage.finish().await?;
    Ok(report)
}

fn program_type(program: Program) -> &'static str {
    match program {
        Program::Portmap => "faulty-portmap",
        Program::Bridge | Program::Runtime => "faulty-bridge",
    }
}

/// A plugin whose STATUS hangs: the daemon's Status answers at once all the while, and so does everything else.
pub async fn hung_status() -> Result<Report> {
    let stage = Stage::set("").await?;
    let cri = stage.node.cri();
    let pod_id = cri.run_pod(&stage.pod("before")).await?;
    let stall = stage.faulty.inject(Program::Bridge, "STATUS", Moment::Before, Fault::Hang)?;
    let network = stage.node.network();
    // STATUS exists since version 1.1 of the specification, which the plugins of this machine need not know.
    let list = serde_json::json!({
        "cniVersion": "1.1.0", "name": network.bridge, "plugins": [{ "type": "faulty-bridge", "bridge": network.bridge }],
    });
    let path = network.conf_dir.join("05-status.conflist");
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(&list)?)?;
    fs::rename(&temporary, &path)?;
    stage.faulty.wait_for_hung(Program::Bridge, "STATUS", 1).await?;
    let begun = Instant::now();
    let mut worst = Duration::ZERO;
    while begun.elapsed() < STATUS_TIMEOUT + Duration::from_secs(2) {
        let asked = Instant::now();
        cri.status(StatusRequest { verbose: true }).await?;
        cri.version(VersionRequest::default()).await?;
        cri.pod(&pod_id).await?;
        worst = worst.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Who waited for it would wait for nearly all of its time; a busy machine may keep anyone waiting for a second.
    ensure!(
        worst < STATUS_TIMEOUT.mul_f64(0.8),
        "Status, Version and PodSandboxStatus took {worst:?} beside a hung STATUS"
    );
    fs::remove_file(&path)?;
    drop(stall);
    faulty::network_is(&stage.node, "faulty-portmap").await?;
    let mut report = Report::default();
    report.note(format!(
        "STATUS hung: the slowest Status, Version and PodSandboxStatus together took {worst:.1?}"
    ));
    stage.finish().await?;
    Ok(report)
}
