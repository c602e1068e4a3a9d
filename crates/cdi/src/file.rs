//! A vendor's file: its form, its version, and the rules it must keep.
//!
//! The form is that of the CDI specification, versions 0.3.0 to 1.1.0. A key that it does not have is refused, and so is one
//! that the version named in the file did not have yet: a part that this server does not understand may be what makes a
//! device safe to use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use crate::name;

/// A version of the specification.
type Version = (u32, u32, u32);

/// The versions there are.
const VERSIONS: [Version; 8] =
    [(0, 3, 0), (0, 4, 0), (0, 5, 0), (0, 6, 0), (0, 7, 0), (0, 8, 0), (1, 0, 0), (1, 1, 0)];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
    /// It is not JSON of the form.
    #[error("it is not of the CDI form")]
    Json(#[from] serde_json::Error),
    /// It is not YAML of the form.
    #[error("it is not of the CDI form")]
    Yaml(#[from] yaml_serde::Error),
    /// It breaks a rule.
    #[error("{0}")]
    Rule(String),
}

/// What a file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpecFile {
    cdi_version: String,
    /// `vendor/class` of its devices.
    pub kind: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    /// The devices.
    #[serde(default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    /// What any of the devices brings along.
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

/// One device.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Its name within the kind.
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    /// What it changes.
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

/// What is changed in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerEdits {
    /// Variables, `NAME=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Device nodes to make.
    #[serde(default, deserialize_with = "or_default")]
    pub device_nodes: Vec<DeviceNode>,
    /// Network interfaces to move in.
    #[serde(default, deserialize_with = "or_default")]
    pub net_devices: Vec<NetDevice>,
    /// Programs to run at points of the container's life.
    #[serde(default, deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    /// Mounts.
    #[serde(default, deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    /// Shares of cache and memory bandwidth.
    #[serde(default)]
    pub intel_rdt: Option<IntelRdt>,
    /// Groups that the process gets.
    #[serde(default, deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
}

/// A device node; what it does not say is taken from the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: PathBuf,
    /// Path on the host; empty for the same.
    #[serde(default, deserialize_with = "or_default")]
    pub host_path: PathBuf,
    /// `b`, `c`, `u` or `p`.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Major number.
    #[serde(default, deserialize_with = "or_default")]
    pub major: i64,
    /// Minor number.
    #[serde(default, deserialize_with = "or_default")]
    pub minor: i64,
    /// Permission bits.
    #[serde(default, deserialize_with = "file_mode")]
    pub file_mode: Option<u32>,
    /// Letters of `rwm`, or `none`.
    #[serde(default, deserialize_with = "or_default")]
    pub permissions: String,
    /// Owner.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default)]
    pub gid: Option<u32>,
}

/// A network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// When.
    pub hook_name: HookName,
    /// The program.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Its environment.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// Seconds it may take.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// Points of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookName {
    /// The old name of what is run after the namespaces are there.
    Prestart,
    /// After the namespaces are there, outside.
    CreateRuntime,
    /// After the namespaces are there, inside.
    CreateContainer,
    /// Before the process, inside.
    StartContainer,
    /// After the process has been started, outside.
    Poststart,
    /// After the container is deleted, outside.
    Poststop,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub host_path: PathBuf,
    /// Where.
    pub container_path: PathBuf,
    /// Options as `mount` has them.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    /// Type of the filesystem.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
}

/// Shares of cache and memory bandwidth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IntelRdt {
    /// Class of service.
    #[serde(default, rename = "closID")]
    pub clos_id: Option<String>,
    /// Share of the cache.
    #[serde(default)]
    pub l3_cache_schema: Option<String>,
    /// Share of the bandwidth.
    #[serde(default)]
    pub mem_bw_schema: Option<String>,
    /// Lines of the kernel's own form.
    #[serde(default)]
    pub schemata: Option<Vec<String>>,
    /// Measure both.
    #[serde(default)]
    pub enable_monitoring: Option<bool>,
}

impl SpecFile {
    /// Reads JSON.
    ///
    /// # Errors
    /// [`FileError`] when it is not of the form or breaks a rule.
    pub fn from_json(bytes: &[u8]) -> Result<Self, FileError> {
        checked(serde_json::from_slice::<Self>(bytes)?)
    }

    /// Reads YAML.
    ///
    /// # Errors
    /// [`FileError`] when it is not of the form or breaks a rule.
    pub fn from_yaml(bytes: &[u8]) -> Result<Self, FileError> {
        checked(yaml_serde::from_slice::<Self>(bytes)?)
    }

    fn check(&self) -> Result<(), String> {
        name::check_kind(&self.kind).map_err(|reason| format!("kind {:?}: {reason}", self.kind))?;
        self.check_version()?;
        self.container_edits.check()?;
        let mut names = BTreeSet::new();
        for device in &self.devices {
            name::check_device(&device.name)
                .map_err(|reason| format!("device {:?}: {reason}", device.name))?;
            if !names.insert(&device.name) {
                return Err(format!("device {:?} stands twice", device.name));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(format!("device {:?} changes nothing", device.name));
            }
            device.container_edits.check().map_err(|reason| format!("device {:?}: {reason}", device.name))?;
        }
        if names.is_empty() { Err("it has no devices".to_owned()) } else { Ok(()) }
    }

    fn check_version(&self) -> Result<(), String> {
        let text = &self.cdi_version;
        let version = parse_version(text).filter(|version| VERSIONS.contains(version));
        let version = version.ok_or_else(|| format!("version {text:?} is none of 0.3.0 to 1.1.0"))?;
        let (needed, what) = self.needed_version();
        if version < needed {
            let (major, minor, patch) = needed;
            return Err(format!("{what} needs version {major}.{minor}.{patch}, and it says {text}"));
        }
        Ok(())
    }

    /// The first version that has everything the file uses, and what of it came last.
    fn needed_version(&self) -> (Version, &'static str) {
        let all = || {
            let devices = self.devices.iter().map(|device| &device.container_edits);
            devices.chain(std::iter::once(&self.container_edits))
        };
        let any = |uses: fn(&ContainerEdits) -> bool| all().any(uses);
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let annotated = |device: &Device| !device.annotations.is_empty();
        let digit = |device: &Device| device.name.starts_with(|first: char| first.is_ascii_digit());
        let newest_first = [
            (any(|edits| !edits.net_devices.is_empty()), (1, 1, 0), "netDevices"),
            (
                any(|edits| edits.intel_rdt.as_ref().is_some_and(IntelRdt::is_new)),
                (1, 1, 0),
                "intelRdt.schemata",
            ),
            (any(|edits| edits.intel_rdt.is_some()), (0, 7, 0), "intelRdt"),
            (any(|edits| !edits.additional_gids.is_empty()), (0, 7, 0), "additionalGids"),
            (!self.annotations.is_empty() || self.devices.iter().any(annotated), (0, 6, 0), "annotations"),
            (class.contains('.'), (0, 6, 0), "a dot in the class"),
            (self.devices.iter().any(digit), (0, 5, 0), "a device's name that begins with a digit"),
            (any(ContainerEdits::has_host_path), (0, 5, 0), "deviceNodes.hostPath"),
            (any(ContainerEdits::has_mount_type), (0, 4, 0), "mounts.type"),
        ];
        let newest = newest_first.into_iter().find(|(used, ..)| *used);
        newest.map_or(((0, 3, 0), "the form"), |(_, version, what)| (version, what))
    }
}

fn checked(file: SpecFile) -> Result<SpecFile, FileError> {
    file.check().map_err(FileError::Rule)?;
    Ok(file)
}

fn parse_version(text: &str) -> Option<Version> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| part.parse().ok());
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

impl IntelRdt {
    /// Whether it says what only version 1.1 has.
    fn is_new(&self) -> bool {
        self.schemata.is_some() || self.enable_monitoring == Some(true)
    }
}

impl ContainerEdits {
    fn has_host_path(&self) -> bool {
        self.device_nodes.iter().any(|node| !node.host_path.as_os_str().is_empty())
    }

    fn has_mount_type(&self) -> bool {
        self.mounts.iter().any(|mount| !mount.kind.is_empty())
    }

    fn check(&self) -> Result<(), String> {
        check_env(&self.env)?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.hooks.iter().try_for_each(Hook::check)?;
        for mount in &self.mounts {
            if !mount.container_path.is_absolute() || mount.host_path.as_os_str().is_empty() {
                return Err("a mount needs a host path and an absolute container path".to_owned());
            }
        }
        if let Some(class) = self.intel_rdt.as_ref().and_then(|rdt| rdt.clos_id.as_deref())
            && (class.len() >= 4096 || matches!(class, "." | "..") || class.contains(['/', '\n']))
        {
            return Err(format!("intelRdt.closID {class:?} cannot be the name of a directory"));
        }
        check_net_devices(&self.net_devices)
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    match env.iter().find(|variable| variable.find('=').is_none_or(|at| at == 0) || variable.contains('\0')) {
        Some(variable) => Err(format!("variable {variable:?} is not of the form NAME=value")),
        None => Ok(()),
    }
}

fn check_net_devices(devices: &[NetDevice]) -> Result<(), String> {
    let (mut outside, mut inside) = (BTreeSet::new(), BTreeSet::new());
    for device in devices {
        if device.host_interface_name.is_empty() || device.name.is_empty() {
            return Err("a network device needs its name on the host and in the container".to_owned());
        }
        if !outside.insert(&device.host_interface_name) || !inside.insert(&device.name) {
            return Err(format!("network device {:?} stands twice", device.name));
        }
    }
    Ok(())
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        let path = self.path.display();
        if !self.path.is_absolute() {
            return Err(format!("device node {path:?} is not an absolute path"));
        }
        if !matches!(self.kind.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(format!("device node {path}: type {:?} is none of b, c, u and p", self.kind));
        }
        if self.permissions != "none" && !self.permissions.bytes().all(|letter| b"rwm".contains(&letter)) {
            return Err(format!(
                "device node {path}: permissions {:?} are no letters of rwm",
                self.permissions
            ));
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        if !self.path.is_absolute() {
            return Err(format!("hook {:?} is not an absolute path", self.path.display()));
        }
        check_env(self.env.as_deref().unwrap_or_default())
    }
}

/// What is written as null is as good as not written.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// A number, or the octal digits that YAML 1.2 reads as text and older YAML as a number.
fn file_mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u32),
        Text(String),
    }
    match Option::<Written>::deserialize(from)? {
        None => Ok(None),
        Some(Written::Number(bits)) => Ok(Some(bits)),
        Some(Written::Text(text)) => {
            let digits = text.strip_prefix('0').ok_or_else(|| D::Error::custom("fileMode is no number"))?;
            u32::from_str_radix(digits, 8)
                .map(Some)
                .map_err(|_| D::Error::custom("fileMode is no octal number"))
        }
    }
}

#[cfg(test)]
mod tests;
