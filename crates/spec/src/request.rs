//! What a client may ask, checked once and valid from then on.
//!
//! [`SandboxRequest`] and [`ContainerRequest`] wrap the CRI messages; the domain reads them through accessors in its own
//! words and never sees a wire type. `parse` applies every rule that needs nothing but the request. `from_bytes` reads
//! what `to_bytes` wrote and does *not* apply the rules again: a record of an older server must stay readable even where
//! a newer one would refuse the request.

mod checks;
mod container;
mod mount;
mod sandbox;

use std::path::PathBuf;

pub(crate) use checks::clean_absolute;
pub use container::{ContainerRequest, ResourcesUpdate};
pub use mount::{ImageMount, MountRequest, Propagation};
pub use sandbox::SandboxRequest;

/// What identifies a pod sandbox to kubelet: a retry carries the same key, a new attempt a higher number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// Counts the sandboxes made for this pod.
    pub attempt: u32,
}

/// DNS settings of a pod; when all are empty the node's resolv.conf applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dns<'a> {
    /// Name servers.
    pub servers: &'a [String],
    /// Search domains.
    pub searches: &'a [String],
    /// Resolver options.
    pub options: &'a [String],
}

/// Whose process ids a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidMode {
    /// Those of the pod, with pause as number 1.
    Pod,
    /// Its own only.
    Container,
    /// Those of the node.
    Node,
    /// Those of another container of the pod, named by id.
    Target(String),
}

/// A device that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Path on the host: a node, or a directory of nodes.
    pub host_path: PathBuf,
    /// Path in the container.
    pub container_path: PathBuf,
    /// Letters of `rwm`.
    pub permissions: String,
}

#[cfg(test)]
mod tests;
