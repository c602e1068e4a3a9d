//! What the pause process holds for its pod.

use cri_api::v1;
use cri_api::v1::security_profile::ProfileType;

use crate::Hierarchy;
use crate::container::tests::NODE;
use crate::container::tests::table::Case;
use crate::container::tests::words;
use crate::selinux::SelinuxLabels;

/// As the daemon hands them in.
fn labels() -> SelinuxLabels {
    SelinuxLabels { process: "u:r:app_t:s0:c1,c2".into(), mount: "u:object_r:file_t:s0:c1,c2".into() }
}

pub(super) const CASES: &[Case] = &[
    (
        "the node's network, and with it its name",
        |it| it.pod_namespaces().network = NODE,
        "
        - hostname
        - namespace network
        - namespace uts
        - linux.sysctl.net.ipv4.ip_unprivileged_port_start
        - linux.sysctl.net.ipv4.ping_group_range
    ",
    ),
    (
        "the node's processes and IPC",
        |it| {
            it.pod_namespaces().pid = NODE;
            it.pod_namespaces().ipc = NODE;
            it.sandbox_place = |place| place.shm = None;
        },
        "
        - namespace pid
        - namespace ipc
        mounts = /proc /dev
        - mounts /dev/shm
    ",
    ),
    (
        "no name",
        |it| it.pod.hostname.clear(),
        "
        - hostname
    ",
    ),
    (
        "cgroup v2",
        |it| it.facts.hierarchy = Hierarchy::V2,
        "
        namespace cgroup = new
    ",
    ),
    (
        "kernel parameters, also spelled as paths",
        |it| {
            let sysctls = &mut it.pod.linux.as_mut().unwrap().sysctls;
            sysctls.insert("net/ipv4/ip_unprivileged_port_start".into(), "1024".into());
            sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        },
        "
        linux.sysctl.net.ipv4.ip_unprivileged_port_start = 1024
        linux.sysctl.kernel.shm_rmid_forced = 1
    ",
    ),
    (
        "the pod's user and groups",
        |it| {
            it.pod_security().run_as_user = Some(v1::Int64Value { value: 1000 });
            it.pod_security().run_as_group = Some(v1::Int64Value { value: 2000 });
            it.pod_security().supplemental_groups = vec![3000];
        },
        "
        process.user.uid = 1000
        process.user.gid = 2000
        process.user.additionalGids = [2000,3000]
    ",
    ),
    (
        "the pod's filter, for a process without capabilities",
        |it| {
            it.pod_security().seccomp = Some(v1::SecurityProfile::default());
        },
        "
        seccomp = SCMP_ACT_ERRNO 38; allows read chmod; refuses mount settimeofday reboot kexec_load
    ",
    ),
    (
        "no filter",
        |it| {
            let profile_type = ProfileType::Unconfined.into();
            it.pod_security().seccomp = Some(v1::SecurityProfile { profile_type, ..Default::default() });
        },
        "",
    ),
    ("a privileged pod's pause process may do nothing either", |it| it.pod_security().privileged = true, ""),
    ("a root of its own is read-only, wished or not", |it| it.pod_security().readonly_rootfs = true, ""),
    (
        "SELinux, whose transitions no_new_privs would forbid",
        |it| {
            it.facts.selinux = true;
            it.sandbox_place = |place| place.selinux = Some(labels());
        },
        "
        process.noNewPrivileges = false
        process.selinuxLabel = u:r:app_t:s0:c1,c2
        linux.mountLabel = u:object_r:file_t:s0:c1,c2
    ",
    ),
    (
        "a score lower than this node can set",
        |it| it.facts.oom_score_adj_floor = 0,
        "
        process.oomScoreAdj = 0
    ",
    ),
    (
        "a scope of systemd",
        |it| it.sandbox_place = |place| place.cgroups_path = "p.slice:crimson:s".into(),
        "
        linux.cgroupsPath = p.slice:crimson:s
        annotations.org.systemd.property.TasksMax = uint64 18446744073709551615
        annotations.org.systemd.property.CollectMode = 'inactive-or-failed'
    ",
    ),
    (
        "a user namespace",
        |it| {
            let line = v1::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 };
            let mode = v1::NamespaceMode::Pod.into();
            it.pod_namespaces().userns_options =
                Some(v1::UserNamespace { mode, uids: vec![line], gids: vec![line] });
        },
        "
        namespace user = /run/crimson/containers/1/user
        linux.sysctl.net.ipv4.ping_group_range = 0 65535
        linux.uidMappings = [{\"containerID\":0,\"hostID\":131072,\"size\":65536}]
        linux.gidMappings = [{\"containerID\":0,\"hostID\":131072,\"size\":65536}]
    ",
    ),
    (
        "annotations that the handler lets pass",
        |it| {
            it.facts.pod_annotations = words(&["io.katacontainers.*"]);
            for name in ["io.katacontainers.config", "run.oci.hooks.stdout", "other"] {
                it.pod.annotations.insert(name.into(), "small".into());
            }
        },
        "
        annotations.io.katacontainers.config = small
    ",
    ),
    (
        "limits of the pod, for runtimes that make a machine of that size",
        |it| {
            it.pod.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
                cpu_quota: 20_000,
                cpu_period: 100_000,
                cpu_shares: 204,
                memory_limit_in_bytes: 64 << 20,
                ..Default::default()
            });
        },
        "
        annotations.io.kubernetes.cri.sandbox-cpu-period = 100000
        annotations.io.kubernetes.cri.sandbox-cpu-quota = 20000
        annotations.io.kubernetes.cri.sandbox-cpu-shares = 204
        annotations.io.kubernetes.cri.sandbox-memory = 67108864
    ",
    ),
];
