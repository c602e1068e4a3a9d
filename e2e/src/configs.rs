//! Pod and container configurations shaped as the kubelet shapes them; tests change the public fields.

use std::collections::HashMap;
use std::path::Path;

use k8s_cri::v1::*;

/// A pod to run.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The message that goes over the wire.
    pub config: PodSandboxConfig,
    /// The runtime handler; empty is the default one.
    pub handler: String,
}

/// A container to create.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// The message that goes over the wire.
    pub config: ContainerConfig,
}

impl PodSpec {
    /// A pod as the kubelet would ask for it.
    #[must_use]
    pub fn new(name: &str, uid: &str, cgroup_parent: String, log_directory: &Path) -> Self {
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(NamespaceMode::Pod)),
            seccomp: Some(runtime_default()),
            ..Default::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: "e2e".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: log_directory.display().to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["192.0.2.53".to_owned()],
                searches: vec!["e2e.svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            labels: HashMap::from([
                ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
                ("io.kubernetes.pod.namespace".to_owned(), "e2e".to_owned()),
                ("io.kubernetes.pod.uid".to_owned(), uid.to_owned()),
            ]),
            annotations: HashMap::from([("crimson.e2e/kept".to_owned(), "byte for byte: äß\n".to_owned())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent,
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self { config, handler: String::new() }
    }

    /// The same pod in the host's network.
    #[must_use]
    pub fn on_host_network(mut self) -> Self {
        if let Some(options) = self.namespace_options() {
            options.network = NamespaceMode::Node.into();
        }
        self.config.hostname = String::new();
        self
    }

    /// The same pod with a TCP port of the host mapped to one of its own.
    #[must_use]
    pub fn with_port(mut self, host_port: i32, container_port: i32) -> Self {
        let mapping =
            PortMapping { protocol: Protocol::Tcp.into(), container_port, host_port, host_ip: String::new() };
        self.config.port_mappings.push(mapping);
        self
    }

    /// The same pod at another attempt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        if let Some(metadata) = &mut self.config.metadata {
            metadata.attempt = attempt;
        }
        self
    }

    /// The namespace options of the pod.
    pub fn namespace_options(&mut self) -> Option<&mut NamespaceOption> {
        self.config.linux.as_mut()?.security_context.as_mut()?.namespace_options.as_mut()
    }
}

impl ContainerSpec {
    /// A container of an image that was pulled, running a command with its arguments.
    #[must_use]
    pub fn new(name: &str, image_id: &str, command: &[&str]) -> Self {
        let context = LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(NamespaceMode::Pod)),
            seccomp: Some(runtime_default()),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec {
                image: image_id.to_owned(),
                user_specified_image: "127.0.0.1:5000/busybox:1".to_owned(),
                ..Default::default()
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}/0.log"),
            labels: HashMap::from([("io.kubernetes.container.name".to_owned(), name.to_owned())]),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_shares: 102,
                    memory_limit_in_bytes: 128 << 20,
                    oom_score_adj: 1000,
                    ..Default::default()
                }),
                security_context: Some(context),
            }),
            ..Default::default()
        };
        Self { config }
    }

    /// The same container with the labels by which tools find the pod of a container.
    #[must_use]
    pub fn labelled_by(mut self, pod: &PodSpec) -> Self {
        self.config.labels.extend(pod.config.labels.clone());
        self
    }

    /// A container that runs a shell line.
    #[must_use]
    pub fn shell(name: &str, image_id: &str, line: &str) -> Self {
        Self::new(name, image_id, &["sh", "-c", line])
    }

    /// A container that stays until it is told to end, and ends at once then.
    #[must_use]
    pub fn lasting(name: &str, image_id: &str) -> Self {
        Self::shell(name, image_id, "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
    }

    /// The same container with a directory or file of the host.
    #[must_use]
    pub fn with_mount(mut self, host_path: &Path, container_path: &str, readonly: bool) -> Self {
        self.config.mounts.push(Mount {
            container_path: container_path.to_owned(),
            host_path: host_path.display().to_string(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// The same container with an environment variable.
    #[must_use]
    pub fn with_env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// The same container at another attempt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        if let Some(metadata) = &mut self.config.metadata {
            self.config.log_path = format!("{}/{attempt}.log", metadata.name);
            metadata.attempt = attempt;
        }
        self
    }

    /// The same container after a change of its security context.
    #[must_use]
    pub fn secured(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        if let Some(context) = self.config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
            change(context);
        }
        self
    }
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    }
}
