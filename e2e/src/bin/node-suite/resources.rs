//! Every resource field: what the pod asks for, what systemd shows and what the kernel's files hold are the same, also after
//! systemd has read its units anew or replaced itself, and after the limits were changed.

use anyhow::{Context, ensure};
use e2e::cri::UpdateContainerResourcesRequest;
use e2e::{ContainerSpec, Cri, Result};

use crate::host::{SERVICE, systemctl};
use crate::limits::{Groups, Limits};
use crate::runner::Verdict;
use crate::world::World;

const FIRST: Limits = Limits {
    shares: 512,
    quota: 50_000,
    memory: 64 << 20,
    memory_and_swap: 96 << 20,
    cpus: "0",
    mems: "0",
    huge_2mb: 4 << 20,
    oom_score_adj: 500,
    pids: 77,
    memory_high: 48 << 20,
};

/// More of everything, and another processor.
const SECOND: Limits = Limits {
    shares: 1024,
    quota: 80_000,
    memory: 128 << 20,
    memory_and_swap: 160 << 20,
    cpus: "0-1",
    mems: "0",
    huge_2mb: 8 << 20,
    oom_score_adj: 600,
    pids: 99,
    memory_high: 100 << 20,
};

/// Less of everything again.
const THIRD: Limits = Limits {
    shares: 256,
    quota: 40_000,
    memory: 48 << 20,
    memory_and_swap: 64 << 20,
    cpus: "1",
    mems: "0",
    huge_2mb: 2 << 20,
    oom_score_adj: 700,
    pids: 66,
    memory_high: 40 << 20,
};

/// With the OCI runtime crun.
pub(crate) async fn with_crun(world: &World) -> Result<Verdict> {
    with(world, "crun").await
}

/// With the OCI runtime runc.
pub(crate) async fn with_runc(world: &World) -> Result<Verdict> {
    with(world, "runc").await
}

async fn with(world: &World, handler: &str) -> Result<Verdict> {
    let cri = world.cri().await?;
    let image = world.image(&cri).await?;
    let pod = world.pod("limited", handler);
    let pod_id = cri.run_pod(&pod).await?;
    let mut spec = ContainerSpec::lasting("c", &image);
    spec.config.linux.as_mut().context("linux")?.resources = Some(FIRST.message());
    let id = cri.run(&pod_id, &spec, &pod).await?;
    let groups = Groups::of(&id, cri.container_pid(&id).await?).await?;

    let mut complaints = Complaints::default();
    complaints.look(&groups, &FIRST, "at the start").await?;
    for verb in ["daemon-reload", "daemon-reexec"] {
        systemctl(&[verb]).await?;
        complaints.look(&groups, &FIRST, &format!("after {verb}")).await?;
    }
    update(&cri, &id, &SECOND).await?;
    complaints.look(&groups, &SECOND, "after an update").await?;
    for verb in ["daemon-reload", "daemon-reexec"] {
        systemctl(&[verb]).await?;
        complaints.look(&groups, &SECOND, &format!("after an update and {verb}")).await?;
    }
    systemctl(&["restart", SERVICE]).await?;
    let cri = world.cri().await?;
    complaints.look(&groups, &SECOND, "after a restart of the service").await?;
    update(&cri, &id, &THIRD).await?;
    complaints.look(&groups, &THIRD, "after an update to less").await?;

    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    ensure!(complaints.0.is_empty(), "{handler}:\n      {}", complaints.0.join("\n      "));
    Ok(Verdict::Passed)
}

async fn update(cri: &Cri, id: &str, limits: &Limits) -> Result {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(limits.message()),
        ..Default::default()
    };
    cri.update_container_resources(request).await.context("UpdateContainerResources")?;
    let reported =
        cri.container(id).await?.resources.and_then(|it| it.linux).context("resources in the status")?;
    ensure!(reported.memory_limit_in_bytes == limits.memory, "the status has {reported:?}");
    Ok(())
}

#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    async fn look(&mut self, groups: &Groups, limits: &Limits, when: &str) -> Result {
        let found = groups.complaints(limits).await?;
        self.0.extend(found.into_iter().map(|complaint| format!("{when}: {complaint}")));
        Ok(())
    }
}
