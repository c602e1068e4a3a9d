//! User namespaces: the maps of a pod that has one of its own, and what else must hold for such a pod.
//!
//! A pod's user namespace owns the pod's other namespaces, so the node's own cannot be used beside it: their file systems
//! (`proc`, `mqueue`) could not be mounted. The network can: what would need it (`sysfs`) is the node's then. All containers of a pod share its maps. A container that says nothing
//! about them has the pod's.

use cri_api::v1;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use crate::error::SpecError;
use crate::identity::Identity;
use crate::request::{ContainerRequest, PidMode, Propagation, SandboxRequest};

const MODE: &str = "userns_options.mode";
const OPTIONS: &str = "userns_options";

/// The group that owns terminals in the usual images.
const TTY_GROUP: u32 = 5;

/// Ids of a pod from 0 on, and what they are on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// What the pod's id 0 is on the node.
    pub host_id: u32,
    /// How many ids the pod has.
    pub length: u32,
}

impl IdMap {
    /// What an id of the pod is on the node; none for an id that the pod does not have.
    #[must_use]
    pub fn on_node(self, id: u32) -> Option<u32> {
        if id < self.length { self.host_id.checked_add(id) } else { None }
    }

    fn oci(self) -> Vec<LinuxIdMapping> {
        let mapping =
            LinuxIdMappingBuilder::default().container_id(0u32).host_id(self.host_id).size(self.length);
        mapping.build().into_iter().collect()
    }
}

/// The maps of a pod that has a user namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNamespace {
    /// Of users.
    pub uids: IdMap,
    /// Of groups.
    pub gids: IdMap,
}

impl UserNamespace {
    /// What a user and a group of the pod are on the node; the pod's root for ids that it does not have.
    #[must_use]
    pub fn on_node(&self, uid: u32, gid: u32) -> (u32, u32) {
        (
            self.uids.on_node(uid).unwrap_or(self.uids.host_id),
            self.gids.on_node(gid).unwrap_or(self.gids.host_id),
        )
    }

    /// Checks that a process can have these ids.
    pub(crate) fn check(&self, identity: &Identity) -> Result<(), SpecError> {
        let refused = |field, id: u32| {
            Err(SpecError::invalid(field, id.to_string(), "the pod's user namespace does not have this id"))
        };
        if self.uids.on_node(identity.uid).is_none() {
            return refused("user", identity.uid);
        }
        let groups = std::iter::once(&identity.gid).chain(&identity.additional_gids);
        match groups.copied().find(|gid| self.gids.on_node(*gid).is_none()) {
            Some(gid) => refused("group", gid),
            None => Ok(()),
        }
    }

    /// Writes the maps down for the OCI runtime.
    pub(crate) fn set(&self, linux: &mut Linux) {
        linux.set_uid_mappings(Some(self.uids.oci())).set_gid_mappings(Some(self.gids.oci()));
    }

    /// Leaves terminals to their user alone where the pod has no group for them.
    pub(crate) fn adapt(&self, mounts: &mut [Mount]) {
        if self.gids.on_node(TTY_GROUP).is_some() {
            return;
        }
        let group = format!("gid={TTY_GROUP}");
        for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("devpts")) {
            let options =
                mount.options().iter().flatten().filter(|option| **option != group).cloned().collect();
            mount.set_options(Some(options));
        }
    }
}

/// What a request says about user namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    Node,
    Pod(UserNamespace),
}

impl Wish {
    /// Reads options.
    pub(crate) fn read(options: Option<&v1::UserNamespace>) -> Result<Self, SpecError> {
        let Some(options) = options else { return Ok(Self::Nothing) };
        match v1::NamespaceMode::try_from(options.mode) {
            Ok(v1::NamespaceMode::Node) => no_maps(options).map(|()| Self::Node),
            Ok(v1::NamespaceMode::Pod) => Ok(Self::Pod(UserNamespace {
                uids: map("userns_options.uids", &options.uids)?,
                gids: map("userns_options.gids", &options.gids)?,
            })),
            Ok(mode) => Err(SpecError::invalid(MODE, mode.as_str_name(), "a user namespace is POD or NODE")),
            Err(_) => Err(SpecError::invalid(MODE, options.mode.to_string(), "it is not a namespace mode")),
        }
    }

    /// The maps of a pod with such options; none for the node's user namespace, and for what was never checked.
    pub(crate) fn maps(options: Option<&v1::UserNamespace>) -> Option<UserNamespace> {
        match Self::read(options) {
            Ok(Self::Pod(maps)) => Some(maps),
            Ok(Self::Nothing | Self::Node) | Err(_) => None,
        }
    }
}

/// The maps of a mount; none when it has none.
pub(crate) fn of_mount(mount: &v1::Mount) -> Result<Option<UserNamespace>, SpecError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(None);
    }
    let uids = map("mount.uid_mappings", &mount.uid_mappings)?;
    Ok(Some(UserNamespace { uids, gids: map("mount.gid_mappings", &mount.gid_mappings)? }))
}

/// Checks that a pod with a user namespace uses no namespace of the node but the network.
pub(crate) fn check_sandbox(sandbox: &SandboxRequest) -> Result<(), SpecError> {
    if sandbox.user_namespace().is_none() {
        return Ok(());
    }
    let refused = |reason| Err(SpecError::Conflict { field: OPTIONS, reason });
    match (sandbox.host_pid(), sandbox.host_ipc()) {
        (true, _) => refused("a pod with a user namespace of its own cannot see the node's processes"),
        (_, true) => refused("a pod with a user namespace of its own cannot use the node's IPC"),
        (false, false) => Ok(()),
    }
}

/// Checks that a container fits into its pod.
pub(crate) fn check_container(request: &ContainerRequest, sandbox: &SandboxRequest) -> Result<(), SpecError> {
    let refused = |field, reason| Err(SpecError::Conflict { field, reason });
    let maps = sandbox.user_namespace();
    match (request.user_namespace()?, maps) {
        (Wish::Pod(own), Some(pods)) if own != pods => {
            return refused(OPTIONS, "the container's mappings are not those of its pod");
        }
        (Wish::Pod(_), None) => {
            return refused(OPTIONS, "the container's pod has no user namespace of its own");
        }
        (Wish::Node, Some(_)) => {
            return refused(OPTIONS, "the container's pod has a user namespace of its own");
        }
        (Wish::Nothing | Wish::Node | Wish::Pod(_), _) => {}
    }
    for mount in request.mounts() {
        if mount.ids.is_some() && mount.ids != maps {
            return refused("mount.uid_mappings", "a mount can have the mappings of its pod only");
        }
        if maps.is_some() && mount.propagation == Propagation::Bidirectional {
            let reason = "no mounts can travel to the node from a pod with a user namespace of its own";
            return refused("mount.propagation", reason);
        }
    }
    if maps.is_some() && request.pid_mode() == PidMode::Node {
        let reason = "a pod with a user namespace of its own cannot see the node's processes";
        return refused("namespace_options.pid", reason);
    }
    Ok(())
}

fn no_maps(options: &v1::UserNamespace) -> Result<(), SpecError> {
    if options.uids.is_empty() && options.gids.is_empty() {
        return Ok(());
    }
    Err(SpecError::Conflict {
        field: OPTIONS,
        reason: "the node's user namespace has no mappings of its own",
    })
}

/// Exactly one line, with id 0 of the container and a length.
fn map(field: &'static str, lines: &[v1::IdMapping]) -> Result<IdMap, SpecError> {
    let [line] = lines else {
        let reason = "exactly one mapping is needed";
        return Err(SpecError::invalid(field, format!("{} mappings", lines.len()), reason));
    };
    let refused = |value: u32, reason| Err(SpecError::invalid(field, value.to_string(), reason));
    if line.container_id != 0 {
        return refused(line.container_id, "the container's id 0 must be mapped");
    }
    if line.length == 0 {
        return refused(line.length, "a mapping needs a length");
    }
    if line.host_id.checked_add(line.length).is_none() {
        return refused(line.host_id, "the mapping ends above the highest id");
    }
    Ok(IdMap { host_id: line.host_id, length: line.length })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use types::{ErrorKind, Kind};

    use super::*;
    use crate::facts::{Hierarchy, NodeFacts};
    use crate::fixtures::{
        container, container_json, facts, has_options, mount, mount_at, namespaces, pod, pod_namespaces,
        pod_security, sandbox_json, security,
    };

    fn line(container_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping { host_id: 65536, container_id, length }
    }

    fn options(mode: v1::NamespaceMode, uids: Vec<v1::IdMapping>) -> v1::UserNamespace {
        v1::UserNamespace { mode: mode.into(), gids: uids.clone(), uids }
    }

    fn mapped(length: u32) -> Option<v1::UserNamespace> {
        Some(options(v1::NamespaceMode::Pod, vec![line(0, length)]))
    }

    fn mapped_pod(length: u32) -> v1::PodSandboxConfig {
        let mut pod = pod();
        pod_namespaces(&mut pod).userns_options = mapped(length);
        pod
    }

    fn conflict(answer: Result<serde_json::Value, SpecError>) -> String {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        error.to_string()
    }

    #[test]
    fn one_map_with_id_0_is_taken_and_nothing_else() {
        let read = |options: &v1::UserNamespace| Wish::read(Some(options)).map_err(|error| error.kind());
        let invalid = Err(ErrorKind::InvalidArgument);
        assert_eq!(Wish::read(None).unwrap(), Wish::Nothing);
        assert_eq!(read(&options(v1::NamespaceMode::Node, vec![])), Ok(Wish::Node));
        assert_eq!(read(&options(v1::NamespaceMode::Node, vec![line(0, 1)])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Pod, vec![])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Pod, vec![line(0, 1), line(1, 1)])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Pod, vec![line(1, 1)])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Pod, vec![line(0, 0)])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Pod, vec![line(0, u32::MAX)])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Container, vec![line(0, 1)])), invalid);
        assert_eq!(read(&options(v1::NamespaceMode::Target, vec![line(0, 1)])), invalid);
        assert_eq!(read(&v1::UserNamespace { mode: 77, ..Default::default() }), invalid);
        let map = IdMap { host_id: 65536, length: 10 };
        let maps = UserNamespace { uids: map, gids: map };
        assert_eq!(read(&options(v1::NamespaceMode::Pod, vec![line(0, 10)])), Ok(Wish::Pod(maps)));
        assert_eq!((map.on_node(9), map.on_node(10)), (Some(65545), None));
        assert_eq!(maps.on_node(3, 99), (65539, 65536));
    }

    #[test]
    fn the_pause_process_and_the_containers_share_one_namespace() {
        let spec = sandbox_json(mapped_pod(65536), &facts()).unwrap();
        let maps = json!([{ "containerID": 0, "hostID": 65536, "size": 65536 }]);
        assert_eq!((&spec["linux"]["uidMappings"], &spec["linux"]["gidMappings"]), (&maps, &maps));
        let user = |spec: &serde_json::Value| namespaces(spec).into_iter().find(|(kind, _)| kind == "user");
        assert_eq!(user(&spec).unwrap().1.as_deref(), Some("/run/crimson/containers/1/user"));
        for own in [None, mapped(65536)] {
            let mut container = container();
            security(&mut container).namespace_options.get_or_insert_default().userns_options = own;
            let spec = container_json(container, mapped_pod(65536), &facts(), |_| {}).unwrap();
            assert_eq!((&spec["linux"]["uidMappings"], &spec["linux"]["gidMappings"]), (&maps, &maps));
            assert_eq!(user(&spec).unwrap().1.as_deref(), Some("/proc/4242/ns/user"));
            assert!(has_options(&spec, "/dev/pts", &["gid=5"]));
        }
        let plain = container_json(container(), pod(), &facts(), |_| {}).unwrap();
        assert!(user(&plain).is_none() && plain["linux"]["uidMappings"].is_null());
    }

    #[test]
    fn what_a_small_namespace_has_no_ids_for_is_left_out_or_refused() {
        let spec = container_json(container(), mapped_pod(5), &facts(), |_| {}).unwrap();
        let options = mount_at(&spec, "/dev/pts").unwrap()["options"].as_array().unwrap();
        assert!(!options.contains(&json!("gid=5")) && options.contains(&json!("newinstance")));
        let sandbox = sandbox_json(mapped_pod(5), &facts()).unwrap();
        assert_eq!(sandbox["process"]["user"]["uid"], 4);
        assert_eq!(sandbox["linux"]["sysctl"]["net.ipv4.ping_group_range"], "0 4");
        let whole = sandbox_json(pod(), &facts()).unwrap();
        assert_eq!(whole["linux"]["sysctl"]["net.ipv4.ping_group_range"], "0 2147483647");
        let mut container = container();
        security(&mut container).run_as_user = Some(v1::Int64Value { value: 5 });
        assert!(
            conflict(container_json(container.clone(), mapped_pod(5), &facts(), |_| {}))
                .contains("user \"5\"")
        );
        security(&mut container).run_as_user = Some(v1::Int64Value { value: 4 });
        security(&mut container).supplemental_groups = vec![7];
        assert!(conflict(container_json(container, mapped_pod(5), &facts(), |_| {})).contains("group \"7\""));
        let mut pod = mapped_pod(5);
        pod_security(&mut pod).run_as_user = Some(v1::Int64Value { value: 9 });
        assert!(conflict(sandbox_json(pod, &facts())).contains("user \"9\""));
    }

    #[test]
    fn namespaces_of_the_node_are_refused_beside_it() {
        let node = v1::NamespaceMode::Node.into();
        type Change = fn(&mut v1::NamespaceOption, i32);
        let cases: [(&str, Change); 2] =
            [("processes", |options, mode| options.pid = mode), ("IPC", |options, mode| options.ipc = mode)];
        for (word, change) in cases {
            let mut pod = mapped_pod(65536);
            change(pod_namespaces(&mut pod), node);
            assert!(conflict(sandbox_json(pod, &facts())).contains(word), "{word}");
        }
        let mut container = container();
        security(&mut container).namespace_options.get_or_insert_default().pid = node;
        let refused = conflict(container_json(container, mapped_pod(65536), &facts(), |_| {}));
        assert!(refused.contains("namespace_options.pid"), "{refused}");
    }

    #[test]
    fn the_nodes_network_can_be_used_and_its_sysfs_is_bound() {
        let mut pod = mapped_pod(65536);
        pod_namespaces(&mut pod).network = v1::NamespaceMode::Node.into();
        let spec = container_json(container(), pod, &facts(), |_| {}).unwrap();
        assert!(namespaces(&spec).iter().all(|(kind, _)| kind != "network"));
        assert!(has_options(&spec, "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"]));
        let spec = container_json(container(), mapped_pod(65536), &facts(), |_| {}).unwrap();
        assert_eq!(mount_at(&spec, "/sys").unwrap()["type"], "sysfs");
    }

    #[test]
    fn a_privileged_container_does_not_manage_the_node() {
        let facts = NodeFacts { hierarchy: Hierarchy::V2, ..facts() };
        let attempt = |mut pod: v1::PodSandboxConfig| {
            pod_security(&mut pod).privileged = true;
            let mut container = container();
            security(&mut container).privileged = true;
            container_json(container, pod, &facts, |_| {}).unwrap()
        };
        let (own, nodes) = (attempt(mapped_pod(65536)), attempt(pod()));
        let cgroups = |spec: &serde_json::Value| {
            let has_own = namespaces(spec).iter().any(|(kind, _)| kind == "cgroup");
            (has_own, mount_at(spec, "/sys/fs/cgroup").unwrap()["type"].clone())
        };
        assert_eq!(cgroups(&own), (true, json!("cgroup")));
        assert_eq!(cgroups(&nodes), (false, json!("bind")));
    }

    #[test]
    fn a_container_has_its_pods_maps() {
        let attempt = |own: Option<v1::UserNamespace>, pod: v1::PodSandboxConfig| {
            let mut container = container();
            security(&mut container).namespace_options.get_or_insert_default().userns_options = own;
            conflict(container_json(container, pod, &facts(), |_| {}))
        };
        let node = Some(options(v1::NamespaceMode::Node, vec![]));
        assert!(attempt(mapped(10), mapped_pod(65536)).contains("not those of its pod"));
        assert!(attempt(mapped(10), pod()).contains("has no user namespace"));
        assert!(attempt(node, mapped_pod(65536)).contains("has a user namespace"));
    }

    #[test]
    fn a_mount_has_its_pods_maps_or_none_and_no_way_to_the_node() {
        let attempt = |change: &dyn Fn(&mut v1::Mount), pod: v1::PodSandboxConfig| {
            let mut container = container();
            let mut volume = mount("/data");
            change(&mut volume);
            container.mounts.push(volume);
            container_json(container, pod, &facts(), |_| {})
        };
        let ids = |length: u32| {
            move |mount: &mut v1::Mount| {
                mount.uid_mappings = vec![line(0, length)];
                mount.gid_mappings = vec![line(0, length)];
            }
        };
        assert!(attempt(&ids(65536), mapped_pod(65536)).is_ok());
        assert!(attempt(&|_| {}, mapped_pod(65536)).is_ok());
        assert!(conflict(attempt(&ids(10), mapped_pod(65536))).contains("mappings of its pod"));
        assert!(conflict(attempt(&ids(10), pod())).contains("mappings of its pod"));
        assert!(attempt(&|mount| mount.uid_mappings = vec![line(0, 9)], mapped_pod(9)).is_err());
        let shared = v1::MountPropagation::PropagationBidirectional.into();
        let refused = conflict(attempt(&|mount| mount.propagation = shared, mapped_pod(65536)));
        assert!(refused.contains("no mounts can travel"), "{refused}");
    }
}
