//! What a container shares with its pod, with other containers, and with the node.

use cri_api::v1;

use crate::Hierarchy;
use crate::container::tests::table::Case;
use crate::container::tests::{NODE, POD, TARGET};

fn mapped() -> Option<v1::UserNamespace> {
    let line = v1::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 };
    Some(v1::UserNamespace { mode: POD, uids: vec![line], gids: vec![line] })
}

pub(super) const CASES: &[Case] = &[
    (
        "processes of the whole pod",
        |it| it.namespaces().pid = POD,
        "
        namespace pid = /proc/4242/ns/pid
    ",
    ),
    (
        "processes of the node",
        |it| {
            it.namespaces().pid = NODE;
            it.pod_namespaces().pid = NODE;
        },
        "
        - namespace pid
    ",
    ),
    (
        "processes of another container",
        |it| {
            it.namespaces().pid = TARGET;
            it.namespaces().target_id = "other".into();
            it.place = |place| place.target_pid = Some(77);
        },
        "
        namespace pid = /proc/77/ns/pid
    ",
    ),
    (
        "the node's network, and with it its name",
        |it| {
            it.namespaces().network = NODE;
            it.pod_namespaces().network = NODE;
        },
        "
        - namespace network
        - namespace uts
        process.env = [\"PATH=/image/bin\",\"MODE=image\",\"HOSTNAME=node-1\"]
    ",
    ),
    (
        "the node's IPC, and with it its shared memory",
        |it| {
            it.namespaces().ipc = NODE;
            it.pod_namespaces().ipc = NODE;
            it.place = |place| place.shm = None;
        },
        "
        - namespace ipc
        mounts /dev/shm = bind /dev/shm rbind,rprivate,nosuid,nodev
    ",
    ),
    (
        "a network that is pinned nowhere",
        |it| it.place = |place| place.netns = None,
        "
        namespace network = /proc/4242/ns/net
    ",
    ),
    (
        "control groups of its own on cgroup v2",
        |it| it.facts.hierarchy = Hierarchy::V2,
        "
        namespace cgroup = new
    ",
    ),
    (
        "the node's own control groups for a privileged container on cgroup v2",
        |it| {
            it.facts.hierarchy = Hierarchy::V2;
            it.facts.capabilities = [].into_iter().collect();
            it.security().privileged = true;
            it.pod_security().privileged = true;
        },
        "
        capabilities bounding =
        capabilities effective =
        capabilities permitted =
        mounts /sys = sysfs sysfs nosuid,noexec,nodev,rw
        mounts /sys/fs/cgroup = bind /sys/fs/cgroup rbind,rprivate,nosuid,noexec,nodev,relatime,rw
        linux.resources.devices = [{\"access\":\"rwm\",\"allow\":true}]
        - linux.maskedPaths
        - linux.readonlyPaths
    ",
    ),
    (
        "a user namespace of the pod",
        |it| {
            it.namespaces().userns_options = mapped();
            it.pod_namespaces().userns_options = mapped();
        },
        "
        namespace user = /proc/4242/ns/user
        linux.uidMappings = [{\"containerID\":0,\"hostID\":131072,\"size\":65536}]
        linux.gidMappings = [{\"containerID\":0,\"hostID\":131072,\"size\":65536}]
    ",
    ),
    (
        "the node's user namespace, said aloud",
        |it| {
            let node = || Some(v1::UserNamespace { mode: NODE, ..Default::default() });
            it.namespaces().userns_options = node();
            it.pod_namespaces().userns_options = node();
        },
        "",
    ),
    (
        "a pod without a name of its own",
        |it| it.pod.hostname.clear(),
        "
        process.env = [\"PATH=/image/bin\",\"MODE=image\",\"HOSTNAME=node-1\"]
    ",
    ),
];
