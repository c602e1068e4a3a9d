//! What pods may leave on a node, and may not: with no pod there, none of it exists.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;
use e2e::Result;

use crate::host;
use crate::world::World;

/// How long a node may take to settle after the last pod was removed.
const SETTLE_SECONDS: u64 = 20;

/// Waits until nothing is left of any pod, or says what is. What a test before has left is not told again.
pub(crate) async fn assert_none(world: &World) -> Result {
    let known = world.told_leaks();
    let mut left = BTreeSet::new();
    let settled = host::until("nothing is left", SETTLE_SECONDS, async || {
        left = facts(world).await?.difference(&known).cloned().collect();
        Ok(left.is_empty())
    });
    if let Err(error) = settled.await {
        world.tell_leaks(left.clone());
        bail!("{error:#}; left behind:\n      {}", left.into_iter().collect::<Vec<_>>().join("\n      "));
    }
    Ok(())
}

/// Everything on the node that only a pod can have brought, each as a line.
pub(crate) async fn facts(world: &World) -> Result<BTreeSet<String>> {
    let mut facts = BTreeSet::new();
    mounts(&mut facts)?;
    units(&mut facts).await?;
    links(&mut facts).await?;
    cgroups(Path::new("/sys/fs/cgroup"), &mut facts);
    processes(&mut facts)?;
    directories(&mut facts);
    facts.extend(world.network.leased().into_iter().map(|address| format!("lease {address}")));
    Ok(facts)
}

/// All mounts of pods lie beneath the state directory, which is one itself, or are network namespaces.
fn mounts(facts: &mut BTreeSet<String>) -> Result {
    for line in host::read("/proc/1/mountinfo")?.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        if point.starts_with("/run/crimson/")
            || point.starts_with("/run/netns/")
            || point.starts_with("/var/lib/crimson/")
        {
            facts.insert(format!("mount {point}"));
        }
    }
    Ok(())
}

async fn units(facts: &mut BTreeSet<String>) -> Result {
    let listed = ["list-units", "--all", "--full", "--plain", "--no-legend"];
    for line in host::systemctl(&listed).await?.lines() {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let unit = line.split(' ').next().unwrap_or_default();
        let of_pods = is_scope(unit) || unit.starts_with("kubepods");
        if of_pods {
            facts.insert(format!("unit {line}"));
        }
    }
    let failed = host::systemctl(&["list-units", "--failed", "--full", "--plain", "--no-legend"]).await?;
    facts.extend(failed.lines().map(|line| format!("failed unit {line}")));
    Ok(())
}

/// The plugin names the host's ends of pods' links so; the node's own uplink has other names.
async fn links(facts: &mut BTreeSet<String>) -> Result {
    for line in host::run("ip", &["-o", "link", "show", "type", "veth"]).await?.lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        if name.starts_with("veth") {
            facts.insert(format!("link {name}"));
        }
    }
    Ok(())
}

fn cgroups(directory: &Path, facts: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("kubepods") || is_scope(&name) {
            facts.insert(format!("cgroup {}", entry.path().display()));
        }
        cgroups(&entry.path(), facts);
    }
}

fn processes(facts: &mut BTreeSet<String>) -> Result {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // Gone since the listing, or no process at all.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let of_pod =
            cgroup.contains("/kubepods") || (cgroup.contains("/crimson-") && cgroup.contains(".scope"));
        if !line.is_empty() && (of_pod || line.contains("crimson-monitor")) {
            facts.insert(format!("process {}: {}", entry.file_name().display(), line.trim_end()));
        }
    }
    Ok(())
}

fn directories(facts: &mut BTreeSet<String>) {
    let places = [
        "/var/lib/crimson/pods",
        "/var/lib/crimson/containers",
        "/run/crimson/pods",
        "/run/crimson/containers",
        "/run/crimson/runtime/crun",
        "/run/crimson/runtime/runc",
        "/run/netns",
    ];
    for place in places {
        let Ok(entries) = std::fs::read_dir(place) else { continue };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        // crun keeps a cache for all containers under such a name.
        facts.extend(names.filter(|name| !name.starts_with('.')).map(|name| format!("file {place}/{name}")));
    }
}

/// The scope of a container, or of the trial of an OCI runtime.
fn is_scope(unit: &str) -> bool {
    unit.starts_with("crimson-") && unit.ends_with(".scope")
}
