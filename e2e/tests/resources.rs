//! Limits of containers: in force from the start, changed before and after it, left alone by a refusal.
//!
//! What is in force is read from the files of the group that the container's process is in, and of the groups around it up
//! to the container's own; with the systemd driver systemd has to say the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use e2e::cri::{LinuxContainerResources, PodSandboxStatusRequest, UpdateContainerResourcesRequest};
use e2e::{ContainerSpec, Node, Result, Stage, code_of};
use tonic::Code;

const MIB: i64 = 1 << 20;

/// UpdatePodSandboxResourcesRequest, which the client crate does not have yet.
#[derive(Clone, PartialEq, prost::Message)]
struct UpdatePod {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    overhead: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "3")]
    resources: Option<LinuxContainerResources>,
}

/// What the files say where there is no limit; v1 has the highest multiple of its page size.
const NO_LIMIT: &str = "none";

fn container(stage: &Stage, resources: LinuxContainerResources) -> ContainerSpec {
    let mut spec = ContainerSpec::lasting("limited", &stage.image);
    let linux = spec.config.linux.as_mut().expect("it has a Linux part");
    linux.resources = Some(resources);
    spec
}

async fn create(stage: &Stage, resources: LinuxContainerResources) -> Result<String> {
    Ok(stage.node.cri().create(&stage.pod_id, &container(stage, resources), &stage.pod).await?)
}

async fn update(
    stage: &Stage,
    id: &str,
    linux: LinuxContainerResources,
) -> std::result::Result<(), tonic::Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    stage.node.cri().update_container_resources(request).await.map(drop)
}

/// What CRI says is in force.
async fn reported(stage: &Stage, id: &str) -> Result<LinuxContainerResources> {
    let status = stage.node.cri().container(id).await?;
    Ok(status.resources.and_then(|it| it.linux).expect("a container reports its resources"))
}

/// What the kernel says is in force, in words that both versions of its interface share.
async fn in_force(stage: &Stage, id: &str) -> Result<BTreeMap<&'static str, String>> {
    let pid = stage.node.cri().container_pid(id).await?;
    let group = Group::of(&stage.node, pid)?;
    let mut found = group.limits()?;
    let score = std::fs::read_to_string(process(&stage.node, pid, "oom_score_adj"))?;
    found.insert("oom", score.trim().to_owned());
    if e2e::CgroupDriver::asked_for() == e2e::CgroupDriver::Systemd {
        assert_systemd_agrees(stage, id, group.is_v2(), &found).await?;
    }
    Ok(found)
}

/// The unit's properties say what the files do.
async fn assert_systemd_agrees(
    stage: &Stage,
    id: &str,
    v2: bool,
    files: &BTreeMap<&'static str, String>,
) -> Result {
    let unit = format!("crimson-{id}.scope");
    let shown = stage.node.machine().output("systemctl", &["show", &unit]).await?;
    let properties: BTreeMap<&str, &str> = shown.lines().filter_map(|line| line.split_once('=')).collect();
    let property = |name: &str| match properties.get(name).copied().unwrap_or_default() {
        "infinity" | "[not set]" | "" => NO_LIMIT.to_owned(),
        value => value.to_owned(),
    };
    assert_eq!(property("CollectMode"), "inactive-or-failed");
    assert_eq!((property("TasksMax"), files["pids"].as_str()), (NO_LIMIT.to_owned(), NO_LIMIT));
    let memory = match property("MemoryMax") {
        none if none == NO_LIMIT && !v2 => property("MemoryLimit"),
        memory => memory,
    };
    assert_eq!(memory, files["memory"], "MemoryMax or MemoryLimit of {unit}");
    let quota = property("CPUQuotaPerSecUSec");
    assert_eq!(quota == NO_LIMIT, files["quota"] == NO_LIMIT, "CPUQuotaPerSecUSec={quota}, {files:?}");
    if v2 {
        assert_eq!(property("MemorySwapMax"), files["swap"], "MemorySwapMax of {unit}");
        let weight = Some(property("CPUWeight")).filter(|weight| weight != NO_LIMIT);
        // The kernel's own weight is told by nobody.
        assert_eq!(weight.as_deref().unwrap_or("100"), files["weight"], "CPUWeight of {unit}");
        // A group whose processors nobody names has those of the group above.
        let named = Some(files["cpus"].as_str()).filter(|cpus| !matches!(*cpus, "" | "absent"));
        assert_eq!(property("AllowedCPUs"), named.unwrap_or(NO_LIMIT), "AllowedCPUs of {unit}");
    } else if property("CPUShares") != NO_LIMIT {
        assert_eq!(property("CPUShares"), files["weight"], "CPUShares of {unit}");
    }
    Ok(())
}

/// A file of a process, which the node numbers.
fn process(node: &Node, pid: u32, file: &str) -> PathBuf {
    node.machine().path(&PathBuf::from(format!("/proc/{pid}/{file}")))
}

/// The group of a process: its directory for each controller.
struct Group(BTreeMap<String, PathBuf>);

impl Group {
    fn of(node: &Node, pid: u32) -> Result<Self> {
        let text = std::fs::read_to_string(process(node, pid, "cgroup"))?;
        let mut found = BTreeMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            for controller in controllers.split(',') {
                let root = PathBuf::from("/sys/fs/cgroup");
                // The unified hierarchy is the root itself, or lies beside others and has no controllers then.
                let root = if controller.is_empty() { root } else { root.join(controller) };
                found.insert(controller.to_owned(), root.join(path.trim_start_matches('/')));
            }
        }
        Ok(Self(found))
    }

    fn is_v2(&self) -> bool {
        PathBuf::from("/sys/fs/cgroup/cgroup.controllers").is_file()
    }

    fn file(&self, controller: &str, file: &str) -> Option<String> {
        let controller = if self.is_v2() { "" } else { controller };
        let text = std::fs::read_to_string(self.0.get(controller)?.join(file)).ok()?;
        Some(text.trim().to_owned())
    }

    fn limits(&self) -> Result<BTreeMap<&'static str, String>> {
        let limit = |controller, file| match self.file(controller, file) {
            Some(text) if text == "max" || text == "-1" || text.len() > 18 => NO_LIMIT.to_owned(),
            Some(text) => text,
            None => "absent".to_owned(),
        };
        let mut found =
            BTreeMap::from([("cpus", limit("cpuset", "cpuset.cpus")), ("pids", limit("pids", "pids.max"))]);
        if self.is_v2() {
            let max = self.file("cpu", "cpu.max").unwrap_or_default();
            let (quota, period) = max.split_once(' ').unwrap_or_default();
            found.insert("quota", if quota == "max" { NO_LIMIT.to_owned() } else { quota.to_owned() });
            found.insert("period", period.to_owned());
            found.insert("weight", limit("cpu", "cpu.weight"));
            found.insert("memory", limit("memory", "memory.max"));
            found.insert("swap", limit("memory", "memory.swap.max"));
        } else {
            found.insert("quota", limit("cpu", "cpu.cfs_quota_us"));
            found.insert("period", limit("cpu", "cpu.cfs_period_us"));
            found.insert("weight", limit("cpu", "cpu.shares"));
            found.insert("memory", limit("memory", "memory.limit_in_bytes"));
            found.insert("swap", limit("memory", "memory.memsw.limit_in_bytes"));
        }
        Ok(found)
    }

    /// A swap limit of memory and swap together, as this kernel shows it; none where it does not count swap.
    fn swap(&self, memory: i64, both: i64) -> Option<String> {
        let counted = self
            .file("memory", "memory.swap.max")
            .or_else(|| self.file("memory", "memory.memsw.limit_in_bytes"));
        counted?;
        Some(if self.is_v2() { both - memory } else { both }.to_string())
    }
}

fn at_first() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpuset_cpus: "0".to_owned(),
        memory_limit_in_bytes: 64 * MIB,
        oom_score_adj: 700,
        ..Default::default()
    }
}

fn processors() -> String {
    if std::thread::available_parallelism().is_ok_and(|count| count.get() > 1) { "0-1" } else { "0" }
        .to_owned()
}

fn later() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: 1024,
        cpu_quota: 20_000,
        cpu_period: 50_000,
        cpuset_cpus: processors(),
        memory_limit_in_bytes: 96 * MIB,
        memory_swap_limit_in_bytes: 128 * MIB,
        oom_score_adj: 800,
        ..Default::default()
    }
}

/// The kernel's words for `asked`, seen from a running container.
fn expected(asked: &LinuxContainerResources, group: &Group) -> BTreeMap<&'static str, String> {
    let quota = if asked.cpu_quota > 0 { asked.cpu_quota.to_string() } else { NO_LIMIT.to_owned() };
    let memory = asked.memory_limit_in_bytes;
    let both = if asked.memory_swap_limit_in_bytes == 0 { memory } else { asked.memory_swap_limit_in_bytes };
    let mut words = BTreeMap::from([
        ("quota", quota),
        ("cpus", asked.cpuset_cpus.clone()),
        ("memory", memory.to_string()),
        ("oom", asked.oom_score_adj.to_string()),
        ("pids", NO_LIMIT.to_owned()),
    ]);
    if asked.cpu_quota > 0 {
        // Without a quota a period means nothing, and systemd has one of its own.
        words.insert("period", asked.cpu_period.to_string());
    }
    if !group.is_v2() {
        words.insert("weight", asked.cpu_shares.to_string());
    }
    if let Some(swap) = group.swap(memory, both) {
        words.insert("swap", swap);
    }
    words
}

/// Asserts that everything in `expected` is in force; the weight of v2 is the OCI runtime's conversion.
async fn assert_in_force(stage: &Stage, id: &str, asked: &LinuxContainerResources) -> Result {
    let group = Group::of(&stage.node, stage.node.cri().container_pid(id).await?)?;
    let found = in_force(stage, id).await?;
    for (what, wanted) in expected(asked, &group) {
        assert_eq!(found[what], wanted, "{what} of {found:?}");
    }
    Ok(())
}

fn assert_reported(reported: &LinuxContainerResources, asked: &LinuxContainerResources) {
    let pick = |it: &LinuxContainerResources| {
        (
            it.cpu_shares,
            it.cpu_quota,
            it.cpu_period,
            it.cpuset_cpus.clone(),
            it.memory_limit_in_bytes,
            it.oom_score_adj,
        )
    };
    assert_eq!(pick(reported), pick(asked));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_running_container_follow_an_update_in_full() -> Result {
    let stage = Stage::set().await?;
    let id = create(&stage, at_first()).await?;
    stage.node.cri().start(&id).await?;
    assert_in_force(&stage, &id, &at_first()).await?;
    assert_reported(&reported(&stage, &id).await?, &at_first());

    update(&stage, &id, later()).await?;
    assert_in_force(&stage, &id, &later()).await?;
    assert_reported(&reported(&stage, &id).await?, &later());

    // What an update leaves out stays; what it lifts is gone.
    let only = LinuxContainerResources { cpu_quota: -1, ..Default::default() };
    update(&stage, &id, only).await?;
    let lifted = LinuxContainerResources { cpu_quota: -1, ..later() };
    assert_in_force(&stage, &id, &lifted).await?;
    assert_reported(&reported(&stage, &id).await?, &lifted);

    // Down again, in the other order of memory and swap.
    let back = LinuxContainerResources { memory_swap_limit_in_bytes: 64 * MIB, ..at_first() };
    update(&stage, &id, back.clone()).await?;
    assert_in_force(&stage, &id, &back).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_created_container_are_there_when_it_starts() -> Result {
    let mut stage = Stage::set().await?;
    let id = create(&stage, at_first()).await?;
    update(&stage, &id, later()).await?;
    assert_reported(&reported(&stage, &id).await?, &later());
    stage.node.kill9().await?;
    stage.node.restart().await?;
    assert_reported(&reported(&stage, &id).await?, &later());
    stage.node.cri().start(&id).await?;
    assert_in_force(&stage, &id, &later()).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_limits_has_none_and_can_get_some() -> Result {
    let stage = Stage::set().await?;
    let id = create(&stage, LinuxContainerResources { oom_score_adj: 700, ..Default::default() }).await?;
    stage.node.cri().start(&id).await?;
    let found = in_force(&stage, &id).await?;
    for what in ["quota", "memory", "pids"] {
        assert_eq!(found[what], NO_LIMIT, "{what} of {found:?}");
    }
    update(&stage, &id, at_first()).await?;
    assert_in_force(&stage, &id, &at_first()).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_changes_nothing() -> Result {
    let stage = Stage::set().await?;
    // Files in memory cannot be given back.
    let line = "dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null; echo full; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let mut spec = container(&stage, at_first());
    spec.config.command = ["sh", "-c", line].map(str::to_owned).to_vec();
    let id = stage.node.cri().run(&stage.pod_id, &spec, &stage.pod).await?;
    let path = stage.node.cri().container(&id).await?.log_path;
    let filled = async {
        while !std::fs::read_to_string(&path).unwrap_or_default().contains("full") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(e2e::patience(30), filled).await?;
    let before = in_force(&stage, &id).await?;
    // Everything else in it would be possible.
    let refused = LinuxContainerResources {
        memory_limit_in_bytes: 14 * MIB,
        memory_swap_limit_in_bytes: 14 * MIB,
        ..later()
    };
    let status = update(&stage, &id, refused).await.expect_err("more is in use");
    assert_ne!(status.code(), Code::Ok, "{status:?}");
    assert!(!status.message().is_empty() && !status.message().contains(&id), "{status:?}");
    assert_eq!(in_force(&stage, &id).await?, before);
    assert_reported(&reported(&stage, &id).await?, &at_first());
    // And it goes on: what is possible is done.
    update(&stage, &id, later()).await?;
    assert_in_force(&stage, &id, &later()).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_by_name() -> Result {
    let stage = Stage::set().await?;
    let id = create(&stage, at_first()).await?;
    stage.node.cri().start(&id).await?;
    let none = LinuxContainerResources::default;
    let bad = [
        ("cpu_shares", LinuxContainerResources { cpu_shares: -1, ..none() }),
        ("cpu_period", LinuxContainerResources { cpu_period: 7, ..none() }),
        ("cpu_quota", LinuxContainerResources { cpu_quota: -2, ..none() }),
        ("cpuset_cpus", LinuxContainerResources { cpuset_cpus: "3-1".to_owned(), ..none() }),
        ("cpuset_mems", LinuxContainerResources { cpuset_mems: "a".to_owned(), ..none() }),
        ("memory_limit_in_bytes", LinuxContainerResources { memory_limit_in_bytes: 1, ..none() }),
        ("memory_swap_limit_in_bytes", LinuxContainerResources { memory_swap_limit_in_bytes: MIB, ..none() }),
    ];
    for (field, limits) in bad {
        let status = update(&stage, &id, limits).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        assert!(status.message().contains(field), "{field}: {status:?}");
    }
    assert_in_force(&stage, &id, &at_first()).await?;
    let request = UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() };
    assert_eq!(code_of(&stage.node.cri().update_container_resources(request).await), Code::InvalidArgument);
    assert_eq!(code_of(&update(&stage, &"0".repeat(64), later()).await), Code::NotFound);
    stage.node.cri().stop(&id, 5).await?;
    assert_eq!(code_of(&update(&stage, &id, later()).await), Code::FailedPrecondition);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_takes_note_of_its_resources() -> Result {
    let mut stage = Stage::set().await?;
    let update = async |stage: &Stage, id: &str| {
        let request = UpdatePod {
            pod_sandbox_id: id.to_owned(),
            overhead: Some(LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
            resources: Some(later()),
        };
        let cri = stage.node.cri();
        code_of(&cri.call::<_, ()>("RuntimeService", "UpdatePodSandboxResources", request).await)
    };
    let id = stage.pod_id.clone();
    assert_eq!(update(&stage, &id).await, Code::Ok);
    stage.node.kill9().await?;
    stage.node.restart().await?;
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let info = stage.node.cri().pod_sandbox_status(request).await?.info;
    let info: serde_json::Value = serde_json::from_str(&info["info"])?;
    assert_eq!(info["resources"]["memoryLimitInBytes"], 96 * MIB);
    assert_eq!(info["overhead"]["cpuShares"], 2);
    assert_eq!(update(&stage, &"0".repeat(64)).await, Code::NotFound);
    stage.node.cri().stop_pod(&id).await?;
    assert_eq!(update(&stage, &id).await, Code::FailedPrecondition);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_itself_or_cannot_be_kept_is_refused_by_name() -> Result {
    let stage = Stage::set().await?;
    let unified = |file: &str| [(file.to_owned(), "1".to_owned())].into();
    let refused = [
        (
            "memory_limit_in_bytes",
            LinuxContainerResources { memory_limit_in_bytes: MIB, ..Default::default() },
        ),
        (
            "memory_limit_in_bytes",
            LinuxContainerResources {
                memory_limit_in_bytes: 64 * MIB,
                unified: unified("memory.max"),
                ..Default::default()
            },
        ),
        (
            "cpu_shares",
            LinuxContainerResources { cpu_shares: 512, unified: unified("cpu.weight"), ..Default::default() },
        ),
        ("cgroup.kill", LinuxContainerResources { unified: unified("cgroup.kill"), ..Default::default() }),
    ];
    for (name, resources) in refused {
        let reply = stage.node.cri().create(&stage.pod_id, &container(&stage, resources), &stage.pod).await;
        assert_eq!(code_of(&reply), Code::InvalidArgument, "{name}");
        let message = reply.err().map(|status| status.message().to_owned()).unwrap_or_default();
        assert!(message.contains(name), "{message}");
    }
    let mut classed = ContainerSpec::lasting("classed", &stage.image);
    classed.config.annotations.insert("io.kubernetes.cri.blockio-class".to_owned(), "slow".to_owned());
    let reply = stage.node.cri().create(&stage.pod_id, &classed, &stage.pod).await;
    assert_eq!(code_of(&reply), Code::FailedPrecondition);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_below_the_kernels_least_are_its_least() -> Result {
    let stage = Stage::set().await?;
    let id = create(&stage, LinuxContainerResources { cpu_shares: 1, ..Default::default() }).await?;
    stage.node.cri().start(&id).await?;
    assert_eq!(reported(&stage, &id).await?.cpu_shares, 2);
    let least = if PathBuf::from("/sys/fs/cgroup/cgroup.controllers").is_file() { "1" } else { "2" };
    assert_eq!(in_force(&stage, &id).await?["weight"], least);
    stage.finish().await
}
