//! CRI metrics: what kubelet passes on as `/metrics/cadvisor`. Descriptors and metrics belong together, and values are the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::cri::{
    LinuxContainerResources, ListMetricDescriptorsResponse, ListPodSandboxMetricsResponse, Metric,
    MetricType, PodSandboxMetrics,
};
use e2e::trial::until;
use e2e::{ContainerSpec, Result, Stage, patience};

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

/// What every container has on every node. What is missing here some kernels do not count: pressure, huge pages, traffic with
/// devices.
const ALWAYS: &str = "container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total \
    container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total \
    container_cpu_user_seconds_total container_file_descriptors container_fs_limit_bytes container_fs_usage_bytes \
    container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total \
    container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss \
    container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total \
    container_network_receive_errors_total container_network_receive_packets_dropped_total \
    container_network_receive_packets_total container_network_transmit_bytes_total \
    container_network_transmit_errors_total container_network_transmit_packets_dropped_total \
    container_network_transmit_packets_total container_oom_events_total container_processes container_sockets \
    container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares container_spec_memory_limit_bytes \
    container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes container_start_time_seconds \
    container_threads container_threads_max container_ulimits_soft";

/// Label keys of each metric, by its name.
async fn descriptors(stage: &Stage) -> Result<BTreeMap<String, Vec<String>>> {
    let answer: ListMetricDescriptorsResponse =
        stage.node.cri().call("RuntimeService", "ListMetricDescriptors", ()).await?;
    let count = answer.descriptors.len();
    assert!(answer.descriptors.iter().all(|it| !it.help.is_empty()));
    let by_name: BTreeMap<_, _> = answer.descriptors.into_iter().map(|it| (it.name, it.label_keys)).collect();
    assert_eq!(by_name.len(), count, "each is described once");
    Ok(by_name)
}

async fn listed(stage: &Stage) -> Result<Vec<PodSandboxMetrics>> {
    let answer: ListPodSandboxMetricsResponse =
        stage.node.cri().call("RuntimeService", "ListPodSandboxMetrics", ()).await?;
    Ok(answer.pod_metrics)
}

/// The streamed messages have their lists in the same place.
async fn streamed(stage: &Stage) -> Result<Vec<PodSandboxMetrics>> {
    let mut found = Vec::new();
    let mut stream = stage.node.cri().stream("RuntimeService", "StreamPodSandboxMetrics", ()).await?;
    while let Some(ListPodSandboxMetricsResponse { pod_metrics }) = stream.message().await? {
        found.extend(pod_metrics);
    }
    Ok(found)
}

/// All metrics of the stage's pod and its containers, of which there must be some.
async fn of_stage(stage: &Stage) -> Result<PodSandboxMetrics> {
    let pod = listed(stage).await?.into_iter().find(|pod| pod.pod_sandbox_id == stage.pod_id);
    Ok(pod.expect("the pod has metrics"))
}

async fn of_container(stage: &Stage, id: &str) -> Result<Vec<Metric>> {
    let containers = of_stage(stage).await?.container_metrics;
    Ok(containers.into_iter().find(|it| it.container_id == id).expect("the container has metrics").metrics)
}

/// Values of a metric by the labels that it has of its own.
fn all<'a>(metrics: &'a [Metric], name: &str) -> BTreeMap<Vec<&'a str>, u64> {
    let named = metrics.iter().filter(|metric| metric.name == name);
    let own = |metric: &'a Metric| metric.label_values.iter().skip(5).map(String::as_str).collect();
    named.map(|metric| (own(metric), metric.value.as_ref().expect("a value").value)).collect()
}

/// The only value of a metric.
fn one(metrics: &[Metric], name: &str) -> u64 {
    let found = all(metrics, name);
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found.into_values().next().unwrap_or_default()
}

/// Whether a figure is what it should be, with a twentieth more or less.
fn is_about(found: u64, truth: u64) -> bool {
    found.abs_diff(truth) * 20 <= truth
}

/// A file of a process in the machine's `/proc`.
fn of_process(stage: &Stage, pid: u32, file: &str) -> Result<String> {
    let path = stage.node.machine().path(Path::new(&format!("/proc/{pid}/{file}")));
    Ok(std::fs::read_to_string(path)?)
}

fn scheduled(stage: &Stage, pid: u32) -> Result<u64> {
    Ok(of_process(stage, pid, "schedstat")?.split(' ').next().unwrap_or_default().parse()?)
}

/// Processes of the machine that this one has started.
fn children(stage: &Stage, parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(stage.node.machine().path(Path::new("/proc")))? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        // The name, which is in brackets, may hold anything; a state and the parent follow. Others end meanwhile.
        let stat = of_process(stage, pid, "stat").unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if after_name.split(' ').nth(1).and_then(|it| it.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Open files of a process, and those of them that are sockets.
fn open_files(stage: &Stage, pid: u32) -> Result<(u64, u64)> {
    let directory = stage.node.machine().path(Path::new(&format!("/proc/{pid}/fd")));
    let mut found = (0, 0);
    for entry in std::fs::read_dir(directory)? {
        // A program that was just started closes some.
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        found.0 += 1;
        found.1 += u64::from(target.to_string_lossy().starts_with("socket:"));
    }
    Ok(found)
}

fn resources(spec: &mut ContainerSpec) -> &mut LinuxContainerResources {
    let linux = spec.config.linux.as_mut().expect("a Linux part");
    linux.resources.as_mut().expect("resources")
}

/// Whether this host has cgroup v2 alone.
fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").is_file()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_as_described_and_streamed_as_listed() -> Result {
    let stage = Stage::set().await?;
    let described = descriptors(&stage).await?;
    let mut spec = ContainerSpec::lasting("plain", &stage.image);
    resources(&mut spec).cpu_quota = 50_000;
    let id = stage.run(&spec).await?;

    // At once: nothing has had the time to be found out in the background.
    let pod = of_stage(&stage).await?;
    let of_containers: Vec<&Metric> = pod.container_metrics.iter().flat_map(|it| &it.metrics).collect();
    for metric in pod.metrics.iter().chain(of_containers.iter().copied()) {
        let keys = described.get(&metric.name).unwrap_or_else(|| panic!("{} is not described", metric.name));
        assert_eq!(metric.label_values.len(), keys.len(), "{metric:?}");
        assert_eq!(keys[..5], ["container", "id", "image", "namespace", "pod"]);
        assert_eq!(metric.label_values[3..5], ["e2e", "stage"]);
        assert!(metric.value.is_some() && metric.timestamp >= 0, "{metric:?}");
        let counts = metric.name.ends_with("_total") || metric.name.ends_with("_failcnt");
        let kind =
            if counts && !metric.name.contains("_inodes_") { MetricType::Counter } else { MetricType::Gauge };
        assert_eq!(metric.metric_type(), kind, "{}", metric.name);
    }
    for metric in of_containers {
        assert_eq!(metric.label_values[..3], ["plain", &id, "127.0.0.1:5000/busybox:1"]);
    }
    assert!(pod.metrics.iter().all(|metric| metric.label_values[..3] == ["", &stage.pod_id, ""]));

    let identity = |pods: &[PodSandboxMetrics]| -> BTreeSet<(String, Vec<String>)> {
        let of_containers = pods.iter().flat_map(|pod| &pod.container_metrics).flat_map(|it| &it.metrics);
        let metrics = pods.iter().flat_map(|pod| &pod.metrics).chain(of_containers);
        metrics.map(|metric| (metric.name.clone(), metric.label_values.clone())).collect()
    };
    // What is found out in the background is there a moment later, on a busy machine some moments.
    let deadline = Instant::now() + patience(30);
    let told = loop {
        let told = identity(&listed(&stage).await?);
        let names: BTreeSet<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        let missing: Vec<&str> = ALWAYS.split_whitespace().filter(|name| !names.contains(name)).collect();
        let streamed = identity(&streamed(&stage).await?);
        if missing.is_empty() && streamed == told {
            break told;
        }
        assert!(
            Instant::now() < deadline,
            "{missing:?} are missing, {streamed:?} is streamed, {told:?} listed"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let metrics: usize = pod.metrics.len() + pod.container_metrics[0].metrics.len();
    assert!(told.len() >= metrics, "no two metrics of a container have the same labels");
    assert_eq!(descriptors(&stage).await?, described, "described once and for all");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_the_truth_of_processors_and_memory() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut spec = stage.shell("busy", "while :; do :; done");
    resources(&mut spec).cpu_quota = 80_000;
    let id = stage.run(&spec).await?;
    let pid = cri.container_pid(&id).await?;
    until("the processor was used", 30, async || Ok(scheduled(&stage, pid)? >= 2 * SECOND)).await?;
    let before = scheduled(&stage, pid)?;
    let metrics = of_container(&stage, &id).await?;
    let after = scheduled(&stage, pid)?;
    let told = all(&metrics, "container_cpu_usage_seconds_total");
    assert_eq!(told.keys().collect::<Vec<_>>(), [&["total"]]);
    // Whole seconds, rounded down; what started the process is in the sum too.
    let (told, least) = (told.into_values().sum::<u64>(), before / SECOND);
    let most = (after + after / 20 + SECOND / 5) / SECOND;
    assert!((least..=most).contains(&told), "{told} s told, {before} to {after} ns used");
    let user = one(&metrics, "container_cpu_user_seconds_total");
    let system = one(&metrics, "container_cpu_system_seconds_total");
    // On v1 these are counted by ticks.
    assert!(
        user <= told + 1 && system <= told + 1 && user + system + 1 >= told,
        "{user} + {system} = {told}"
    );
    let periods = one(&metrics, "container_cpu_cfs_periods_total");
    assert!(periods >= 15, "{periods} periods of 100 ms in more than 2 s");
    assert!(one(&metrics, "container_cpu_cfs_throttled_periods_total") <= periods);
    cri.remove(&id).await?;

    // Bytes that wait in a buffer for more to come, and as many in files of memory.
    let line = "(head -c 31457280 /dev/zero; exec sleep 3600) | exec dd of=/dev/null bs=64M iflag=fullblock";
    let id = stage.run(&stage.shell("buffer", line)).await?;
    // All of it is on its way then, but for what fits into a pipe.
    cri.shell(&id, "until ps | grep -q 'root *sleep 3600$'; do sleep 0.1; done").await?;
    until("the bytes are in memory", 30, async || {
        Ok(is_about(one(&of_container(&stage, &id).await?, "container_memory_rss"), 30 * MIB))
    })
    .await?;
    let before = of_container(&stage, &id).await?;
    cri.shell(&id, "dd if=/dev/zero of=/dev/file bs=1M count=30; rm /dev/file; dd if=/dev/zero of=/dev/file bs=1M count=20").await?;
    let after = of_container(&stage, &id).await?;
    for name in
        ["container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_cache"]
    {
        let more = one(&after, name).saturating_sub(one(&before, name));
        assert!(more.abs_diff(20 * MIB) <= MIB + MIB / 2, "{name}: {more} more");
    }
    let (peak, usage) =
        (one(&after, "container_memory_max_usage_bytes"), one(&after, "container_memory_usage_bytes"));
    assert!(peak >= usage + 8 * MIB, "{peak} at most, {usage} now");
    let faults = |metrics| all(metrics, "container_memory_failures_total")[&vec!["pgfault", "container"]];
    // A page each, unless they come in larger ones.
    assert!(faults(&after) >= faults(&before));
    assert!(faults(&after) > 100, "{}", faults(&after));
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_the_truth_of_processes_and_limits() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut spec = stage.shell("server", "sleep 3600 & sleep 3600 & exec httpd -f -p 80 -h /");
    let limits = resources(&mut spec);
    (limits.cpu_quota, limits.cpu_period) = (30_000, 60_000);
    limits.memory_limit_in_bytes = 48 << 20;
    let began = now();
    let id = stage.run(&spec).await?;
    let pid = cri.container_pid(&id).await?;
    until("the server listens", 30, async || Ok(open_files(&stage, pid)?.1 == 1)).await?;
    let pids: Vec<u32> = children(&stage, pid)?.into_iter().chain([pid]).collect();
    assert_eq!(pids.len(), 3);
    let open: Vec<(u64, u64)> = pids.iter().map(|pid| open_files(&stage, *pid)).collect::<Result<_>>()?;
    // A count from before is told with its time, and not for long.
    until("the socket is counted", 30, async || {
        let metrics = of_container(&stage, &id).await?;
        Ok(one(&metrics, "container_sockets") == 1)
    })
    .await?;
    let metrics = of_container(&stage, &id).await?;
    assert_eq!(one(&metrics, "container_processes"), 3);
    assert_eq!(one(&metrics, "container_threads"), 3);
    assert_eq!(one(&metrics, "container_file_descriptors"), open.iter().map(|(all, _)| all).sum::<u64>());
    let limits = of_process(&stage, pid, "limits")?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let files: u64 = files.split_whitespace().next().expect("a number").parse()?;
    assert_eq!(all(&metrics, "container_ulimits_soft"), BTreeMap::from([(vec!["max_open_files"], files)]));

    assert_eq!(one(&metrics, "container_spec_cpu_quota"), 30_000);
    assert_eq!(one(&metrics, "container_spec_cpu_period"), 60_000);
    assert_eq!(one(&metrics, "container_spec_cpu_shares"), 102);
    assert_eq!(one(&metrics, "container_spec_memory_limit_bytes"), 48 * MIB);
    let (started, seen) =
        (one(&metrics, "container_start_time_seconds"), one(&metrics, "container_last_seen"));
    assert!(began <= started && started <= seen && seen <= now(), "{began} {started} {seen}");

    // One that wants more memory than it may have is ended, and counted.
    assert_eq!(one(&metrics, "container_oom_events_total"), 0);
    let hog = cri.exec_for(&id, &["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"], 60).await?;
    assert_ne!(hog.exit_code, 0);
    let metrics = of_container(&stage, &id).await?;
    assert_eq!(one(&metrics, "container_oom_events_total"), 1);
    if one(&metrics, "container_memory_failcnt") == 0 {
        assert!(!is_unified(), "the limit was run into");
        println!("not here: how often limits are run into, which newer kernels do not count with cgroup v1");
    }
    let peak = one(&metrics, "container_memory_max_usage_bytes");
    assert!(is_about(peak, 48 * MIB), "{peak}");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_the_truth_of_disk_and_network() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    // Where temporary files stay over a reboot they are on a disk.
    let disk = tempfile::tempdir_in("/var/tmp")?;
    let script = "mkdir /www; dd if=/dev/zero of=/www/page bs=1M count=8; exec httpd -f -p 80 -h /www";
    let spec = stage.shell("writer", script).with_mount(disk.path(), "/disk", false);
    let id = stage.run(&spec).await?;
    let address = cri.pod_ip(&stage.pod_id).await?;
    let eth0 = |pod: &PodSandboxMetrics, name: &str| all(&pod.metrics, name)[&vec!["eth0"]];
    let before = of_stage(&stage).await?;
    until("the page is served", 30, async || {
        Ok(stage.node.fetch(&format!("http://{address}/page")).await.is_ok())
    })
    .await?;
    let after = of_stage(&stage).await?;
    let more = |name: &str| eth0(&after, name) - eth0(&before, name);
    let sent = more("container_network_transmit_bytes_total");
    assert!(is_about(sent, 8 * MIB), "{sent} bytes sent");
    assert!(more("container_network_transmit_packets_total") > 8 * MIB / 65_536);
    assert!(more("container_network_receive_packets_total") > 0);
    assert!(more("container_network_receive_bytes_total") < sent / 4);
    let interfaces = all(&after.metrics, "container_network_receive_bytes_total");
    assert_eq!(interfaces.keys().collect::<Vec<_>>(), [&["eth0"]]);

    // The layer is walked every now and then, the less often the longer that took.
    until("the layer was walked", 120, async || {
        let told = one(&of_container(&stage, &id).await?, "container_fs_usage_bytes");
        Ok(is_about(told, 8 * MIB))
    })
    .await?;

    cri.shell(&id, "dd if=/dev/zero of=/disk/file bs=1M count=32 conv=fsync").await?;
    let metrics = of_container(&stage, &id).await?;
    let written: u64 = all(&metrics, "container_fs_writes_bytes_total").values().sum();
    if written == 0 && !is_unified() {
        println!("not here: bytes written to devices, which newer kernels do not count with cgroup v1");
        return stage.finish().await;
    }
    // Of the page, which nobody has synced, there may be any part.
    assert!(written * 20 >= 32 * MIB * 19 && written * 20 <= 40 * MIB * 21, "{written} bytes written");
    let blocks = all(&metrics, "container_blkio_device_usage_total");
    let written_again: u64 =
        blocks.iter().filter(|(labels, _)| labels[3] == "Write").map(|(_, bytes)| bytes).sum();
    assert_eq!(written_again, written);
    assert!(all(&metrics, "container_fs_writes_total").values().sum::<u64>() > 0);
    stage.finish().await
}

/// Asks for metrics until one answer is wrong.
async fn keep_asking(stage: &Stage, lasting: &str) -> Result<Infallible> {
    loop {
        let pod = of_stage(stage).await?;
        assert!(pod.container_metrics.iter().any(|it| it.container_id == lasting), "{pod:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_go_on_while_containers_vanish() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let lasting = stage.run(&ContainerSpec::lasting("lasting", &stage.image)).await?;
    let coming_and_going = async {
        for n in 0..4 {
            let id = stage.run(&ContainerSpec::lasting(&format!("short-{n}"), &stage.image)).await?;
            cri.remove(&id).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        done = coming_and_going => done?,
        failed = keep_asking(&stage, &lasting) => match failed? {},
    }
    let ids: Vec<String> =
        of_stage(&stage).await?.container_metrics.into_iter().map(|it| it.container_id).collect();
    assert_eq!(ids, [lasting]);
    let stage_pod = stage.pod_id.clone();
    cri.stop_pod(&stage_pod).await?;
    assert_eq!(listed(&stage).await?, [], "a pod that was stopped uses nothing");
    assert_eq!(streamed(&stage).await?, []);
    stage.finish().await
}
