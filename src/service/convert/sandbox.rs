//! Sandboxes on the wire.

use std::collections::HashMap;
use std::path::Path;

use cri_api::v1;
use serde_json::json;

use super::{json as text, selects};
use crate::pod::view::{SandboxState, SandboxView};

fn state(state: SandboxState) -> v1::PodSandboxState {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

/// An entry of ListPodSandbox.
#[must_use]
pub fn item(view: &SandboxView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: view.id.to_string(),
        metadata: view.request.config().metadata.clone(),
        state: state(view.state).into(),
        created_at: view.created_at.0,
        labels: view.request.labels().clone(),
        annotations: view.request.annotations().clone(),
        runtime_handler: view.request.runtime_handler().to_owned(),
    }
}

/// Whether a filter lets the sandbox through; the id may be a prefix.
#[must_use]
pub fn passes(view: &SandboxView, filter: Option<&v1::PodSandboxFilter>) -> bool {
    let Some(filter) = filter else { return true };
    view.id.as_str().starts_with(&filter.id)
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(state(view.state)))
        && selects(&filter.label_selector, view.request.labels())
}

/// PodSandboxStatus.
#[must_use]
pub fn status(view: &SandboxView) -> v1::PodSandboxStatus {
    let mut ips = view.ips.iter().map(ToString::to_string);
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    let options = view
        .request
        .config()
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default();
    v1::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: view.request.config().metadata.clone(),
        state: state(view.state).into(),
        created_at: view.created_at.0,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: view.request.labels().clone(),
        annotations: view.request.annotations().clone(),
        runtime_handler: view.request.runtime_handler().to_owned(),
    }
}

/// The verbose part of PodSandboxStatus, with the keys that node agents read.
#[must_use]
pub fn info(view: &SandboxView, bundle: &Path) -> HashMap<String, String> {
    let ready = view.state == SandboxState::Ready;
    let body = json!({
        "pid": view.pid.unwrap_or_default(),
        "processStatus": if ready { "running" } else { "deleted" },
        "netNamespaceClosed": view.netns_closed,
        "netNamespace": view.netns,
        "runtimeHandler": view.handler,
        "runtimeType": "oci",
        "cgroupsPath": view.cgroup,
        "runtimeSpec": read_spec(bundle),
        "cniResult": view.network,
        "overhead": resources(view, |linux| linux.overhead.as_ref()),
        "resources": resources(view, |linux| linux.resources.as_ref()),
        "sandboxMetadata": {
            "id": view.id.as_str(),
            "name": view.request.name(),
            "namespace": view.request.namespace(),
            "uid": view.request.uid(),
            "attempt": view.request.attempt(),
        },
    });
    HashMap::from([("info".to_owned(), text(&body))])
}

/// What a sandbox was told of its pod's resources; null when nothing.
fn resources(
    view: &SandboxView,
    which: fn(&v1::LinuxPodSandboxConfig) -> Option<&v1::LinuxContainerResources>,
) -> serde_json::Value {
    let told = view.request.config().linux.as_ref().and_then(which);
    told.map_or(serde_json::Value::Null, |told| {
        json!({
            "cpuPeriod": told.cpu_period,
            "cpuQuota": told.cpu_quota,
            "cpuShares": told.cpu_shares,
            "memoryLimitInBytes": told.memory_limit_in_bytes,
            "memorySwapLimitInBytes": told.memory_swap_limit_in_bytes,
        })
    })
}

/// The OCI spec in a bundle; null when it is gone, as after a reboot.
pub(super) fn read_spec(bundle: &Path) -> serde_json::Value {
    let bytes = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
