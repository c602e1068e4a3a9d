//! Which namespaces are new, which are joined, which stay the node's.
//!
//! The pause process holds the pod's IPC, UTS and pid namespaces; the network namespace is pinned by a path. A namespace
//! that is absent from the list is the node's. The pod's user namespace, if it has one, was made with the network namespace, or
//! is made with the pause process where the network is the node's, and owns all the others.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Type};

use crate::error::SpecError;
use crate::facts::{Hierarchy, NodeFacts};
use crate::place::{ContainerPlace, SandboxPlace};
use crate::request::{ContainerRequest, PidMode, SandboxRequest};

/// Namespaces of the pause process.
pub(crate) fn sandbox(
    request: &SandboxRequest,
    facts: &NodeFacts,
    place: &SandboxPlace,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    let mut namespaces = vec![new(Type::Mount)];
    if request.user_namespace().is_some() {
        namespaces.push(match &place.userns {
            Some(userns) => joined(Type::User, userns.clone()),
            None => new(Type::User),
        });
    }
    if !request.host_pid() {
        namespaces.push(new(Type::Pid));
    }
    if !request.host_ipc() {
        namespaces.push(new(Type::Ipc));
    }
    if !request.host_network() {
        let netns =
            place.netns.clone().ok_or(SpecError::Missing { field: "network namespace of the sandbox" })?;
        namespaces.extend([joined(Type::Network, netns), new(Type::Uts)]);
    }
    if facts.hierarchy == Hierarchy::V2 {
        namespaces.push(new(Type::Cgroup));
    }
    Ok(namespaces)
}

/// Namespaces of a container.
pub(crate) fn container(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    let of_pause = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", place.pause_pid));
    let mut namespaces = vec![new(Type::Mount)];
    if sandbox.user_namespace().is_some() {
        namespaces.push(joined(Type::User, of_pause("user")));
    }
    match request.pid_mode() {
        PidMode::Container => namespaces.push(new(Type::Pid)),
        PidMode::Pod if !sandbox.host_pid() => namespaces.push(joined(Type::Pid, of_pause("pid"))),
        PidMode::Pod | PidMode::Node => {}
        PidMode::Target(id) => namespaces.push(joined(Type::Pid, target(place.target_pid, &id)?)),
    }
    if !sandbox.host_ipc() {
        namespaces.push(joined(Type::Ipc, of_pause("ipc")));
    }
    if !sandbox.host_network() {
        let netns = place.netns.clone().unwrap_or_else(|| of_pause("net"));
        namespaces.extend([joined(Type::Network, netns), joined(Type::Uts, of_pause("uts"))]);
    }
    // A privileged container manages the node, so it sees the node's control groups; one in a user namespace cannot.
    let manages = request.privileged() && sandbox.user_namespace().is_none();
    if facts.hierarchy == Hierarchy::V2 && !manages {
        namespaces.push(new(Type::Cgroup));
    }
    Ok(namespaces)
}

fn target(pid: Option<i32>, id: &str) -> Result<PathBuf, SpecError> {
    match pid {
        Some(pid) => Ok(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
        None => Err(SpecError::Unavailable {
            what: format!("pid namespace of container {id:?}"),
            reason: "the target container is not running",
        }),
    }
}

fn new(kind: Type) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace
}

fn joined(kind: Type, path: PathBuf) -> LinuxNamespace {
    let mut namespace = new(kind);
    namespace.set_path(Some(path));
    namespace
}
