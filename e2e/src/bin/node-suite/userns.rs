//! A pod with a user namespace of its own, with each OCI runtime of the node.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, ensure};
use e2e::cri::{IdMapping, NamespaceMode, StatusRequest, UserNamespace};
use e2e::{ContainerSpec, Result};

use crate::runner::Verdict;
use crate::world::World;

/// What the pod's root is on the node.
const ROOT: u32 = 65_536;

pub(crate) async fn with_crun(world: &World) -> Result<Verdict> {
    files_and_processes_are_mapped(world, "crun").await
}

pub(crate) async fn with_runc(world: &World) -> Result<Verdict> {
    files_and_processes_are_mapped(world, "runc").await
}

/// Root inside is somebody else outside: as a process, in the image, in a volume and in what is written.
async fn files_and_processes_are_mapped(world: &World, handler: &str) -> Result<Verdict> {
    let cri = world.cri().await?;
    let told = cri.status(StatusRequest { verbose: false }).await?.runtime_handlers;
    let told = told.into_iter().find(|it| it.name == handler).and_then(|it| it.features);
    ensure!(told.context("no such handler")?.user_namespaces, "the handler reports no user namespaces");
    let ids = || vec![IdMapping { host_id: ROOT, container_id: 0, length: 65_536 }];
    let mut pod = world.pod("mapped", handler);
    pod.namespace_options().context("options")?.userns_options =
        Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() });
    let pod_id = cri.run_pod(&pod).await?;
    let volume = tempfile::tempdir()?;
    std::fs::write(volume.path().join("file"), "")?;
    let image = world.image(&cri).await?;
    let mut spec = ContainerSpec::lasting("c", &image).with_mount(volume.path(), "/volume", false);
    (spec.config.mounts[0].uid_mappings, spec.config.mounts[0].gid_mappings) = (ids(), ids());
    let id = cri.run(&pod_id, &spec, &pod).await?;
    let map = cri.shell(&id, "cat /proc/self/uid_map").await?;
    ensure!(map.split_whitespace().eq(["0", "65536", "65536"]), "{map}");
    let owners = cri.shell(&id, "stat -c %u:%g / /bin/busybox /volume/file /etc/hosts /dev/shm").await?;
    ensure!(owners.lines().all(|owner| owner == "0:0"), "{owners}");
    cri.shell(&id, "echo x > /new && echo x > /volume/new && echo x > /dev/stdout").await?;
    ensure!(std::fs::metadata(volume.path().join("new"))?.uid() == 0);
    let upper = Path::new("/var/lib/crimson/containers").join(&id).join("upper");
    ensure!(std::fs::metadata(upper.join("new"))?.uid() == ROOT);
    let process = format!("/proc/{}", cri.container_pid(&id).await?);
    ensure!(std::fs::metadata(process)?.uid() == ROOT);
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    Ok(Verdict::Passed)
}
