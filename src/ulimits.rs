//! The limits that containers begin with, as far as this host lets them be set.
//!
//! An OCI runtime refuses a container whose limits it cannot set, and a server in a container itself cannot set all: without
//! `CAP_SYS_RESOURCE` no hard limit above one's own, and with it no more open files than the kernel's `fs.nr_open`.

use rustix::process::{Resource, getrlimit};
use spec::{NodeFacts, Rlimit};

use crate::config::Ulimit;

/// The configured limits, each brought down to what can be set; what is brought down is logged.
#[must_use]
pub(crate) fn that_can_be_set(wanted: &[Ulimit], facts: &NodeFacts) -> Vec<Rlimit> {
    let nr_open =
        std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let may_raise = facts.capabilities.contains(&spec::oci_spec::runtime::Capability::SysResource);
    let highest = |name: &str| match name {
        _ if !may_raise => own(name),
        "nofile" => nr_open.unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    wanted.iter().map(|limit| lowered(limit.rlimit(), highest(limit.rlimit().name))).collect()
}

fn lowered(wanted: Rlimit, highest: u64) -> Rlimit {
    let set = Rlimit { soft: wanted.soft.min(highest), hard: wanted.hard.min(highest), ..wanted };
    if set != wanted {
        tracing::warn!(
            limit = wanted.name,
            highest,
            "containers get a lower limit than configured: this host allows no more"
        );
    }
    set
}

/// The hard limit of this process; one that the kernel tells nothing of is none.
fn own(name: &str) -> u64 {
    const RESOURCES: [(&str, Resource); 16] = [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("locks", Resource::Locks),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rss", Resource::Rss),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];
    let resource = RESOURCES.iter().find(|(known, _)| *known == name);
    resource.and_then(|(_, resource)| getrlimit(*resource).maximum).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_that_cannot_be_set() {
        let wanted: Vec<Ulimit> = vec!["nofile=16:unlimited".parse().unwrap(), "core=0".parse().unwrap()];
        let weak = NodeFacts { capabilities: spec::capabilities::from_mask(0), ..NodeFacts::default() };
        let own = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let nofile = Rlimit { name: "nofile", soft: 16, hard: own };
        assert_eq!(that_can_be_set(&wanted, &weak), [nofile, wanted[1].rlimit()]);
        let strong = that_can_be_set(&wanted, &NodeFacts::default());
        assert!(
            strong[0].hard < u64::MAX && strong[0].soft == 16,
            "{strong:?}: the kernel has a limit of its own"
        );
    }
}
