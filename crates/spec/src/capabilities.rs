//! Capability sets: defaults, what a request adds and drops, and what the host gives at most.

use std::str::FromStr;

use cri_api::v1;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::cri_defaults;
use crate::error::SpecError;
use crate::facts::NodeFacts;

/// Every capability, at the index of the kernel's number.
const NUMBERED: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Every capability this server knows.
#[must_use]
pub fn all() -> Capabilities {
    NUMBERED.into_iter().collect()
}

/// The capabilities of a kernel mask, such as `CapBnd` of `/proc/self/status`.
#[must_use]
pub fn from_mask(mask: u64) -> Capabilities {
    let is_set = |number: &usize| mask & (1u64 << number) != 0;
    (0..NUMBERED.len()).filter(is_set).filter_map(|number| NUMBERED.get(number).copied()).collect()
}

/// A capability by name, with or without `CAP_`, in any case.
fn parse(name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    Capability::from_str(upper.strip_prefix("CAP_").unwrap_or(&upper))
        .map_err(|_| SpecError::invalid("capability", name, "the kernel has no such capability"))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

/// The named capabilities of a list, `ALL` left out.
fn named(names: &[String]) -> Result<Vec<Capability>, SpecError> {
    names.iter().filter(|name| !is_all(name)).map(|name| parse(name)).collect()
}

/// Checks that every name is known.
pub(crate) fn check(request: Option<&v1::Capability>) -> Result<(), SpecError> {
    let Some(request) = request else { return Ok(()) };
    named(&request.add_capabilities)?;
    named(&request.drop_capabilities)?;
    named(&request.add_ambient_capabilities).map(|_| ())
}

/// The sets of a container that is not privileged.
///
/// Defaults and `ALL` are cut down to what the host gives; a capability asked for by name that the host does not give is
/// an error. Inheritable and ambient stay empty unless ambient capabilities are asked for, so that a user other than
/// root has no effective capability after exec.
pub(crate) fn container(
    request: Option<&v1::Capability>,
    facts: &NodeFacts,
) -> Result<LinuxCapabilities, SpecError> {
    let Some(request) = request else {
        return Ok(sets(given(&cri_defaults::CAPABILITIES, facts), Capabilities::new()));
    };
    let mut held = given(&cri_defaults::CAPABILITIES, facts);
    if request.add_capabilities.iter().any(|name| is_all(name)) {
        held.clone_from(&facts.capabilities);
    }
    if request.drop_capabilities.iter().any(|name| is_all(name)) {
        held.clear();
    }
    for capability in named(&request.add_capabilities)? {
        held.insert(available(capability, facts)?);
    }
    for capability in named(&request.drop_capabilities)? {
        held.remove(&capability);
    }
    let ambient = ambient(&request.add_ambient_capabilities, facts)?;
    held.extend(&ambient);
    Ok(sets(held, ambient))
}

/// The sets of a privileged container: all the host gives, whatever the request adds or drops; ambient are those it asks for.
pub(crate) fn privileged(
    request: Option<&v1::Capability>,
    facts: &NodeFacts,
) -> Result<LinuxCapabilities, SpecError> {
    let ambient = request.map_or(&[][..], |request| &request.add_ambient_capabilities);
    Ok(sets(facts.capabilities.clone(), self::ambient(ambient, facts)?))
}

/// No capability at all.
pub(crate) fn none() -> LinuxCapabilities {
    sets(Capabilities::new(), Capabilities::new())
}

fn ambient(names: &[String], facts: &NodeFacts) -> Result<Capabilities, SpecError> {
    if names.iter().any(|name| is_all(name)) {
        return Ok(facts.capabilities.clone());
    }
    named(names)?.into_iter().map(|capability| available(capability, facts)).collect()
}

fn given(wanted: &[Capability], facts: &NodeFacts) -> Capabilities {
    wanted.iter().copied().filter(|capability| facts.capabilities.contains(capability)).collect()
}

fn available(capability: Capability, facts: &NodeFacts) -> Result<Capability, SpecError> {
    if facts.capabilities.contains(&capability) {
        return Ok(capability);
    }
    let what = format!("capability CAP_{capability}");
    Err(SpecError::Unavailable { what, reason: "the node's own processes do not have it" })
}

fn sets(held: Capabilities, ambient: Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(held.clone()))
        .set_effective(Some(held.clone()))
        .set_permitted(Some(held))
        .set_inheritable(Some(ambient.clone()))
        .set_ambient(Some(ambient));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_number_capabilities_as_the_kernel_does() {
        assert_eq!(from_mask(0x1ff_ffff_ffff), all());
        assert_eq!(all().len(), 41);
        let host = from_mask(0x1ff_feff_ffff);
        assert!(!host.contains(&Capability::SysResource));
        assert_eq!(host.len(), 40);
        assert_eq!(from_mask(0xa804_25fb), cri_defaults::CAPABILITIES.into_iter().collect());
    }
}
