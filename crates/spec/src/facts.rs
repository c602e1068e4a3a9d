//! What this node can do, read once by the daemon and handed to every translation.

use oci_spec::runtime::Capabilities;

use crate::rlimit::Rlimit;
use crate::{capabilities, cri_defaults};

/// The kernel's control group interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// One hierarchy per controller, hybrid layouts included.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The processor architectures that have a built-in seccomp profile, and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// amd64, which also runs 32-bit x86 programs.
    X86_64,
    /// arm64, which also runs 32-bit arm programs.
    Aarch64,
    /// Any other: the profile covers the native system calls only.
    Other,
}

impl Architecture {
    /// The architecture this program was built for.
    pub const NATIVE: Self = if cfg!(target_arch = "x86_64") {
        Self::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::Other
    };
}

/// Facts of the node and of the runtime handler in use. [`Default`] is a host with everything but an LSM.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Written into every spec; crun 1.8 refuses what is not 1.0.x.
    pub oci_version: String,
    /// Control group interface.
    pub hierarchy: Hierarchy,
    /// Selects the seccomp profile.
    pub architecture: Architecture,
    /// What the host gives at most: the bounding set of the process that starts the OCI runtime.
    pub capabilities: Capabilities,
    /// The lowest `oom_score_adj` that can be set here; see [`NodeFacts::oom_floor`].
    pub oom_score_adj_floor: i32,
    /// The node's host name, shown to pods on the host network.
    pub hostname: String,
    /// Whether swap can be limited per control group.
    pub swap_accounting: bool,
    /// Page sizes as control group files spell them (`2MB`, `1GB`); empty without the hugetlb controller.
    pub hugepage_sizes: Vec<String>,
    /// Memory limits below this are refused: the OCI runtime's own start needs that much. 0 means no check.
    pub min_memory_bytes: i64,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Name of the loaded default AppArmor profile; `None` when AppArmor is off, or has none.
    pub apparmor_default: Option<String>,
    /// Whether SELinux is enabled.
    pub selinux: bool,
    /// Whether kernel and OCI runtime have seccomp filters.
    pub seccomp: bool,
    /// The seccomp profile of requests that name none, as the older field has it; empty for none.
    pub unset_seccomp_profile: String,
    /// Whether kernel and runtime handler can mount recursively read-only.
    pub recursive_read_only: bool,
    /// Whether privileged containers get the devices of the host; without, those that they ask for only.
    pub privileged_devices: bool,
    /// Names of annotations of the pod that reach the OCI runtime, `*` standing for any run of characters.
    pub pod_annotations: Vec<String>,
    /// Names of annotations of a container that reach the OCI runtime although it acts by them.
    pub container_annotations: Vec<String>,
    /// Sysctls that every pod with the namespace in question gets unless it sets them itself.
    pub sysctls: Vec<(String, String)>,
    /// Limits that every container's processes begin with.
    pub rlimits: Vec<Rlimit>,
}

impl NodeFacts {
    /// The lowest `oom_score_adj` a process may give its children: without `CAP_SYS_RESOURCE` its own value.
    #[must_use]
    pub fn oom_floor(own: i32, has_sys_resource: bool) -> i32 {
        if has_sys_resource { cri_defaults::OOM_SCORE_ADJ_MIN } else { own }
    }

    /// Brings a wanted `oom_score_adj` into the range this node can set.
    #[must_use]
    pub fn clamp_oom(&self, wanted: i64) -> i32 {
        let floor = self.oom_score_adj_floor.min(cri_defaults::OOM_SCORE_ADJ_MAX);
        let bounded = wanted.clamp(i64::from(floor), i64::from(cri_defaults::OOM_SCORE_ADJ_MAX));
        i32::try_from(bounded).unwrap_or(floor)
    }
}

impl Default for NodeFacts {
    fn default() -> Self {
        Self {
            oci_version: cri_defaults::OCI_VERSION.to_owned(),
            hierarchy: Hierarchy::V2,
            architecture: Architecture::NATIVE,
            capabilities: capabilities::all(),
            oom_score_adj_floor: cri_defaults::OOM_SCORE_ADJ_MIN,
            hostname: String::new(),
            swap_accounting: true,
            hugepage_sizes: Vec::new(),
            min_memory_bytes: cri_defaults::MIN_MEMORY_BYTES,
            apparmor: false,
            apparmor_default: None,
            selinux: false,
            seccomp: true,
            unset_seccomp_profile: String::new(),
            recursive_read_only: true,
            privileged_devices: true,
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            sysctls: cri_defaults::sysctls(),
            rlimits: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_sys_resource_nothing_goes_below_ones_own_score() {
        let weak = NodeFacts { oom_score_adj_floor: NodeFacts::oom_floor(0, false), ..NodeFacts::default() };
        assert_eq!(weak.clamp_oom(-998), 0);
        assert_eq!(weak.clamp_oom(5000), 1000);
        let strong = NodeFacts { oom_score_adj_floor: NodeFacts::oom_floor(0, true), ..NodeFacts::default() };
        assert_eq!(strong.clamp_oom(-998), -998);
        assert_eq!(strong.clamp_oom(i64::MIN), -1000);
    }
}
