//! Pods that must not notice what happens around them: each counts into its log.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use e2e::cri::{ContainerState, PodSandboxState};
use e2e::{ContainerSpec, Cri, PodSpec, Result};

use crate::host;
use crate::world::{Kind, World};

/// Some pods that count.
#[derive(Debug)]
pub(crate) struct Steady {
    counters: Vec<Counter>,
}

/// One of them, with what must stay as it is.
#[derive(Debug)]
struct Counter {
    pod_id: String,
    id: String,
    pid: u32,
    pause: u32,
    started_at: i64,
    log: PathBuf,
}

impl Steady {
    /// Starts one pod with each OCI runtime.
    pub(crate) async fn start(world: &World, cri: &Cri) -> Result<Self> {
        let image = world.image(cri).await?;
        let mut counters = Vec::new();
        for handler in ["crun", "runc"] {
            let pod = world.pod(&format!("steady-{handler}"), handler);
            counters.push(Counter::start(world, cri, &image, &pod).await?);
        }
        Ok(Self { counters })
    }

    /// Proves that each is the same as in the beginning and has gone on counting.
    pub(crate) async fn assert_untouched(&self, cri: &Cri) -> Result {
        for counter in &self.counters {
            counter.assert_untouched(cri).await.with_context(|| format!("the counter {}", counter.id))?;
        }
        Ok(())
    }

    /// Ends and removes them.
    pub(crate) async fn end(self, cri: &Cri) -> Result {
        self.assert_untouched(cri).await?;
        for counter in self.counters {
            cri.stop(&counter.id, 0).await?;
            let lines = counter.lines()?;
            println!("    steady: {lines} lines without a gap, process {} all the time", counter.pid);
            cri.stop_pod(&counter.pod_id).await?;
            cri.remove_pod(&counter.pod_id).await?;
        }
        Ok(())
    }
}

impl Counter {
    async fn start(world: &World, cri: &Cri, image: &str, pod: &PodSpec) -> Result<Self> {
        let pause = if world.kind == Kind::Vm { "0.3" } else { "0.03" };
        let line = format!("i=0; while :; do echo $i; i=$((i+1)); sleep {pause}; done");
        let pod_id = cri.run_pod(pod).await?;
        let id = cri.run(&pod_id, &ContainerSpec::shell("counter", image, &line), pod).await?;
        let status = cri.container(&id).await?;
        Ok(Self {
            pid: cri.container_pid(&id).await?,
            pause: cri.pause_pid(&pod_id).await?,
            started_at: status.started_at,
            log: PathBuf::from(status.log_path),
            pod_id,
            id,
        })
    }

    async fn assert_untouched(&self, cri: &Cri) -> Result {
        let status = cri.container(&self.id).await?;
        ensure!(status.state() == ContainerState::ContainerRunning, "it is {:?}: {status:?}", status.state());
        ensure!(status.started_at == self.started_at, "it was started anew");
        let (pid, pause) = (cri.container_pid(&self.id).await?, cri.pause_pid(&self.pod_id).await?);
        ensure!(
            (pid, pause) == (self.pid, self.pause),
            "processes {pid}, {pause} instead of {}, {}",
            self.pid,
            self.pause
        );
        let pod = cri.pod(&self.pod_id).await?;
        ensure!(pod.state() == PodSandboxState::SandboxReady, "its pod is {:?}", pod.state());
        let lines = self.lines()?;
        host::until("it counts on", 10, async || Ok(self.lines()? > lines)).await?;
        ensure!(cri.shell(&self.id, "echo alive").await? == "alive", "an exec in it");
        Ok(())
    }

    /// How many lines it has logged, each one more than the line before.
    fn lines(&self) -> Result<usize> {
        let text =
            std::fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for (number, line) in whole.lines().enumerate() {
            ensure!(line.ends_with(&format!(" stdout F {number}")), "line {number} of the log is {line:?}");
        }
        Ok(whole.lines().count())
    }
}
