//! Kernel, control groups, disks and limits.

use cgroup::{DriverKind, Hierarchy};

use super::host::Host;
use super::trial::{Storage, Tried};
use super::{Finding, State};
use crate::config::{CgroupDriver, Config};
use crate::handlers::kernel_version;

/// The first kernel with all that the server itself calls (openat2).
const KERNEL: (u32, u32) = (5, 6);
/// Controllers without which kubelet does not start.
const REQUIRED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// And those that an OCI runtime needs besides, where each is a hierarchy.
const REQUIRED_V1: [&str; 2] = ["devices", "freezer"];
/// Number of the capability to mount and to make namespaces.
const CAP_SYS_ADMIN: u32 = 21;
/// Number of the capability to give more than one has.
const CAP_SYS_RESOURCE: u32 = 24;
/// The least values with which a node full of pods does well.
const LEAST: [(&str, u64, u64); 4] = [
    ("fs.inotify.max_user_instances", 512, 8192),
    ("fs.inotify.max_user_watches", 65_536, 524_288),
    ("kernel.pid_max", 65_536, 4_194_304),
    ("fs.file-max", 200_000, 2_000_000),
];
/// kubelet begins to remove images and pods below these shares of free space, in percent.
const FREE_SPACE: u64 = 15;
const FREE_INODES: u64 = 5;

pub(super) fn judge(config: &Config, host: &Host, tried: &Tried) -> Vec<Finding> {
    let mut findings = vec![kernel(host), privileges(host), cgroups(host), driver(config, host, tried)];
    findings.extend([swap(host), pressure(host), overlay(host, tried)]);
    findings.extend([root(config, &tried.root), state(config, &tried.state), clock(config, &tried.root)]);
    findings.extend([forwarding(host), bridge(host), limits(host)]);
    findings
}

fn kernel(host: &Host) -> Finding {
    let finding = |state| Finding::new("kernel", state, host.kernel.clone());
    if kernel_version(&host.kernel) >= KERNEL {
        return finding(State::Ok);
    }
    finding(State::Missing).fix(format!("boot a kernel of {}.{} or later", KERNEL.0, KERNEL.1))
}

fn privileges(host: &Host) -> Finding {
    let finding = |state, text| Finding::new("privileges", state, text);
    if !host.can(CAP_SYS_ADMIN) {
        return finding(State::Missing, "this process may not mount")
            .fix("run it as root, outside a container");
    }
    if !host.can(CAP_SYS_RESOURCE) {
        let text = "CAP_SYS_RESOURCE is missing: no out-of-memory score is lowered, no hard limit raised";
        return finding(State::Warn, text).fix("run the server outside of a container that lacks it");
    }
    finding(State::Ok, "all that is needed")
}

fn cgroups(host: &Host) -> Finding {
    let finding = |state, text: String| Finding::new("cgroups", state, text);
    let Some(layout) = host.cgroups else {
        return finding(State::Missing, "not mounted".to_owned()).fix("mount -t cgroup2 none /sys/fs/cgroup");
    };
    let v1: &[&str] = if layout == Hierarchy::V2 { &[] } else { &REQUIRED_V1 };
    let lacking: Vec<&str> = REQUIRED
        .iter()
        .chain(v1)
        .copied()
        .filter(|wanted| !host.controllers.iter().any(|controller| controller == wanted))
        .collect();
    if !lacking.is_empty() {
        let fix = match lacking.as_slice() {
            ["memory"] => "boot with cgroup_enable=memory",
            _ => "enable them in the kernel's configuration or on its command line",
        };
        return finding(State::Missing, format!("no controller for {}", lacking.join(", "))).fix(fix);
    }
    let controllers = host.controllers.join(" ");
    match layout {
        Hierarchy::V2 => finding(State::Ok, format!("v2 with {controllers}")),
        Hierarchy::V1 | Hierarchy::Hybrid => {
            let text = format!("v1, which kubelet refuses from 1.35 on by default; with {controllers}");
            finding(State::Warn, text)
                .fix("boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false for kubelet")
        }
    }
}

fn driver(config: &Config, host: &Host, tried: &Tried) -> Finding {
    let finding = |state, text: String| Finding::new("cgroup driver", state, text);
    let detected = host.driver.unwrap_or(DriverKind::Cgroupfs);
    if config.cgroup_driver == CgroupDriver::Systemd && detected != DriverKind::Systemd {
        let text = "systemd is configured, and systemd is not the init system".to_owned();
        return finding(State::Missing, text).fix("set cgroup.driver to \"auto\"");
    }
    if let Some(kept) = tried.kept_driver {
        return finding(State::Ok, format!("{kept}: pods of an earlier run have it"));
    }
    let text = match (config.cgroup_driver, detected) {
        (CgroupDriver::Systemd, _) => "systemd, by the configuration",
        (CgroupDriver::Cgroupfs, DriverKind::Systemd) => {
            let text =
                "cgroupfs, by the configuration, beside systemd which has groups of its own".to_owned();
            return finding(State::Warn, text).fix("set cgroup.driver to \"auto\"");
        }
        (CgroupDriver::Cgroupfs, DriverKind::Cgroupfs) => "cgroupfs, by the configuration",
        (CgroupDriver::Auto, DriverKind::Systemd) => "systemd, which is the init system",
        (CgroupDriver::Auto, DriverKind::Cgroupfs) => "cgroupfs, since systemd is not the init system",
    };
    finding(State::Ok, text.to_owned())
}

fn swap(host: &Host) -> Finding {
    let finding = |state, text: String| Finding::new("swap", state, text);
    let size = bytes(host.swap_bytes);
    match (host.swap_bytes, host.swap_counted) {
        (0, true) => finding(State::Ok, "none, and it would be counted".to_owned()),
        (0, false) => finding(State::Note, "none, and it would not be counted per container".to_owned()),
        (_, true) => finding(State::Ok, format!("{size}, counted per container")),
        (_, false) => {
            finding(State::Warn, format!("{size}, not counted, so containers may swap without limit"))
                .fix("boot with swapaccount=1, or swapoff -a")
        }
    }
}

fn pressure(host: &Host) -> Finding {
    let finding = |state, text| Finding::new("pressure (PSI)", state, text);
    if host.pressure {
        return finding(State::Ok, "told by the kernel");
    }
    finding(State::Note, "not told by the kernel, so stats go without").fix("boot with psi=1")
}

fn overlay(host: &Host, tried: &Tried) -> Finding {
    let finding = |state, text: String| Finding::new("overlayfs", state, text);
    match &tried.overlay {
        Some(Ok(())) => finding(State::Ok, "mounts".to_owned()),
        Some(Err(error)) => {
            finding(State::Missing, error.clone()).fix("put root on ext4, xfs with ftype=1, or btrfs")
        }
        None if host.filesystems.iter().any(|known| known == "overlay") => {
            finding(State::Ok, "known to the kernel; not tried without root".to_owned())
        }
        None => finding(State::Missing, "not known to the kernel".to_owned()).fix("modprobe overlay"),
    }
}

fn root(config: &Config, storage: &Storage) -> Finding {
    let path = config.root.display();
    let finding = |state, text: String| Finding::new("root directory", state, format!("{path}, {text}"));
    let quota = if storage.project_quota { ", project quotas" } else { "" };
    let text =
        format!("{}, {} of {} free{quota}", storage.kind, bytes(storage.free_bytes), bytes(storage.bytes));
    if storage.read_only {
        return finding(State::Missing, format!("{}, mounted read-only", storage.kind))
            .fix(format!("mount -o remount,rw {path}"));
    }
    if storage.no_exec {
        return finding(State::Missing, format!("{}, mounted noexec", storage.kind))
            .fix(format!("mount -o remount,exec {path}"));
    }
    let low =
        |free: u64, all: u64, share| all > 0 && u128::from(free) * 100 < u128::from(all) * u128::from(share);
    if low(storage.free_bytes, storage.bytes, FREE_SPACE)
        || low(storage.free_inodes, storage.inodes, FREE_INODES)
    {
        return finding(State::Warn, text + ", so little that kubelet evicts pods")
            .fix("free or add disk space");
    }
    finding(State::Ok, text)
}

fn state(config: &Config, storage: &Storage) -> Finding {
    let path = config.state.display();
    let finding =
        |state, text| Finding::new("state directory", state, format!("{path}, {}{text}", storage.kind));
    if storage.read_only {
        return finding(State::Missing, ", mounted read-only").fix(format!("mount -o remount,rw {path}"));
    }
    if storage.kind == "tmpfs" {
        return finding(State::Ok, "");
    }
    finding(State::Note, ", which a reboot does not clear").fix("put it on a tmpfs, as /run is meant to be")
}

/// A clock that is behind the files of the host lets no certificate of a registry be valid.
fn clock(config: &Config, storage: &Storage) -> Finding {
    let behind = storage.modified.saturating_sub(storage.now);
    let finding = |state, text: String| Finding::new("clock", state, text);
    if behind > 60 {
        let text = format!("{behind} s behind the last change in {}", config.root.display());
        return finding(State::Warn, text).fix("timedatectl set-ntp true");
    }
    finding(State::Ok, "not behind the file system".to_owned())
}

fn forwarding(host: &Host) -> Finding {
    let finding = |state, text| Finding::new("IP forwarding", state, text);
    if host.ip_forward == Some(true) {
        return finding(State::Ok, "on");
    }
    finding(State::Warn, "off, so pods reach nothing beyond the node and kubeadm refuses")
        .fix("sysctl -w net.ipv4.ip_forward=1")
}

fn bridge(host: &Host) -> Finding {
    let finding = |state, text| Finding::new("bridge filter", state, text);
    match host.bridge_filter {
        Some(true) => finding(State::Ok, "on"),
        Some(false) => {
            finding(State::Note, "off; networks with a bridge may miss services between pods of one node")
                .fix("sysctl -w net.bridge.bridge-nf-call-iptables=1")
        }
        None => finding(State::Note, "br_netfilter is not loaded; networks with a bridge may need it")
            .fix("modprobe br_netfilter"),
    }
}

fn limits(host: &Host) -> Finding {
    let value = |name: &str| host.limits.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let low: Vec<(String, String)> = LEAST
        .iter()
        .filter_map(|(name, least, better)| {
            let value = value(name).filter(|value| value < least)?;
            Some((format!("{name} is {value}"), format!("{name}={better}")))
        })
        .collect();
    if low.is_empty() {
        return Finding::new("kernel limits", State::Ok, "enough for a node full of pods");
    }
    let (texts, fixes): (Vec<String>, Vec<String>) = low.into_iter().unzip();
    Finding::new("kernel limits", State::Warn, format!("low: {}", texts.join(", ")))
        .fix(format!("sysctl -w {}", fixes.join(" ")))
}

/// A size as people read it.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes;
    let mut unit = 0;
    while scaled >= 10_240 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!("{scaled} {}", UNITS.get(unit).copied().unwrap_or("B"))
}
