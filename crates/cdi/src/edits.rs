//! What devices change, and the changing of an OCI spec.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice, Spec,
};

use crate::error::CdiError;
use crate::file::{ContainerEdits, DeviceNode, Hook, HookName, IntelRdt, Mount, NetDevice};

/// Everything that a container's devices change, in the order in which it is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    nodes: Vec<DeviceNode>,
    net_devices: Vec<NetDevice>,
    hooks: Vec<Hook>,
    mounts: Vec<Mount>,
    intel_rdt: Option<IntelRdt>,
    additional_gids: Vec<u32>,
}

/// What the kernel says of a node.
struct Found {
    kind: &'static str,
    major: i64,
    minor: i64,
    mode: u32,
}

impl Edits {
    /// Adds what one device, or the file it is in, changes.
    pub(crate) fn add(&mut self, edits: &ContainerEdits) {
        self.env.extend_from_slice(&edits.env);
        self.nodes.extend_from_slice(&edits.device_nodes);
        self.net_devices.extend_from_slice(&edits.net_devices);
        self.hooks.extend_from_slice(&edits.hooks);
        self.mounts.extend_from_slice(&edits.mounts);
        self.additional_gids.extend_from_slice(&edits.additional_gids);
        if edits.intel_rdt.is_some() {
            self.intel_rdt.clone_from(&edits.intel_rdt);
        }
    }

    /// Fills in what device nodes leave out, from the nodes of the host.
    ///
    /// # Errors
    /// [`CdiError::Node`] for a node that is neither described whole nor there, or is of another type.
    pub fn complete(mut self) -> Result<Self, CdiError> {
        self.nodes.iter_mut().try_for_each(complete)?;
        Ok(self)
    }

    /// Changes a spec. `net_devices` says whether the OCI runtime moves network interfaces.
    ///
    /// # Errors
    /// [`CdiError::Unsupported`] for what the runtime would leave out.
    pub fn apply(&self, spec: &mut Spec, net_devices: bool) -> Result<(), CdiError> {
        if !self.net_devices.is_empty() && !net_devices {
            return Err(CdiError::Unsupported("netDevices"));
        }
        self.apply_to_process(spec);
        self.apply_mounts(spec);
        self.apply_hooks(spec);
        let owner =
            spec.process().as_ref().map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
        let mut linux = spec.linux().clone().unwrap_or_default();
        self.apply_nodes(&mut linux, owner);
        self.apply_kernel_parts(&mut linux);
        spec.set_linux(Some(linux));
        Ok(())
    }

    fn apply_to_process(&self, spec: &mut Spec) {
        let Some(process) = spec.process_mut() else { return };
        let mut env = process.env().clone().unwrap_or_default();
        for variable in &self.env {
            let name_of = |variable: &str| variable.split_once('=').map(|(name, _)| name.to_owned());
            match env.iter_mut().find(|present| name_of(present) == name_of(variable)) {
                Some(present) => present.clone_from(variable),
                None => env.push(variable.clone()),
            }
        }
        process.set_env(Some(env).filter(|env| !env.is_empty()));
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        for gid in self.additional_gids.iter().filter(|gid| **gid != 0) {
            if !groups.contains(gid) {
                groups.push(*gid);
            }
        }
        process.user_mut().set_additional_gids(Some(groups).filter(|groups| !groups.is_empty()));
    }

    /// Mounts over what is at the same place, and puts all in the order in which parents come before what is below them.
    fn apply_mounts(&self, spec: &mut Spec) {
        if self.mounts.is_empty() {
            return;
        }
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for mount in &self.mounts {
            mounts.retain(|present| present.destination() != &mount.container_path);
            mounts.push(oci_mount(mount));
        }
        mounts.sort_by_key(|mount| mount.destination().components().count());
        spec.set_mounts(Some(mounts));
    }

    fn apply_hooks(&self, spec: &mut Spec) {
        if self.hooks.is_empty() {
            return;
        }
        let mut hooks = spec.hooks().clone().unwrap_or_default();
        for hook in &self.hooks {
            let list = match hook.hook_name {
                HookName::Prestart => hooks.prestart_mut(),
                HookName::CreateRuntime => hooks.create_runtime_mut(),
                HookName::CreateContainer => hooks.create_container_mut(),
                HookName::StartContainer => hooks.start_container_mut(),
                HookName::Poststart => hooks.poststart_mut(),
                HookName::Poststop => hooks.poststop_mut(),
            };
            list.get_or_insert_default().push(oci_hook(hook));
        }
        spec.set_hooks(Some(hooks));
    }

    fn apply_nodes(&self, linux: &mut Linux, owner: (u32, u32)) {
        let mut devices = linux.devices().clone().unwrap_or_default();
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        for node in &self.nodes {
            devices.retain(|present| present.path() != &node.path);
            devices.push(oci_node(node, owner));
            rules.extend(oci_rule(node));
        }
        resources.set_devices(Some(rules).filter(|rules| !rules.is_empty()));
        linux.set_devices(Some(devices).filter(|devices| !devices.is_empty()));
        linux.set_resources(Some(resources));
    }

    fn apply_kernel_parts(&self, linux: &mut Linux) {
        if !self.net_devices.is_empty() {
            let mut devices = linux.net_devices().clone().unwrap_or_default();
            for device in &self.net_devices {
                let mut inside = LinuxNetDevice::default();
                inside.set_name(Some(device.name.clone()));
                devices.insert(device.host_interface_name.clone(), inside);
            }
            linux.set_net_devices(Some(devices));
        }
        if let Some(rdt) = &self.intel_rdt {
            linux.set_intel_rdt(Some(oci_rdt(rdt)));
        }
    }
}

/// A node that says its type and numbers needs nothing of the host but its mode.
fn complete(node: &mut DeviceNode) -> Result<(), CdiError> {
    let is_whole = !node.kind.is_empty() && (node.major != 0 || node.kind == "p");
    let host = if node.host_path.as_os_str().is_empty() { node.path.clone() } else { node.host_path.clone() };
    let found = match look_at(&host) {
        Err(_) if is_whole => return Ok(()),
        found => found.map_err(|reason| CdiError::Node { path: host.clone(), reason })?,
    };
    node.file_mode.get_or_insert(found.mode);
    if is_whole {
        return Ok(());
    }
    let wanted = if node.kind == "u" { "c" } else { node.kind.as_str() };
    if !wanted.is_empty() && wanted != found.kind {
        let reason = format!("it is of type {}, and described as {wanted}", found.kind);
        return Err(CdiError::Node { path: host, reason });
    }
    if node.kind.is_empty() {
        found.kind.clone_into(&mut node.kind);
    }
    if found.kind != "p" {
        (node.major, node.minor) = (found.major, found.minor);
    }
    Ok(())
}

fn look_at(path: &Path) -> Result<Found, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    let file = metadata.file_type();
    let kind = match (file.is_block_device(), file.is_char_device(), file.is_fifo()) {
        (true, ..) => "b",
        (_, true, _) => "c",
        (_, _, true) => "p",
        _ => return Err("it is no device".to_owned()),
    };
    Ok(Found {
        kind,
        major: rustix::fs::major(metadata.rdev()).into(),
        minor: rustix::fs::minor(metadata.rdev()).into(),
        mode: metadata.mode() & 0o7777,
    })
}

fn kind(node: &DeviceNode) -> LinuxDeviceType {
    match node.kind.as_str() {
        "b" => LinuxDeviceType::B,
        "p" => LinuxDeviceType::P,
        "u" => LinuxDeviceType::U,
        _ => LinuxDeviceType::C,
    }
}

/// Without an owner of its own the node is the process's, unless that is root.
fn oci_node(node: &DeviceNode, owner: (u32, u32)) -> LinuxDevice {
    let some = |id: u32| Some(id).filter(|id| *id != 0);
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(kind(node))
        .set_major(node.major)
        .set_minor(node.minor)
        .set_file_mode(node.file_mode)
        .set_uid(node.uid.or(some(owner.0)))
        .set_gid(node.gid.or(some(owner.1)));
    device
}

/// What the device's cgroup allows; a pipe needs no leave, and `none` gives none.
fn oci_rule(node: &DeviceNode) -> Option<LinuxDeviceCgroup> {
    let access = match node.permissions.as_str() {
        "" => "rwm",
        "none" => return None,
        letters => letters,
    };
    if node.kind == "p" {
        return None;
    }
    // A control group knows block and character devices only.
    let kind = if node.kind == "b" { LinuxDeviceType::B } else { LinuxDeviceType::C };
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(kind))
        .set_major(Some(node.major))
        .set_minor(Some(node.minor))
        .set_access(Some(access.to_owned()));
    Some(rule)
}

fn oci_mount(mount: &Mount) -> oci_spec::runtime::Mount {
    let binds = mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
    let kind = if mount.kind.is_empty() && binds { "bind" } else { mount.kind.as_str() };
    let mut oci = oci_spec::runtime::Mount::default();
    oci.set_destination(mount.container_path.clone())
        .set_source(Some(mount.host_path.clone()))
        .set_typ(Some(kind.to_owned()).filter(|kind| !kind.is_empty()))
        .set_options(Some(mount.options.clone()).filter(|options| !options.is_empty()));
    oci
}

fn oci_hook(hook: &Hook) -> oci_spec::runtime::Hook {
    let mut oci = oci_spec::runtime::Hook::default();
    oci.set_path(PathBuf::clone(&hook.path))
        .set_args(hook.args.clone())
        .set_env(hook.env.clone())
        .set_timeout(hook.timeout);
    oci
}

fn oci_rdt(rdt: &IntelRdt) -> LinuxIntelRdt {
    let mut oci = LinuxIntelRdt::default();
    oci.set_clos_id(rdt.clos_id.clone())
        .set_l3_cache_schema(rdt.l3_cache_schema.clone())
        .set_mem_bw_schema(rdt.mem_bw_schema.clone())
        .set_schemata(rdt.schemata.clone())
        .set_enable_monitoring(rdt.enable_monitoring);
    oci
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::file::SpecFile;

    /// What a device with these edits makes of `before`.
    fn applied(edits: &str, before: Value) -> Result<Value, CdiError> {
        let text =
            format!("cdiVersion: 1.1.0\nkind: v/c\ndevices: [{{name: d, containerEdits: {{{edits}}}}}]");
        let mut all = Edits::default();
        all.add(&SpecFile::from_yaml(text.as_bytes()).unwrap().devices[0].container_edits);
        let mut spec: Spec = serde_json::from_value(before).unwrap();
        all.complete()?.apply(&mut spec, true)?;
        Ok(serde_json::to_value(spec).unwrap())
    }

    fn spec(uid: u32) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "user": {"uid": uid, "gid": uid, "additionalGids": [7]}, "env": ["PATH=/bin", "A=old"]},
            "mounts": [{"destination": "/proc", "source": "proc"}, {"destination": "/lib/gpu", "source": "/old"}],
            "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "devices": [{"path": "/dev/null", "type": "c", "major": 9, "minor": 9}]},
        })
    }

    #[test]
    fn variables_and_groups() {
        let spec = applied("env: [A=new, B=1], additionalGids: [44, 0, 7]", spec(0)).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "A=new", "B=1"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([7, 44]));
    }

    #[test]
    fn a_node_takes_from_the_host_what_it_does_not_say() {
        let spec = applied("deviceNodes: [{path: /dev/null, permissions: r}]", spec(0)).unwrap();
        let node = json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        assert_eq!(spec["linux"]["devices"], json!([node]));
        let rules = &spec["linux"]["resources"]["devices"];
        assert_eq!(rules[0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(rules[1], json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}));
    }

    #[test]
    fn a_node_under_another_name_with_an_owner() {
        let edits = "deviceNodes: [{path: /dev/x, hostPath: /dev/zero, fileMode: 0600, gid: 5}]";
        let node = &applied(edits, spec(1000)).unwrap()["linux"]["devices"][1];
        let expected = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "uid": 1000, "gid": 5});
        assert_eq!(*node, expected);
    }

    #[test]
    fn a_node_described_whole_need_not_be_there() {
        let edits = "deviceNodes: [{path: /dev/absent, type: b, major: 8, minor: 1, permissions: none}, {path: /dev/pipe, type: p}]";
        let spec = applied(edits, spec(0)).unwrap();
        assert_eq!(
            spec["linux"]["devices"][1],
            json!({"path": "/dev/absent", "type": "b", "major": 8, "minor": 1})
        );
        assert_eq!(spec["linux"]["resources"]["devices"].as_array().unwrap().len(), 1, "neither gives leave");
    }

    #[test]
    fn a_node_that_is_not_as_described_is_refused() {
        for edits in [
            "deviceNodes: [{path: /dev/absent}]",
            "deviceNodes: [{path: /dev/null, type: b}]",
            "deviceNodes: [{path: /dev/x, hostPath: /etc/passwd}]",
        ] {
            let error = applied(edits, spec(0)).unwrap_err();
            assert!(matches!(error, CdiError::Node { .. }), "{edits}: {error}");
        }
    }

    #[test]
    fn mounts_take_the_place_of_others_and_stay_in_order() {
        let edits = "mounts: [{hostPath: /srv/a, containerPath: /lib/gpu/sub, options: [ro, rbind]}, {hostPath: /srv, containerPath: /lib/gpu}]";
        let spec = applied(edits, spec(0)).unwrap();
        let places: Vec<_> =
            spec["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(places, ["/proc", "/lib/gpu", "/lib/gpu/sub"]);
        assert_eq!(spec["mounts"][1]["source"], "/srv");
        assert_eq!(spec["mounts"][2]["type"], "bind");
    }

    #[test]
    fn hooks_and_what_the_kernel_shares_out() {
        let edits = "hooks: [{hookName: createRuntime, path: /h, args: [h]}, {hookName: prestart, path: /p}],
            intelRdt: {closID: gold, enableMonitoring: true}, netDevices: [{hostInterfaceName: ens1, name: net0}]";
        let spec = applied(edits, spec(0)).unwrap();
        assert_eq!(spec["hooks"]["createRuntime"], json!([{"path": "/h", "args": ["h"]}]));
        assert_eq!(spec["hooks"]["prestart"], json!([{"path": "/p"}]));
        assert_eq!(spec["linux"]["intelRdt"], json!({"closID": "gold", "enableMonitoring": true}));
        assert_eq!(spec["linux"]["netDevices"], json!({"ens1": {"name": "net0"}}));
    }

    #[test]
    fn what_the_runtime_would_leave_out_is_refused() {
        let edits = Edits {
            net_devices: vec![NetDevice { host_interface_name: "a".into(), name: "b".into() }],
            ..Edits::default()
        };
        assert!(matches!(edits.apply(&mut Spec::default(), false), Err(CdiError::Unsupported("netDevices"))));
    }
}
