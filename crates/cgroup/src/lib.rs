//! Control groups of pods and containers: what they are called, where they lie, and how their processes end.
//!
//! This crate owns the cgroup filesystem on behalf of the server. The OCI runtime makes a container's own group from the
//! path that [`CgroupDriver::oci_path`] gives; this crate makes missing parents, lists and kills processes, and removes
//! groups. It promises that every operation works on each hierarchy the host has mounted, v1, v2 or both, that killing and
//! removing end within a bound, and that a group that is not there counts as killed and removed.
//!
//! Two drivers exist because kubelet has two ways to name a pod's group: [`Cgroupfs`] by path (`/kubepods/pod1`), [`Systemd`]
//! by unit (`kubepods-pod1.slice`). They agree on everything but names and on who makes parents, and on systemd having to be
//! told of what becomes of a group, which [`SystemdBus`] does. Which driver is in force is decided by [`settle`]. Programs of the
//! server's own that outlive it have a group, too: [`Beside`].
//! [`fake::FakeCgroups`] stands in for both in tests.
//!
//! No state is kept but systemd's connection: what exists is asked of the kernel each time. Calls that are not async block.

pub mod fake;

mod beside;
mod bus;
mod choice;
mod driver;
mod error;
mod mounts;
mod name;
mod property;
mod tree;

pub use beside::Beside;
pub use bus::{BUS_LIMIT, Endpoint, SystemdBus};
pub use choice::settle;
pub use driver::{CgroupDriver, Cgroupfs, DriverKind, SavedLimits, Systemd, open};
pub use error::{BusFault, CgroupError};
pub use mounts::{DEFAULT_ROOT, Hierarchy, Mount, Mounts, detect};
pub use property::{Limits, Property, PropertyValue, cpu_weight, io_weight, properties};
