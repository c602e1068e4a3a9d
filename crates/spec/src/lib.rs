//! From what CRI asks to what an OCI runtime reads.
//!
//! This crate owns the translation CRI config + image config + facts of the node → OCI runtime spec, and the checks a
//! request must pass before anything on the host is touched. It promises:
//!
//! * **pure**: no IO, no clock, no async. What has to be read from the host (passwd files, device numbers, mount
//!   sources, seccomp profiles) is handed in by the caller;
//! * **exact or refused**: a field is honoured as the contract says or the request fails with a [`SpecError`] that
//!   names the field; it is never dropped silently;
//! * **parsed once**: [`SandboxRequest`] and [`ContainerRequest`] are valid by construction, and they are what the
//!   store keeps (`to_bytes`, `from_bytes`).
//!
//! Where to start reading: [`request`] (what may be asked), [`sandbox`] and [`container`] (the two specs, each a list of
//! named steps), then the modules named after the part of the spec they fill in.

pub mod annotations;
pub mod apparmor;
pub mod capabilities;
mod classes;
pub mod container;
pub mod cri_defaults;
mod devices;
mod error;
mod facts;
pub mod identity;
mod mounts;
mod namespaces;
mod place;
mod process;
pub mod request;
pub mod resources;
mod rlimit;
pub mod sandbox;
pub mod seccomp;
pub mod selinux;
pub mod stop_signal;
mod sysctl;
pub mod userns;
pub mod volumes;
mod wishes;

#[cfg(test)]
mod fixtures;

pub use container::container_spec;
pub use error::SpecError;
pub use facts::{Architecture, Hierarchy, NodeFacts};
pub use identity::{Identity, IdentityRequest};
pub use place::{ContainerPlace, DeviceKind, ResolvedDevice, ResolvedMount, SandboxPlace};
pub use process::process_spec;
pub use request::{
    ContainerRequest, DeviceRequest, Dns, ImageMount, MountRequest, PidMode, PodKey, Propagation,
    ResourcesUpdate, SandboxRequest,
};
pub use resources::linux_resources;
pub use rlimit::Rlimit;
pub use sandbox::sandbox_spec;
pub use stop_signal::StopSignal;
pub use userns::UserNamespace;
pub use wishes::shm_bytes;

/// The OCI types this crate speaks, so that its users need not depend on `oci-spec` for the names alone.
pub use oci_spec;
