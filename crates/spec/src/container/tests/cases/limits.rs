//! Limits, scores and annotations.

use cri_api::v1;

use crate::Hierarchy;
use crate::container::tests::table::Case;
use crate::container::tests::words;

const MIB: i64 = 1 << 20;

pub(super) const CASES: &[Case] = &[
    (
        "shares, quota and processors",
        |it| {
            *it.resources() = v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 512,
                cpuset_cpus: "0-1".into(),
                cpuset_mems: "0".into(),
                ..Default::default()
            };
        },
        "
        linux.resources.cpu.period = 100000
        linux.resources.cpu.quota = 50000
        linux.resources.cpu.shares = 512
        linux.resources.cpu.cpus = 0-1
        linux.resources.cpu.mems = 0
    ",
    ),
    (
        "memory without swap",
        |it| it.resources().memory_limit_in_bytes = 64 * MIB,
        "
        linux.resources.memory.limit = 67108864
        linux.resources.memory.swap = 67108864
    ",
    ),
    (
        "memory with swap",
        |it| {
            it.resources().memory_limit_in_bytes = 64 * MIB;
            it.resources().memory_swap_limit_in_bytes = 96 * MIB;
        },
        "
        linux.resources.memory.limit = 67108864
        linux.resources.memory.swap = 100663296
    ",
    ),
    (
        "memory where swap is not counted",
        |it| {
            it.facts.swap_accounting = false;
            it.resources().memory_limit_in_bytes = 64 * MIB;
            it.resources().memory_swap_limit_in_bytes = 96 * MIB;
        },
        "
        linux.resources.memory.limit = 67108864
    ",
    ),
    (
        "huge pages",
        |it| {
            it.facts.hugepage_sizes = words(&["2MB"]);
            it.resources().hugepage_limits =
                vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }];
        },
        "
        linux.resources.hugepageLimits = [{\"limit\":4194304,\"pageSize\":\"2MB\"}]
    ",
    ),
    (
        "files of cgroup v2 by name",
        |it| {
            it.facts.hierarchy = Hierarchy::V2;
            it.resources().unified.insert("memory.high".into(), "1000".into());
        },
        "
        namespace cgroup = new
        linux.resources.unified.memory.high = 1000
    ",
    ),
    (
        "the score of a victim",
        |it| it.resources().oom_score_adj = 937,
        "
        process.oomScoreAdj = 937
    ",
    ),
    (
        "a score lower than this node can set",
        |it| {
            it.facts.oom_score_adj_floor = 100;
            it.resources().oom_score_adj = -997;
        },
        "
        process.oomScoreAdj = 100
    ",
    ),
    (
        "a scope of systemd",
        |it| it.place = |place| place.cgroups_path = "pod1.slice:crimson:c".into(),
        "
        linux.cgroupsPath = pod1.slice:crimson:c
        annotations.org.systemd.property.TasksMax = uint64 18446744073709551615
        annotations.org.systemd.property.CollectMode = 'inactive-or-failed'
    ",
    ),
    (
        "annotations, but not those that make a runtime act",
        |it| {
            for name in
                ["io.kubernetes.container.hash", "run.oci.hooks.stdout", "io.kubernetes.cri.sandbox-id"]
            {
                it.container.annotations.insert(name.into(), "sent".into());
            }
            it.pod.annotations.insert("of.the.pod".into(), "kept for CRI's answers".into());
        },
        "
        annotations.io.kubernetes.container.hash = sent
    ",
    ),
    (
        "annotations that the handler lets pass",
        |it| {
            it.facts.pod_annotations = words(&["io.katacontainers.*"]);
            it.facts.container_annotations = words(&["run.oci.handler"]);
            it.pod.annotations.insert("io.katacontainers.config".into(), "small".into());
            it.container.annotations.insert("run.oci.handler".into(), "wasm".into());
        },
        "
        annotations.io.katacontainers.config = small
        annotations.run.oci.handler = wasm
    ",
    ),
];
