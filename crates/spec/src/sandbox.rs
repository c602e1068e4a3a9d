//! The spec of a pod's pause process: it holds the pod's namespaces and does nothing else, so it has no capability, no
//! way to gain one, a read-only root and a user of its own.

use oci_spec::image::Config;
use oci_spec::runtime::{Linux, LinuxResources, LinuxSeccomp, Process, Root, Spec};

use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::identity::{self, Identity, IdentityRequest, UserChoice};
use crate::place::SandboxPlace;
use crate::request::SandboxRequest;
use crate::seccomp::Profile;
use crate::{annotations, capabilities, cri_defaults, devices, mounts, namespaces, process, sysctl};

/// Translates a sandbox request.
///
/// # Errors
/// [`SpecError`] when the request asks for what this node or this place does not have.
pub fn sandbox_spec(
    request: &SandboxRequest,
    facts: &NodeFacts,
    place: &SandboxPlace,
) -> Result<Spec, SpecError> {
    let mut root = Root::default();
    root.set_path(place.rootfs.clone()).set_readonly(Some(true));
    let mut spec = Spec::default();
    spec.set_version(facts.oci_version.clone())
        .set_root(Some(root))
        .set_hostname(hostname(request))
        .set_process(Some(pause(request, facts, place)?))
        .set_mounts(Some(mounts::sandbox(place)))
        .set_annotations(Some(annotations::sandbox(request, facts, place)))
        .set_linux(Some(linux(request, facts, place)?));
    Ok(spec)
}

/// The name that the new UTS namespace gets; without one it keeps the node's.
fn hostname(request: &SandboxRequest) -> Option<String> {
    let name = request.hostname();
    (!request.host_network() && !name.is_empty()).then(|| name.to_owned())
}

fn pause(request: &SandboxRequest, facts: &NodeFacts, place: &SandboxPlace) -> Result<Process, SpecError> {
    let mut pause = process::bare(command(place)?, process::user(&identity(request, place)?));
    pause
        .set_capabilities(Some(capabilities::none()))
        .set_apparmor_profile(request.apparmor_profile().resolve(request.privileged(), facts)?)
        .set_oom_score_adj(Some(facts.clamp_oom(cri_defaults::PAUSE_OOM_SCORE_ADJ)));
    // An SELinux transition to the container's domain is not possible under no_new_privs.
    pause.set_no_new_privileges(Some(!facts.selinux));
    if facts.selinux {
        pause.set_selinux_label(place.selinux.as_ref().map(|labels| labels.process.clone()));
    }
    Ok(pause)
}

/// The place's command, else the pause image's own.
fn command(place: &SandboxPlace) -> Result<Vec<String>, SpecError> {
    if !place.command.is_empty() {
        return Ok(place.command.clone());
    }
    let image = place.image.as_ref().and_then(|image| image.config().as_ref());
    let part = |part: fn(&Config) -> &Option<Vec<String>>| image.and_then(|image| part(image).clone());
    let command =
        [part(Config::entrypoint).unwrap_or_default(), part(Config::cmd).unwrap_or_default()].concat();
    if command.is_empty() { Err(SpecError::NoCommand { image: "pause".to_owned() }) } else { Ok(command) }
}

/// The request's user, else the pause image's if it is a number, else nobody's.
fn identity(request: &SandboxRequest, place: &SandboxPlace) -> Result<Identity, SpecError> {
    let context = request.security();
    let asked = context.and_then(|context| context.run_as_user).and_then(|uid| u32::try_from(uid.value).ok());
    let group =
        context.and_then(|context| context.run_as_group).and_then(|gid| u32::try_from(gid.value).ok());
    let of_image = || place.image.as_ref()?.config().as_ref()?.user().clone().filter(|user| !user.is_empty());
    let maps = request.user_namespace();
    let last = maps.map_or(u32::MAX, |maps| maps.uids.length.min(maps.gids.length) - 1);
    let nobody = || UserChoice::Image(format!("{0}:{0}", last.min(cri_defaults::PAUSE_ID)));
    let user =
        asked.map(UserChoice::Uid).or_else(|| of_image().map(UserChoice::Image)).unwrap_or_else(nobody);
    let supplemental = context.map_or(&[][..], |context| &context.supplemental_groups);
    let supplemental = supplemental.iter().filter_map(|gid| u32::try_from(*gid).ok()).collect();
    let wanted = IdentityRequest { user, group, supplemental, ..IdentityRequest::default() };
    let found = identity::resolve(&wanted, None, None)?;
    maps.map_or(Ok(()), |maps| maps.check(&found))?;
    Ok(found)
}

fn linux(request: &SandboxRequest, facts: &NodeFacts, place: &SandboxPlace) -> Result<Linux, SpecError> {
    let texts = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices::rules(&[], false)));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::sandbox(request, facts, place)?))
        .set_cgroups_path(Some(place.cgroups_path.clone().into()))
        .set_sysctl(Some(sysctl::sandbox(request, facts)?.into_iter().collect()))
        .set_resources(Some(resources))
        .set_masked_paths(Some(texts(&cri_defaults::MASKED_PATHS)))
        .set_readonly_paths(Some(texts(&cri_defaults::READONLY_PATHS)))
        .set_seccomp(seccomp(request, facts, place)?);
    if let Some(maps) = request.user_namespace() {
        maps.set(&mut linux);
    }
    if facts.selinux {
        linux.set_mount_label(place.selinux.as_ref().map(|labels| labels.mount.clone()));
    }
    Ok(linux)
}

/// kubelet asks for the default profile for every pause process, so a node without seccomp runs it without.
fn seccomp(
    request: &SandboxRequest,
    facts: &NodeFacts,
    place: &SandboxPlace,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    match request.seccomp().or_unset(&facts.unset_seccomp_profile) {
        Profile::RuntimeDefault if !facts.seccomp => Ok(None),
        profile => profile.filter(place.seccomp_profile.as_deref(), &capabilities::none(), facts),
    }
}

#[cfg(test)]
mod tests;
