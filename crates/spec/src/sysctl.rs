//! Kernel parameters of a pod: only those that a namespace of the pod's own holds.

use std::collections::BTreeMap;

use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::request::SandboxRequest;

/// Parameters of the System V IPC namespace.
const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Which namespace holds a parameter.
enum Holder {
    Ipc,
    Network,
}

fn holder(name: &str) -> Option<Holder> {
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        return Some(Holder::Ipc);
    }
    name.starts_with("net.").then_some(Holder::Network)
}

/// `a/b.c/d` with slashes becomes dotted, dots inside a part become slashes; a dotted name stays.
fn dotted(name: &str) -> String {
    let swap = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

/// Checks the parameters of a request and gives them back in dotted form.
pub(crate) fn check<'a>(
    sysctls: impl Iterator<Item = (&'a str, &'a str)>,
    host_network: bool,
    host_ipc: bool,
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut checked = BTreeMap::new();
    for (name, value) in sysctls {
        let dotted = dotted(name);
        let refused = |reason| Err(SpecError::Sysctl { name: name.to_owned(), reason });
        match holder(&dotted) {
            None => return refused("no namespace of a pod holds it"),
            Some(Holder::Ipc) if host_ipc => return refused("the pod uses the node's IPC namespace"),
            Some(Holder::Network) if host_network => return refused("the pod uses the node's network"),
            Some(_) if dotted.split(['.', '/']).any(str::is_empty) => {
                return refused("it is not a parameter name");
            }
            Some(_) => {}
        }
        checked.insert(dotted, value.to_owned());
    }
    Ok(checked)
}

/// The request's parameters and, below them, the node's defaults for namespaces the pod has of its own.
pub(crate) fn sandbox(
    request: &SandboxRequest,
    facts: &NodeFacts,
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut sysctls: BTreeMap<_, _> = facts
        .sysctls
        .iter()
        .filter(|(name, _)| match holder(name) {
            Some(Holder::Ipc) => !request.host_ipc(),
            Some(Holder::Network) => !request.host_network(),
            None => false,
        })
        .cloned()
        .collect();
    sysctls.extend(request.sysctls()?);
    Ok(sysctls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_own_namespaces_pass() {
        let check = |name: &str, network, ipc| super::check([(name, "1")].into_iter(), network, ipc);
        for good in
            ["kernel.shm_rmid_forced", "net.ipv4.ip_forward", "fs.mqueue.msg_max", "net/ipv4/conf/eth0.1/mtu"]
        {
            assert!(check(good, false, false).is_ok(), "{good}");
        }
        for bad in
            ["kernel.panic", "vm.swappiness", "kernel.hostname", "net.", "net...", "net/../kernel/panic", ""]
        {
            assert!(check(bad, false, false).is_err(), "{bad:?}");
        }
        assert!(check("net.ipv4.ip_forward", true, false).is_err());
        assert!(check("kernel.sem", false, true).is_err());
        assert!(check("net.ipv4.ip_forward", false, true).is_ok());
    }

    #[test]
    fn slashes_become_dots() {
        assert_eq!(dotted("net/ipv4/conf/eth0.1/mtu"), "net.ipv4.conf.eth0/1.mtu");
        assert_eq!(dotted("net.ipv4.ip_forward"), "net.ipv4.ip_forward");
    }
}
