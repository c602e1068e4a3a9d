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

/// Annotations of a sandbox: our own only, since its others come from the pod's author.
pub(crate) fn sandbox(request: &SandboxRequest, place: &SandboxPlace) -> HashMap<String, String> {
    let mut all = common(request, "sandbox", place.id.as_str());
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
    all.insert(CONTAINER_NAME.to_owned(), request.name().to_owned());
    all.insert(IMAGE_NAME.to_owned(), place.image_name.clone());
    all
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
