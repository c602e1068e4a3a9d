//! Figures of pods and containers against the truth: what a container is made to use is what is reported.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::cri::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest,
    ListContainerStatsResponse, ListPodSandboxStatsRequest, PodSandboxStats, PodSandboxStatsFilter,
    PodSandboxStatsRequest,
};
use e2e::trial::until;
use e2e::{ContainerSpec, ImageBuilder, Media, Result, Stage, code_of};
use serde_json::json;
use tonic::Code;

const MIB: u64 = 1 << 20;

/// What the client crate does not know of ContainerStats: time lost.
#[derive(Clone, PartialEq, prost::Message)]
struct PressureAnswer {
    #[prost(message, optional, tag = "1")]
    stats: Option<Pressures>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pressures {
    #[prost(message, optional, tag = "2")]
    cpu: Option<CpuPressure>,
    #[prost(message, optional, tag = "3")]
    memory: Option<MemoryPressure>,
    #[prost(message, optional, tag = "6")]
    io: Option<IoPressure>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CpuPressure {
    #[prost(message, optional, tag = "4")]
    psi: Option<Psi>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemoryPressure {
    #[prost(message, optional, tag = "8")]
    psi: Option<Psi>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct IoPressure {
    #[prost(message, optional, tag = "2")]
    psi: Option<Psi>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Psi {
    #[prost(message, optional, tag = "2")]
    some: Option<Lost>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Lost {
    #[prost(uint64, tag = "1")]
    total: u64,
}

async fn pressures(stage: &Stage, id: &str) -> Result<Pressures> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    let answer: PressureAnswer = stage.node.cri().call("RuntimeService", "ContainerStats", request).await?;
    Ok(answer.stats.expect("figures"))
}

async fn stats(stage: &Stage, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    Ok(stage.node.cri().container_stats(request).await?.stats.expect("figures"))
}

async fn pod_stats(stage: &Stage) -> Result<PodSandboxStats> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: stage.pod_id.clone() };
    Ok(stage.node.cri().pod_sandbox_stats(request).await?.stats.expect("figures"))
}

async fn listed(stage: &Stage, filter: Option<ContainerStatsFilter>) -> Result<Vec<String>> {
    let found = stage.node.cri().list_container_stats(ListContainerStatsRequest { filter }).await?;
    Ok(found.stats.into_iter().filter_map(|stats| stats.attributes).map(|it| it.id).collect())
}

/// Whether a figure is what it should be, with a twentieth more or less.
fn is_about(found: u64, truth: u64) -> bool {
    found.abs_diff(truth) * 20 <= truth
}

fn cpu(stats: &ContainerStats) -> u64 {
    let used = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref());
    used.map_or(0, |used| used.value)
}

fn working_set(stats: &ContainerStats) -> u64 {
    let used = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
    used.map_or(0, |used| used.value)
}

/// Processor time of a process, as the kernel's scheduler has counted it, in nanoseconds.
fn scheduled(stage: &Stage, pid: u32) -> Result<u64> {
    let path = stage.node.machine().path(std::path::Path::new(&format!("/proc/{pid}/schedstat")));
    let text = std::fs::read_to_string(path)?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// The directory of a process's group in the unified hierarchy, where there is one that it is in.
fn unified_group(stage: &Stage, pid: u32) -> Result<Option<PathBuf>> {
    // Seen from here, not from the machine, which may show only part of the tree.
    let path = stage.node.machine().path(Path::new(&format!("/proc/{pid}/cgroup")));
    let text = std::fs::read_to_string(path)?;
    let Some(inside) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Ok(None) };
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let mount = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").is_file());
    Ok(mount.map(|mount| mount.join(inside)).filter(|_| !inside.is_empty()))
}

/// Microseconds in which something waited, as the kernel has them now.
fn waited(group: &Path, what: &str) -> Result<Option<u64>> {
    match std::fs::read_to_string(group.join(format!("{what}.pressure"))) {
        Ok(text) => {
            Ok(Some(text.lines().next().and_then(|it| it.rsplit_once('=')).expect("a sum").1.parse()?))
        }
        // The kernel has no such files, or was told not to count.
        Err(_) => Ok(None),
    }
}

/// What is told of a container's processor time, and what its process had used right before and after.
struct Reading {
    began: Instant,
    before: u64,
    told: u64,
    /// In nanoseconds per second.
    rate: u64,
    after: u64,
    ended: Instant,
}

impl Reading {
    async fn of(stage: &Stage, id: &str, pid: u32) -> Result<Self> {
        let (began, before) = (Instant::now(), scheduled(stage, pid)?);
        let stats = stats(stage, id).await?;
        let (after, ended) = (scheduled(stage, pid)?, Instant::now());
        let rate = stats.cpu.as_ref().and_then(|cpu| cpu.usage_nano_cores.as_ref()).map_or(0, |it| it.value);
        Ok(Self { began, before, told: cpu(&stats), rate, after, ended })
    }
}

/// What the writable layer is told to hold, in bytes.
async fn layer_size(stage: &Stage, id: &str) -> Result<u64> {
    let layer = stats(stage, id).await?.writable_layer;
    Ok(layer.and_then(|layer| layer.used_bytes).map_or(0, |used| used.value))
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_and_memory_are_those_of_the_container() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&stage.shell("busy", "while :; do :; done")).await?;
    let pid = cri.container_pid(&id).await?;
    let began = Reading::of(&stage, &id, pid).await?;
    // Long enough for the processor that does the reading not to matter.
    while scheduled(&stage, pid)? < began.after + 1_500_000_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = Reading::of(&stage, &id, pid).await?;
    let (told, least, most) =
        (ended.told - began.told, ended.before - began.after, ended.after - began.before);
    assert!(told * 20 >= least * 19 && told * 20 <= most * 21, "{told} ns told, {least} to {most} ns used");

    let before = working_set(&stats(&stage, &id).await?);
    cri.shell(&id, "dd if=/dev/zero of=/dev/touched bs=1M count=40").await?;
    let told = working_set(&stats(&stage, &id).await?) - before;
    assert!(is_about(told, 40 * MIB), "{told} bytes more");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_processor_time_is_what_is_used() -> Result {
    let stage = Stage::set().await?;
    let mut spec = stage.shell("held-back", "while :; do :; done");
    let resources = spec.config.linux.as_mut().and_then(|linux| linux.resources.as_mut()).expect("resources");
    (resources.cpu_quota, resources.cpu_period) = (2_000, 10_000);
    let id = stage.run(&spec).await?;
    let pid = stage.node.cri().container_pid(&id).await?;
    let per_second = |used: u64, passed: Duration| {
        u64::try_from(u128::from(used) * 1_000_000_000 / passed.as_nanos()).unwrap_or(u64::MAX)
    };
    let measure = async || {
        let first = Reading::of(&stage, &id, pid).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let second = Reading::of(&stage, &id, pid).await?;
        let (shortest, longest) = (second.began - first.ended, second.ended - first.began);
        // Others may want the processors too, so it may be less than a fifth of one, but never more.
        let (told, most) = (second.told - first.told, u64::try_from(longest.as_nanos())? / 5);
        assert!(told <= most + most / 20, "{told} ns in {longest:?}");
        // Either reading is somewhere between a beginning and an end.
        let least = per_second(second.before - first.after, longest);
        Ok::<_, anyhow::Error>((least, second.rate, per_second(second.after - first.before, shortest)))
    };
    // Now and then a reading in the background lies between ours, and the rate is that of a part of the time.
    let mut found = Vec::new();
    for _ in 0..8 {
        let (least, rate, most) = measure().await?;
        if rate * 20 >= least * 19 && rate * 20 <= most * 21 {
            return stage.finish().await;
        }
        found.push((least, rate, most));
    }
    panic!("nanoseconds per second, told between true ones: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pressure_and_room_are_told_where_the_kernel_knows_them() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&stage.shell("busy", "while :; do :; done & while :; do :; done & wait")).await?;
    let pid = cri.container_pid(&id).await?;
    let told = stats(&stage, &id).await?;
    let memory = told.memory.as_ref().expect("memory");
    let room = memory.available_bytes.as_ref().expect("a limit leaves room").value;
    assert_eq!(room + working_set(&told), 128 * MIB);
    // The kernel may count the first ones up to two seconds later.
    until("page faults are counted", 30, async || {
        let memory = stats(&stage, &id).await?.memory;
        Ok(memory.and_then(|memory| memory.page_faults).is_some_and(|faults| faults.value > 0))
    })
    .await?;

    let group = unified_group(&stage, pid)?;
    let Some(group) = group.filter(|group| group.join("cpu.pressure").is_file()) else {
        println!("not here: pressure of groups");
        return stage.finish().await;
    };
    let before = waited(&group, "cpu")?;
    let told = pressures(&stage, &id).await?;
    let psi = [
        ("cpu", told.cpu.and_then(|it| it.psi)),
        ("memory", told.memory.and_then(|it| it.psi)),
        ("io", told.io.and_then(|it| it.psi)),
    ];
    for (what, told) in psi {
        let told = told.and_then(|psi| psi.some).map(|it| it.total);
        let (least, most) =
            if what == "cpu" { (before, waited(&group, what)?) } else { (None, waited(&group, what)?) };
        assert!(least <= told && told <= most, "{what}: {least:?} {told:?} {most:?}");
        assert_eq!(told.is_some(), most.is_some(), "{what}");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_the_image_declares_count_once() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let image = ImageBuilder::busybox(Media::Oci)?.config("Volumes", json!({ "/kept": {} }));
    let pushed = stage.registry.push(image, "volumes", "1").await?;
    let image = cri.pull(&pushed.reference).await?;
    let line =
        "dd if=/dev/zero of=/kept/file bs=1M count=6; dd if=/dev/zero of=/own bs=1M count=2; exec sleep 3600";
    let id = stage.run(&ContainerSpec::shell("keeper", &image, line)).await?;
    let walked = async || Ok(is_about(layer_size(&stage, &id).await?, 8 * MIB));
    until("the layer and the volume were walked", 120, walked).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_written_to_disk_and_network_are_counted() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let script = "mkdir /www; dd if=/dev/zero of=/www/page bs=1M count=8; exec httpd -f -p 80 -h /www";
    let id = stage.run(&stage.shell("writer", script)).await?;
    let address = cri.pod_ip(&stage.pod_id).await?;
    let sent = |stats: &PodSandboxStats| {
        let network = stats.linux.as_ref().and_then(|linux| linux.network.as_ref());
        let eth0 =
            network.and_then(|network| network.default_interface.as_ref()).expect("the pod's interface");
        assert_eq!(eth0.name, "eth0");
        eth0.tx_bytes.as_ref().expect("a count").value
    };
    let before = sent(&pod_stats(&stage).await?);
    let fetched = async || Ok(stage.node.fetch(&format!("http://{address}/page")).await.is_ok());
    until("the page is served", 30, fetched).await?;
    let told = sent(&pod_stats(&stage).await?) - before;
    assert!(is_about(told, 8 * MIB), "{told} bytes sent");

    // The layer is walked every now and then, the less often the longer that took.
    until("the layer was walked", 120, async || Ok(is_about(layer_size(&stage, &id).await?, 8 * MIB)))
        .await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_run_or_is_not_known_is_left_out() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let running = stage.run(&ContainerSpec::lasting("running", &stage.image)).await?;
    let ended = stage.run(&stage.shell("ended", "true")).await?;
    stage.node.exited(&ended).await?;
    assert_eq!(listed(&stage, None).await?, [running.as_str()]);
    let by_id =
        |id: &str| Some(ContainerStatsFilter { id: id.to_owned(), ..ContainerStatsFilter::default() });
    assert_eq!(listed(&stage, by_id(&e2e::prefix_of(&running))).await?, [running.as_str()]);
    for unknown in ["0000", ended.as_str()] {
        assert_eq!(listed(&stage, by_id(unknown)).await?, [""; 0]);
    }
    let unknown = ContainerStatsRequest { container_id: "0000".to_owned() };
    assert_eq!(code_of(&cri.container_stats(unknown).await), Code::NotFound);
    let unknown = PodSandboxStatsRequest { pod_sandbox_id: "0000".to_owned() };
    assert_eq!(code_of(&cri.pod_sandbox_stats(unknown).await), Code::NotFound);
    let filter = PodSandboxStatsFilter { id: "0000".to_owned(), ..PodSandboxStatsFilter::default() };
    let pods = cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: Some(filter) }).await?;
    assert_eq!(pods.stats, []);

    let pods = cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?.stats;
    let linux = pods.into_iter().next().and_then(|pod| pod.linux).expect("the pod");
    assert_eq!(linux.containers.len(), 1);
    let processes = linux.process.and_then(|it| it.process_count).map_or(0, |count| count.value);
    assert!(processes >= 2, "{processes}: the pause process and the container's");
    let streamed: Option<ListContainerStatsResponse> =
        cri.call_stream("RuntimeService", "StreamContainerStats", ()).await?;
    // The streamed message has its list in the same place.
    assert_eq!(streamed.expect("a message").stats.len(), 1);
    stage.finish().await
}
