//! Device nodes and the rules of the device cgroup.
//!
//! Every OCI runtime makes the standard nodes (null, zero, full, random, urandom, tty, ptmx) and allows them by itself,
//! so the rules here begin with "nothing" and add what the request asks for.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use crate::place::{DeviceKind, ResolvedDevice};

/// The nodes to make.
pub(crate) fn nodes(devices: &[ResolvedDevice]) -> Vec<LinuxDevice> {
    devices.iter().map(node).collect()
}

/// Rules of a container: all for a privileged one, else its devices only.
pub(crate) fn rules(devices: &[ResolvedDevice], privileged: bool) -> Vec<LinuxDeviceCgroup> {
    if privileged {
        return vec![every_device(true)];
    }
    let allowed = devices.iter().filter(|device| device.kind != DeviceKind::Fifo).map(rule);
    std::iter::once(every_device(false)).chain(allowed).collect()
}

fn every_device(allow: bool) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_access(Some("rwm".to_owned()));
    rule
}

fn rule(device: &ResolvedDevice) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(kind(device.kind)))
        .set_major(Some(device.major))
        .set_minor(Some(device.minor))
        .set_access(Some(device.access.clone()));
    rule
}

fn node(device: &ResolvedDevice) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(device.path.clone())
        .set_typ(kind(device.kind))
        .set_major(device.major)
        .set_minor(device.minor)
        .set_file_mode(Some(device.file_mode))
        .set_uid(Some(device.uid))
        .set_gid(Some(device.gid));
    node
}

fn kind(kind: DeviceKind) -> LinuxDeviceType {
    match kind {
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Char => LinuxDeviceType::C,
        DeviceKind::Fifo => LinuxDeviceType::P,
    }
}
