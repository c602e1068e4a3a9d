//! The files of the unified hierarchy: the kernel's Documentation/admin-guide/cgroup-v2.rst.

use super::Group;
use crate::account::{Account, CpuAccount, Limit, MemoryAccount};
use crate::disk;
use crate::error::StatsError;
use crate::text::{field, limit, pressure};
use crate::usage::{Memory, Pressure, Swap, Usage};

const MEMORY: MemoryFiles = MemoryFiles {
    usage: "memory.current",
    limit: "memory.max",
    inactive_file: "inactive_file",
    anonymous: "anon",
    faults: "pgfault",
    major_faults: "pgmajfault",
};

/// Lines of `memory.stat` that make up what the kernel uses, where it does not say the sum (before 5.18).
const KERNEL: [&str; 5] = ["kernel_stack", "pagetables", "percpu", "sock", "slab"];

pub(super) fn read(group: &Group) -> Result<Usage, StatsError> {
    usage(group, &memory_stat(group)?)
}

fn usage(group: &Group, stat: &str) -> Result<Usage, StatsError> {
    Ok(Usage {
        cpu_nanoseconds: cpu_nanoseconds(group)?,
        memory: memory(group, &MEMORY, stat)?,
        swap: swap(group)?,
        tasks: number(group, "pids.current")?,
        cpu_pressure: stalled(group, "cpu.pressure")?,
        memory_pressure: stalled(group, "memory.pressure")?,
        io_pressure: stalled(group, "io.pressure")?,
    })
}

pub(super) fn account(group: &Group) -> Result<Account, StatsError> {
    let stat = memory_stat(group)?;
    Ok(Account {
        usage: usage(group, &stat)?,
        cpu: group.text("cpu.stat")?.as_deref().map(cpu_account).unwrap_or_default(),
        memory: memory_account(group, &stat)?,
        threads: threads(group)?,
        disks: group.text("io.stat")?.as_deref().map(disk::of_v2).unwrap_or_default(),
        hugepages: Vec::new(),
    })
}

fn cpu_account(stat: &str) -> CpuAccount {
    let nanoseconds = |name| field(stat, name).map(|it| it.saturating_mul(1000));
    CpuAccount {
        user_nanoseconds: nanoseconds("user_usec"),
        system_nanoseconds: nanoseconds("system_usec"),
        periods: field(stat, "nr_periods"),
        throttled_periods: field(stat, "nr_throttled"),
        throttled_nanoseconds: nanoseconds("throttled_usec"),
    }
}

fn memory_account(group: &Group, stat: &str) -> Result<MemoryAccount, StatsError> {
    let events = group.text("memory.events")?.unwrap_or_default();
    Ok(MemoryAccount {
        cache: field(stat, "file"),
        mapped_files: field(stat, "file_mapped"),
        active_files: field(stat, "active_file"),
        inactive_files: field(stat, "inactive_file"),
        kernel: field(stat, "kernel").or_else(|| KERNEL.iter().map(|name| field(stat, name)).sum()),
        peak: number(group, "memory.peak")?,
        limit_hits: field(&events, "max"),
        oom_kills: field(&events, "oom_kill"),
        own_faults: None,
        own_major_faults: None,
    })
}

/// The limit on processes and threads.
pub(super) fn threads(group: &Group) -> Result<Option<Limit>, StatsError> {
    let text = group.text("pids.max")?;
    Ok(text.map(|text| text.trim().parse().map_or(Limit::None, Limit::At)))
}

pub(super) fn memory_stat(group: &Group) -> Result<String, StatsError> {
    Ok(group.text("memory.stat")?.unwrap_or_default())
}

pub(super) fn cpu_nanoseconds(group: &Group) -> Result<Option<u64>, StatsError> {
    let microseconds = group.text("cpu.stat")?.as_deref().and_then(|text| field(text, "usage_usec"));
    Ok(microseconds.map(|it| it.saturating_mul(1000)))
}

/// What a hierarchy calls the figures of memory.
pub(super) struct MemoryFiles {
    pub(super) usage: &'static str,
    pub(super) limit: &'static str,
    /// Lines of `memory.stat`.
    pub(super) inactive_file: &'static str,
    pub(super) anonymous: &'static str,
    pub(super) faults: &'static str,
    pub(super) major_faults: &'static str,
}

/// `stat` is the content of `memory.stat`.
pub(super) fn memory(group: &Group, files: &MemoryFiles, stat: &str) -> Result<Option<Memory>, StatsError> {
    let Some(usage) = number(group, files.usage)? else { return Ok(None) };
    let working_set = usage.saturating_sub(field(stat, files.inactive_file).unwrap_or(0));
    let most = group.text(files.limit)?.as_deref().and_then(limit);
    Ok(Some(Memory {
        usage,
        working_set,
        anonymous: field(stat, files.anonymous),
        available: most.map(|most| most.saturating_sub(working_set)),
        faults: field(stat, files.faults),
        major_faults: field(stat, files.major_faults),
    }))
}

fn swap(group: &Group) -> Result<Option<Swap>, StatsError> {
    let Some(usage) = number(group, "memory.swap.current")? else { return Ok(None) };
    let most = group.text("memory.swap.max")?.as_deref().and_then(limit);
    Ok(Some(Swap { usage, available: most.map(|most| most.saturating_sub(usage)) }))
}

pub(super) fn stalled(group: &Group, name: &str) -> Result<Option<Pressure>, StatsError> {
    Ok(group.text(name)?.as_deref().and_then(pressure))
}

pub(super) fn number(group: &Group, name: &str) -> Result<Option<u64>, StatsError> {
    Ok(group.text(name)?.and_then(|text| text.trim().parse().ok()))
}
