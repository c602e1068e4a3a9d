//! All that the kernel keeps of a group: what monitoring asks for beyond [`Usage`].

use crate::disk::DiskAccount;
use crate::usage::Usage;

/// What a group has used up to one moment, in every detail. What this kernel does not count is `None` or missing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    /// What everybody asks for.
    pub usage: Usage,
    /// Where its processor time went.
    pub cpu: CpuAccount,
    /// What its memory is.
    pub memory: MemoryAccount,
    /// How many processes and threads it may have.
    pub threads: Option<Limit>,
    /// What it moved to and from each block device.
    pub disks: Vec<DiskAccount>,
    /// Its huge pages, by their size.
    pub hugepages: Vec<HugepageAccount>,
}

/// A bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// There is none.
    None,
    /// So many.
    At(u64),
}

/// Processor time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuAccount {
    /// Spent outside of the kernel, in nanoseconds.
    pub user_nanoseconds: Option<u64>,
    /// Spent in it.
    pub system_nanoseconds: Option<u64>,
    /// Periods of the quota that have passed with something to run.
    pub periods: Option<u64>,
    /// Those in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// How long was waited for the next period.
    pub throttled_nanoseconds: Option<u64>,
}

/// Memory, in bytes where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryAccount {
    /// Pages of files.
    pub cache: Option<u64>,
    /// Those of them that processes have mapped.
    pub mapped_files: Option<u64>,
    /// Pages of files that were used lately.
    pub active_files: Option<u64>,
    /// And those that were not.
    pub inactive_files: Option<u64>,
    /// What the kernel needs on behalf of the group.
    pub kernel: Option<u64>,
    /// The most that was ever in use.
    pub peak: Option<u64>,
    /// How often the limit was run into.
    pub limit_hits: Option<u64>,
    /// Processes killed for want of memory, those of groups in it among them.
    pub oom_kills: Option<u64>,
    /// Page faults of the group without the groups in it, but for the one in which crun keeps a container. v2 does not tell them apart.
    pub own_faults: Option<u64>,
    /// Those that waited for a disk.
    pub own_major_faults: Option<u64>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageAccount {
    /// As the kernel writes it: `2MB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The most that was ever in use; v2 does not count it.
    pub peak: Option<u64>,
}
