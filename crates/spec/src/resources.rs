//! Limits of a container: CRI's numbers → OCI's, and the merging of updates.
//!
//! In CRI zero or empty means "not said": at creation no limit, in an update unchanged. Shares are passed on as they
//! are; the OCI runtime turns them into a weight on cgroup v2.

use cri_api::v1;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::error::SpecError;
use crate::facts::{Hierarchy, NodeFacts};
use crate::request::ContainerRequest;

/// Checks what needs no knowledge of the node.
pub(crate) fn check(resources: Option<&v1::LinuxContainerResources>) -> Result<(), SpecError> {
    let Some(resources) = resources else { return Ok(()) };
    not_below("cpu_period", resources.cpu_period, 0)?;
    not_below("cpu_shares", resources.cpu_shares, 0)?;
    not_below("cpu_quota", resources.cpu_quota, -1)?;
    not_below("memory_limit_in_bytes", resources.memory_limit_in_bytes, -1)?;
    not_below("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes, -1)?;
    cpuset("cpuset_cpus", &resources.cpuset_cpus)?;
    cpuset("cpuset_mems", &resources.cpuset_mems)?;
    check_swap(resources)?;
    for key in resources.unified.keys() {
        if key.is_empty() || key.contains(['/', '\0']) || !key.contains('.') {
            return Err(SpecError::invalid("unified", key, "it is not the name of a cgroup v2 file"));
        }
    }
    Ok(())
}

fn not_below(field: &'static str, value: i64, least: i64) -> Result<(), SpecError> {
    if value >= least { Ok(()) } else { Err(SpecError::invalid(field, value.to_string(), "it is negative")) }
}

fn cpuset(field: &'static str, list: &str) -> Result<(), SpecError> {
    if list.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-')) {
        return Ok(());
    }
    Err(SpecError::invalid(field, list, "it is not a list of numbers and ranges"))
}

/// CRI's swap limit counts memory and swap together.
fn check_swap(resources: &v1::LinuxContainerResources) -> Result<(), SpecError> {
    let (memory, both) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
    if both > 0 && memory > both {
        let reason = "it counts memory too, so it cannot be below the memory limit";
        return Err(SpecError::invalid("memory_swap_limit_in_bytes", both.to_string(), reason));
    }
    Ok(())
}

/// Lays an update over the present values; what the update leaves zero or empty stays.
pub(crate) fn merge(
    present: v1::LinuxContainerResources,
    update: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let number = |present: i64, update: i64| if update == 0 { present } else { update };
    let text = |present: String, update: &String| if update.is_empty() { present } else { update.clone() };
    let mut unified = present.unified;
    unified.extend(update.unified.clone());
    v1::LinuxContainerResources {
        cpu_period: number(present.cpu_period, update.cpu_period),
        cpu_quota: number(present.cpu_quota, update.cpu_quota),
        cpu_shares: number(present.cpu_shares, update.cpu_shares),
        memory_limit_in_bytes: number(present.memory_limit_in_bytes, update.memory_limit_in_bytes),
        oom_score_adj: number(present.oom_score_adj, update.oom_score_adj),
        cpuset_cpus: text(present.cpuset_cpus, &update.cpuset_cpus),
        cpuset_mems: text(present.cpuset_mems, &update.cpuset_mems),
        hugepage_limits: merge_hugepages(present.hugepage_limits, &update.hugepage_limits),
        unified,
        memory_swap_limit_in_bytes: number(
            present.memory_swap_limit_in_bytes,
            update.memory_swap_limit_in_bytes,
        ),
    }
}

fn merge_hugepages(
    mut present: Vec<v1::HugepageLimit>,
    update: &[v1::HugepageLimit],
) -> Vec<v1::HugepageLimit> {
    for limit in update {
        present.retain(|old| old.page_size != limit.page_size);
        present.push(limit.clone());
    }
    present
}

/// The OCI limits of a request, for its spec and for the runtime's `update`. Device rules are not among them.
///
/// # Errors
/// [`SpecError`] when the node cannot enforce a limit that is asked for.
pub fn linux_resources(request: &ContainerRequest, facts: &NodeFacts) -> Result<LinuxResources, SpecError> {
    let mut linux = LinuxResources::default();
    linux.set_devices(None);
    let Some(asked) = request.wire_resources() else { return Ok(linux) };
    linux.set_cpu(cpu(asked));
    linux.set_memory(memory(asked, facts)?);
    linux.set_hugepage_limits(hugepages(asked, facts)?);
    if !asked.unified.is_empty() {
        if facts.hierarchy == Hierarchy::V1 {
            let what = "the unified resource map".to_owned();
            return Err(SpecError::Unavailable { what, reason: "it needs cgroup v2" });
        }
        linux.set_unified(Some(asked.unified.clone()));
    }
    Ok(linux)
}

fn cpu(asked: &v1::LinuxContainerResources) -> Option<LinuxCpu> {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(asked.cpu_shares))
        .set_period(positive(asked.cpu_period))
        .set_quota(Some(asked.cpu_quota).filter(|quota| *quota != 0))
        .set_cpus(text(&asked.cpuset_cpus))
        .set_mems(text(&asked.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

/// Without a swap limit of its own a container with a memory limit gets no swap: both limits are the same.
fn memory(asked: &v1::LinuxContainerResources, facts: &NodeFacts) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = asked.memory_limit_in_bytes;
    if limit > 0 && limit < facts.min_memory_bytes {
        let reason = "it is below the least that a container can start with on this node";
        return Err(SpecError::invalid("memory_limit_in_bytes", limit.to_string(), reason));
    }
    let swap = if asked.memory_swap_limit_in_bytes == 0 { limit } else { asked.memory_swap_limit_in_bytes };
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|limit| *limit != 0));
    memory.set_swap(Some(swap).filter(|swap| *swap != 0 && facts.swap_accounting));
    Ok((memory != LinuxMemory::default()).then_some(memory))
}

/// kubelet sends a limit of 0 for every page size it knows; only a real limit needs the controller.
fn hugepages(
    asked: &v1::LinuxContainerResources,
    facts: &NodeFacts,
) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    let mut limits = Vec::new();
    for limit in &asked.hugepage_limits {
        if facts.hugepage_sizes.contains(&limit.page_size) {
            let mut known = LinuxHugepageLimit::default();
            known.set_page_size(limit.page_size.clone());
            known.set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
            limits.push(known);
        } else if limit.limit > 0 {
            let what = format!("a limit on huge pages of {}", limit.page_size);
            return Err(SpecError::Unavailable {
                what,
                reason: "no cgroup controller counts pages of this size",
            });
        }
    }
    Ok(Some(limits).filter(|limits| !limits.is_empty()))
}

/// The score for the kernel's out-of-memory killer, brought into the range this node can set.
pub(crate) fn oom_score_adj(request: &ContainerRequest, facts: &NodeFacts) -> i32 {
    facts.clamp_oom(request.wire_resources().map_or(0, |asked| asked.oom_score_adj))
}
