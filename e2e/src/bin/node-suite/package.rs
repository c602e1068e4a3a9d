//! The Debian package: what it installs, and what is left when it goes.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use e2e::cri::{ContainerState, StatusRequest};
use e2e::{ContainerSpec, Cri, Result};

use crate::host::{self, SERVICE, property, systemctl};
use crate::leaks;
use crate::runner::Verdict;
use crate::world::{self, World};

/// Where the payload lies.
const PAYLOAD: &str = "/payload";
/// What must be in the package, by the end of its path.
const FILES: [&str; 9] = [
    "/usr/bin/crimson",
    "/crimson-monitor",
    "/system/crimson.service",
    "/system/crimson.socket",
    "/etc/crimson/config.toml",
    "/tmpfiles.d/crimson.conf",
    "/bash-completion/completions/crimson",
    "/man8/crimson.8.gz",
    "/man5/crimson-config.toml.5.gz",
];
/// What is gone after a purge.
const PLACES: [&str; 6] = [
    "/etc/crimson",
    "/var/lib/crimson",
    "/run/crimson",
    "/usr/bin/crimson",
    "/usr/libexec/crimson",
    "/etc/systemd/system/multi-user.target.wants/crimson.service",
];

/// A package file with the version that it bears.
#[derive(Debug, Clone)]
pub(crate) struct Deb {
    path: PathBuf,
    version: String,
}

/// The package under test and its successor; none if the payload was put together without packages.
pub(crate) fn debs() -> Result<Option<(Deb, Deb)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(PAYLOAD)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix("crimson_").and_then(|rest| rest.strip_suffix(".deb")) {
            let version = version.split('_').next().unwrap_or(version).to_owned();
            found.push(Deb { path: entry.path(), version });
        }
    }
    found.sort_by(|a, b| a.version.cmp(&b.version));
    let mut found = found.into_iter();
    Ok(found.next().zip(found.next()))
}

/// Why tests of the package cannot run.
pub(crate) fn no_packages() -> Verdict {
    Verdict::NotHere("the payload holds no two packages crimson_VERSION.deb".to_owned())
}

/// Installs a package over whatever there is, leaving configuration files as they are.
pub(crate) async fn install(deb: &Deb) -> Result {
    let path = deb.path.display().to_string();
    let args = ["--install", "--force-confold", "--force-downgrade", &path];
    println!("    {}: {}", deb.version, last_line(&host::run("dpkg", &args).await?));
    let installed =
        host::run("dpkg-query", &["--show", "--showformat", "${Version} ${db:Status-Status}", "crimson"])
            .await?;
    ensure!(installed == format!("{} installed", deb.version), "dpkg says {installed}");
    let program = std::fs::read_link(format!("/proc/{}/exe", host::main_pid().await?))?;
    ensure!(program == Path::new("/usr/bin/crimson"), "the service still runs {}", program.display());
    Ok(())
}

/// From nothing to a service that runs, is enabled and is ready for pods but for the network, which nobody has described yet.
pub(crate) async fn installs(world: &World) -> Result<Verdict> {
    let Some((deb, _)) = debs()? else {
        ensure!(Path::new("/usr/bin/crimson").try_exists()?, "neither a package nor an installed service");
        world.configure()?;
        systemctl(&["restart", SERVICE]).await?;
        return Ok(no_packages());
    };
    install(&deb).await?;
    ensure!(property(SERVICE, "ActiveState").await? == "active", "the service is not active");
    ensure!(property(SERVICE, "UnitFileState").await? == "enabled", "the service is not enabled");
    ensure!(
        property("crimson.socket", "ActiveState").await? == "inactive",
        "the socket unit is for those who start it"
    );
    let status = world.cri().await?.status(StatusRequest::default()).await?.status.unwrap_or_default();
    for (kind, wanted) in [("RuntimeReady", true), ("NetworkReady", false)] {
        let condition =
            status.conditions.iter().find(|it| it.r#type == kind).context("the condition is there")?;
        ensure!(condition.status == wanted, "after the installation: {condition:?}");
    }
    files().await?;
    host::run("crimson", &["config", "check"]).await?;
    host::run("systemd-analyze", &["verify", "--man=no", SERVICE, "crimson.socket"]).await?;
    world.configure()?;
    systemctl(&["restart", SERVICE]).await?;
    Ok(Verdict::Passed)
}

/// Every file that is promised is in the package, and every file of the package is there. The node keeps no documentation.
async fn files() -> Result {
    let listed = host::run("dpkg", &["--listfiles", "crimson"]).await?;
    for file in FILES {
        ensure!(listed.lines().any(|line| line.ends_with(file)), "the package has no {file}: {listed}");
    }
    let kept = |line: &&str| !line.starts_with("/usr/share/man") && !line.starts_with("/usr/share/doc");
    for path in listed.lines().filter(kept) {
        ensure!(Path::new(path).try_exists()?, "{path} is in the package and not on the node");
    }
    Ok(())
}

/// Removed and installed again the server finds its pods; purged it leaves nothing, even of pods that run.
pub(crate) async fn remove_purge_reinstall(world: &World) -> Result<Verdict> {
    let Some((deb, _)) = debs()? else { return Ok(no_packages()) };
    removed_and_back(world, &deb).await?;
    purged(world).await?;
    install(&deb).await?;
    world.configure()?;
    systemctl(&["restart", SERVICE]).await?;
    let cri = world.cri().await?;
    ensure!(
        cri.all_pods().await?.is_empty() && cri.all_images().await?.is_empty(),
        "a new installation is empty"
    );
    let (pod_id, id, _) = running(world).await?;
    ensure!(cri.shell(&id, "echo up").await? == "up", "a pod after all that");
    end(&cri, &pod_id).await?;
    Ok(Verdict::Passed)
}

async fn removed_and_back(world: &World, deb: &Deb) -> Result {
    let (pod_id, id, pid) = running(world).await?;
    host::run("dpkg", &["--remove", "crimson"]).await?;
    ensure!(host::main_pid().await.is_err(), "the daemon runs on after the removal");
    ensure!(!Path::new("/usr/bin/crimson").try_exists()?, "the program is still there");
    ensure!(Path::new("/etc/crimson/config.toml").try_exists()?, "a removal keeps the configuration");
    ensure!(Path::new(&format!("/proc/{pid}")).try_exists()?, "the removal has ended a container");
    install(deb).await?;
    let cri = world.cri().await?;
    let status = cri.container(&id).await?;
    ensure!(status.state() == ContainerState::ContainerRunning, "after the installation: {status:?}");
    ensure!(cri.container_pid(&id).await? == pid, "it is another process");
    end(&cri, &pod_id).await?;
    leaks::assert_none(world).await
}

/// The pod's slice is made beforehand, as the kubelet does: then it is none of the package's.
async fn purged(world: &World) -> Result {
    let (_, _, pid) = running(world).await?;
    world.unconfigure()?;
    println!("    purge: {}", last_line(&host::run("dpkg", &["--purge", "crimson"]).await?));
    ensure!(!Path::new(&format!("/proc/{pid}")).try_exists()?, "a container has survived the purge");
    world::remove_slices().await?;
    for place in PLACES {
        ensure!(
            std::fs::symlink_metadata(place).is_err(),
            "the purge has left {place}: {}",
            listing(place).await
        );
    }
    let known =
        systemctl(&["list-unit-files", "--no-legend", "--full", "crimson*"]).await.unwrap_or_default();
    ensure!(known.trim().is_empty(), "systemd still knows {known}");
    let mounted = host::read("/proc/1/mountinfo")?;
    let ours =
        mounted.lines().filter_map(|line| line.split(' ').nth(4)).find(|point| point.contains("/crimson"));
    ensure!(ours.is_none(), "still mounted: {ours:?}");
    leaks::assert_none(world).await
}

async fn listing(place: &str) -> String {
    host::run("find", &[place]).await.unwrap_or_default()
}

/// A pod with a container that runs; gives their ids and the container's process.
async fn running(world: &World) -> Result<(String, String, u32)> {
    let cri = world.cri().await?;
    let image = world.image(&cri).await?;
    let pod = world.pod("packaged", "crun");
    world::make_slice(&pod).await?;
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("c", &image), &pod).await?;
    let pid = cri.container_pid(&id).await?;
    Ok((pod_id, id, pid))
}

/// Removes the pod, and then its slices as the kubelet would.
async fn end(cri: &Cri, pod_id: &str) -> Result {
    cri.stop_pod(pod_id).await?;
    cri.remove_pod(pod_id).await?;
    world::remove_slices().await
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}
