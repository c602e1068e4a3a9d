//! Users, capabilities, filters, namespaces, devices: against what was asked for, between runtimes, and of execs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use e2e::cri::security_profile::ProfileType;
use e2e::{ContainerSpec, ImageBuilder, Media, Result, patience};

use crate::ask::{capabilities, profile};
use crate::cases::{CASES, Pod};
use crate::ground::Ground;
use crate::look::{SAME_FOR_AN_EXEC, SAME_FOR_EACH_RUNTIME, Seen, differences, missing};

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_confined_as_asked_for_alike_by_every_runtime_and_in_execs() -> Result {
    let ground = Ground::set(ImageBuilder::busybox(Media::Oci)?).await?;
    let host = ground.capabilities()?;
    let mut complaints = Vec::new();
    let mut by_case: BTreeMap<&str, Vec<(String, Seen)>> = BTreeMap::new();
    for handler in &ground.handlers {
        let mut pods = BTreeMap::new();
        for kind in [Pod::Plain, Pod::Privileged, Pod::OfTheNode] {
            pods.insert(kind, ground.run_pod(kind, handler).await?);
        }
        for case in CASES {
            let (pod_id, pod) = &pods[&case.pod];
            let (first, exec) = ground.look(case, pod_id, pod).await?;
            complaints.extend(missing(case, &first, host).into_iter().map(|it| format!("{handler}: {it}")));
            let what = format!("{handler}: {}: an exec", case.name);
            complaints.extend(differences(&what, &first, &exec, SAME_FOR_AN_EXEC));
            complaints.extend(other_group(handler, &what, &first, &exec));
            by_case.entry(case.name).or_default().push((handler.clone(), first));
        }
        for (pod_id, _) in pods.into_values() {
            ground.node.cri().remove_pod(&pod_id).await?;
        }
    }
    for (name, seen) in &by_case {
        for pair in seen.windows(2) {
            let [(one, ones), (other, others)] = pair else { continue };
            let what = format!("{name}: {one} against {other}");
            complaints.extend(differences(&what, ones, others, SAME_FOR_EACH_RUNTIME));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    ground.node.finish().await
}

/// The control groups of `/proc/PID/cgroup`, that of an exec as its container's, which it lies beneath.
///
/// On v1 crun (1.21) leaves an exec in the caller's group of systemd's own hierarchy. systemd takes it for the caller's process then, and
/// may move it to the caller's groups wherever it manages any. Only the hierarchies that it leaves alone can be compared.
fn groups<'a>(handler: &str, lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let container = |line: &str| match line.split_once("/crimson-exec-") {
        Some((above, _)) if above.ends_with(':') => format!("{above}/"),
        Some((above, _)) => above.to_owned(),
        None => line.to_owned(),
    };
    const LEFT_ALONE: [&str; 3] = [":freezer:", ":cpuset:", "0::"];
    let compared = |line: &&str| handler != "crun" || LEFT_ALONE.iter().any(|group| line.contains(group));
    lines.filter(compared).map(container).collect()
}

/// An exec is in the container's control groups, or in one of its own directly beneath.
fn other_group(handler: &str, what: &str, first: &Seen, exec: &Seen) -> Option<String> {
    let of = |seen: &Seen| groups(handler, seen.get("cgroup").into_iter().flatten().map(String::as_str));
    let (one, other) = (of(first), of(exec));
    (one.is_empty() || one != other).then(|| format!("{what}: {other:?} instead of {one:?}"))
}

/// From outside, where nobody can be deceived: the process of an exec beside the first process of its container.
#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_confined_as_its_container_is() -> Result {
    let ground = Ground::set(ImageBuilder::busybox(Media::Oci)?).await?;
    let cri = ground.node.cri();
    for (at, handler) in ground.handlers.iter().enumerate() {
        let (pod_id, pod) = ground.run_pod(Pod::Plain, handler).await?;
        let spec = ContainerSpec::lasting("confined", &ground.image).secured(|it| {
            it.run_as_username = "web".to_owned();
            it.supplemental_groups = vec![60000];
            it.capabilities = capabilities(&[], &["ALL"], &["NET_BIND_SERVICE"]);
            it.no_new_privs = true;
            it.seccomp = profile(ProfileType::RuntimeDefault);
        });
        let id = cri.run(&pod_id, &spec, &pod).await?;
        let seconds = format!("{}", 7600 + at);
        let running = tokio::spawn({
            let (cri, id, seconds) = (cri.clone(), id.clone(), seconds.clone());
            async move { cri.exec(&id, &["sleep", &seconds]).await }
        });
        let proc = ground.node.machine().path(Path::new("/proc"));
        let exec = process_of(&proc, &format!("sleep\0{seconds}\0")).await?;
        let first = proc.join(cri.container_pid(&id).await?.to_string());
        assert_eq!(outside(handler, &exec)?, outside(handler, &first)?, "{handler}");
        running.abort();
        cri.remove(&id).await?;
    }
    ground.node.finish().await
}

/// The directory in `proc` of the process with this command line.
async fn process_of(proc: &Path, command: &str) -> Result<std::path::PathBuf> {
    let find = async {
        loop {
            for entry in std::fs::read_dir(proc)?.flatten() {
                if std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == command.as_bytes()) {
                    return Ok::<_, anyhow::Error>(entry.path());
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(patience(30), find).await?
}

/// What the kernel holds a process to.
fn outside(handler: &str, process: &Path) -> Result<Vec<String>> {
    const LINES: [&str; 11] = [
        "Uid:",
        "Gid:",
        "Groups:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "NoNewPrivs:",
        "Seccomp:",
        "Seccomp_filters:",
    ];
    let status = std::fs::read_to_string(process.join("status"))?;
    let wanted = |line: &&str| LINES.iter().any(|name| line.starts_with(name));
    let mut found: Vec<String> = status.lines().filter(wanted).map(str::to_owned).collect();
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        found.push(std::fs::read_link(process.join("ns").join(name))?.display().to_string());
    }
    found.extend(groups(handler, std::fs::read_to_string(process.join("cgroup"))?.lines()));
    for file in ["attr/current", "uid_map", "gid_map", "limits", "oom_score_adj"] {
        // Without an LSM there is no label to read.
        found.push(format!("{file}: {}", std::fs::read_to_string(process.join(file)).unwrap_or_default()));
    }
    Ok(found)
}
