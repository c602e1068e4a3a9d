//! The methods of CRI, as values of a label.

/// Every method of both services; a test compares them with the protocol.
pub(super) const METHODS: [&str; 41] = [
    "Attach",
    "CheckpointContainer",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "GetContainerEvents",
    "ImageFsInfo",
    "ImageStatus",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "PullImage",
    "RemoveContainer",
    "RemoveImage",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainerStats",
    "StreamContainers",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "StreamPodSandboxes",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
];

/// Stands for every method that is not in the list.
pub(super) const OTHER: &str = "other";

/// The label of the method that a request's path names.
pub(super) fn of(path: &str) -> &'static str {
    let asked = path
        .strip_prefix("/runtime.v1.")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(service, _)| matches!(*service, "RuntimeService" | "ImageService"));
    let known = asked.and_then(|(_, method)| METHODS.binary_search(&method).ok());
    known.and_then(|index| METHODS.get(index)).copied().unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_protocol() {
        let proto = include_str!("../../proto/runtime/v1/api.proto");
        let named = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        let mut named: Vec<_> = named.map(str::trim).collect();
        named.sort_unstable();
        assert_eq!(named, METHODS);
    }

    #[test]
    fn what_is_unknown_shares_one_label() {
        assert_eq!(of("/runtime.v1.RuntimeService/Version"), "Version");
        assert_eq!(of("/runtime.v1.ImageService/PullImage"), "PullImage");
        for path in
            ["", "/", "/runtime.v1.RuntimeService/", "/runtime.v1.RuntimeService/version", "/x/Version"]
        {
            assert_eq!(of(path), OTHER, "{path:?}");
        }
    }
}
