//! A request for a container.

use std::collections::HashMap;
use std::path::PathBuf;

use cri_api::v1;
use oci_spec::image::ImageConfiguration;
use prost::Message;

use super::{DeviceRequest, MountRequest, PidMode, SandboxRequest, checks};
use crate::error::SpecError;
use crate::identity::{GroupsPolicy, IdentityRequest, UserChoice};
use crate::stop_signal::StopSignal;
use crate::{apparmor, capabilities, resources, seccomp, selinux, userns};

/// A checked `ContainerConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerRequest {
    config: v1::ContainerConfig,
    name: String,
    attempt: u32,
}

impl ContainerRequest {
    /// Checks a config.
    ///
    /// # Errors
    /// [`SpecError`] naming the first field that cannot be honoured.
    pub fn parse(config: v1::ContainerConfig) -> Result<Self, SpecError> {
        let metadata = config.metadata.clone().ok_or(SpecError::Missing { field: "container metadata" })?;
        checks::required("container metadata.name", &metadata.name)?;
        let request = Self { config, name: metadata.name, attempt: metadata.attempt };
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), SpecError> {
        let config = &self.config;
        checks::required("image", self.image())?;
        check_texts(config)?;
        config.mounts.iter().try_for_each(MountRequest::check)?;
        config.devices.iter().try_for_each(check_device)?;
        if !config.log_path.is_empty() {
            checks::beneath("log_path", &config.log_path)?;
        }
        StopSignal::from_cri(config.stop_signal)?;
        resources::check(self.wire_resources())?;
        self.security().map_or(Ok(()), check_security)?;
        self.seccomp().check()
    }

    /// The request as the store keeps it: a `ContainerConfig` message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.config.encode_to_vec()
    }

    /// Reads back what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`SpecError::Record`] or [`SpecError::RecordMetadata`] when the bytes are not such a record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SpecError> {
        let config = v1::ContainerConfig::decode(bytes)
            .map_err(|source| SpecError::Record { what: "container", source })?;
        let metadata = config.metadata.clone().ok_or(SpecError::RecordMetadata { what: "container" })?;
        Ok(Self { config, name: metadata.name, attempt: metadata.attempt })
    }

    /// The message itself, for the service's answers.
    #[must_use]
    pub fn config(&self) -> &v1::ContainerConfig {
        &self.config
    }

    /// Container name, unique in the pod together with [`Self::attempt`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts the restarts.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
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

    /// The image to run: what PullImage returned, or a reference.
    #[must_use]
    pub fn image(&self) -> &str {
        self.config.image.as_ref().map_or("", |image| image.image.as_str())
    }

    /// The image as the user wrote it; falls back on [`Self::image`].
    #[must_use]
    pub fn user_specified_image(&self) -> &str {
        let typed = self.config.image.as_ref().map_or("", |image| image.user_specified_image.as_str());
        if typed.is_empty() { self.image() } else { typed }
    }

    /// Log file below the pod's log directory; `None` means no log.
    #[must_use]
    pub fn log_path(&self) -> Option<PathBuf> {
        checks::beneath("log_path", &self.config.log_path).ok()
    }

    /// Whether stdin stays open for attach.
    #[must_use]
    pub fn stdin(&self) -> bool {
        self.config.stdin
    }

    /// Whether stdin closes when the first attached client leaves.
    #[must_use]
    pub fn stdin_once(&self) -> bool {
        self.config.stdin_once
    }

    /// Whether the process gets a terminal.
    #[must_use]
    pub fn tty(&self) -> bool {
        self.config.tty
    }

    /// Mounts in the order they were asked for.
    #[must_use]
    pub fn mounts(&self) -> Vec<MountRequest> {
        self.config.mounts.iter().map(MountRequest::read).collect()
    }

    /// Devices in the order they were asked for.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceRequest> {
        self.config.devices.iter().map(read_device).collect()
    }

    /// Names of CDI devices; resolving them is the daemon's work, and it must refuse those it does not know.
    pub fn cdi_devices(&self) -> impl Iterator<Item = &str> {
        self.config.cdi_devices.iter().map(|device| device.name.as_str())
    }

    /// The signal StopContainer sends: the request's, else the image's, else TERM.
    #[must_use]
    pub fn stop_signal(&self, image: &ImageConfiguration) -> StopSignal {
        let asked = StopSignal::from_cri(self.config.stop_signal).ok().flatten();
        let of_image = || image.config().as_ref()?.stop_signal().as_deref()?.parse().ok();
        asked.or_else(of_image).unwrap_or(StopSignal::TERM)
    }

    /// Whether the container is privileged.
    #[must_use]
    pub fn privileged(&self) -> bool {
        self.security().is_some_and(|context| context.privileged)
    }

    /// Whether the root file system is read-only.
    #[must_use]
    pub fn readonly_rootfs(&self) -> bool {
        self.security().is_some_and(|context| context.readonly_rootfs)
    }

    /// Whose process ids the container sees.
    #[must_use]
    pub fn pid_mode(&self) -> PidMode {
        let Some(options) = self.security().and_then(|context| context.namespace_options.as_ref()) else {
            return PidMode::Pod;
        };
        match options.pid() {
            v1::NamespaceMode::Pod => PidMode::Pod,
            v1::NamespaceMode::Container => PidMode::Container,
            v1::NamespaceMode::Node => PidMode::Node,
            v1::NamespaceMode::Target => PidMode::Target(options.target_id.clone()),
        }
    }

    /// What the request says about user namespaces.
    pub(crate) fn user_namespace(&self) -> Result<userns::Wish, SpecError> {
        let options = self.security().and_then(|context| context.namespace_options.as_ref());
        userns::Wish::read(options.and_then(|options| options.userns_options.as_ref()))
    }

    /// Who the process is to run as, to be resolved against the image's own passwd and group files.
    #[must_use]
    pub fn identity(&self, image: &ImageConfiguration) -> IdentityRequest {
        let of_image = image.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
        let Some(context) = self.security() else {
            return IdentityRequest { user: UserChoice::Image(of_image), ..IdentityRequest::default() };
        };
        let wire = |value: i64| u32::try_from(value).ok();
        let user = match (context.run_as_username.as_str(), context.run_as_user) {
            ("", None) => UserChoice::Image(of_image),
            ("", Some(uid)) => UserChoice::Uid(wire(uid.value).unwrap_or_default()),
            (name, _) => UserChoice::Name(name.to_owned()),
        };
        IdentityRequest {
            user,
            group: context.run_as_group.and_then(|gid| wire(gid.value)),
            supplemental: context.supplemental_groups.iter().filter_map(|gid| wire(*gid)).collect(),
            policy: match context.supplemental_groups_policy() {
                v1::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
                v1::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
            },
        }
    }

    /// Path of the seccomp profile that the daemon must read into [`crate::ContainerPlace::seccomp_profile`]; `unset` is the
    /// profile of requests that name none.
    #[must_use]
    pub fn seccomp_localhost(&self, unset: &str) -> Option<String> {
        if self.privileged() { None } else { self.seccomp().or_unset(unset).localhost() }
    }

    /// The AppArmor profile; one of the node must be loaded before the container is made.
    #[must_use]
    pub fn apparmor_profile(&self) -> apparmor::Profile {
        self.apparmor().unwrap_or(apparmor::Profile::Unset)
    }

    /// SELinux labels by the node's policy, in a pod with this level.
    #[must_use]
    pub fn selinux_labels(
        &self,
        pod: &SandboxRequest,
        contexts: &selinux::Contexts,
        level: &str,
    ) -> selinux::SelinuxLabels {
        let options = self.security().and_then(|context| context.selinux_options.as_ref());
        contexts.of_container(pod.selinux_options(), options, self.privileged(), level)
    }

    /// User and group that devices are to belong to, where the node's configuration takes them from the request: those that
    /// the request names, unless it is root.
    #[must_use]
    pub fn device_owner(&self) -> (Option<u32>, Option<u32>) {
        let id = |id: Option<v1::Int64Value>| u32::try_from(id?.value).ok().filter(|id| *id != 0);
        let context = self.security();
        (
            context.and_then(|context| id(context.run_as_user)),
            context.and_then(|context| id(context.run_as_group)),
        )
    }

    /// The request with changed resources: what the update leaves zero or empty stays as it was.
    ///
    /// # Errors
    /// [`SpecError`] when the values, old and new together, contradict each other.
    pub fn with_resources(&self, update: &ResourcesUpdate) -> Result<Self, SpecError> {
        let mut changed = self.clone();
        let linux = changed.config.linux.get_or_insert_with(Default::default);
        let merged = resources::merge(linux.resources.take().unwrap_or_default(), &update.0);
        resources::check(Some(&merged))?;
        linux.resources = Some(merged);
        Ok(changed)
    }

    /// The resources as asked for, updates included.
    #[must_use]
    pub fn wire_resources(&self) -> Option<&v1::LinuxContainerResources> {
        self.config.linux.as_ref()?.resources.as_ref()
    }

    pub(crate) fn seccomp(&self) -> seccomp::Profile {
        let context = self.security();
        seccomp::Profile::of(
            context.and_then(|context| context.seccomp.as_ref()),
            context.map_or("", |context| legacy_seccomp(context)),
        )
    }

    pub(crate) fn apparmor(&self) -> Result<apparmor::Profile, SpecError> {
        self.security().map_or(Ok(apparmor::Profile::Unset), apparmor_of)
    }

    pub(crate) fn security(&self) -> Option<&v1::LinuxContainerSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }
}

/// Checked values of an UpdateContainerResources call.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourcesUpdate(v1::LinuxContainerResources);

impl ResourcesUpdate {
    /// Checks the values.
    ///
    /// # Errors
    /// [`SpecError`] naming the first value that cannot be honoured.
    pub fn parse(resources: v1::LinuxContainerResources) -> Result<Self, SpecError> {
        resources::check(Some(&resources))?;
        Ok(Self(resources))
    }
}

#[allow(deprecated, reason = "clients of older Kubernetes still send the text form")]
fn legacy_seccomp(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

#[allow(deprecated, reason = "clients of older Kubernetes still send the text form")]
fn apparmor_of(context: &v1::LinuxContainerSecurityContext) -> Result<apparmor::Profile, SpecError> {
    apparmor::Profile::of(context.apparmor.as_ref(), &context.apparmor_profile)
}

fn check_texts(config: &v1::ContainerConfig) -> Result<(), SpecError> {
    config.command.iter().try_for_each(|word| checks::no_nul("command", word))?;
    config.args.iter().try_for_each(|word| checks::no_nul("args", word))?;
    checks::no_nul("working_dir", &config.working_dir)?;
    for variable in &config.envs {
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) {
            return Err(SpecError::invalid("envs.key", &variable.key, "it is not a variable name"));
        }
        match std::str::from_utf8(&variable.value) {
            Ok(value) => checks::no_nul("envs.value", value)?,
            Err(_) => {
                let reason = "its value is not UTF-8, which an OCI runtime spec cannot hold";
                return Err(SpecError::invalid("envs.key", &variable.key, reason));
            }
        }
    }
    Ok(())
}

fn read_device(device: &v1::Device) -> DeviceRequest {
    let container = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
    DeviceRequest {
        host_path: checks::clean_absolute(&device.host_path),
        container_path: checks::clean_absolute(container),
        permissions: if device.permissions.is_empty() {
            "rwm".to_owned()
        } else {
            device.permissions.clone()
        },
    }
}

fn check_device(device: &v1::Device) -> Result<(), SpecError> {
    if !device.permissions.bytes().all(|letter| b"rwm".contains(&letter)) {
        let reason = "only r, w and m may stand in it";
        return Err(SpecError::invalid("device.permissions", &device.permissions, reason));
    }
    checks::absolute("device.host_path", &device.host_path)?;
    if !device.container_path.is_empty() {
        checks::absolute("device.container_path", &device.container_path)?;
    }
    Ok(())
}

fn check_security(context: &v1::LinuxContainerSecurityContext) -> Result<(), SpecError> {
    checks::user_and_group(context.run_as_user, &context.run_as_username, context.run_as_group)?;
    checks::groups(&context.supplemental_groups)?;
    checks::groups_policy(context.supplemental_groups_policy)?;
    checks::profile("seccomp", context.seccomp.as_ref())?;
    checks::profile("apparmor", context.apparmor.as_ref())?;
    apparmor_of(context)?;
    selinux::check(context.selinux_options.as_ref())?;
    capabilities::check(context.capabilities.as_ref())?;
    context.masked_paths.iter().try_for_each(|path| checks::absolute("masked_paths", path).map(|_| ()))?;
    context
        .readonly_paths
        .iter()
        .try_for_each(|path| checks::absolute("readonly_paths", path).map(|_| ()))?;
    context.namespace_options.as_ref().map_or(Ok(()), check_namespaces)
}

fn check_namespaces(options: &v1::NamespaceOption) -> Result<(), SpecError> {
    checks::mode("namespace_options.network", options.network)?;
    checks::mode("namespace_options.ipc", options.ipc)?;
    let pid = checks::mode("namespace_options.pid", options.pid)?;
    if pid == v1::NamespaceMode::Target && options.target_id.is_empty() {
        return Err(SpecError::Missing { field: "namespace_options.target_id" });
    }
    userns::Wish::read(options.userns_options.as_ref()).map(drop)
}
