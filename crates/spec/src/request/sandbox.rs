//! A request for a pod sandbox.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use cri_api::v1;
use prost::Message;
use types::{PortMapping, Protocol};

use super::{Dns, PidMode, PodKey, checks};
use crate::error::SpecError;
use crate::userns::{self, UserNamespace, Wish};
use crate::{apparmor, resources, seccomp, selinux, sysctl};

/// Longest name that the kernel's UTS namespace holds.
const HOSTNAME_MAX: usize = 64;

/// A checked `PodSandboxConfig` with the runtime handler it is to run under.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxRequest {
    config: v1::PodSandboxConfig,
    runtime_handler: String,
    key: PodKey,
}

impl SandboxRequest {
    /// Checks a config.
    ///
    /// # Errors
    /// [`SpecError`] naming the first field that cannot be honoured.
    pub fn parse(config: v1::PodSandboxConfig, runtime_handler: String) -> Result<Self, SpecError> {
        let key = key_of(&config).ok_or(SpecError::Missing { field: "sandbox metadata" })?;
        checks::required("sandbox metadata.name", &key.name)?;
        checks::required("sandbox metadata.namespace", &key.namespace)?;
        checks::required("sandbox metadata.uid", &key.uid)?;
        let request = Self { config, runtime_handler, key };
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), SpecError> {
        check_hostname(self.hostname())?;
        if !self.config.log_directory.is_empty() {
            checks::absolute("log_directory", &self.config.log_directory)?;
        }
        self.config.port_mappings.iter().try_for_each(|mapping| port_mapping(mapping).map(|_| ()))?;
        if let Some(linux) = &self.config.linux {
            checks::no_nul("cgroup_parent", &linux.cgroup_parent)?;
            resources::check(linux.overhead.as_ref())?;
            resources::check(linux.resources.as_ref())?;
        }
        if let Some(context) = self.security() {
            check_security(context)?;
        }
        userns::check_sandbox(self)?;
        self.seccomp().check()?;
        sysctl::check(self.sysctl_map(), self.host_network(), self.host_ipc()).map(|_| ())
    }

    /// The request as the store keeps it: a `RunPodSandboxRequest` message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let config = Some(self.config.clone());
        v1::RunPodSandboxRequest { config, runtime_handler: self.runtime_handler.clone() }.encode_to_vec()
    }

    /// Reads back what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`SpecError::Record`] or [`SpecError::RecordMetadata`] when the bytes are not such a record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SpecError> {
        let record = v1::RunPodSandboxRequest::decode(bytes)
            .map_err(|source| SpecError::Record { what: "sandbox", source })?;
        let config = record.config.unwrap_or_default();
        let key = key_of(&config).ok_or(SpecError::RecordMetadata { what: "sandbox" })?;
        Ok(Self { config, runtime_handler: record.runtime_handler, key })
    }

    /// The message itself, for the service's answers.
    #[must_use]
    pub fn config(&self) -> &v1::PodSandboxConfig {
        &self.config
    }

    /// What identifies the pod sandbox to kubelet.
    #[must_use]
    pub fn key(&self) -> &PodKey {
        &self.key
    }

    /// Pod name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// Pod namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// Pod uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.key.uid
    }

    /// Number of the sandbox among those of the pod.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.key.attempt
    }

    /// Labels, returned to clients as they came.
    #[must_use]
    pub fn labels(&self) -> &HashMap<String, String> {
        &self.config.labels
    }

    /// Annotations, returned to clients as they came.
    #[must_use]
    pub fn annotations(&self) -> &HashMap<String, String> {
        &self.config.annotations
    }

    /// Directory of the pod's container logs; empty means no logs.
    #[must_use]
    pub fn log_directory(&self) -> &str {
        &self.config.log_directory
    }

    /// Host name asked for; may be empty.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.config.hostname
    }

    /// The host name that programs in the pod see, given the node's.
    #[must_use]
    pub fn effective_hostname<'a>(&'a self, node: &'a str) -> &'a str {
        if self.host_network() || self.hostname().is_empty() { node } else { self.hostname() }
    }

    /// DNS settings.
    #[must_use]
    pub fn dns(&self) -> Dns<'_> {
        match &self.config.dns_config {
            Some(dns) => Dns { servers: &dns.servers, searches: &dns.searches, options: &dns.options },
            None => Dns { servers: &[], searches: &[], options: &[] },
        }
    }

    /// Port mappings, those without a host port included.
    #[must_use]
    pub fn port_mappings(&self) -> Vec<PortMapping> {
        self.config.port_mappings.iter().filter_map(|mapping| port_mapping(mapping).ok()).collect()
    }

    /// Parent control group: a path or a systemd slice.
    #[must_use]
    pub fn cgroup_parent(&self) -> Option<&str> {
        self.config
            .linux
            .as_ref()
            .map(|linux| linux.cgroup_parent.as_str())
            .filter(|parent| !parent.is_empty())
    }

    /// Whether the pod uses the node's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces().is_some_and(|options| options.network() == v1::NamespaceMode::Node)
    }

    /// Whether the pause process sees the node's processes.
    #[must_use]
    pub fn host_pid(&self) -> bool {
        self.namespaces().is_some_and(|options| options.pid() == v1::NamespaceMode::Node)
    }

    /// Whether the pod uses the node's System V IPC and shared memory.
    #[must_use]
    pub fn host_ipc(&self) -> bool {
        self.namespaces().is_some_and(|options| options.ipc() == v1::NamespaceMode::Node)
    }

    /// The id maps of a pod that has a user namespace of its own.
    #[must_use]
    pub fn user_namespace(&self) -> Option<UserNamespace> {
        Wish::maps(self.namespaces()?.userns_options.as_ref())
    }

    /// Whose process ids the pod's containers see by default.
    #[must_use]
    pub fn pid_mode(&self) -> PidMode {
        self.namespaces().map_or(PidMode::Pod, |options| match options.pid() {
            v1::NamespaceMode::Node => PidMode::Node,
            v1::NamespaceMode::Container => PidMode::Container,
            v1::NamespaceMode::Pod | v1::NamespaceMode::Target => PidMode::Pod,
        })
    }

    /// The handler that runs the pod; empty means the default one.
    #[must_use]
    pub fn runtime_handler(&self) -> &str {
        &self.runtime_handler
    }

    /// Whether containers of the pod may be privileged.
    #[must_use]
    pub fn privileged(&self) -> bool {
        self.security().is_some_and(|context| context.privileged)
    }

    /// Path of the seccomp profile that the daemon must read into [`crate::SandboxPlace::seccomp_profile`]; `unset` is the
    /// profile of requests that name none.
    #[must_use]
    pub fn seccomp_localhost(&self, unset: &str) -> Option<String> {
        self.seccomp().or_unset(unset).localhost()
    }

    /// The AppArmor profile of the pause process; one of the node must be loaded before it is made.
    #[must_use]
    pub fn apparmor_profile(&self) -> apparmor::Profile {
        let asked = self.security().and_then(|context| context.apparmor.as_ref());
        apparmor::Profile::of(asked, "").unwrap_or(apparmor::Profile::Unset)
    }

    /// The SELinux level that the request names for the pod.
    #[must_use]
    pub fn selinux_level(&self) -> Option<&str> {
        self.selinux_options().map(|options| options.level.as_str()).filter(|level| !level.is_empty())
    }

    /// SELinux labels of the pod by the node's policy, at this level.
    #[must_use]
    pub fn selinux_labels(&self, contexts: &selinux::Contexts, level: &str) -> selinux::SelinuxLabels {
        contexts.of_pod(self.selinux_options(), level)
    }

    pub(crate) fn selinux_options(&self) -> Option<&v1::SeLinuxOption> {
        self.security()?.selinux_options.as_ref()
    }

    pub(crate) fn seccomp(&self) -> seccomp::Profile {
        let context = self.security();
        seccomp::Profile::of(
            context.and_then(|context| context.seccomp.as_ref()),
            context.map_or("", |context| legacy_seccomp(context)),
        )
    }

    pub(crate) fn security(&self) -> Option<&v1::LinuxSandboxSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }

    fn namespaces(&self) -> Option<&v1::NamespaceOption> {
        self.security()?.namespace_options.as_ref()
    }

    fn sysctl_map(&self) -> impl Iterator<Item = (&str, &str)> {
        self.config
            .linux
            .iter()
            .flat_map(|linux| &linux.sysctls)
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The kernel parameters of the request, in dotted form.
    pub(crate) fn sysctls(&self) -> Result<BTreeMap<String, String>, SpecError> {
        sysctl::check(self.sysctl_map(), self.host_network(), self.host_ipc())
    }
}

fn key_of(config: &v1::PodSandboxConfig) -> Option<PodKey> {
    let v1::PodSandboxMetadata { name, uid, namespace, attempt } = config.metadata.clone()?;
    Some(PodKey { namespace, name, uid, attempt })
}

#[allow(deprecated, reason = "clients of older Kubernetes still send the text form")]
fn legacy_seccomp(context: &v1::LinuxSandboxSecurityContext) -> &str {
    &context.seccomp_profile_path
}

fn check_hostname(hostname: &str) -> Result<(), SpecError> {
    let refused = |reason| Err(SpecError::invalid("hostname", hostname, reason));
    if hostname.len() > HOSTNAME_MAX {
        return refused("it is longer than 64 characters");
    }
    if !hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
        return refused("only letters, digits, dash, underscore and dot may stand in it");
    }
    Ok(())
}

fn port_mapping(mapping: &v1::PortMapping) -> Result<PortMapping, SpecError> {
    let port = |field, value: i32| {
        u16::try_from(value)
            .map_err(|_| SpecError::invalid(field, value.to_string(), "it is not a port number"))
    };
    let protocol = match v1::Protocol::try_from(mapping.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => {
            let value = mapping.protocol.to_string();
            return Err(SpecError::invalid("port_mapping.protocol", value, "it is not a protocol"));
        }
    };
    let host_port = port("port_mapping.host_port", mapping.host_port)?;
    let container_port = port("port_mapping.container_port", mapping.container_port)?;
    if host_port != 0 && container_port == 0 {
        return Err(SpecError::invalid(
            "port_mapping.container_port",
            "0",
            "a host port needs a container port",
        ));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        return Err(SpecError::invalid("port_mapping.host_ip", &mapping.host_ip, "it is not an IP address"));
    }
    Ok(PortMapping { protocol, container_port, host_port, host_ip: mapping.host_ip.clone() })
}

fn check_security(context: &v1::LinuxSandboxSecurityContext) -> Result<(), SpecError> {
    checks::user_and_group(context.run_as_user, "", context.run_as_group)?;
    checks::groups(&context.supplemental_groups)?;
    checks::groups_policy(context.supplemental_groups_policy)?;
    checks::profile("seccomp", context.seccomp.as_ref())?;
    checks::profile("apparmor", context.apparmor.as_ref())?;
    selinux::check(context.selinux_options.as_ref())?;
    if let Some(options) = &context.namespace_options {
        check_namespaces(options)?;
    }
    Ok(())
}

fn check_namespaces(options: &v1::NamespaceOption) -> Result<(), SpecError> {
    use v1::NamespaceMode as Mode;
    let refused = |field, mode: Mode, reason| Err(SpecError::invalid(field, mode.as_str_name(), reason));
    match checks::mode("namespace_options.network", options.network)? {
        Mode::Pod | Mode::Node => {}
        mode => return refused("namespace_options.network", mode, "a pod's network is POD or NODE"),
    }
    match checks::mode("namespace_options.ipc", options.ipc)? {
        Mode::Pod | Mode::Node => {}
        mode => return refused("namespace_options.ipc", mode, "a pod's IPC is POD or NODE"),
    }
    match checks::mode("namespace_options.pid", options.pid)? {
        Mode::Pod | Mode::Container | Mode::Node => {}
        mode => {
            return refused("namespace_options.pid", mode, "a pod's process ids are POD, CONTAINER or NODE");
        }
    }
    Wish::read(options.userns_options.as_ref()).map(drop)
}
