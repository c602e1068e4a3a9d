//! Metrics of pods and containers under the names that cAdvisor has made known. kubelet passes them on as `/metrics/cadvisor`, and
//! adds no label to them, so what a monitoring system can select by stands here.
//!
//! Every metric begins with the same labels ([`families::BASE`]). A pod's own figures have an empty `container` and `image`, as
//! cAdvisor has it for a pod's group: whoever sums up containers selects by one of the two. `id` is that of the container or pod.
//!
//! A value that this kernel does not count, or that has no meaning for this container, has no metric; 0 is a measurement. Values
//! are whole numbers on the wire, so seconds are rounded down. A metric has a timestamp if its value was not found out now.

use cri_api::v1;
use spec::NodeFacts;
use stats::{Account, DeviceNames, DiskAccount, Filesystem, Interface, Limit, Pressure};
use types::Timestamp;

use self::families as f;
use self::sheet::Sheet;
use super::Parts;
use crate::meter::{ContainerAccount, Counted, LayerSize, PodAccount};
use crate::pod::view::{ContainerView, SandboxView};

mod families;
mod limits;
mod sheet;

/// The loopback carries nothing of a pod's traffic.
const LOOPBACK: &str = "lo";
const NANOSECONDS: u64 = 1_000_000_000;
const MICROSECONDS: u64 = 1_000_000;

/// What there is; the same as long as the server lives.
#[must_use]
pub(super) fn descriptors() -> Vec<v1::MetricDescriptor> {
    f::ALL.iter().map(|family| family.descriptor()).collect()
}

/// Of all pods that are up, now.
pub(super) async fn list(parts: &Parts) -> Vec<v1::PodSandboxMetrics> {
    let accounts = parts.meter.accounts().await;
    let settings = parts.pods.settings();
    let mut node =
        Node { filesystem: accounts.filesystem, devices: DeviceNames::default(), facts: &settings.facts };
    accounts.pods.iter().map(|pod| node.pod(pod)).collect()
}

/// What containers have in common.
struct Node<'a> {
    filesystem: Option<Filesystem>,
    devices: DeviceNames,
    facts: &'a NodeFacts,
}

impl Node<'_> {
    fn pod(&mut self, pod: &PodAccount) -> v1::PodSandboxMetrics {
        let mut sheet = Sheet::new(of_pod(&pod.sandbox));
        seen(&mut sheet, pod.sandbox.created_at);
        if let Some(account) = &pod.account {
            self.group(&mut sheet, account);
        }
        for interface in pod.network.iter().filter(|it| it.name != LOOPBACK) {
            network(&mut sheet, interface);
        }
        v1::PodSandboxMetrics {
            pod_sandbox_id: pod.sandbox.id.to_string(),
            metrics: sheet.metrics,
            container_metrics: pod.containers.iter().map(|it| self.container(it, &pod.sandbox)).collect(),
        }
    }

    fn container(&mut self, found: &ContainerAccount, sandbox: &SandboxView) -> v1::ContainerMetrics {
        let mut sheet = Sheet::new(of_container(&found.container, sandbox));
        seen(&mut sheet, found.container.started_at);
        self.group(&mut sheet, &found.account);
        if let Some(counted) = &found.counted {
            processes(&mut sheet, counted);
        }
        sheet.add_to(&f::ULIMITS_SOFT, &["max_open_files"], found.open_files_limit);
        self.disk(&mut sheet, found.layer);
        limits::asked_for(&mut sheet, &found.container, self.facts);
        v1::ContainerMetrics { container_id: found.container.id.to_string(), metrics: sheet.metrics }
    }

    /// All that the kernel keeps of a group, be it a container's or a pod's.
    fn group(&mut self, sheet: &mut Sheet, account: &Account) {
        cpu(sheet, account);
        memory(sheet, account);
        memory_failures(sheet, account);
        for disk in &account.disks {
            traffic(sheet, disk, self.devices.of(disk.major, disk.minor));
        }
        for pages in &account.hugepages {
            sheet.add_to(&f::HUGETLB_USAGE_BYTES, &[&pages.size], Some(pages.usage));
            sheet.add_to(&f::HUGETLB_MAX_USAGE_BYTES, &[&pages.size], pages.peak);
        }
        pressure(sheet, account);
        sheet.add(&f::THREADS, account.usage.tasks);
        sheet.add(&f::THREADS_MAX, account.threads.map(none_is_0));
    }

    /// The container's part of the file system that it writes to, and how large that is.
    fn disk(&self, sheet: &mut Sheet, layer: Option<LayerSize>) {
        let Some(filesystem) = &self.filesystem else { return };
        let device = [filesystem.device.as_str()];
        if let Some(size) = layer {
            sheet.add_found(size.at, &f::FS_USAGE_BYTES, &device, size.usage.bytes);
        }
        sheet.add_to(&f::FS_LIMIT_BYTES, &device, Some(filesystem.capacity));
        sheet.add_to(&f::FS_INODES_TOTAL, &device, filesystem.inodes.map(|(all, _)| all));
        sheet.add_to(&f::FS_INODES_FREE, &device, filesystem.inodes.map(|(_, free)| free));
    }
}

/// Values of [`families::BASE`].
fn of_container(view: &ContainerView, sandbox: &SandboxView) -> Vec<String> {
    let image = match view.request.user_specified_image() {
        "" => &view.image_name,
        specified => specified,
    };
    labels(view.request.name(), view.id.as_str(), image, sandbox)
}

fn of_pod(sandbox: &SandboxView) -> Vec<String> {
    labels("", sandbox.id.as_str(), "", sandbox)
}

fn labels(container: &str, id: &str, image: &str, sandbox: &SandboxView) -> Vec<String> {
    let metadata = sandbox.request.config().metadata.as_ref();
    let (namespace, pod) = metadata.map(|it| (it.namespace.as_str(), it.name.as_str())).unwrap_or_default();
    [container, id, image, namespace, pod].map(str::to_owned).to_vec()
}

fn seen(sheet: &mut Sheet, began: Timestamp) {
    let seconds = |at: Timestamp| u64::try_from(at.0).ok().map(|at| at / NANOSECONDS);
    sheet.add(&f::LAST_SEEN, seconds(Timestamp::now()));
    sheet.add(&f::START_TIME_SECONDS, seconds(began));
}

fn cpu(sheet: &mut Sheet, account: &Account) {
    let seconds = |nanoseconds: Option<u64>| nanoseconds.map(|it| it / NANOSECONDS);
    let cpu = &account.cpu;
    // Figures of single processors v2 does not have, and kubelet has cAdvisor leave them out.
    sheet.add_to(&f::CPU_USAGE_SECONDS, &["total"], seconds(account.usage.cpu_nanoseconds));
    sheet.add(&f::CPU_USER_SECONDS, seconds(cpu.user_nanoseconds));
    sheet.add(&f::CPU_SYSTEM_SECONDS, seconds(cpu.system_nanoseconds));
    sheet.add(&f::CPU_CFS_PERIODS, cpu.periods);
    sheet.add(&f::CPU_CFS_THROTTLED_PERIODS, cpu.throttled_periods);
    sheet.add(&f::CPU_CFS_THROTTLED_SECONDS, seconds(cpu.throttled_nanoseconds));
}

fn memory(sheet: &mut Sheet, account: &Account) {
    let (usage, memory) = (account.usage.memory, &account.memory);
    sheet.add(&f::MEMORY_USAGE_BYTES, usage.map(|it| it.usage));
    sheet.add(&f::MEMORY_WORKING_SET_BYTES, usage.map(|it| it.working_set));
    sheet.add(&f::MEMORY_RSS, usage.and_then(|it| it.anonymous));
    sheet.add(&f::MEMORY_CACHE, memory.cache);
    sheet.add(&f::MEMORY_MAPPED_FILE, memory.mapped_files);
    sheet.add(&f::MEMORY_ACTIVE_FILE_BYTES, memory.active_files);
    sheet.add(&f::MEMORY_INACTIVE_FILE_BYTES, memory.inactive_files);
    sheet.add(&f::MEMORY_KERNEL_USAGE, memory.kernel);
    sheet.add(&f::MEMORY_SWAP, account.usage.swap.map(|it| it.usage));
    sheet.add(&f::MEMORY_MAX_USAGE_BYTES, memory.peak);
    sheet.add(&f::MEMORY_FAILCNT, memory.limit_hits);
    sheet.add(&f::OOM_EVENTS, memory.oom_kills);
}

/// Faults of the group alone, and with the groups in it. Where the kernel does not tell them apart they are the same to cAdvisor, and
/// to us: what a container has made beneath its group is the container's.
fn memory_failures(sheet: &mut Sheet, account: &Account) {
    let (usage, memory) = (account.usage.memory, &account.memory);
    let (faults, major) = (usage.and_then(|it| it.faults), usage.and_then(|it| it.major_faults));
    for (kind, own, all) in
        [("pgfault", memory.own_faults, faults), ("pgmajfault", memory.own_major_faults, major)]
    {
        sheet.add_to(&f::MEMORY_FAILURES, &[kind, "container"], own.or(all));
        sheet.add_to(&f::MEMORY_FAILURES, &[kind, "hierarchy"], all);
    }
}

fn traffic(sheet: &mut Sheet, disk: &DiskAccount, device: &str) {
    let (read, written) = (disk.read, disk.written);
    sheet.add_to(&f::FS_READS_BYTES, &[device], Some(read.bytes));
    sheet.add_to(&f::FS_READS, &[device], Some(read.operations));
    sheet.add_to(&f::FS_WRITES_BYTES, &[device], Some(written.bytes));
    sheet.add_to(&f::FS_WRITES, &[device], Some(written.operations));
    let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
    let operations = [("Read", Some(read)), ("Write", Some(written)), ("Discard", disk.discarded)];
    for (operation, transfers) in operations {
        let labels = [device, &major, &minor, operation];
        sheet.add_to(&f::BLKIO_DEVICE_USAGE, &labels, transfers.map(|it| it.bytes));
    }
}

fn network(sheet: &mut Sheet, interface: &Interface) {
    let name = [interface.name.as_str()];
    for (family, value) in [
        (&f::NETWORK_RECEIVE_BYTES, interface.rx_bytes),
        (&f::NETWORK_RECEIVE_PACKETS, interface.rx_packets),
        (&f::NETWORK_RECEIVE_ERRORS, interface.rx_errors),
        (&f::NETWORK_RECEIVE_DROPPED, interface.rx_dropped),
        (&f::NETWORK_TRANSMIT_BYTES, interface.tx_bytes),
        (&f::NETWORK_TRANSMIT_PACKETS, interface.tx_packets),
        (&f::NETWORK_TRANSMIT_ERRORS, interface.tx_errors),
        (&f::NETWORK_TRANSMIT_DROPPED, interface.tx_dropped),
    ] {
        sheet.add_to(family, &name, Some(value));
    }
}

/// Waiting is some task, stalled is all of them.
fn pressure(sheet: &mut Sheet, account: &Account) {
    let usage = &account.usage;
    for (waiting, stalled, pressure) in [
        (&f::PRESSURE_CPU_WAITING, &f::PRESSURE_CPU_STALLED, usage.cpu_pressure),
        (&f::PRESSURE_MEMORY_WAITING, &f::PRESSURE_MEMORY_STALLED, usage.memory_pressure),
        (&f::PRESSURE_IO_WAITING, &f::PRESSURE_IO_STALLED, usage.io_pressure),
    ] {
        sheet.add(waiting, pressure.map(|Pressure { some, .. }| some.total / MICROSECONDS));
        sheet.add(stalled, pressure.map(|Pressure { full, .. }| full.total / MICROSECONDS));
    }
}

fn processes(sheet: &mut Sheet, counted: &Counted) {
    let open = counted.census.open;
    for (family, value) in [
        (&f::PROCESSES, Some(counted.census.processes)),
        (&f::FILE_DESCRIPTORS, open.map(|it| it.descriptors)),
        (&f::SOCKETS, open.map(|it| it.sockets)),
    ] {
        match (counted.at, value) {
            (Some(at), Some(value)) => sheet.add_found(at, family, &[], value),
            (_, value) => sheet.add(family, value),
        }
    }
}

/// Without a limit the metric is 0 by its definition.
fn none_is_0(limit: Limit) -> u64 {
    match limit {
        Limit::None => 0,
        Limit::At(most) => most,
    }
}

#[cfg(test)]
mod tests;
