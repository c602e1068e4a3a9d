use std::collections::{BTreeMap, BTreeSet};

use stats::{
    Average, Census, CpuAccount, HugepageAccount, Memory, MemoryAccount, Open, Swap, Transfers, Usage,
};

use super::*;

/// What critest looks for by name, and what it accepts to be missing.
const EXPECTED: &str = "container_blkio_device_usage_total container_cpu_cfs_periods_total \
    container_cpu_cfs_throttled_periods_total container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total \
    container_cpu_usage_seconds_total container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free \
    container_fs_inodes_total container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total \
    container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes \
    container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt \
    container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file \
    container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes \
    container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total \
    container_network_receive_packets_dropped_total container_network_receive_packets_total \
    container_network_transmit_bytes_total container_network_transmit_errors_total \
    container_network_transmit_packets_dropped_total container_network_transmit_packets_total container_oom_events_total \
    container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total \
    container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total \
    container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total container_processes \
    container_sockets container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares \
    container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes \
    container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads container_threads_max \
    container_ulimits_soft";

fn node(facts: &NodeFacts) -> Node<'_> {
    let filesystem = Filesystem { device: "/dev/vda".into(), capacity: 1000, inodes: Some((100, 40)) };
    Node { filesystem: Some(filesystem), devices: DeviceNames::default(), facts }
}

fn sheet() -> Sheet {
    Sheet::new(["app", "c0", "busybox:1", "default", "web"].map(str::to_owned).to_vec())
}

/// A group of which everything is known.
fn account() -> Account {
    let known = |n| Some(n * NANOSECONDS);
    let pressure = |seconds| {
        let average = |seconds| Average { total: seconds * MICROSECONDS, ..Average::default() };
        Some(Pressure { some: average(seconds), full: average(seconds - 1) })
    };
    let memory = Memory {
        usage: 100,
        working_set: 90,
        anonymous: Some(80),
        available: None,
        faults: Some(70),
        major_faults: Some(7),
    };
    let both = |bytes, operations| Transfers { bytes, operations };
    Account {
        usage: Usage {
            cpu_nanoseconds: known(9),
            memory: Some(memory),
            swap: Some(Swap { usage: 60, available: None }),
            tasks: Some(5),
            cpu_pressure: pressure(2),
            memory_pressure: pressure(3),
            io_pressure: pressure(4),
        },
        cpu: CpuAccount {
            user_nanoseconds: known(5),
            system_nanoseconds: known(4),
            periods: Some(3),
            throttled_periods: Some(2),
            throttled_nanoseconds: known(1),
        },
        memory: MemoryAccount {
            cache: Some(1),
            mapped_files: Some(2),
            active_files: Some(3),
            inactive_files: Some(4),
            kernel: Some(5),
            peak: Some(6),
            limit_hits: Some(7),
            oom_kills: Some(8),
            own_faults: Some(60),
            own_major_faults: Some(6),
        },
        threads: Some(Limit::At(50)),
        disks: vec![DiskAccount {
            major: 0,
            minor: 4_000_000,
            read: both(1, 2),
            written: both(3, 4),
            discarded: Some(both(5, 6)),
        }],
        hugepages: vec![HugepageAccount { size: "2MB".into(), usage: 1, peak: Some(2) }],
    }
}

/// Values by the labels after the common ones.
fn values(sheet: &Sheet, name: &str) -> BTreeMap<String, u64> {
    let named = sheet.metrics.iter().filter(|metric| metric.name == name);
    named
        .map(|metric| {
            let own = metric.label_values.get(f::BASE.len()..).unwrap().join(",");
            (own, metric.value.unwrap().value)
        })
        .collect()
}

#[test]
fn every_expected_name_is_described_once() {
    let told: Vec<String> = descriptors().into_iter().map(|it| it.name).collect();
    let names: BTreeSet<&str> = told.iter().map(String::as_str).collect();
    assert_eq!(names.len(), told.len());
    let missing: Vec<&str> = EXPECTED.split_whitespace().filter(|name| !names.contains(name)).collect();
    assert_eq!(missing, [""; 0]);
    for descriptor in descriptors() {
        assert!(descriptor.help.ends_with('.'), "{descriptor:?}");
        let keys: BTreeSet<&String> = descriptor.label_keys.iter().collect();
        assert_eq!(keys.len(), descriptor.label_keys.len());
        // What ends in total is what counters are called, though not all are.
        let counts = descriptor.name.ends_with("_total") || descriptor.name.ends_with("_failcnt");
        let gauge = descriptor.name.starts_with("container_fs_inodes");
        let kind = f::ALL.iter().find(|family| family.name == descriptor.name).unwrap().kind;
        assert_eq!(kind == v1::MetricType::Counter, counts && !gauge, "{}", descriptor.name);
    }
}

#[test]
fn a_group_of_which_all_is_known_has_all_metrics_with_their_labels() {
    let facts = NodeFacts::default();
    let mut sheet = sheet();
    node(&facts).group(&mut sheet, &account());
    let descriptors: BTreeMap<String, usize> =
        descriptors().into_iter().map(|it| (it.name, it.label_keys.len())).collect();
    for metric in &sheet.metrics {
        assert_eq!(metric.label_values.len(), descriptors[&metric.name], "{metric:?}");
        assert_eq!((metric.label_values[0].as_str(), metric.timestamp), ("app", 0));
    }
    let one = |name: &str| values(&sheet, name).into_iter().next().unwrap();
    assert_eq!(one("container_cpu_usage_seconds_total"), ("total".to_owned(), 9));
    assert_eq!(one("container_cpu_cfs_throttled_seconds_total"), (String::new(), 1));
    assert_eq!(one("container_memory_working_set_bytes").1, 90);
    assert_eq!(one("container_threads_max").1, 50);
    assert_eq!(one("container_hugetlb_max_usage_bytes"), ("2MB".to_owned(), 2));
    assert_eq!(one("container_pressure_io_waiting_seconds_total").1, 4);
    assert_eq!(one("container_pressure_io_stalled_seconds_total").1, 3);
    let failures = values(&sheet, "container_memory_failures_total");
    assert_eq!(failures["pgfault,container"], 60);
    assert_eq!(failures["pgmajfault,hierarchy"], 7);
    let moved = values(&sheet, "container_blkio_device_usage_total");
    assert_eq!(moved["0:4000000,0,4000000,Write"], 3);
    assert_eq!(moved.len(), 3);
    assert_eq!(one("container_fs_writes_total"), ("0:4000000".to_owned(), 4));
}

#[test]
fn what_the_kernel_does_not_count_has_no_metric() {
    let facts = NodeFacts::default();
    let mut sheet = sheet();
    node(&facts).group(&mut sheet, &Account::default());
    assert_eq!(sheet.metrics, []);
    let unlimited = Account { threads: Some(Limit::None), ..Account::default() };
    node(&facts).group(&mut sheet, &unlimited);
    assert_eq!(values(&sheet, "container_threads_max")[""], 0);
    processes(&mut sheet, &Counted { at: None, census: Census { processes: 1, open: None } });
    assert_eq!(values(&sheet, "container_processes")[""], 1);
    assert_eq!(values(&sheet, "container_sockets"), BTreeMap::new());
}

#[test]
fn values_of_the_past_say_when_they_were_found() {
    let facts = NodeFacts::default();
    let mut sheet = sheet();
    let usage = stats::TreeUsage { bytes: 4096, inodes: 2 };
    node(&facts).disk(&mut sheet, Some(LayerSize { at: Timestamp(7), usage }));
    let census = Census { processes: 1, open: Some(Open { descriptors: 3, sockets: 1 }) };
    processes(&mut sheet, &Counted { at: Some(Timestamp(8)), census });
    let at = |name: &str| sheet.metrics.iter().find(|it| it.name == name).unwrap().timestamp;
    assert_eq!((at("container_fs_usage_bytes"), at("container_fs_inodes_free")), (7, 0));
    assert_eq!(at("container_sockets"), 8);
    assert_eq!(values(&sheet, "container_fs_inodes_free")["/dev/vda"], 40);
    assert_eq!(values(&sheet, "container_file_descriptors")[""], 3);
}

#[test]
fn the_networks_figures_bear_the_interfaces_name() {
    let mut sheet = sheet();
    let eth0 = Interface { name: "eth0".into(), rx_dropped: 3, tx_packets: 4, ..Interface::default() };
    network(&mut sheet, &eth0);
    assert_eq!(sheet.metrics.len(), 8);
    assert_eq!(values(&sheet, "container_network_receive_packets_dropped_total")["eth0"], 3);
    assert_eq!(values(&sheet, "container_network_transmit_packets_total")["eth0"], 4);
}
