//! What the network driver is told about a pod.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::{PortMapping, SandboxId};

use crate::bandwidth::Bandwidth;

/// A pod as the network sees it.
///
/// [`crate::Network::setup`] stores it with the attachment, so that a later teardown tells the plugins the same story
/// even if its caller knows less by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The sandbox; its id is CNI's container id.
    pub sandbox: SandboxId,
    /// Name of the pod.
    pub name: String,
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Kubernetes uid of the pod.
    pub uid: String,
    /// The pod's network namespace. None, or a path that is no namespace any more, makes DEL run with an empty
    /// `CNI_NETNS`: plugins then release what they hold outside the namespace.
    pub netns: Option<PathBuf>,
    /// Ports of the host that lead to ports of the pod.
    pub port_mappings: Vec<PortMapping>,
    /// Traffic limits.
    pub bandwidth: Option<Bandwidth>,
    /// Resolver settings of the pod.
    pub dns: Dns,
    /// The pod's parent cgroup, as the kubelet names it.
    pub cgroup_parent: String,
    /// The pod's annotations, for plugins that ask for them.
    pub annotations: BTreeMap<String, String>,
    /// Where this pod's network is configured, when it is elsewhere than the others'. Asked for at setup only: what undoes a
    /// setup is on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conf_dir: Option<PathBuf>,
}

/// Resolver settings, for plugins that configure a resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.searches.is_empty() && self.options.is_empty()
    }
}
