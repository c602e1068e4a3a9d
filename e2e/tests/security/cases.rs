//! What containers are asked to be, and what is seen in them then.

use e2e::ContainerSpec;
use e2e::cri::security_profile::ProfileType;
use e2e::cri::{Device, LinuxContainerSecurityContext as Security, NamespaceMode, SupplementalGroupsPolicy};

use crate::ask::{capabilities, number, profile, words};

/// A name, the pod to be in, what is asked for, and the facts that follow, each `section: line`.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) pod: Pod,
    pub(super) ask: fn(&mut Security),
    pub(super) change: fn(&mut ContainerSpec),
    pub(super) expect: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pod {
    Plain,
    Privileged,
    OfTheNode,
}

const fn case(name: &'static str, ask: fn(&mut Security), expect: &'static [&'static str]) -> Case {
    Case { name, pod: Pod::Plain, ask, change: |_| {}, expect }
}

/// The sets are written as `default`, `none`, `all`, `bind` (NET_BIND_SERVICE) or sums and differences of these.
pub(super) const CASES: &[Case] = &[
    case(
        "plain",
        |_| {},
        &[
            "status: Uid 0 0 0 0",
            "status: Gid 0 0 0 0",
            "status: Groups 0",
            "status: CapInh none",
            "status: CapPrm default",
            "status: CapEff default",
            "status: CapBnd default",
            "status: CapAmb none",
            "status: NoNewPrivs 0",
            "status: Seccomp 2",
            "ids: 0 0 4294967295",
            "mounts: / rw",
            "mounts: /proc rw,nosuid,nodev,noexec",
            "mounts: /dev rw,nosuid",
            "mounts: /dev/pts rw,nosuid,noexec",
            "mounts: /dev/mqueue rw,nosuid,nodev,noexec",
            "mounts: /dev/shm rw,nosuid,nodev,noexec",
            "mounts: /sys ro,nosuid,nodev,noexec",
            "mounts: /sys/fs/cgroup ro,nosuid,nodev,noexec",
            "mounts: /etc/hosts rw",
            "mounts: /etc/hostname rw",
            "mounts: /etc/resolv.conf rw",
            "devices: null opens",
            "devices: zero opens",
            "devices: full opens",
            "devices: random opens",
            "devices: urandom opens",
            "devices: ptmx opens",
            "devices: kmsg absent",
            "devices: mem absent",
            "devices: fuse absent",
            "limits: Max open files 1024 1024 files",
            "limits: Max core file size 0 0 bytes",
            "limits: 0022",
            "limits: 134217728",
            "where: /",
            "where: plain",
            "environment: HOSTNAME=plain",
            "environment: HOME=/root",
        ],
    ),
    case(
        "a user, a group and more groups",
        |it| {
            it.run_as_user = number(1234);
            it.run_as_group = number(5678);
            it.supplemental_groups = vec![42];
        },
        &[
            "status: Uid 1234 1234 1234 1234",
            "status: Gid 5678 5678 5678 5678",
            "status: Groups 42 5678",
            "status: CapPrm none",
            "status: CapEff none",
            "status: CapBnd default",
            "devices: null opens",
            "paths: / - full",
        ],
    ),
    case(
        "a name, with the groups that the image gives it",
        |it| {
            it.run_as_username = "web".to_owned();
            it.supplemental_groups = vec![60000];
        },
        &[
            "status: Uid 1000 1000 1000 1000",
            "status: Gid 1000 1000 1000 1000",
            "status: Groups 1000 2000 60000",
            "status: CapEff none",
            "environment: HOME=/www",
        ],
    ),
    case(
        "a name under Strict",
        |it| {
            it.run_as_username = "web".to_owned();
            it.supplemental_groups = vec![60000];
            it.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        },
        &["status: Uid 1000 1000 1000 1000", "status: Groups 1000 60000"],
    ),
    case(
        "no capabilities",
        |it| it.capabilities = capabilities(&[], &["ALL"], &[]),
        &[
            "status: CapInh none",
            "status: CapPrm none",
            "status: CapEff none",
            "status: CapBnd none",
            "status: CapAmb none",
        ],
    ),
    case(
        "all capabilities",
        |it| it.capabilities = capabilities(&["ALL"], &[], &[]),
        &["status: CapPrm all", "status: CapEff all", "status: CapBnd all", "status: Seccomp 2"],
    ),
    case(
        "one more, one less",
        |it| it.capabilities = capabilities(&["SYS_ADMIN"], &["NET_BIND_SERVICE"], &[]),
        &[
            "status: CapPrm default + admin - bind",
            "status: CapEff default + admin - bind",
            "status: CapBnd default + admin - bind",
        ],
    ),
    case(
        "the restricted profile of Kubernetes",
        |it| {
            it.run_as_user = number(1000);
            it.capabilities = capabilities(&["NET_BIND_SERVICE"], &["ALL"], &[]);
            it.no_new_privs = true;
            it.readonly_rootfs = true;
        },
        &[
            "status: Uid 1000 1000 1000 1000",
            "status: CapPrm none",
            "status: CapEff none",
            "status: CapBnd bind",
            "status: NoNewPrivs 1",
            "status: Seccomp 2",
            "mounts: / ro",
            "mounts: /etc/hosts ro",
            "mounts: /dev/shm rw,nosuid,nodev,noexec",
            "paths: / - full",
            "paths: /dev/shm w empty",
        ],
    ),
    case(
        "an ambient capability of a user",
        |it| {
            it.run_as_user = number(1000);
            it.capabilities = capabilities(&[], &["ALL"], &["NET_BIND_SERVICE"]);
        },
        &[
            "status: CapInh bind",
            "status: CapPrm bind",
            "status: CapEff bind",
            "status: CapBnd bind",
            "status: CapAmb bind",
        ],
    ),
    case("no filter", |it| it.seccomp = profile(ProfileType::Unconfined), &["status: Seccomp 0"]),
    case(
        "paths hidden and only read",
        |it| {
            it.masked_paths = words(&["/proc/kcore", "/proc/timer_list", "/sys/firmware", "/no/such/path"]);
            it.readonly_paths = words(&["/proc/sys", "/proc/sysrq-trigger"]);
        },
        &[
            "paths: /proc/timer_list w null",
            "paths: /sys/firmware - empty",
            "paths: /proc/sys/kernel/hostname - full",
            "mounts: /proc/sys ro,nosuid,nodev,noexec",
        ],
    ),
    case(
        "nothing hidden, as an unmasked procMount has it",
        |_| {},
        &["paths: /proc/timer_list w full", "paths: /proc/sys/kernel/hostname w full"],
    ),
    Case {
        name: "a device under another name",
        pod: Pod::Plain,
        ask: |_| {},
        change: |it| {
            it.config.devices = vec![Device {
                host_path: "/dev/full".to_owned(),
                container_path: "/dev/mine".to_owned(),
                permissions: "rwm".to_owned(),
            }]
        },
        expect: &["devices: mine opens", "devices: kmsg absent"],
    },
    Case {
        name: "processes of the pod",
        pod: Pod::Plain,
        ask: |it| it.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into(),
        change: |it| it.config.working_dir = "/made/for it".to_owned(),
        expect: &["where: /made/for it"],
    },
    Case {
        name: "privileged",
        pod: Pod::Privileged,
        ask: |it| it.privileged = true,
        change: |_| {},
        expect: &[
            "status: CapPrm all",
            "status: CapEff all",
            "status: CapBnd all",
            "status: CapAmb none",
            "status: NoNewPrivs 0",
            "status: Seccomp 0",
            "mounts: /sys rw,nosuid,nodev,noexec",
            "mounts: /sys/fs/cgroup rw,nosuid,nodev,noexec",
            "devices: kmsg opens",
            "paths: /proc/sys/kernel/hostname w full",
        ],
    },
    Case {
        name: "not privileged in a pod that may be",
        pod: Pod::Privileged,
        ask: |_| {},
        change: |_| {},
        expect: &["status: CapBnd default", "status: Seccomp 2", "devices: kmsg absent"],
    },
    Case {
        name: "in the namespaces of the node",
        pod: Pod::OfTheNode,
        ask: |it| {
            let options = it.namespace_options.get_or_insert_default();
            (options.pid, options.ipc, options.network) =
                (NamespaceMode::Node.into(), NamespaceMode::Node.into(), NamespaceMode::Node.into());
        },
        change: |_| {},
        expect: &["status: CapBnd default", "status: Seccomp 2"],
    },
];
