//! The spec of a container: command and identity from request and image, namespaces from its pod, limits and
//! confinement from the request.

use oci_spec::runtime::{Linux, LinuxCapabilities, Process, Root, Spec};

use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::place::ContainerPlace;
use crate::request::{ContainerRequest, SandboxRequest};
use crate::{annotations, capabilities, devices, mounts, namespaces, process, resources};

/// Translates a container request.
///
/// # Errors
/// [`SpecError`] when the request asks for what its pod, its image or this node does not have.
pub fn container_spec(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Result<Spec, SpecError> {
    check_against_sandbox(request, sandbox)?;
    let (mounts, propagation) = mounts::container(request, sandbox, facts, place)?;
    let capabilities = capabilities_of(request, facts)?;
    let mut root = Root::default();
    root.set_path(place.rootfs.clone()).set_readonly(Some(request.readonly_rootfs()));
    let mut linux = linux(request, sandbox, facts, place)?;
    linux.set_rootfs_propagation(propagation.map(str::to_owned)).set_seccomp(if request.privileged() {
        None
    } else {
        request.seccomp().filter(place.seccomp_profile.as_deref(), &capabilities, facts)?
    });
    let mut spec = Spec::default();
    spec.set_version(facts.oci_version.clone())
        .set_root(Some(root))
        .set_hostname(None)
        .set_process(Some(main_process(request, sandbox, facts, place, capabilities)?))
        .set_mounts(Some(mounts))
        .set_annotations(Some(annotations::container(request, sandbox, place)))
        .set_linux(Some(linux));
    Ok(spec)
}

/// A pod that is not privileged as a whole has no privileged container.
fn check_against_sandbox(request: &ContainerRequest, sandbox: &SandboxRequest) -> Result<(), SpecError> {
    if request.privileged() && !sandbox.privileged() {
        return Err(SpecError::Conflict {
            field: "security_context.privileged",
            reason: "the pod sandbox does not allow privileged containers",
        });
    }
    Ok(())
}

fn capabilities_of(request: &ContainerRequest, facts: &NodeFacts) -> Result<LinuxCapabilities, SpecError> {
    if request.privileged() {
        return Ok(capabilities::privileged(facts));
    }
    capabilities::container(request.security().and_then(|context| context.capabilities.as_ref()), facts)
}

fn main_process(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
    capabilities: LinuxCapabilities,
) -> Result<Process, SpecError> {
    let mut main = process::container(request, sandbox, facts, place)?;
    main.set_capabilities(Some(capabilities))
        .set_no_new_privileges(Some(request.security().is_some_and(|context| context.no_new_privs)))
        .set_apparmor_profile(request.apparmor()?.resolve(request.privileged(), facts)?)
        .set_oom_score_adj(Some(resources::oom_score_adj(request, facts)));
    if facts.selinux && !request.privileged() {
        main.set_selinux_label(place.selinux.as_ref().map(|labels| labels.process.clone()));
    }
    Ok(main)
}

fn linux(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Result<Linux, SpecError> {
    let mut resources = resources::linux_resources(request, facts)?;
    resources.set_devices(Some(devices::rules(&place.devices, request.privileged())));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::container(request, sandbox, facts, place)?))
        .set_cgroups_path(Some(place.cgroups_path.clone().into()))
        .set_resources(Some(resources))
        .set_devices(Some(devices::nodes(&place.devices)))
        .set_masked_paths(None)
        .set_readonly_paths(None);
    if let Some(context) = request.security().filter(|context| !context.privileged) {
        linux
            .set_masked_paths(Some(context.masked_paths.clone()))
            .set_readonly_paths(Some(context.readonly_paths.clone()));
    }
    if facts.selinux && !request.privileged() {
        linux.set_mount_label(place.selinux.as_ref().map(|labels| labels.mount.clone()));
    }
    Ok(linux)
}

#[cfg(test)]
mod tests;
