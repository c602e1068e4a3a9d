//! What an OCI runtime says that it can do: the features structure of the OCI runtime specification.
//!
//! Each runtime leaves out what was not thought of when it was made, so "not said" is kept apart from "no" where a caller
//! decides otherwise in the two cases. A runtime that knows no such command says nothing of anything: [`Features::told`].

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a runtime tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Whether it tells anything: runc does since 1.1, crun since 1.8.6.
    pub told: bool,
    /// The newest version of the runtime specification that it takes.
    pub spec_version: Option<String>,
    /// Whether it can mount read-only with everything mounted beneath (mount option `rro`).
    pub recursive_read_only: bool,
    /// Whether it can mount with another owner mapping.
    pub idmapped_mounts: bool,
    /// Whether it can make user namespaces.
    pub user_namespaces: bool,
    /// Whether it was built with system call filters.
    pub seccomp: Option<bool>,
    /// Whether it was built with AppArmor.
    pub apparmor: Option<bool>,
    /// Whether it was built with SELinux.
    pub selinux: Option<bool>,
    /// Whether it knows one hierarchy per controller.
    pub cgroup_v1: Option<bool>,
    /// Whether it knows the unified hierarchy.
    pub cgroup_v2: Option<bool>,
    /// Whether it can have systemd make cgroups.
    pub systemd_cgroup: Option<bool>,
    /// Whether it can move network interfaces into a container.
    #[serde(default)]
    pub net_devices: bool,
    /// Whether it can put a container into a class of Intel's resource director.
    pub intel_rdt: Option<bool>,
    /// Beginnings of annotations by which it acts, as it says itself.
    pub acting_annotations: Vec<String>,
}

impl Features {
    /// Reads what the command `features` printed.
    #[must_use]
    pub fn read(raw: &Value) -> Self {
        let linux = &raw["linux"];
        let holds = |list: &Value, name: &str| {
            list.as_array().is_some_and(|list| list.iter().any(|entry| entry == name))
        };
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            told: raw.is_object(),
            spec_version: raw["ociVersionMax"].as_str().map(str::to_owned),
            recursive_read_only: holds(&raw["mountOptions"], "rro"),
            idmapped_mounts: linux["mountExtensions"]["idmap"]["enabled"].as_bool() == Some(true),
            user_namespaces: holds(&linux["namespaces"], "user"),
            seccomp: linux["seccomp"]["enabled"].as_bool(),
            apparmor: linux["apparmor"]["enabled"].as_bool(),
            selinux: linux["selinux"]["enabled"].as_bool(),
            cgroup_v1: linux["cgroup"]["v1"].as_bool(),
            cgroup_v2: linux["cgroup"]["v2"].as_bool(),
            systemd_cgroup: linux["cgroup"]["systemd"].as_bool(),
            net_devices: linux["netDevices"]["enabled"].as_bool() == Some(true),
            intel_rdt: linux["intelRdt"]["enabled"].as_bool(),
            acting_annotations: texts(&raw["potentiallyUnsafeConfigAnnotations"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The parts that are read of what crun 1.21 and runc 1.1.15 print.
    fn crun() -> Value {
        json!({
            "ociVersionMin": "1.0.0",
            "ociVersionMax": "1.1.0+dev",
            "mountOptions": ["rbind", "ro", "rro", "idmap"],
            "linux": {
                "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
                "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true },
                "seccomp": { "enabled": true, "actions": ["SCMP_ACT_ALLOW"] },
                "apparmor": { "enabled": true },
                "selinux": { "enabled": false },
                "mountExtensions": { "idmap": { "enabled": true } },
                "intelRdt": { "enabled": true },
            },
            "potentiallyUnsafeConfigAnnotations": ["module.wasm.image/variant", "run.oci."],
        })
    }

    #[test]
    fn what_is_said_is_read() {
        let features = Features::read(&crun());
        assert!(features.told && features.recursive_read_only && features.idmapped_mounts);
        assert!(features.user_namespaces);
        assert_eq!(features.spec_version.as_deref(), Some("1.1.0+dev"));
        assert_eq!((features.seccomp, features.selinux), (Some(true), Some(false)));
        assert_eq!((features.cgroup_v1, features.systemd_cgroup), (Some(true), Some(true)));
        assert_eq!(features.intel_rdt, Some(true));
        assert_eq!(features.acting_annotations, ["module.wasm.image/variant", "run.oci."]);
    }

    #[test]
    fn what_is_not_said_is_not_guessed() {
        let mut runc = crun();
        let linux = runc["linux"].as_object_mut().unwrap();
        linux.remove("mountExtensions");
        linux.remove("intelRdt");
        let features = Features::read(&runc);
        assert!(!features.idmapped_mounts && features.recursive_read_only);
        assert_eq!(features.intel_rdt, None);
        assert_eq!(Features::read(&Value::Null), Features::default());
        assert_eq!(Features::read(&json!({})), Features { told: true, ..Features::default() });
    }
}
