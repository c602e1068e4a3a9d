//! What pods and containers use, as the kernel counts it.
//!
//! Owned here: reading the accounting files of control groups (v1 and v2), of their processes and of network interfaces, what the
//! figures in them mean, and counting what a directory tree takes. Not owned: which groups there are, when they are read, and who
//! is told.
//!
//! Promises: a group is opened once and read through descriptors from then on, so that a figure never belongs to a later group
//! of the same name; what the kernel does not count is `None`, never 0; a group that has vanished is an error of its own
//! ([`StatsError::Gone`]), since that is what happens to containers. Calls block: those on
//! groups and interfaces for some microseconds, [`Group::census`] longer the more files are open, [`tree`] for as long as the disk
//! takes.

mod account;
mod census;
mod disk;
mod error;
mod filesystem;
mod group;
mod network;
mod rate;
mod text;
mod tree;
mod usage;

pub use account::{Account, CpuAccount, HugepageAccount, Limit, MemoryAccount};
pub use census::{Census, Open, open_files_limit};
pub use disk::{DeviceNames, DiskAccount, Transfers};
pub use error::StatsError;
pub use filesystem::Filesystem;
pub use group::{Allowance, Group};
pub use network::{Interface, interfaces};
pub use rate::Rate;
pub use tree::{TreeUsage, tree};
pub use usage::{Average, Memory, Pressure, Swap, Usage};
