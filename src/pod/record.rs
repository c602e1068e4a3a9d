//! What is remembered on disk of sandboxes and containers.
//!
//! A record is written before its object's first side effect and holds everything that is needed to undo or resume it,
//! so that a server that died between any two lines finds out what there may be. Records are replaced atomically and
//! carry a version.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use monitor_api::MappedVolume;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spec::{ContainerRequest, SandboxRequest};
use types::{ContainerId, ImageId, SandboxId, Timestamp};

use super::error::StepError;
use super::image_volumes::ImageVolume;
use super::layout::Layout;
use super::phase::{ContainerPhase, SandboxPhase};

/// The version that this server writes.
pub(super) const VERSION: u32 = 1;

/// Everything that must survive of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) version: u32,
    pub(super) id: SandboxId,
    #[serde(serialize_with = "encode_sandbox", deserialize_with = "decode_sandbox")]
    pub(super) request: Arc<SandboxRequest>,
    pub(super) handler: String,
    pub(super) phase: SandboxPhase,
    pub(super) created_at: Timestamp,
    pub(super) netns: Option<PathBuf>,
    /// Whether the host's ipc namespace is used, so that there is no shm of the pod's own.
    pub(super) shm: Option<PathBuf>,
    pub(super) cgroup: String,
    /// The pod's level where SELinux is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) selinux_level: Option<String>,
    /// The pause image, when one is configured; its lease has the sandbox's id as owner.
    pub(super) pause_image: Option<ImageId>,
    #[serde(default)]
    pub(super) pause_pid: Option<i32>,
    #[serde(default)]
    pub(super) ips: Vec<IpAddr>,
    #[serde(default)]
    pub(super) network: Option<serde_json::Value>,
}

/// How a container ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) reason: ExitReason,
    pub(super) message: String,
    pub(super) finished_at: Timestamp,
}

/// The word CRI clients are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ExitReason {
    Completed,
    Error,
    OomKilled,
    StartError,
    Unknown,
}

impl ExitReason {
    /// Spelled as kubelet and its users know it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// Everything that must survive of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) version: u32,
    pub(super) id: ContainerId,
    pub(super) sandbox: SandboxId,
    #[serde(serialize_with = "encode_container", deserialize_with = "decode_container")]
    pub(super) request: Arc<ContainerRequest>,
    pub(super) phase: ContainerPhase,
    pub(super) created_at: Timestamp,
    #[serde(default)]
    pub(super) started_at: Timestamp,
    #[serde(default)]
    pub(super) pid: Option<i32>,
    pub(super) image: ImageId,
    pub(super) image_ref: String,
    pub(super) image_name: String,
    /// The image's layers, topmost first.
    #[serde(default)]
    pub(super) layers: Vec<PathBuf>,
    /// The images that are mounted, in the order of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) image_volumes: Vec<ImageVolume>,
    /// What is mounted with its ids mapped as the pod's user namespace maps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) mapped: Vec<MappedVolume>,
    pub(super) log_path: Option<PathBuf>,
    pub(super) cgroup: String,
    pub(super) stop_signal: i32,
    #[serde(default)]
    pub(super) user: (u32, u32, Vec<u32>),
    #[serde(default)]
    pub(super) exit: Option<Exit>,
    /// The request that a change of limits under way leads to.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "encode_target",
        deserialize_with = "decode_target"
    )]
    pub(super) updating: Option<Arc<ContainerRequest>>,
}

fn encode_sandbox<S: Serializer>(request: &Arc<SandboxRequest>, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&STANDARD.encode(request.to_bytes()))
}

fn decode_sandbox<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<SandboxRequest>, D::Error> {
    let bytes = decode(from)?;
    SandboxRequest::from_bytes(&bytes).map(Arc::new).map_err(serde::de::Error::custom)
}

fn encode_container<S: Serializer>(request: &Arc<ContainerRequest>, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&STANDARD.encode(request.to_bytes()))
}

fn decode_container<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<ContainerRequest>, D::Error> {
    let bytes = decode(from)?;
    ContainerRequest::from_bytes(&bytes).map(Arc::new).map_err(serde::de::Error::custom)
}

fn encode_target<S: Serializer>(target: &Option<Arc<ContainerRequest>>, out: S) -> Result<S::Ok, S::Error> {
    match target {
        Some(request) => encode_container(request, out),
        None => out.serialize_none(),
    }
}

fn decode_target<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<ContainerRequest>>, D::Error> {
    decode_container(from).map(Some)
}

fn decode<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

impl SandboxRecord {
    /// Writes the record durably.
    pub(super) async fn save(&self, layout: &Layout) -> Result<(), StepError> {
        let dir = layout.record_dir(&self.id);
        save(dir, layout.sandbox_record(&self.id), self).await
    }
}

impl ContainerRecord {
    /// Writes the record durably.
    pub(super) async fn save(&self, layout: &Layout) -> Result<(), StepError> {
        let dir = layout.record_dir(&self.sandbox);
        save(dir, layout.container_record(&self.sandbox, &self.id), self).await
    }

    /// Forgets the container.
    pub(super) async fn delete(&self, layout: &Layout) -> Result<(), StepError> {
        let path = layout.container_record(&self.sandbox, &self.id);
        blocking(move || Ok(sys::atomic::remove(&path)?)).await
    }

    /// The object's name for people: namespace-free, as the sandbox's name stands beside it.
    pub(super) fn display(&self) -> String {
        format!("container {:?}", self.request.name())
    }
}

async fn save<T: Serialize>(dir: PathBuf, path: PathBuf, record: &T) -> Result<(), StepError> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| StepError::Io { what: "encoding a record".to_owned(), source: error.into() })?;
    blocking(move || {
        sys::atomic::create_dir_all(&dir, 0o700)?;
        Ok(sys::atomic::write(&path, &bytes, 0o600)?)
    })
    .await
}

/// What the record directory of one sandbox held.
#[derive(Debug)]
pub(super) struct Loaded {
    /// None when the sandbox's own record is missing or unreadable.
    pub(super) sandbox: Option<SandboxRecord>,
    pub(super) containers: Vec<ContainerRecord>,
    /// Records that could not be read.
    pub(super) broken: Vec<Broken>,
}

/// A record that cannot be read.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) path: PathBuf,
    pub(super) reason: String,
    /// Another server may be able to read it.
    pub(super) other_version: bool,
}

/// Reads all records of one sandbox.
pub(super) fn load(dir: &Path) -> io::Result<Loaded> {
    let mut loaded = Loaded { sandbox: None, containers: Vec::new(), broken: Vec::new() };
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let is_sandbox = path.file_name().is_some_and(|name| name == "sandbox.json");
        let outcome = if is_sandbox {
            parse(&path).map(|record| loaded.sandbox = Some(record))
        } else {
            parse(&path).map(|record| loaded.containers.push(record))
        };
        if let Err(reason) = outcome {
            let (reason, other_version) = reason;
            loaded.broken.push(Broken { path, reason, other_version });
        }
    }
    loaded.containers.sort_by_key(|record| record.created_at);
    Ok(loaded)
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The record, or why not and whether another version is the reason.
fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, (String, bool)> {
    let bytes = std::fs::read(path).map_err(|error| (error.to_string(), false))?;
    let damage = |error: serde_json::Error| (error.to_string(), false);
    let versioned: Versioned = serde_json::from_slice(&bytes).map_err(damage)?;
    if versioned.version != VERSION {
        return Err((format!("version {} is not known to this server", versioned.version), true));
    }
    serde_json::from_slice(&bytes).map_err(damage)
}

/// Runs work that may block on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(StepError::Io { what: "a blocking task".to_owned(), source: io::Error::other(error) })
        }
    }
}
