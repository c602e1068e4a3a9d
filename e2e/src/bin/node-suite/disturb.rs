//! What may happen to a node while pods come and go: those that are there stay, calls that were cut off can be repeated, and
//! nothing is left over.

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::Result;
use e2e::cri::VersionRequest;

use crate::host::{self, SERVICE, systemctl};
use crate::load::Load;
use crate::package;
use crate::runner::Verdict;
use crate::steady::Steady;
use crate::world::{Kind, World};

/// For how long the server waits for a bus that does not answer (`BUS_LIMIT` in `crates/cgroup/src/bus.rs`).
const BUS_LIMIT: Duration = Duration::from_secs(5);

/// `systemctl restart`, as an administrator does it.
pub(crate) async fn restart(world: &World) -> Result<Verdict> {
    under_load(world, async |load| {
        for _ in 0..repetitions(world) {
            let begun = Instant::now();
            systemctl(&["restart", SERVICE]).await?;
            answering_again(world, begun).await?;
            load.more_lives(2).await?;
        }
        Ok(())
    })
    .await
}

/// A crash; systemd starts the service again.
pub(crate) async fn kill9(world: &World) -> Result<Verdict> {
    under_load(world, async |load| {
        for _ in 0..repetitions(world) {
            let (begun, old) = (Instant::now(), host::main_pid().await?);
            host::run("kill", &["-KILL", &old.to_string()]).await?;
            host::until("systemd has started it again", 20, async || {
                Ok(host::main_pid().await.is_ok_and(|pid| pid != old))
            })
            .await?;
            answering_again(world, begun).await?;
            load.more_lives(2).await?;
        }
        Ok(())
    })
    .await
}

/// systemd itself reads its units anew, and replaces itself.
pub(crate) async fn systemd_reexec(world: &World) -> Result<Verdict> {
    under_load(world, async |load| {
        let verbs = ["daemon-reload", "daemon-reexec", "daemon-reexec"];
        for verb in verbs.into_iter().take(repetitions(world) + 1) {
            let begun = Instant::now();
            systemctl(&[verb]).await?;
            println!("    {verb}: {:.2} s", begun.elapsed().as_secs_f64());
            load.more_lives(2).await?;
        }
        Ok(())
    })
    .await
}

/// The bus goes away and comes back: at once, and after two seconds in which nobody answers.
pub(crate) async fn dbus(world: &World) -> Result<Verdict> {
    let old = host::main_pid().await?;
    under_load(world, async |load| {
        systemctl(&["restart", "dbus.service"]).await?;
        load.more_lives(2).await?;
        systemctl(&["stop", "dbus.socket", "dbus.service"]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let cri = world.cri().await?;
        let begun = Instant::now();
        cri.version(VersionRequest::default()).await?;
        let took = begun.elapsed();
        // An emulated processor may need as long for the call itself: there only one that hangs can be told.
        ensure!(world.kind == Kind::Vm || took < BUS_LIMIT, "without a bus Version takes {took:?}");
        systemctl(&["start", "dbus.socket", "dbus.service"]).await?;
        load.more_lives(2).await
    })
    .await?;
    ensure!(host::main_pid().await? == old, "the daemon must get over it without a restart");
    Ok(Verdict::Passed)
}

/// The next version is installed, and then this one again.
pub(crate) async fn upgrade(world: &World) -> Result<Verdict> {
    let Some((this, next)) = package::debs()? else { return Ok(package::no_packages()) };
    under_load(world, async |load| {
        for deb in [&next, &this] {
            let (begun, old) = (Instant::now(), host::main_pid().await?);
            package::install(deb).await?;
            answering_again(world, begun).await?;
            ensure!(host::main_pid().await? != old, "the installation has not restarted the service");
            load.more_lives(2).await?;
        }
        Ok(())
    })
    .await
}

/// How often a thing is done that may go wrong by chance; an emulated processor has time for one.
fn repetitions(world: &World) -> usize {
    if world.kind == Kind::Vm { 1 } else { 4 }
}

async fn under_load(world: &World, trouble: impl AsyncFnOnce(&Load) -> Result) -> Result<Verdict> {
    let cri = world.cri().await?;
    let steady = Steady::start(world, &cri).await?;
    let load = Load::begin(world, &cri).await?;
    let troubled = trouble(&load).await;
    let ended = load.end().await;
    troubled?;
    ended?;
    steady.end(&world.cri().await?).await?;
    Ok(Verdict::Passed)
}

async fn answering_again(world: &World, begun: Instant) -> Result {
    world.cri().await?;
    println!("    answering again after {:.2} s", begun.elapsed().as_secs_f64());
    Ok(())
}
