//! `systemctl reload`: what is right comes into force, what is wrong changes nothing and is told.

use anyhow::ensure;
use e2e::Result;

use crate::host::{self, SERVICE, systemctl};
use crate::runner::Verdict;
use crate::world::World;

const DROP_IN: &str = "/etc/crimson/config.toml.d/60-reload.toml";

/// The log level goes up by a reload; a file with a mistake is refused by name and the level stays.
pub(crate) async fn good_and_bad(world: &World) -> Result<Verdict> {
    world.cri().await?;
    let pid = host::main_pid().await?;
    ensure!(!logs_steps(world, "quiet").await?, "details are logged before anybody asks for them");
    std::fs::write(DROP_IN, "[log]\nlevel = \"debug\"\n")?;
    let checked = checked(world).await;
    std::fs::remove_file(DROP_IN)?;
    checked?;
    systemctl(&["reload", SERVICE]).await?;
    ensure!(!logs_steps(world, "quiet-again").await?, "details are logged after they were switched off");
    ensure!(host::main_pid().await? == pid, "a reload must not restart the daemon");
    Ok(Verdict::Passed)
}

async fn checked(world: &World) -> Result {
    systemctl(&["reload", SERVICE]).await?;
    ensure!(logs_steps(world, "loud").await?, "the new log level is not in force after the reload");
    std::fs::write(DROP_IN, "[log]\nlevel = \"deafening\"\n")?;
    let since = host::now();
    let refused = systemctl(&["reload", SERVICE]).await;
    ensure!(refused.is_err(), "systemctl reload succeeds with a wrong file");
    let journal = host::journal_since(since, "500").await;
    ensure!(
        journal.contains("60-reload.toml") && journal.contains("deafening"),
        "the journal says: {journal}"
    );
    ensure!(logs_steps(world, "still-loud").await?, "a refused reload has changed the log level");
    Ok(())
}

/// Whether the steps of a pod of that name are in the journal.
async fn logs_steps(world: &World, name: &str) -> Result<bool> {
    let cri = world.cri().await?;
    let pod_id = cri.run_pod(&world.pod(name, "crun")).await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    host::run("journalctl", &["--sync"]).await?;
    let journal = host::run("journalctl", &["--unit", SERVICE, "--no-pager", "--output", "cat"]).await?;
    Ok(journal.lines().any(|line| line.contains("step=") && line.contains(&pod_id)))
}
