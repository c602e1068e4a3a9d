//! The figures.

/// What a group has used up to one moment, and uses at it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Processor time since the group was made, in nanoseconds, of all its processors together.
    pub cpu_nanoseconds: Option<u64>,
    /// Memory now.
    pub memory: Option<Memory>,
    /// Swap space now; `None` where the kernel does not count it per group.
    pub swap: Option<Swap>,
    /// Processes and threads now.
    pub tasks: Option<u64>,
    /// Time lost for want of processors. Only v2 counts it.
    pub cpu_pressure: Option<Pressure>,
    /// Time lost for want of memory.
    pub memory_pressure: Option<Pressure>,
    /// Time lost waiting for disks.
    pub io_pressure: Option<Pressure>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged to the group, page cache included.
    pub usage: u64,
    /// `usage` without file pages that were not used for long: what the kernel cannot take back at once. kubelet evicts by it.
    pub working_set: u64,
    /// Memory of the processes themselves, which no file backs.
    pub anonymous: Option<u64>,
    /// What may still be used before the limit strikes; `None` without a limit.
    pub available: Option<u64>,
    /// Page faults since the group was made.
    pub faults: Option<u64>,
    /// Those that waited for a disk.
    pub major_faults: Option<u64>,
}

/// Swap space in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swap {
    /// Used now.
    pub usage: u64,
    /// What may still be used; `None` without a limit.
    pub available: Option<u64>,
}

/// Pressure stall information: see the kernel's Documentation/accounting/psi.rst.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Times in which some task waited.
    pub some: Average,
    /// Times in which all tasks waited at once.
    pub full: Average,
}

/// How long was waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Average {
    /// In all, in microseconds.
    pub total: u64,
    /// Share of the last 10 seconds, in percent.
    pub last_10: f64,
    /// Of the last 60.
    pub last_60: f64,
    /// Of the last 300.
    pub last_300: f64,
}
