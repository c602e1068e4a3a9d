//! What files of the kernel and the system say about this host. Everything is read beneath a root directory, so that a test can
//! bring a host of its own.

use std::fs;
use std::path::{Path, PathBuf};

use cgroup::{DriverKind, Hierarchy};

use crate::facts;

/// Programs that are looked for.
const PROGRAMS: [&str; 4] = ["apparmor_parser", "iptables", "nft", "modprobe"];
/// Where programs are looked for.
const PLACES: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/// Facts of a host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// How its control groups are laid out; none when they are not mounted.
    pub cgroups: Option<Hierarchy>,
    /// Controllers that can be used.
    pub controllers: Vec<String>,
    /// Who makes groups unless the configuration says otherwise; none when it cannot be told.
    pub driver: Option<DriverKind>,
    /// Bytes of swap space.
    pub swap_bytes: u64,
    /// Whether swap is counted per group.
    pub swap_counted: bool,
    /// Whether the kernel tells how much programs wait for processors, memory and disks.
    pub pressure: bool,
    /// File systems that the kernel knows.
    pub filesystems: Vec<String>,
    /// Whether the kernel has system call filters.
    pub seccomp: bool,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Names of the AppArmor profiles that are loaded, where they can be read.
    pub profiles: Option<Vec<String>>,
    /// Whether SELinux enforces its policy; none when it is off.
    pub selinux: Option<bool>,
    /// How many user namespaces there may be; none when the kernel has none.
    pub user_namespaces: Option<u64>,
    /// The capabilities of this process, as a mask.
    pub capabilities: u64,
    /// Whether packets are forwarded; none when the kernel cannot.
    pub ip_forward: Option<bool>,
    /// Whether packets between pods of one bridge pass the packet filter; none without br_netfilter.
    pub bridge_filter: Option<bool>,
    /// Kernel limits by their name as a parameter.
    pub limits: Vec<(&'static str, u64)>,
    /// Programs that were found, among those that are looked for.
    pub programs: Vec<&'static str>,
    /// The distribution and those it is like, as it calls them.
    pub distribution: Vec<String>,
}

/// Limits of the kernel that a node full of pods reaches.
const LIMITS: [&str; 4] =
    ["fs.inotify.max_user_instances", "fs.inotify.max_user_watches", "kernel.pid_max", "fs.file-max"];

impl Host {
    /// Reads them beneath `root`. What cannot be read counts as absent.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let files = Files(root);
        let cgroups = files.hierarchy();
        Self {
            kernel: files.line("proc/sys/kernel/osrelease"),
            cgroups,
            controllers: files.controllers(cgroups),
            driver: Some(DriverKind::detect_at(root)),
            swap_bytes: files.swap_bytes(),
            swap_counted: cgroups.is_some_and(|hierarchy| facts::counts_swap(root, hierarchy)),
            pressure: files.has("proc/pressure/memory"),
            filesystems: files.filesystems(),
            seccomp: files.has("proc/sys/kernel/seccomp/actions_avail"),
            apparmor: files.line("sys/module/apparmor/parameters/enabled") == "Y",
            profiles: files.profiles(),
            selinux: files.number("sys/fs/selinux/enforce").map(|enforce| enforce == 1),
            user_namespaces: files.number("proc/sys/user/max_user_namespaces"),
            capabilities: files.capabilities(),
            ip_forward: files.number("proc/sys/net/ipv4/ip_forward").map(|forward| forward == 1),
            bridge_filter: files.number("proc/sys/net/bridge/bridge-nf-call-iptables").map(|call| call == 1),
            limits: LIMITS.iter().filter_map(|name| Some((*name, files.parameter(name)?))).collect(),
            programs: PROGRAMS.into_iter().filter(|name| files.has_program(name)).collect(),
            distribution: files.distribution(),
        }
    }

    /// Whether this process has the capability with this number.
    #[must_use]
    pub fn can(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }

    /// A command that installs a package, by its name on Debian and its kin, and elsewhere.
    #[must_use]
    pub fn install(&self, debian: &str, elsewhere: &str) -> String {
        let is_like = |names: &[&str]| self.distribution.iter().any(|own| names.contains(&own.as_str()));
        match () {
            () if is_like(&["debian", "ubuntu"]) => format!("apt install {debian}"),
            () if is_like(&["fedora", "rhel", "centos"]) => format!("dnf install {elsewhere}"),
            () if is_like(&["suse", "opensuse"]) => format!("zypper install {elsewhere}"),
            () if is_like(&["arch"]) => format!("pacman -S {elsewhere}"),
            () => format!("install {elsewhere}"),
        }
    }
}

/// Files beneath a root directory.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    fn line(&self, path: &str) -> String {
        self.text(path).trim().to_owned()
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.line(path).parse().ok()
    }

    fn parameter(&self, name: &str) -> Option<u64> {
        self.number(&format!("proc/sys/{}", name.replace('.', "/")))
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).try_exists().unwrap_or(false)
    }

    fn has_program(&self, name: &str) -> bool {
        PLACES.iter().any(|place| self.has(&format!("{place}/{name}")))
    }

    fn entries(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    fn hierarchy(&self) -> Option<Hierarchy> {
        if self.has("sys/fs/cgroup/cgroup.controllers") {
            return Some(Hierarchy::V2);
        }
        let is_v1 =
            self.entries("sys/fs/cgroup").iter().any(|name| name.split(',').any(|part| part == "memory"));
        let has_v2 = self.has("sys/fs/cgroup/unified/cgroup.controllers");
        is_v1.then_some(if has_v2 { Hierarchy::Hybrid } else { Hierarchy::V1 })
    }

    fn controllers(&self, cgroups: Option<Hierarchy>) -> Vec<String> {
        let mut found: Vec<String> = match cgroups {
            None => Vec::new(),
            Some(Hierarchy::V2) => {
                let text = self.text("sys/fs/cgroup/cgroup.controllers");
                text.split_whitespace().map(str::to_owned).collect()
            }
            Some(Hierarchy::V1 | Hierarchy::Hybrid) => {
                let known = self.text("proc/cgroups");
                let known: Vec<&str> =
                    known.lines().filter_map(|line| line.split_whitespace().next()).collect();
                let names = self.entries("sys/fs/cgroup");
                let parts = names.iter().flat_map(|name| name.split(','));
                parts.filter(|part| known.contains(part)).map(str::to_owned).collect()
            }
        };
        found.sort();
        found.dedup();
        found
    }

    /// Columns are name, type, size in KiB.
    fn swap_bytes(&self) -> u64 {
        let text = self.text("proc/swaps");
        let sizes =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        sizes.sum::<u64>().saturating_mul(1024)
    }

    fn filesystems(&self) -> Vec<String> {
        let text = self.text("proc/filesystems");
        text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
    }

    fn profiles(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.path("sys/kernel/security/apparmor/profiles")).ok()?;
        let name = |line: &str| line.rsplit_once(" (").map(|(name, _)| name.to_owned());
        Some(text.lines().filter_map(name).collect())
    }

    fn capabilities(&self) -> u64 {
        let text = self.text("proc/self/status");
        let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    }

    fn distribution(&self) -> Vec<String> {
        let text = self.text("etc/os-release");
        let values =
            text.lines().filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
        let words = values.flat_map(|value| value.trim_matches('"').split_whitespace());
        words.map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> Host {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Host::read(root.path())
    }

    #[test]
    fn a_host_with_one_hierarchy_is_read() {
        let host = host(&[
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory pids\n"),
            ("sys/fs/cgroup/system.slice/memory.swap.max", "max\n"),
            (
                "proc/swaps",
                "Filename Type Size Used Priority\n/dev/a partition 1024 0 -2\n/f file 2048 0 -3\n",
            ),
            ("proc/pressure/memory", ""),
            ("proc/filesystems", "nodev\tsysfs\n\text4\nnodev\toverlay\n"),
            ("sys/module/apparmor/parameters/enabled", "Y\n"),
            ("sys/kernel/security/apparmor/profiles", "crimson-default (enforce)\n/usr/bin/man (complain)\n"),
            ("sys/fs/selinux/enforce", "0"),
            ("proc/sys/user/max_user_namespaces", "0\n"),
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000200000\n"),
            ("proc/sys/net/ipv4/ip_forward", "0\n"),
            ("proc/sys/net/bridge/bridge-nf-call-iptables", "1\n"),
            ("proc/sys/fs/inotify/max_user_instances", "128\n"),
            ("proc/1/comm", "systemd\n"),
            ("run/systemd/system/x", ""),
            ("usr/sbin/nft", ""),
            ("etc/os-release", "NAME=\"U\"\nID=ubuntu\nID_LIKE=\"debian\"\n"),
        ]);
        assert_eq!((host.kernel.as_str(), host.cgroups), ("6.12.1", Some(Hierarchy::V2)));
        assert_eq!(host.controllers, ["cpu", "cpuset", "memory", "pids"]);
        assert_eq!((host.driver, host.swap_counted), (Some(DriverKind::Systemd), true));
        assert_eq!(host.swap_bytes, 3 << 20);
        assert!(host.pressure && host.apparmor && !host.seccomp);
        assert_eq!(host.filesystems, ["sysfs", "ext4", "overlay"]);
        assert_eq!(host.profiles.as_deref().unwrap(), ["crimson-default", "/usr/bin/man"]);
        assert_eq!((host.selinux, host.user_namespaces), (Some(false), Some(0)));
        assert!(host.can(21) && !host.can(24));
        assert_eq!((host.ip_forward, host.bridge_filter), (Some(false), Some(true)));
        assert_eq!(host.limits, [("fs.inotify.max_user_instances", 128)]);
        assert_eq!(host.programs, ["nft"]);
        assert_eq!(host.install("a", "b"), "apt install a");
    }

    #[test]
    fn a_host_with_a_hierarchy_for_each_controller_is_read() {
        let files = [
            ("proc/cgroups", "#subsys_name\thierarchy\ncpu\t1\ncpuacct\t1\nmemory\t2\npids\t3\n"),
            ("sys/fs/cgroup/cpu,cpuacct/tasks", ""),
            ("sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", ""),
            ("sys/fs/cgroup/unified/cgroup.controllers", ""),
        ];
        let hybrid = host(&files);
        assert_eq!((hybrid.cgroups, hybrid.swap_counted), (Some(Hierarchy::Hybrid), true));
        assert_eq!(hybrid.controllers, ["cpu", "cpuacct", "memory"]);
        assert_eq!(host(&files[..3]).cgroups, Some(Hierarchy::V1));
    }

    #[test]
    fn nothing_is_made_up() {
        let host = host(&[]);
        assert_eq!((host.cgroups, host.selinux, host.user_namespaces), (None, None, None));
        assert_eq!((host.ip_forward, host.profiles), (None, None));
        assert!(host.controllers.is_empty() && host.limits.is_empty() && host.programs.is_empty());
        assert_eq!(Host::default().install("a", "b"), "install b");
    }
}
