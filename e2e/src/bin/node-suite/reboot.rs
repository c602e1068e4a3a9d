//! A reboot with pods: what ran is shown ended, and a kubelet runs it anew.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use e2e::cri::{ContainerState, PodSandboxState};
use e2e::{ContainerSpec, PodSpec, Result};
use serde_json::{Value, json};

use crate::host::{self, systemctl};
use crate::leaks;
use crate::runner::Verdict;
use crate::world::{self, KEPT, Kind, World};

/// How long systemd waits at a shutdown for what does not end, in seconds; 90 by default, which a slow machine may need anyway.
const STOP_SECONDS: u64 = 600;

/// Leaves running pods behind and writes down which.
pub(crate) async fn before(world: &World) -> Result<Verdict> {
    wait_long_at_the_shutdown().await?;
    let cri = world.cri().await?;
    let image = world.image(&cri).await?;
    let mut pods = Vec::new();
    for handler in ["crun", "runc"] {
        let pod = world.pod(&format!("over-{handler}"), handler);
        let pod_id = cri.run_pod(&pod).await?;
        let id = cri.run(&pod_id, &ContainerSpec::lasting("c", &image), &pod).await?;
        let uid = pod.config.metadata.as_ref().map(|it| it.uid.clone()).unwrap_or_default();
        pods.push(json!({ "handler": handler, "uid": uid, "pod": pod_id, "container": id, "pid": cri.container_pid(&id).await? }));
    }
    let note = json!({ "time": host::now(), "image": image, "reference": world.reference, "pods": pods });
    std::fs::write(note_path(), note.to_string())?;
    Ok(Verdict::LeavesPods)
}

/// Does what a kubelet does that comes up on such a node.
pub(crate) async fn after(world: &World) -> Result<Verdict> {
    if world.kind == Kind::Namespaces {
        // A real reboot ends the kernel and with it all cgroups; these are the host's.
        world::remove_slices().await?;
    }
    let note: Value =
        serde_json::from_slice(&std::fs::read(note_path()).context("the note of the first boot")?)?;
    came_down_quickly(note["time"].as_u64().unwrap_or_default()).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = note["pods"].as_array().cloned().unwrap_or_default();
    // The registry has another port in each boot.
    world.configure()?;
    let cri = world.cri().await?;
    let listed: BTreeSet<String> = cri.all_pods().await?.into_iter().map(|pod| pod.id).collect();
    ensure!(
        listed == pods.iter().map(|pod| text(&pod["pod"])).collect(),
        "the pods after the reboot: {listed:?}"
    );
    let image = cri.image(&text(&note["reference"])).await?.context("the image outlives a reboot")?;
    ensure!(image.id == text(&note["image"]), "the image is {}", image.id);

    for old in &pods {
        let (pod_id, id, handler) = (text(&old["pod"]), text(&old["container"]), text(&old["handler"]));
        let status = cri.container(&id).await?;
        ensure!(status.state() == ContainerState::ContainerExited, "{handler}: the container is {status:?}");
        // systemd stops scopes at a shutdown; whether that end is still seen depends on which goes first.
        let seen = (status.exit_code, status.reason.as_str()) == (0, "Completed");
        ensure!(
            status.finished_at > 0 && (seen || (status.exit_code != 0 && !status.reason.is_empty())),
            "{handler}: {status:?}"
        );
        ensure!(
            cri.pod(&pod_id).await?.state() == PodSandboxState::SandboxNotready,
            "{handler}: the pod is ready"
        );
        println!("    {handler}: exit code {}, {}: {}", status.exit_code, status.reason, status.message);

        let pod = again(world, &handler, &text(&old["uid"]));
        let anew = cri.run_pod(&pod).await?;
        let container = cri.run(&anew, &ContainerSpec::lasting("c", &image.id).attempt(1), &pod).await?;
        ensure!(cri.shell(&container, "echo up").await? == "up", "{handler}: the new container");
        cri.remove(&id).await?;
        cri.stop_pod(&pod_id).await?;
        cri.remove_pod(&pod_id).await?;
        ensure!(
            cri.container(&container).await?.state() == ContainerState::ContainerRunning,
            "{handler}: the new one stays"
        );
        cri.stop_pod(&anew).await?;
        cri.remove_pod(&anew).await?;
    }
    leaks::assert_none(world).await?;
    Ok(Verdict::Passed)
}

/// Units and mounts that do not end hold up the shutdown for so long that nothing else does.
async fn wait_long_at_the_shutdown() -> Result {
    let manager =
        format!("[Manager]\nDefaultTimeoutStopSec={STOP_SECONDS}\nDefaultTimeoutStartSec={STOP_SECONDS}\n");
    let service = format!("[Service]\nTimeoutStopSec={STOP_SECONDS}\n");
    for (directory, text) in [("system.conf.d", manager), ("system/crimson.service.d", service)] {
        let directory = Path::new("/etc/systemd").join(directory);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("node-suite.conf"), text)?;
    }
    systemctl(&["daemon-reload"]).await.map(drop)
}

/// Nothing of a pod may make systemd wait at the shutdown, which it does for [`STOP_SECONDS`] before it kills.
async fn came_down_quickly(before: u64) -> Result {
    let up = host::run("systemctl", &["show", "--property", "UserspaceTimestamp", "--value"]).await?;
    let up: u64 = host::run("date", &["--date", up.trim(), "+%s"])
        .await?
        .trim()
        .parse()
        .context("when systemd began")?;
    let gap = up.saturating_sub(before);
    println!("    {gap} s from the last test before the reboot to systemd's start after it");
    ensure!(gap < STOP_SECONDS, "something has held up the shutdown: {gap} s");
    Ok(())
}

/// The pod of the first boot at its next attempt.
fn again(world: &World, handler: &str, uid: &str) -> PodSpec {
    let mut pod = world.pod(&format!("over-{handler}"), handler).attempt(1);
    if let Some(metadata) = &mut pod.config.metadata {
        metadata.uid = uid.to_owned();
    }
    if let Some(linux) = &mut pod.config.linux {
        linux.cgroup_parent = world::slice_of(uid);
    }
    pod
}

fn note_path() -> std::path::PathBuf {
    Path::new(KEPT).join("before.json")
}
