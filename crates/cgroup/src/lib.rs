//! Control groups of pods and containers: what they are called, where they lie, and how their processes end.
//!
//! This crate owns the cgroup filesystem on behalf of the server. The OCI runtime makes a container's own group from the
//! path that [`CgroupDriver::oci_path`] gives; this crate makes missing parents, lists and kills processes, and removes
//! groups. It promises that every operation works on each hierarchy the host has mounted, v1, v2 or both, that killing and
//! removing end within a bound, and that a group that is not there counts as killed and removed.
//!
//! Two drivers exist because kubelet has two ways to name a pod's group: [`Cgroupfs`] by path (`/kubepods/pod1`), [`Systemd`]
//! by unit (`kubepods-pod1.slice`). They agree on everything but names and on who makes parents. [`fake::FakeCgroups`]
//! stands in for both in tests.
//!
//! No state is kept: what exists is asked of the kernel each time. All calls block.

pub mod fake;

mod driver;
mod error;
mod mounts;
mod name;
mod tree;

pub use driver::{CgroupDriver, Cgroupfs, DriverKind, Systemd, open};
pub use error::CgroupError;
pub use mounts::{DEFAULT_ROOT, Hierarchy, Mount, Mounts, detect};
