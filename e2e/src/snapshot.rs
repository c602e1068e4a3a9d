//! What exists on a machine at one moment, and what exists later that did not.
//!
//! On a private machine every mount, link, rule and process counts, since nobody else can have made it. On the host only
//! what bears a mark of the run does: its directory, its subnet, its bridge, or an id it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::{Network, Node, Result};

/// A set of facts, each a line that names its kind and the thing.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    facts: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at everything a node could leave behind.
    pub async fn take(node: &Node) -> Result<Self> {
        let mut facts = BTreeSet::new();
        let marks = Marks::of(node);
        mounts(node, &marks, &mut facts)?;
        network_namespaces(node, &marks, &mut facts);
        links(node, &marks, &mut facts).await?;
        rules(node, &marks, &mut facts).await?;
        processes(node, &marks, &mut facts)?;
        descriptors(node, &mut facts)?;
        records(node, &mut facts);
        if node.cri().all_images().await?.is_empty() {
            image_store(&node.machine().path(&node.root().join("images")), 3, &mut facts);
        }
        let cgroups = node.machine().cgroups();
        facts.extend(cgroups.of_run(&marks.ids).into_iter().map(|path| format!("cgroup {path}")));
        facts.extend(cgroups.units_of_run(&marks.ids)?.into_iter().map(|unit| format!("unit {unit}")));
        facts.extend(node.network().leased().into_iter().map(|address| format!("lease {address}")));
        Ok(Self { facts })
    }

    /// The facts that are new since an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.facts.difference(&before.facts).cloned().collect()
    }
}

/// How a thing of the run is told from a stranger's.
struct Marks {
    dir: String,
    subnet: String,
    ids: Vec<String>,
    everything: bool,
}

impl Marks {
    fn of(node: &Node) -> Self {
        let Network { prefix, .. } = node.network();
        Self {
            dir: node.dir().display().to_string(),
            subnet: prefix.clone(),
            ids: node.cri().seen(),
            everything: node.machine().is_private(),
        }
    }

    fn matches(&self, text: &str) -> bool {
        self.everything || text.contains(&self.dir) || self.ids.iter().any(|id| text.contains(id.as_str()))
    }
}

fn mounts(node: &Node, marks: &Marks, facts: &mut BTreeSet<String>) -> Result {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in
        node.machine().mountinfo()?.lines().filter(|line| marks.matches(line) || line.contains("/netns/cni-"))
    {
        let kind = line.split_once(" - ").and_then(|(_, right)| right.split(' ').next()).unwrap_or_default();
        let point = line.split(' ').nth(4).unwrap_or_default();
        *counts.entry(format!("{point} ({kind})")).or_default() += 1;
    }
    facts.extend(
        counts.into_iter().flat_map(|(mount, count)| (1..=count).map(move |n| format!("mount {mount} #{n}"))),
    );
    Ok(())
}

fn network_namespaces(node: &Node, marks: &Marks, facts: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(node.machine().path(Path::new("/run/netns"))) else { return };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    facts.extend(names.filter(|name| marks.matches(name)).map(|name| format!("netns {name}")));
}

/// The bridge itself stays: the plugin that made it keeps it for the next pod.
async fn links(node: &Node, marks: &Marks, facts: &mut BTreeSet<String>) -> Result {
    let bridge = &node.network().bridge;
    let of_bridge = format!("master {bridge} ");
    let text = node.machine().output("ip", &["-o", "link", "show"]).await?;
    for line in text.lines().filter(|line| marks.everything || line.contains(&of_bridge)) {
        let name = line.split(": ").nth(1).and_then(|name| name.split('@').next()).unwrap_or(line);
        if name != bridge {
            facts.insert(format!("link {name}"));
        }
    }
    Ok(())
}

/// Rules that speak of the run's subnet or of an id, and chains that a plugin makes for one pod; what plugins set up once
/// for all pods stays.
async fn rules(node: &Node, marks: &Marks, facts: &mut BTreeSet<String>) -> Result {
    for (program, args) in [("nft", ["list", "ruleset"].as_slice()), ("iptables-save", &[])] {
        for line in node.machine().output(program, args).await?.lines() {
            let line = without_counters(line.trim());
            let of_pod =
                ["CNI-DN-", "CNI-SN-", "CNI-HOSTPORT-DNAT -p"].iter().any(|mark| line.contains(mark));
            let of_run =
                line.contains(&marks.subnet) || marks.ids.iter().any(|id| line.contains(id.as_str()));
            if of_run || (of_pod && marks.everything) {
                facts.insert(format!("rule {line}"));
            }
        }
    }
    Ok(())
}

/// Cuts `counter packets 5 bytes 300` down to `counter`, since it changes by itself.
fn without_counters(line: &str) -> String {
    let mut words = Vec::new();
    let mut skip = 0;
    for word in line.split_whitespace() {
        if skip > 0 {
            skip -= 1;
            continue;
        }
        if word == "packets" {
            skip = 3;
            continue;
        }
        words.push(word);
    }
    words.join(" ")
}

fn processes(node: &Node, marks: &Marks, facts: &mut BTreeSet<String>) -> Result {
    let daemon = node.program()?.display().to_string();
    for (pid, line) in node.machine().processes()? {
        // The daemon's process id changes over a restart, so it is known by its command line.
        let known = line.starts_with(&format!("{daemon} ")) && line.contains(" serve ");
        if marks.matches(&line) && !known {
            facts.insert(format!("process {pid}: {line}"));
        }
    }
    Ok(())
}

/// Descriptors of the daemon beyond those it had when it got ready, counted by what they refer to.
fn descriptors(node: &Node, facts: &mut BTreeSet<String>) -> Result {
    let (before, now) = node.descriptors()?;
    let (before, now) = (by_kind(&before), by_kind(&now));
    for (kind, count) in now {
        for n in before.get(&kind).copied().unwrap_or_default()..count {
            facts.insert(format!("descriptor {kind} #{}", n + 1));
        }
    }
    Ok(())
}

fn by_kind(targets: &[String]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for target in targets {
        let numbered = ["socket:[", "pipe:["].iter().any(|prefix| target.starts_with(prefix));
        let kind = if numbered { target.split('[').next().unwrap_or_default() } else { target };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// Durable and volatile directories of pods and containers.
fn records(node: &Node, facts: &mut BTreeSet<String>) {
    for parent in [node.root(), node.state()] {
        for kind in ["pods", "containers"] {
            let dir = parent.join(kind);
            let Ok(entries) = fs::read_dir(node.machine().path(&dir)) else { continue };
            facts.extend(
                entries.flatten().map(|entry| format!("file {}", dir.join(entry.file_name()).display())),
            );
        }
    }
}

/// What the image store keeps without holding an image: half-fetched blobs, half-unpacked layers. Not what lies inside layers.
fn image_store(dir: &Path, depth: u32, facts: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        facts.insert(format!("file {}", entry.path().display()));
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            image_store(&entry.path(), depth - 1, facts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_do_not_make_a_rule_new() {
        let line = "ip saddr 10.1.2.3 counter packets 5 bytes 300 jump CNI-abc";
        assert_eq!(without_counters(line), "ip saddr 10.1.2.3 counter jump CNI-abc");
    }

    #[test]
    fn a_second_socket_is_a_fact_and_a_renumbered_one_is_not() {
        let before = by_kind(&["socket:[1]".to_owned(), "/x".to_owned()]);
        let after = by_kind(&["socket:[9]".to_owned(), "socket:[8]".to_owned(), "/x".to_owned()]);
        assert_eq!((before["socket:"], after["socket:"], after["/x"]), (1, 2, 1));
    }
}
