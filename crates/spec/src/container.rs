//! The spec of a container: command and identity from request and image, namespaces from its pod, limits and
//! confinement from the request.

use oci_spec::runtime::{Linux, LinuxCapabilities, Process, Root, Spec};

use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::place::{ContainerPlace, ResolvedDevice};
use crate::request::{ContainerRequest, SandboxRequest};
use crate::{annotations, capabilities, classes, devices, mounts, namespaces, process, resources, userns};

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
    userns::check_container(request, sandbox)?;
    classes::check(request, sandbox)?;
    let (mut mounts, propagation) = mounts::container(request, sandbox, facts, place)?;
    let capabilities = capabilities_of(request, facts)?;
    let mut root = Root::default();
    root.set_path(place.rootfs.clone()).set_readonly(Some(request.readonly_rootfs()));
    let mut linux = linux(request, sandbox, facts, place)?;
    if let Some(maps) = sandbox.user_namespace() {
        maps.check(&place.identity)?;
        maps.set(&mut linux);
        maps.adapt(&mut mounts);
    }
    linux.set_rootfs_propagation(propagation.map(str::to_owned)).set_seccomp(if request.privileged() {
        None
    } else {
        request.seccomp().or_unset(&facts.unset_seccomp_profile).filter(
            place.seccomp_profile.as_deref(),
            &capabilities,
            facts,
        )?
    });
    let mut spec = Spec::default();
    spec.set_version(facts.oci_version.clone())
        .set_root(Some(root))
        .set_hostname(None)
        .set_process(Some(main_process(request, sandbox, facts, place, capabilities)?))
        .set_mounts(Some(mounts))
        .set_annotations(Some(annotations::container(request, sandbox, facts, place)))
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
    let asked = request.security().and_then(|context| context.capabilities.as_ref());
    if request.privileged() {
        capabilities::privileged(asked, facts)
    } else {
        capabilities::container(asked, facts)
    }
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
    if facts.selinux {
        main.set_selinux_label(place.selinux.as_ref().map(|labels| labels.process.clone()));
    }
    Ok(main)
}

/// All that were found, or of a privileged container whose handler keeps the host's away those that it asks for.
fn devices_for(
    request: &ContainerRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Vec<ResolvedDevice> {
    let mut devices = place.devices.clone();
    if request.privileged() && !facts.privileged_devices {
        let asked = request.devices();
        devices.retain(|device| asked.iter().any(|asked| device.path.starts_with(&asked.container_path)));
    }
    devices
}

fn linux(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Result<Linux, SpecError> {
    let mut resources = resources::linux_resources(request, facts)?;
    let devices = devices_for(request, facts, place);
    let every_device = request.privileged() && facts.privileged_devices;
    resources.set_devices(Some(devices::rules(&devices, every_device)));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::container(request, sandbox, facts, place)?))
        .set_cgroups_path(Some(place.cgroups_path.clone().into()))
        .set_resources(Some(resources))
        .set_devices(Some(devices::nodes(&devices)))
        .set_masked_paths(None)
        .set_readonly_paths(None);
    if let Some(context) = request.security().filter(|context| !context.privileged) {
        linux
            .set_masked_paths(Some(context.masked_paths.clone()))
            .set_readonly_paths(Some(context.readonly_paths.clone()));
    }
    if facts.selinux {
        linux.set_mount_label(place.selinux.as_ref().map(|labels| labels.mount.clone()));
    }
    Ok(linux)
}

#[cfg(test)]
mod tests;
