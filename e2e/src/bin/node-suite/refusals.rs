//! What the service says no to, on a node with systemd.

use anyhow::ensure;
use e2e::{Result, code_of};
use tonic::Code;

use crate::host::{self, SERVICE, systemctl};
use crate::runner::Verdict;
use crate::world::World;

/// A kubelet that is set to cgroupfs asks for a path: the answer names both drivers and what to do.
pub(crate) async fn a_parent_of_the_other_driver(world: &World) -> Result<Verdict> {
    let cri = world.cri().await?;
    let mut pod = world.pod("misled", "crun");
    pod.config.linux.as_mut().expect("linux").cgroup_parent = "/kubepods/burstable/pod1234".to_owned();
    let reply = cri.run_pod(&pod).await;
    let code = code_of(&reply);
    ensure!(matches!(code, Code::InvalidArgument | Code::FailedPrecondition), "the answer is {reply:?}");
    let message = reply.expect_err("refused").message().to_owned();
    println!("    {message}");
    for part in [
        "/kubepods/burstable/pod1234",
        "systemd driver",
        "cgroupfs driver",
        "cgroupDriver",
        "--cgroup-driver",
    ] {
        ensure!(message.contains(part), "{part:?} is not in {message:?}");
    }
    ensure!(cri.all_pods().await?.is_empty(), "nothing half-made");
    Ok(Verdict::Passed)
}

/// The driver in force does not change under pods that were made with it.
pub(crate) async fn another_driver_while_pods_exist(world: &World) -> Result<Verdict> {
    let cri = world.cri().await?;
    let pod_id = cri.run_pod(&world.pod("bound", "crun")).await?;
    let drop_in = "/etc/crimson/config.toml.d/70-driver.toml";
    std::fs::write(drop_in, "[cgroup]\ndriver = \"cgroupfs\"\n")?;
    let since = host::now();
    let restarted = systemctl(&["restart", SERVICE]).await;
    let journal = host::journal_since(since, "500").await;
    std::fs::remove_file(drop_in)?;
    systemctl(&["reset-failed", SERVICE]).await?;
    systemctl(&["restart", SERVICE]).await?;
    ensure!(restarted.is_err(), "it must not start with another driver");
    ensure!(
        journal.contains("cannot change from systemd to cgroupfs while pods exist"),
        "the journal says: {journal}"
    );
    let cri = world.cri().await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    Ok(Verdict::Passed)
}
