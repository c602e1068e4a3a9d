//! Annotations of an OCI spec, by which node agents and VM runtimes learn what a bundle is.

use std::collections::HashMap;

use crate::facts::NodeFacts;
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

/// What the names of the pod's limits begin with.
const POD_LIMITS: &str = "io.kubernetes.cri.sandbox-";

/// Annotations that make an OCI runtime act: hooks, systemd properties, CRIU options, debug switches. What a client
/// sends under these names is kept for CRI's answers and left out of the spec, unless the handler's configuration lets it pass.
const ACTING: &[&str] = &["run.oci.", "org.systemd.property.", "org.criu.", "io.kubernetes.cri."];

/// What every scope of ours is to have and OCI runtimes do not ask for by themselves: systemd would allow it a share of the
/// node's tasks only, while the limit of a pod's tasks is kubelet's to set, on the pod's slice; and it would keep a scope that
/// failed. Of the properties that a runtime sets itself none can be given so: crun's own comes later and holds.
const SCOPE_PROPERTIES: [(&str, &str); 2] = [
    ("org.systemd.property.TasksMax", "uint64 18446744073709551615"),
    ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
];

/// Annotations of a sandbox: our own, and of the pod's author's those that the handler lets pass.
pub(crate) fn sandbox(
    request: &SandboxRequest,
    facts: &NodeFacts,
    place: &SandboxPlace,
) -> HashMap<String, String> {
    let mut all = of_pod(request, facts);
    all.extend(common(request, "sandbox", place.id.as_str()));
    all.extend(pod_limits(request));
    all.extend(scope_properties(&place.cgroups_path, None));
    all.insert(SANDBOX_LOG_DIRECTORY.to_owned(), request.log_directory().to_owned());
    all
}

/// Annotations of a container: those of the request, and our own.
pub(crate) fn container(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> HashMap<String, String> {
    let acts = |name: &str| ACTING.iter().any(|prefix| name.starts_with(prefix));
    let passes =
        |name: &str| !name.is_empty() && (!acts(name) || fits_any(&facts.container_annotations, name));
    let copied = request.annotations().iter().filter(|(name, _)| passes(name));
    let mut all = of_pod(sandbox, facts);
    all.extend(copied.map(|(name, value)| (name.clone(), value.clone())));
    all.extend(common(sandbox, "container", place.sandbox_id.as_str()));
    all.extend(scope_properties(&place.cgroups_path, Some(request)));
    all.insert(CONTAINER_NAME.to_owned(), request.name().to_owned());
    all.insert(IMAGE_NAME.to_owned(), place.image_name.clone());
    all
}

/// What the pod's author says to the OCI runtime, as far as the handler lets it pass.
fn of_pod(request: &SandboxRequest, facts: &NodeFacts) -> HashMap<String, String> {
    let passing = request.annotations().iter().filter(|(name, _)| fits_any(&facts.pod_annotations, name));
    passing.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// An annotation of the pod, if the handler lets it pass.
pub(crate) fn passing<'a>(request: &'a SandboxRequest, facts: &NodeFacts, name: &str) -> Option<&'a str> {
    request.annotations().get(name).map(String::as_str).filter(|_| fits_any(&facts.pod_annotations, name))
}

/// Limits of the pod as kubelet has reckoned them, for runtimes that make a machine of that size for the pod.
fn pod_limits(request: &SandboxRequest) -> HashMap<String, String> {
    let limits = request.config().linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let Some(limits) = limits else { return HashMap::new() };
    [
        ("cpu-period", limits.cpu_period),
        ("cpu-quota", limits.cpu_quota),
        ("cpu-shares", limits.cpu_shares),
        ("memory", limits.memory_limit_in_bytes),
    ]
    .map(|(name, value)| (format!("{POD_LIMITS}{name}"), value.to_string()))
    .into()
}

fn fits_any(patterns: &[String], name: &str) -> bool {
    !name.is_empty() && patterns.iter().any(|pattern| fits(pattern, name))
}

/// Whether `name` is what `pattern` says, `*` standing for any run of characters.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        let Some((_, behind)) = left.split_once(part) else { return false };
        left = behind;
    }
    left.ends_with(last)
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
    use cri_api::v1;

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
        assert_eq!(sandbox(&pod, &NodeFacts::default(), &place)[COLLECT], "'inactive-or-failed'");
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
    fn what_the_handler_lets_pass_reaches_the_runtime_and_nothing_else_of_a_pods_author() {
        let mut pod = fixtures::pod();
        let said = |list: &[(&str, &str)]| {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        pod.annotations.extend(said(&[("io.katacontainers.config.x", "1"), ("run.oci.hooks.stdout", "/f")]));
        let facts = NodeFacts {
            pod_annotations: vec!["io.katacontainers.*".to_owned(), "io.kubernetes.cri.*".to_owned()],
            container_annotations: vec!["run.oci.keep_original_groups".to_owned()],
            ..NodeFacts::default()
        };
        let mut config = fixtures::container();
        config.annotations.extend(said(&[
            ("run.oci.keep_original_groups", "1"),
            ("run.oci.handler", "wasm"),
            ("plain", "yes"),
        ]));
        pod.annotations.insert(SANDBOX_ID.to_owned(), "forged".to_owned());
        let spec = fixtures::container_json(config, pod.clone(), &facts, |_| {}).unwrap();
        let of = |name: &str| spec["annotations"].get(name).and_then(|value| value.as_str());
        assert_eq!(of("io.katacontainers.config.x"), Some("1"));
        assert_eq!((of("run.oci.keep_original_groups"), of("plain")), (Some("1"), Some("yes")));
        assert_eq!((of("run.oci.handler"), of("run.oci.hooks.stdout")), (None, None));
        assert_ne!(of(SANDBOX_ID), Some("forged"), "our own are never overwritten");
        let pod = SandboxRequest::parse(pod, String::new()).unwrap();
        let place = fixtures::sandbox_place();
        let all = sandbox(&pod, &facts, &place);
        assert_eq!(all.get("io.katacontainers.config.x").map(String::as_str), Some("1"));
        assert_eq!(all.get("run.oci.hooks.stdout"), None);
        assert_eq!(sandbox(&pod, &NodeFacts::default(), &place).get("io.katacontainers.config.x"), None);
    }

    #[test]
    fn machines_learn_how_large_the_pod_is() {
        let mut pod = fixtures::pod();
        let limits = v1::LinuxContainerResources {
            cpu_quota: 20_000,
            cpu_period: 100_000,
            cpu_shares: 204,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        };
        pod.linux.get_or_insert_default().resources = Some(limits);
        let pod = SandboxRequest::parse(pod, String::new()).unwrap();
        let all = sandbox(&pod, &NodeFacts::default(), &fixtures::sandbox_place());
        let of = |name: &str| all[&format!("io.kubernetes.cri.sandbox-{name}")].clone();
        assert_eq!([of("cpu-quota"), of("cpu-period"), of("cpu-shares")], ["20000", "100000", "204"]);
        assert_eq!(of("memory"), (64 << 20).to_string());
    }

    #[test]
    fn stars_stand_for_any_run_of_characters() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.b/c", true),
            ("a.*", "b.a.c", false),
            ("*", "x", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("*.x", "a.x", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
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
