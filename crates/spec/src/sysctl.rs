//! Kernel parameters of a pod: only those that a namespace of the pod's own holds.

use std::collections::BTreeMap;

use cri_api::v1;

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

/// The parameter whose value is a range of group ids, each of which the pod's user namespace must have.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The node's default for a pod: the range of groups ends where the groups of a user namespace of its own do, since the kernel
/// refuses one that it cannot translate.
fn default_for(request: &SandboxRequest, name: &str, value: &str) -> String {
    match request.group_count().filter(|_| name == PING_GROUPS) {
        Some(count) => format!("0 {}", count.saturating_sub(1).min(i32::MAX.unsigned_abs())),
        None => value.to_owned(),
    }
}

impl SandboxRequest {
    /// How many groups there are in the pod's own user namespace, if it asks for one.
    fn group_count(&self) -> Option<u32> {
        let options = self.security()?.namespace_options.as_ref()?.userns_options.as_ref()?;
        (options.mode() == v1::NamespaceMode::Pod).then(|| options.gids.first().map(|line| line.length))?
    }
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
        .map(|(name, value)| (name.clone(), default_for(request, name, value)))
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
    fn groups_that_may_ping_are_groups_of_the_pod() {
        let range = |mode: v1::NamespaceMode, length| {
            let mut pod = crate::fixtures::pod();
            let line = v1::IdMapping { host_id: 65536, container_id: 0, length };
            let options = v1::UserNamespace { mode: mode.into(), uids: vec![line], gids: vec![line] };
            let context = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
            context.namespace_options.get_or_insert_default().userns_options = Some(options);
            // As it is read back from a record: whether the node can do it is not asked here.
            let bytes = v1::RunPodSandboxRequest { config: Some(pod), runtime_handler: String::new() };
            let request = SandboxRequest::from_bytes(&prost::Message::encode_to_vec(&bytes)).unwrap();
            sandbox(&request, &NodeFacts::default()).unwrap()[PING_GROUPS].clone()
        };
        assert_eq!(range(v1::NamespaceMode::Pod, 65536), "0 65535");
        assert_eq!(range(v1::NamespaceMode::Pod, u32::MAX), "0 2147483647");
        assert_eq!(range(v1::NamespaceMode::Node, 65536), "0 2147483647");
    }

    #[test]
    fn slashes_become_dots() {
        assert_eq!(dotted("net/ipv4/conf/eth0.1/mtu"), "net.ipv4.conf.eth0/1.mtu");
        assert_eq!(dotted("net.ipv4.ip_forward"), "net.ipv4.ip_forward");
    }
}
