//! What must be true, and the comparison of the world with it: of what the lists say, of what containers answer, of what
//! lies about without an owner.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use tokio::sync::Mutex;

use super::World;
use super::client::Client;
use super::disturber::Disturber;
use crate::cri::{ContainerState, ContainerStatus, PodSandboxState};
use crate::trial::until;
use crate::{CgroupDriver, Cri, Node, PodSpec, Result, patience};

/// How a container is meant to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// When it is told to.
    Lasts,
    /// By itself with a code.
    Exits(i32),
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) ending: Ending,
    /// The name of the client whose image it has; none for the image that all share.
    pub(super) owner: Option<String>,
    pub(super) state: ContainerState,
    /// Its start was cut off and failed.
    pub(super) failed: bool,
    /// When it was first seen running.
    pub(super) started_at: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) id: String,
    pub(super) stopped: bool,
    pub(super) containers: Vec<Container>,
}

/// Waits until no client does anything, and compares.
pub(super) async fn compare(disturber: &Disturber, clients: &[Arc<Mutex<Client>>]) -> Result {
    let world = Arc::clone(&disturber.world);
    let _quiet = world.gate.write().await;
    let cri = disturber.node().cri();
    let (mut pods, mut containers, mut images) = (BTreeSet::new(), BTreeSet::new(), 1);
    for client in clients {
        let mut client = client.lock().await;
        images += usize::from(client.has_image().is_some());
        for pod in &mut client.pods {
            pods.insert(pod.id.clone());
            containers.extend(pod.containers.iter().map(|container| container.id.clone()));
            check_pod(&world, &cri, pod).await.with_context(|| format!("{pod:?}"))?;
        }
    }
    let listed: BTreeSet<String> = cri.all_pods().await?.into_iter().map(|it| it.id).collect();
    ensure!(listed == pods, "pods: listed {listed:?}, expected {pods:?}");
    let listed: BTreeSet<String> = cri.all_containers().await?.into_iter().map(|it| it.id).collect();
    ensure!(listed == containers, "containers: listed {listed:?}, expected {containers:?}");
    let listed = cri.all_images().await?.len();
    ensure!(listed == images, "{listed} images, expected {images}");
    is_clean(disturber.node(), "check").await?;
    is_clean(disturber.node(), "check --images").await
}

/// The product's own look at what nobody owns, and at the content of images, finds nothing. What is being tidied up in the
/// background has a little time.
async fn is_clean(node: &Node, subcommand: &str) -> Result {
    let mut found = String::new();
    for _ in 0..patience(30).as_secs() {
        let mut check = node.daemon_command(subcommand)?;
        check.arg("--config").arg(node.dir().join("config.toml"));
        check.arg("--root").arg(node.root()).arg("--state").arg(node.state());
        check.arg("--registry-config-dir").arg(node.registry_config_dir());
        let output = check.args(["--cgroup-driver", CgroupDriver::asked_for().flag()]).output().await?;
        if output.status.success() {
            return Ok(());
        }
        found = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    bail!("`{subcommand}` finds:\n{found}")
}

async fn check_pod(world: &World, cri: &Cri, pod: &mut Pod) -> Result {
    let doomed = world.is_doomed(&pod.id);
    let expected =
        if pod.stopped || doomed { PodSandboxState::SandboxNotready } else { PodSandboxState::SandboxReady };
    until(&format!("the pod is {expected:?}"), 30, || async {
        Ok(cri.pod(&pod.id).await?.state() == expected)
    })
    .await?;
    for container in &mut pod.containers {
        check_container(cri, container, pod.stopped, doomed).await.with_context(|| container.id.clone())?;
    }
    Ok(())
}

async fn check_container(cri: &Cri, container: &mut Container, stopped: bool, doomed: bool) -> Result {
    let ends = container.state == ContainerState::ContainerRunning
        && (container.ending != Ending::Lasts || doomed || stopped);
    let expected = if ends { ContainerState::ContainerExited } else { container.state };
    until(&format!("the container is {expected:?}"), 30, || async {
        Ok(cri.container(&container.id).await?.state() == expected)
    })
    .await?;
    let status = cri.container(&container.id).await?;
    let by_itself = ends && !doomed && !stopped;
    container.state = expected;
    match (expected, container.ending) {
        (ContainerState::ContainerExited, Ending::Exits(code)) if by_itself => {
            ensure!(status.exit_code == code, "exit code {} instead of {code}: {status:?}", status.exit_code);
        }
        (ContainerState::ContainerExited, _) => has_end(&status)?,
        (ContainerState::ContainerRunning, _) => {
            let started_at = *container.started_at.get_or_insert(status.started_at);
            ensure!(status.started_at == started_at, "it was started again: {status:?}");
            let expected = container.owner.as_deref().unwrap_or("of all");
            let seen = cri.shell(&container.id, "cat /own 2>/dev/null || echo of all").await?;
            ensure!(seen == expected, "the image of {expected:?} shows {seen:?}");
        }
        (_, _) => ensure!(status.started_at == 0, "{status:?}"),
    }
    Ok(())
}

fn has_end(status: &ContainerStatus) -> Result {
    ensure!(status.finished_at > 0 && !status.reason.is_empty(), "an end without time or reason: {status:?}");
    Ok(())
}
