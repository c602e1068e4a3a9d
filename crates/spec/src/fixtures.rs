//! Small configs and places that the tests change in one point and translate.

use std::path::PathBuf;

use cri_api::v1;
use oci_spec::image::{Config, ImageConfiguration};
use serde_json::Value;
use types::{ContainerId, SandboxId};

use crate::identity;
use crate::{
    ContainerPlace, ContainerRequest, NodeFacts, ResolvedMount, SandboxPlace, SandboxRequest, SpecError,
    container_spec, sandbox_spec,
};

/// A pod as kubelet asks for it, with nothing special.
pub(crate) fn pod() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "shop".into(),
            attempt: 2,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/shop_web_u-1".into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/podu-1".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The security context of [`pod`], to be changed.
pub(crate) fn pod_security(pod: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    pod.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The namespace options of [`pod`], to be changed.
pub(crate) fn pod_namespaces(pod: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    pod_security(pod).namespace_options.get_or_insert_default()
}

/// A container as kubelet asks for it, with nothing special.
pub(crate) fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "sha256:abc".into(), ..Default::default() }),
        log_path: "app/0.log".into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The security context of [`container`], to be changed.
pub(crate) fn security(container: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    container.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The resources of [`container`], to be changed.
pub(crate) fn resources(container: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    container.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A bind mount of `/srv`.
pub(crate) fn mount(container_path: &str) -> v1::Mount {
    v1::Mount { container_path: container_path.into(), host_path: "/srv".into(), ..Default::default() }
}

/// An image with an entrypoint, a cmd, variables and a directory.
pub(crate) fn image() -> ImageConfiguration {
    let words = |list: &[&str]| Some(list.iter().map(|word| (*word).to_owned()).collect());
    let mut config = Config::default();
    config
        .set_entrypoint(words(&["/entry"]))
        .set_cmd(words(&["serve", "--all"]))
        .set_env(words(&["PATH=/image/bin", "MODE=image"]))
        .set_working_dir(Some("/work".to_owned()));
    let mut image = ImageConfiguration::default();
    image.set_config(Some(config));
    image
}

/// A node on cgroup v1 that gives all capabilities and has no LSM.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts { hierarchy: crate::Hierarchy::V1, hostname: "node-1".into(), ..NodeFacts::default() }
}

/// Where [`pod`] lives.
pub(crate) fn sandbox_place() -> SandboxPlace {
    SandboxPlace {
        id: SandboxId::from_random([0x5a; 32]),
        rootfs: "/var/lib/crimson/pause".into(),
        command: vec!["/pause".into()],
        netns: Some("/run/netns/cni-1".into()),
        userns: Some("/run/crimson/containers/1/user".into()),
        cgroups_path: "/kubepods/podu-1/sandbox".into(),
        shm: Some("/run/crimson/pods/1/shm".into()),
        image: None,
        seccomp_profile: None,
        selinux: None,
    }
}

/// Where [`container`] lives. Mounts are taken from the request, each source being its host path.
pub(crate) fn place<'a>(request: &ContainerRequest, image: &'a ImageConfiguration) -> ContainerPlace<'a> {
    let file = |name: &str| Some(PathBuf::from("/run/crimson/pods/1").join(name));
    let resolved =
        |request: crate::MountRequest| ResolvedMount { source: request.host_path.clone(), request };
    ContainerPlace {
        id: ContainerId::from_random([0xc0; 32]),
        sandbox_id: SandboxId::from_random([0x5a; 32]),
        rootfs: "rootfs".into(),
        cgroups_path: "/kubepods/podu-1/app".into(),
        pause_pid: 4242,
        target_pid: None,
        netns: Some("/run/netns/cni-1".into()),
        hosts: None,
        resolv_conf: file("resolv.conf"),
        hostname: file("hostname"),
        shm: file("shm"),
        image,
        image_name: "docker.io/library/web:1".into(),
        // A name is for the test to look up.
        identity: identity::resolve(&request.identity(image), None, None).unwrap_or_default(),
        mounts: request.mounts().into_iter().map(resolved).collect(),
        devices: vec![],
        volumes: vec![],
        seccomp_profile: None,
        selinux: None,
    }
}

/// The sandbox's spec as JSON, as an OCI runtime reads it.
pub(crate) fn sandbox_json(pod: v1::PodSandboxConfig, facts: &NodeFacts) -> Result<Value, SpecError> {
    let request = SandboxRequest::parse(pod, String::new())?;
    Ok(serde_json::to_value(sandbox_spec(&request, facts, &sandbox_place())?).unwrap())
}

/// The container's spec as JSON, as an OCI runtime reads it.
pub(crate) fn container_json(
    container: v1::ContainerConfig,
    pod: v1::PodSandboxConfig,
    facts: &NodeFacts,
    change: impl FnOnce(&mut ContainerPlace<'_>),
) -> Result<Value, SpecError> {
    let sandbox = SandboxRequest::parse(pod, String::new())?;
    let request = ContainerRequest::parse(container)?;
    let image = image();
    let mut place = place(&request, &image);
    change(&mut place);
    Ok(serde_json::to_value(container_spec(&request, &sandbox, facts, &place)?).unwrap())
}

/// The namespaces of a spec: type and path.
pub(crate) fn namespaces(spec: &Value) -> Vec<(String, Option<String>)> {
    let list = spec["linux"]["namespaces"].as_array().unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut all: Vec<_> =
        list.iter().map(|item| (text(&item["type"]).unwrap(), text(&item["path"]))).collect();
    all.sort();
    all
}

/// The mount at `path`, if there is exactly one.
pub(crate) fn mount_at<'a>(spec: &'a Value, path: &str) -> Option<&'a Value> {
    let mut found = spec["mounts"].as_array().unwrap().iter().filter(|mount| mount["destination"] == path);
    let first = found.next();
    assert!(found.next().is_none(), "{path} is mounted twice");
    first
}

/// Whether the mount at `path` has all these options.
pub(crate) fn has_options(spec: &Value, path: &str, options: &[&str]) -> bool {
    let mount = mount_at(spec, path).unwrap();
    let present = mount["options"].as_array().unwrap();
    options.iter().all(|option| present.contains(&Value::from(*option)))
}

/// A capability set of the process, sorted.
pub(crate) fn caps(spec: &Value, set: &str) -> Vec<String> {
    let list = spec["process"]["capabilities"][set].as_array().unwrap();
    let mut names: Vec<_> = list.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}
