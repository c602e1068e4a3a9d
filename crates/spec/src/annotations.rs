//! Annotations of an OCI spec, by which node agents and VM runtimes learn what a bundle is.

use std::collections::HashMap;

use crate::place::{ContainerPlace, SandboxPlace};
use crate::request::{ContainerRequest, SandboxRequest};

/// `sandbox` or `container`.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The sandbox's id.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// The pod's name.
pub const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
/// The pod's namespace.
pub const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// The pod's uid.
pub const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// Directory of the pod's logs.
pub const SANDBOX_LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";
/// The container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// The image's name.
pub const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// Annotations that make an OCI runtime act: hooks, systemd properties, CRIU options, debug switches. What a client
/// sends under these names is kept for CRI's answers and left out of the spec; a handler that allows them will name them.
const ACTING: &[&str] = &["run.oci.", "org.systemd.property.", "org.criu.", "io.kubernetes.cri."];

/// What every scope of ours is to have and OCI runtimes do not ask for by themselves: systemd would allow it a share of the
/// node's tasks only, while the limit of a pod's tasks is kubelet's to set, on the pod's slice; and it would keep a scope that
/// failed. Of the properties that a runtime sets itself none can be given so: crun's own comes later and holds.
const SCOPE_PROPERTIES: [(&str, &str); 2] = [
    ("org.systemd.property.TasksMax", "uint64 18446744073709551615"),
    ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
];

/// Annotations of a sandbox: our own only, since its others come from the pod's author.
pub(crate) fn sandbox(request: &SandboxRequest, place: &SandboxPlace) -> HashMap<String, String> {
    let mut all = common(request, "sandbox", place.id.as_str());
    all.extend(scope_properties(&place.cgroups_path, None));
    all.insert(SANDBOX_LOG_DIRECTORY.to_owned(), request.log_directory().to_owned());
    all
}

/// Annotations of a container: those of the request, and our own.
pub(crate) fn container(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    place: &ContainerPlace<'_>,
) -> HashMap<String, String> {
    let acts = |name: &str| ACTING.iter().any(|prefix| name.starts_with(prefix));
    let copied = request.annotations().iter().filter(|(name, _)| !name.is_empty() && !acts(name));
    let mut all: HashMap<_, _> = copied.map(|(name, value)| (name.clone(), value.clone())).collect();
    all.extend(common(sandbox, "container", place.sandbox_id.as_str()));
    all.extend(scope_properties(&place.cgroups_path, Some(request)));
    all.insert(CONTAINER_NAME.to_owned(), request.name().to_owned());
    all.insert(IMAGE_NAME.to_owned(), place.image_name.clone());
    all
}

/// None with the cgroupfs driver, whose paths are absolute.
fn scope_properties(cgroups_path: &str, request: Option<&ContainerRequest>) -> HashMap<String, String> {
    let resources = request.and_then(ContainerRequest::wire_resources);
    let own_tasks = resources.is_some_and(|asked| asked.unified.contains_key("pids.max"));
    let plain = cgroups_path.starts_with('/');
    let wanted = |name: &str| !(plain || own_tasks && name.ends_with("TasksMax"));
    let properties = SCOPE_PROPERTIES.iter().filter(|(name, _)| wanted(name));
    properties.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn common(sandbox: &SandboxRequest, kind: &str, id: &str) -> HashMap<String, String> {
    [
        (CONTAINER_TYPE, kind),
        (SANDBOX_ID, id),
        (SANDBOX_NAME, sandbox.name()),
        (SANDBOX_NAMESPACE, sandbox.namespace()),
        (SANDBOX_UID, sandbox.uid()),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    const TASKS: &str = "org.systemd.property.TasksMax";
    const COLLECT: &str = "org.systemd.property.CollectMode";

    fn of_container(
        cgroups_path: &str,
        change: impl FnOnce(&mut cri_api::v1::ContainerConfig),
    ) -> serde_json::Value {
        let mut config = fixtures::container();
        change(&mut config);
        let facts = crate::NodeFacts::default();
        let path = cgroups_path.to_owned();
        fixtures::container_json(config, fixtures::pod(), &facts, |place| place.cgroups_path = path).unwrap()
    }

    #[test]
    fn scopes_get_properties_and_plain_groups_none() {
        let spec = of_container("kubepods-pod1.slice:crimson:c", |_| {});
        assert_eq!(spec["annotations"][TASKS], "uint64 18446744073709551615");
        assert_eq!(spec["annotations"][COLLECT], "'inactive-or-failed'");
        let spec = of_container("/kubepods/pod1/c", |_| {});
        assert_eq!((spec["annotations"].get(TASKS), spec["annotations"].get(COLLECT)), (None, None));
        let place = SandboxPlace { cgroups_path: "a.slice:crimson:s".into(), ..fixtures::sandbox_place() };
        let pod = SandboxRequest::parse(fixtures::pod(), String::new()).unwrap();
        assert_eq!(sandbox(&pod, &place)[COLLECT], "'inactive-or-failed'");
    }

    #[test]
    fn what_a_pod_says_of_its_scope_does_not_reach_systemd() {
        let spec = of_container("a.slice:crimson:c", |config| {
            let sent = [("org.systemd.property.TasksMax", "uint64 1"), ("org.systemd.property.Slice", "'b'")];
            config.annotations.extend(sent.map(|(name, value)| (name.to_owned(), value.to_owned())));
        });
        assert_eq!(spec["annotations"][TASKS], "uint64 18446744073709551615");
        assert_eq!(spec["annotations"].get("org.systemd.property.Slice"), None);
    }

    #[test]
    fn a_limit_of_tasks_of_ones_own_holds() {
        let spec = of_container("a.slice:crimson:c", |config| {
            fixtures::resources(config).unified.insert("pids.max".into(), "9".into());
        });
        assert_eq!(spec["annotations"].get(TASKS), None);
        assert_eq!(spec["annotations"][COLLECT], "'inactive-or-failed'");
    }
}
