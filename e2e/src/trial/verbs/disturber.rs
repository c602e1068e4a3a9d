//! Whoever kills and breaks: the daemon, monitors, processes of the OCI runtime, network plugins, the way to the registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::Code;

use super::World;
use crate::cri::PodSandboxState;
use crate::faulty::{Fault, Moment, Program};
use crate::trial::{Random, Stage, until};
use crate::{Node, RegistryProxy, Result, Trouble};

#[derive(Debug)]
pub(super) struct Disturber {
    stage: Stage,
    proxy: RegistryProxy,
    pub(super) world: Arc<World>,
    random: Random,
    counts: BTreeMap<&'static str, usize>,
}

impl Disturber {
    pub(super) fn new(stage: Stage, proxy: RegistryProxy, world: Arc<World>, random: Random) -> Self {
        Self { stage, proxy, world, random, counts: BTreeMap::new() }
    }

    pub(super) fn into_stage(self) -> Stage {
        self.stage
    }

    pub(super) fn node(&self) -> &Node {
        &self.stage.node
    }

    pub(super) fn describe(&self) -> String {
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        format!("disturbances: {}", counts.join(", "))
    }

    /// Waits a little, then does one thing.
    pub(super) async fn disturb(&mut self) -> Result {
        tokio::time::sleep(self.random.milliseconds(100, 1500)).await;
        self.world.begun.fetch_add(1, Ordering::SeqCst);
        let done = match self.random.below(13) {
            0..4 => self.kill_daemon().await,
            4..6 => self.kill_monitor().await,
            6..8 => self.kill_runtime().await,
            8..10 => self.break_runtime().await,
            10 => self.break_network().await,
            _ => self.break_registry().await,
        };
        // Calls that began before this moment may still fail for it.
        let begun = self.world.begun.load(Ordering::SeqCst);
        self.world.ended.store(begun, Ordering::SeqCst);
        done
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    async fn kill_daemon(&mut self) -> Result {
        self.count("daemon killed");
        self.stage.node.kill9().await?;
        tokio::time::sleep(self.random.milliseconds(0, 300)).await;
        self.stage.node.restart().await?;
        self.world.use_cri(self.stage.node.cri());
        Ok(())
    }

    /// Kills the monitor of some pod, which is doomed from now on.
    async fn kill_monitor(&mut self) -> Result {
        let (processes, alone) = (self.stage.node.machine().processes()?, self.stage.node.monitors()?);
        let monitors: Vec<(u32, String)> = processes
            .into_iter()
            .filter(|(pid, _)| alone.contains(pid))
            .filter_map(|(pid, line)| Some((pid, id_in(&line)?)))
            .collect();
        let Some((pid, pod)) = monitors.get(self.random.index(monitors.len())) else { return Ok(()) };
        self.world.doom(pod);
        let (pid, monitors_killed) = (*pid, "monitor killed");
        self.count(monitors_killed);
        self.kill(pid).await;
        // Calls may fail for it until the daemon has noticed. The pod may be on its way out, too.
        let cri = self.world.cri();
        until("a monitor's death is noticed", 30, || async {
            match cri.pod(pod).await {
                Ok(status) => Ok(status.state() == PodSandboxState::SandboxNotready),
                Err(status) if status.code() == Code::NotFound => Ok(true),
                Err(status) => Err(status.into()),
            }
        })
        .await
    }

    /// Kills a process of the OCI runtime in the middle of its work.
    async fn kill_runtime(&mut self) -> Result {
        for _ in 0..200 {
            let processes = self.stage.node.machine().processes()?;
            let found = processes.into_iter().find(|(_, line)| {
                [" create ", " start ", " exec ", " delete "].iter().any(|verb| line.contains(verb))
                    && line.contains("/runc ")
            });
            if let Some((pid, _)) = found {
                self.count("runtime killed");
                self.kill(pid).await;
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Has every call of one verb of the OCI runtime fail, die or hang for a moment.
    async fn break_runtime(&mut self) -> Result {
        let verb =
            ["create", "start", "exec", "delete"].get(self.random.index(4)).copied().unwrap_or("start");
        let fault = self.fault();
        let moment = if self.random.below(2) == 0 { Moment::Before } else { Moment::After };
        self.count("runtime broken");
        let broken = self.stage.faulty.inject(Program::Runtime, verb, moment, fault)?;
        tokio::time::sleep(self.random.milliseconds(50, 500)).await;
        drop(broken);
        Ok(())
    }

    /// Has every call of one verb of a network plugin fail, die or hang for a moment.
    async fn break_network(&mut self) -> Result {
        let verb = if self.random.below(2) == 0 { "ADD" } else { "DEL" };
        let program = if self.random.below(2) == 0 { Program::Bridge } else { Program::Portmap };
        let fault = self.fault();
        let moment = if self.random.below(2) == 0 { Moment::Before } else { Moment::After };
        self.count("network broken");
        let broken = self.stage.faulty.inject(program, verb, moment, fault)?;
        tokio::time::sleep(self.random.milliseconds(50, 1500)).await;
        drop(broken);
        Ok(())
    }

    /// Has the way to the registry break, for blobs, for manifests or for all, for a moment.
    async fn break_registry(&mut self) -> Result {
        let path = ["/blobs/", "/manifests/", "/v2/"].get(self.random.index(3)).copied().unwrap_or_default();
        let after = self.random.below(600 << 10);
        let trouble = match self.random.below(6) {
            0..2 => Trouble::Cut { after },
            2 => Trouble::Stall { after, time: self.random.milliseconds(10, 1000) },
            3 => Trouble::Hold { after },
            4 => Trouble::Status { code: 503, retry_after: Some(self.random.below(2)) },
            _ => Trouble::Refuse,
        };
        self.count("registry broken");
        let broken = self.proxy.put(path, trouble);
        tokio::time::sleep(self.random.milliseconds(50, 1500)).await;
        broken.lift();
        Ok(())
    }

    fn fault(&mut self) -> Fault {
        let faults = [Fault::Fail, Fault::Die, Fault::Hang];
        faults.get(self.random.index(faults.len())).copied().unwrap_or(Fault::Fail)
    }

    async fn kill(&self, pid: u32) {
        // It may have ended by itself meanwhile.
        drop(self.stage.node.machine().output("kill", &["-KILL", &pid.to_string()]).await);
    }
}

/// The first id of 64 hexadecimal characters in a command line.
fn id_in(line: &str) -> Option<String> {
    let words = line.split(|c: char| !c.is_ascii_hexdigit());
    words.into_iter().find(|word| word.len() == 64).map(str::to_owned)
}
