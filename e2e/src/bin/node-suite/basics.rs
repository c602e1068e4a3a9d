//! The service as it was installed, and where its pods lie.

use anyhow::{Context, ensure};
use e2e::cri::{CgroupDriver, RuntimeConfigRequest, StatusRequest, VersionRequest};
use e2e::{ContainerSpec, Result};

use crate::host::{self, SERVICE, property, systemctl};
use crate::runner::Verdict;
use crate::world::{self, World};

/// Active, ready, with systemd as its cgroup driver though nobody has said so, and a log in the journal.
pub(crate) async fn the_service_is_ready(world: &World) -> Result<Verdict> {
    let cri = world.cri().await?;
    for (name, wanted) in [("ActiveState", "active"), ("KillMode", "process"), ("Delegate", "yes")] {
        let is = property(SERVICE, name).await?;
        ensure!(is == wanted, "{name} of the service is {is}");
    }
    let linux =
        cri.runtime_config(RuntimeConfigRequest {}).await?.linux.context("RuntimeConfig without linux")?;
    ensure!(linux.cgroup_driver() == CgroupDriver::Systemd, "the driver is {:?}", linux.cgroup_driver());
    let conditions = cri.status(StatusRequest::default()).await?.status.unwrap_or_default().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        ensure!(
            conditions.iter().any(|it| it.r#type == kind && it.status),
            "{kind} is missing in {conditions:?}"
        );
    }
    let version = cri.version(VersionRequest::default()).await?;
    println!("    {} {}", version.runtime_name, version.runtime_version);
    host::run("journalctl", &["--sync"]).await?;
    let log = host::run("journalctl", &["--unit", SERVICE, "--no-pager", "--output", "cat"]).await?;
    ensure!(log.contains("cgroup driver") && log.contains("ready"), "the journal has of the service: {log}");
    ensure!(!log.contains('\u{1b}'), "the journal has escape sequences in it");
    Ok(Verdict::Passed)
}

/// The pod's slice is the one that the kubelet names, in the slices its name is made of; each container has a delegated scope.
pub(crate) async fn a_pod_lies_in_its_slice(world: &World) -> Result<Verdict> {
    let cri = world.cri().await?;
    let image = world.image(&cri).await?;
    for handler in ["crun", "runc"] {
        let pod = world.pod("placed", handler);
        let pod_id = cri.run_pod(&pod).await?;
        let id = cri.run(&pod_id, &ContainerSpec::lasting("c", &image), &pod).await?;
        let slice = world::slice(&pod);
        let path = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
        for (unit, pid) in [(&id, cri.container_pid(&id).await?), (&pod_id, cri.pause_pid(&pod_id).await?)] {
            let scope = world::scope(unit);
            for (name, wanted) in [("Slice", slice.as_str()), ("Delegate", "yes"), ("ActiveState", "active")]
            {
                let is = property(&scope, name).await?;
                ensure!(is == wanted, "{handler}: {name} of {scope} is {is}, not {wanted}");
            }
            let group = property(&scope, "ControlGroup").await?;
            ensure!(group == format!("{path}/{scope}"), "{handler}: the cgroup of {scope} is {group}");
            let member = host::read(format!("/proc/{pid}/cgroup"))?;
            ensure!(member.contains(&group), "{handler}: process {pid} is in {member}, not in {group}");
        }
        cri.stop(&id, 5).await?;
        host::until("the scope of an ended container is collected", 10, async || {
            Ok(property(&world::scope(&id), "LoadState").await? == "not-found")
        })
        .await?;
        cri.remove_pod(&pod_id).await?;
    }
    Ok(Verdict::Passed)
}

/// What the kubelet has made is the kubelet's to remove.
pub(crate) async fn a_slice_of_kubelet_stays(world: &World) -> Result<Verdict> {
    let cri = world.cri().await?;
    let pod = world.pod("guest", "crun");
    let slice = world::slice(&pod);
    world::make_slice(&pod).await?;
    let pod_id = cri.run_pod(&pod).await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    let state = property(&slice, "ActiveState").await?;
    world::remove_slices().await?;
    ensure!(state == "active", "the slice was there before the pod and is {state} after it");
    Ok(Verdict::Passed)
}

/// With the socket unit the first call starts the service, and callers wait over a restart rather than being refused.
pub(crate) async fn the_socket_unit_starts_it(world: &World) -> Result<Verdict> {
    systemctl(&["stop", SERVICE]).await?;
    systemctl(&["start", "crimson.socket"]).await?;
    let checked = through_the_socket(world).await;
    systemctl(&["stop", SERVICE, "crimson.socket"]).await?;
    systemctl(&["start", SERVICE]).await?;
    checked?;
    world.cri().await?;
    Ok(Verdict::Passed)
}

async fn through_the_socket(world: &World) -> Result {
    ensure!(host::main_pid().await.is_err(), "the service runs although nobody has called");
    let cri = world.cri().await?;
    let first = host::main_pid().await?;
    let restart = tokio::spawn(async { systemctl(&["restart", SERVICE]).await });
    while !restart.is_finished() {
        // A call that is under way may be cut off; nobody is told that there is no server.
        if let Err(status) = cri.version(VersionRequest::default()).await {
            ensure!(!status.message().contains("refused"), "{status:?}");
        }
    }
    restart.await??;
    cri.version(VersionRequest::default()).await?;
    ensure!(host::main_pid().await? != first, "it was restarted");
    Ok(())
}
