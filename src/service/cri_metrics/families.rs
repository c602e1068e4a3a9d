//! Which metrics there are: names, kinds and labels as cAdvisor has them; tools know these by heart.

use cri_api::v1;
use cri_api::v1::MetricType::{self, Counter, Gauge};

/// Labels that each metric begins with, in this order. kubelet's own path has `name` and a group's path for `id` besides; here, as with other
/// CRI servers, the id is what its name says.
pub(super) const BASE: [&str; 5] = ["container", "id", "image", "namespace", "pod"];

/// A metric in all its instances.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// Labels after those of [`BASE`].
    pub(super) labels: &'static [&'static str],
    help: &'static str,
}

impl Family {
    /// How it is announced.
    pub(super) fn descriptor(&self) -> v1::MetricDescriptor {
        let keys = BASE.iter().chain(self.labels);
        v1::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: keys.map(|&key| key.to_owned()).collect(),
        }
    }
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(pub(super) const $constant: Family =
            Family { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)*
        /// Every family.
        pub(super) const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    LAST_SEEN Gauge "container_last_seen" []
        "When the container was last looked at, in seconds since 1970."
    START_TIME_SECONDS Gauge "container_start_time_seconds" []
        "When the container was started, in seconds since 1970."

    CPU_USAGE_SECONDS Counter "container_cpu_usage_seconds_total" ["cpu"]
        "Processor time used, in seconds."
    CPU_USER_SECONDS Counter "container_cpu_user_seconds_total" []
        "Processor time used outside of the kernel, in seconds."
    CPU_SYSTEM_SECONDS Counter "container_cpu_system_seconds_total" []
        "Processor time used in the kernel, in seconds."
    CPU_CFS_PERIODS Counter "container_cpu_cfs_periods_total" []
        "Periods of the processor quota in which there was something to run."
    CPU_CFS_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the processor quota was used up."
    CPU_CFS_THROTTLED_SECONDS Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time held back by the processor quota, in seconds."

    MEMORY_USAGE_BYTES Gauge "container_memory_usage_bytes" []
        "Memory in use, in bytes, page cache included."
    MEMORY_WORKING_SET_BYTES Gauge "container_memory_working_set_bytes" []
        "Memory in use without file pages that were not used lately, in bytes."
    MEMORY_RSS Gauge "container_memory_rss" []
        "Memory that no file backs, in bytes."
    MEMORY_CACHE Gauge "container_memory_cache" []
        "Memory that holds pages of files, in bytes."
    MEMORY_MAPPED_FILE Gauge "container_memory_mapped_file" []
        "Pages of files that processes have mapped, in bytes."
    MEMORY_ACTIVE_FILE_BYTES Gauge "container_memory_total_active_file_bytes" []
        "Pages of files that were used lately, in bytes."
    MEMORY_INACTIVE_FILE_BYTES Gauge "container_memory_total_inactive_file_bytes" []
        "Pages of files that were not used lately, in bytes."
    MEMORY_KERNEL_USAGE Gauge "container_memory_kernel_usage" []
        "Memory that the kernel uses on behalf of the container, in bytes."
    MEMORY_SWAP Gauge "container_memory_swap" []
        "Swap space in use, in bytes."
    MEMORY_MAX_USAGE_BYTES Gauge "container_memory_max_usage_bytes" []
        "The most memory that was ever in use, in bytes."
    MEMORY_FAILCNT Counter "container_memory_failcnt" []
        "How often the limit on memory was run into."
    MEMORY_FAILURES Counter "container_memory_failures_total" ["failure_type" "scope"]
        "Page faults: all of them (pgfault) and those that waited for a disk (pgmajfault)."
    OOM_EVENTS Counter "container_oom_events_total" []
        "Processes killed for want of memory."

    FS_USAGE_BYTES Gauge "container_fs_usage_bytes" ["device"]
        "What the container has written on the node's disk, in bytes."
    FS_LIMIT_BYTES Gauge "container_fs_limit_bytes" ["device"]
        "The size of the file system that the container writes to, in bytes."
    FS_INODES_TOTAL Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the file system that the container writes to."
    FS_INODES_FREE Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the file system that the container writes to."
    FS_READS_BYTES Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from the device."
    FS_READS Counter "container_fs_reads_total" ["device"]
        "Reads from the device."
    FS_WRITES_BYTES Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to the device."
    FS_WRITES Counter "container_fs_writes_total" ["device"]
        "Writes to the device."
    BLKIO_DEVICE_USAGE Counter "container_blkio_device_usage_total" ["device" "major" "minor" "operation"]
        "Bytes moved from and to the device, and given up on it."

    HUGETLB_USAGE_BYTES Gauge "container_hugetlb_usage_bytes" ["pagesize"]
        "Huge pages in use, in bytes."
    HUGETLB_MAX_USAGE_BYTES Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "The most huge pages that were ever in use, in bytes."

    NETWORK_RECEIVE_BYTES Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received."
    NETWORK_RECEIVE_PACKETS Counter "container_network_receive_packets_total" ["interface"]
        "Packets received."
    NETWORK_RECEIVE_ERRORS Counter "container_network_receive_errors_total" ["interface"]
        "Packets received with an error."
    NETWORK_RECEIVE_DROPPED Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets received and thrown away."
    NETWORK_TRANSMIT_BYTES Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent."
    NETWORK_TRANSMIT_PACKETS Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent."
    NETWORK_TRANSMIT_ERRORS Counter "container_network_transmit_errors_total" ["interface"]
        "Packets whose sending failed."
    NETWORK_TRANSMIT_DROPPED Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets thrown away instead of being sent."

    PROCESSES Gauge "container_processes" []
        "Processes in the container."
    THREADS Gauge "container_threads" []
        "Threads in the container, the first one of each process included."
    THREADS_MAX Gauge "container_threads_max" []
        "How many threads the container may have; 0 for any number."
    FILE_DESCRIPTORS Gauge "container_file_descriptors" []
        "Open file descriptors of the container's processes."
    SOCKETS Gauge "container_sockets" []
        "Open sockets of the container's processes."
    ULIMITS_SOFT Gauge "container_ulimits_soft" ["ulimit"]
        "Limits of the container's first process that are in force."

    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" []
        "Length of a period of the processor quota, in microseconds."
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" []
        "Processor time allowed in each period, in microseconds."
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" []
        "Weight of the container where processors are scarce."
    SPEC_MEMORY_LIMIT_BYTES Gauge "container_spec_memory_limit_bytes" []
        "Limit on memory in bytes; 0 for none."
    SPEC_MEMORY_RESERVATION_LIMIT_BYTES Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory that is kept for the container, in bytes; 0 for none."
    SPEC_MEMORY_SWAP_LIMIT_BYTES Gauge "container_spec_memory_swap_limit_bytes" []
        "Limit on memory and swap space together, in bytes; 0 for none."

    PRESSURE_CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time in which some task waited for a processor, in seconds."
    PRESSURE_CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time in which every task waited for a processor, in seconds."
    PRESSURE_MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" []
        "Time in which some task waited for memory, in seconds."
    PRESSURE_MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" []
        "Time in which every task waited for memory, in seconds."
    PRESSURE_IO_WAITING Counter "container_pressure_io_waiting_seconds_total" []
        "Time in which some task waited for a disk, in seconds."
    PRESSURE_IO_STALLED Counter "container_pressure_io_stalled_seconds_total" []
        "Time in which every task waited for a disk, in seconds."
}
