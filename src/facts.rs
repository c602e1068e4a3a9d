//! What this host offers, found out once at the start.

use std::fs;
use std::path::Path;

use cgroup::Hierarchy;
use spec::NodeFacts;

/// Bit of `CAP_SYS_RESOURCE` in the kernel's capability masks.
const CAP_SYS_RESOURCE: u32 = 24;

/// Asks the kernel.
#[must_use]
pub fn gather(hierarchy: Hierarchy) -> NodeFacts {
    let capabilities = effective_capabilities();
    let own_score = read("/proc/self/oom_score_adj").trim().parse().unwrap_or(0);
    let has_sys_resource = capabilities & (1 << CAP_SYS_RESOURCE) != 0;
    NodeFacts {
        hierarchy: match hierarchy {
            Hierarchy::V2 => spec::Hierarchy::V2,
            Hierarchy::V1 | Hierarchy::Hybrid => spec::Hierarchy::V1,
        },
        capabilities: spec::capabilities::from_mask(capabilities),
        oom_score_adj_floor: NodeFacts::oom_floor(own_score, has_sys_resource),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        swap_accounting: counts_swap(Path::new("/"), hierarchy),
        hugepage_sizes: hugepage_sizes(hierarchy),
        apparmor: read("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
        selinux: is_there("/sys/fs/selinux/enforce"),
        seccomp: is_there("/proc/sys/kernel/seccomp/actions_avail"),
        ..NodeFacts::default()
    }
}

/// The capabilities of this process, as a mask: the most that any container can get.
fn effective_capabilities() -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the host beneath `root` counts swap per control group. The group at the top has no such file on v2, so a server that
/// is in it asks the groups beneath.
pub(crate) fn counts_swap(root: &Path, hierarchy: Hierarchy) -> bool {
    let top = root.join("sys/fs/cgroup");
    let has = |path: &Path| path.try_exists().unwrap_or(false);
    match hierarchy {
        Hierarchy::V2 => {
            let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
            let beneath = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut groups = [top.join(own), top.clone()].into_iter().chain(beneath);
            groups.any(|group| has(&group.join("memory.swap.max")))
        }
        Hierarchy::V1 | Hierarchy::Hybrid => has(&top.join("memory/memory.memsw.limit_in_bytes")),
    }
}

/// Page sizes that the hugetlb controller can limit, spelled as its files are (`2MB`, `1GB`). On v1 a controller that is not
/// mounted limits nothing, though the kernel has it.
fn hugepage_sizes(hierarchy: Hierarchy) -> Vec<String> {
    let enabled = match hierarchy {
        Hierarchy::V2 => read("/sys/fs/cgroup/cgroup.controllers")
            .split_whitespace()
            .any(|controller| controller == "hugetlb"),
        Hierarchy::V1 | Hierarchy::Hybrid => is_there("/sys/fs/cgroup/hugetlb"),
    };
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut sizes: Vec<u64> = names
        .filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok())
        .filter(|_| enabled)
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size).collect()
}

fn page_size(kib: u64) -> String {
    const UNITS: [&str; 3] = ["KB", "MB", "GB"];
    let mut size = kib;
    let mut unit = 0;
    while size > 0 && size.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }
    format!("{size}{}", UNITS.get(unit).copied().unwrap_or("KB"))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_there(path: &str) -> bool {
    Path::new(path).try_exists().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_spelled_as_cgroup_files_are() {
        assert_eq!(page_size(64), "64KB");
        assert_eq!(page_size(2048), "2MB");
        assert_eq!(page_size(1 << 20), "1GB");
        assert_eq!(page_size(16 << 20), "16GB");
    }

    #[test]
    fn this_process_has_capabilities() {
        assert_ne!(effective_capabilities(), 0);
    }
}
