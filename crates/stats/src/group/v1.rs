//! The files of one hierarchy per controller: the kernel's Documentation/admin-guide/cgroup-v1.
//!
//! Figures of whole subtrees begin with `total_`. Swap is counted together with memory and has to be taken apart again. Pressure is
//! counted where the unified hierarchy is mounted beside the others, without controllers, and the group is in it too.

use std::ffi::CStr;

use super::v2::{MemoryFiles, memory, memory_stat, number, stalled, threads};
use super::{Directory, Group, inside};
use crate::account::{Account, CpuAccount, MemoryAccount};
use crate::disk::{self, DiskAccount};
use crate::error::StatsError;
use crate::text::{field, limit};
use crate::usage::{Memory, Swap, Usage};

const MEMORY: MemoryFiles = MemoryFiles {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    inactive_file: "total_inactive_file",
    anonymous: "total_rss",
    faults: "total_pgfault",
    major_faults: "total_pgmajfault",
};

/// Where crun keeps a container's processes in the scope that systemd made for it.
const OF_CRUN: &CStr = c"container";

/// The unit of `cpuacct.stat` in nanoseconds: a hundredth of a second to every program, whatever the kernel's own clock ticks by.
const TICK: u64 = 10_000_000;

pub(super) fn read(group: &Group) -> Result<Usage, StatsError> {
    usage(group, &memory_stat(group)?)
}

fn usage(group: &Group, stat: &str) -> Result<Usage, StatsError> {
    let memory = memory(group, &MEMORY, stat)?;
    Ok(Usage {
        cpu_nanoseconds: cpu_nanoseconds(group)?,
        memory,
        swap: memory.map(|memory| swap(group, memory)).transpose()?.flatten(),
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
        cpu: cpu_account(group)?,
        memory: memory_account(group, &stat)?,
        threads: threads(group)?,
        disks: disks(group)?,
        hugepages: Vec::new(),
    })
}

fn cpu_account(group: &Group) -> Result<CpuAccount, StatsError> {
    let split = group.text("cpuacct.stat")?.unwrap_or_default();
    let quota = group.text_on("cpu.stat", "nr_periods")?.unwrap_or_default();
    Ok(CpuAccount {
        user_nanoseconds: field(&split, "user").map(of_ticks),
        system_nanoseconds: field(&split, "system").map(of_ticks),
        periods: field(&quota, "nr_periods"),
        throttled_periods: field(&quota, "nr_throttled"),
        throttled_nanoseconds: field(&quota, "throttled_time"),
    })
}

/// `cpuacct.usage_user` and its like are finer but do not add up to the whole: the kernel guesses them by the tick. These it corrects.
fn of_ticks(ticks: u64) -> u64 {
    ticks.saturating_mul(TICK)
}

fn memory_account(group: &Group, stat: &str) -> Result<MemoryAccount, StatsError> {
    let crun = memory_directory(group).and_then(|directory| directory.inner(OF_CRUN));
    let inner =
        crun.map(|directory| directory.text("memory.stat")).transpose()?.flatten().unwrap_or_default();
    let own = |name| Some(field(stat, name)?.saturating_add(field(&inner, name).unwrap_or(0)));
    Ok(MemoryAccount {
        cache: field(stat, "total_cache"),
        mapped_files: field(stat, "total_mapped_file"),
        active_files: field(stat, "total_active_file"),
        inactive_files: field(stat, "total_inactive_file"),
        kernel: number(group, "memory.kmem.usage_in_bytes")?,
        peak: number(group, "memory.max_usage_in_bytes")?,
        limit_hits: limit_hits(group)?,
        oom_kills: oom_kills(group)?,
        own_faults: own("pgfault"),
        own_major_faults: own("pgmajfault"),
    })
}

/// Each group counts those of its own processes alone, whoever's limit was run into.
fn oom_kills(group: &Group) -> Result<Option<u64>, StatsError> {
    let Some(directory) = memory_directory(group) else { return Ok(None) };
    let kills = |of: &Directory| {
        Ok::<_, StatsError>(of.text("memory.oom_control")?.and_then(|text| field(&text, "oom_kill")))
    };
    let Some(mut sum) = kills(directory)? else { return Ok(None) };
    for inner in inside::of(directory) {
        sum = sum.saturating_add(kills(&inner)?.unwrap_or(0));
    }
    Ok(Some(sum))
}

fn memory_directory(group: &Group) -> Option<&Directory> {
    group.directories.iter().find(|directory| directory.kinds.contains(&"memory"))
}

/// Memory alone has a limit, and so has memory with swap. The latter is tried first, and where both are the same it is the one that
/// is run into.
fn limit_hits(group: &Group) -> Result<Option<u64>, StatsError> {
    let with_swap = number(group, "memory.memsw.failcnt")?.unwrap_or(0);
    Ok(number(group, "memory.failcnt")?.map(|hits| hits.saturating_add(with_swap)))
}

/// Counted by the scheduler `bfq`, or else before schedulers, where newer kernels (6.10) count only while something is throttled.
fn disks(group: &Group) -> Result<Vec<DiskAccount>, StatsError> {
    for counter in ["blkio.bfq", "blkio.throttle"] {
        let file = |what| group.text_anywhere(&format!("{counter}.{what}_recursive"));
        let (bytes, operations) = (file("io_service_bytes")?, file("io_serviced")?);
        let found = disk::of_v1(&bytes.unwrap_or_default(), &operations.unwrap_or_default());
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

pub(super) fn cpu_nanoseconds(group: &Group) -> Result<Option<u64>, StatsError> {
    number(group, "cpuacct.usage")
}

/// What is counted with memory, less that.
fn swap(group: &Group, memory: Memory) -> Result<Option<Swap>, StatsError> {
    let Some(both) = number(group, "memory.memsw.usage_in_bytes")? else { return Ok(None) };
    let usage = both.saturating_sub(memory.usage);
    let most = group.text("memory.memsw.limit_in_bytes")?.as_deref().and_then(limit);
    let memory_most = memory.available.map(|left| left.saturating_add(memory.working_set));
    let available =
        most.zip(memory_most).map(|(both, memory)| both.saturating_sub(memory).saturating_sub(usage));
    Ok(Some(Swap { usage, available }))
}
