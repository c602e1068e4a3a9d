//! Containers on the wire.

use std::collections::HashMap;

use cri_api::v1;
use serde_json::json;
use spec::{NodeFacts, StopSignal};

use super::sandbox::read_spec;
use super::{json as text, selects};
use crate::pod::view::{ContainerState, ContainerView, PodView};

fn state(state: ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
    }
}

/// An entry of ListContainers.
#[must_use]
pub fn item(view: &ContainerView) -> v1::Container {
    v1::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.sandbox.to_string(),
        metadata: view.request.config().metadata.clone(),
        image: view.request.config().image.clone(),
        image_ref: view.image.to_string(),
        state: state(view.state).into(),
        created_at: view.created_at.0,
        labels: view.request.labels().clone(),
        annotations: view.request.annotations().clone(),
        image_id: view.image.to_string(),
    }
}

/// The same as it stands in the answer of ListContainers.
#[must_use]
pub fn entry(view: &ContainerView) -> &[u8] {
    view.shown.bytes(|| v1::ListContainersResponse::entry(&item(view)))
}

/// Whether a filter lets the container through; ids may be prefixes.
#[must_use]
pub fn passes(view: &ContainerView, filter: Option<&v1::ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    view.id.as_str().starts_with(&filter.id)
        && view.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(state(view.state)))
        && selects(&filter.label_selector, view.request.labels())
}

/// The statuses of a pod's containers, the newest first: kubelet takes the first of a name for the last attempt (GetPodStatus in
/// `kuberuntime_manager.go`, with the feature `EventedPLEG`), and with another order it would ask for an attempt that there was.
#[must_use]
pub fn statuses(pod: &PodView, facts: &NodeFacts) -> Vec<v1::ContainerStatus> {
    pod.containers.iter().rev().map(|view| status(view, facts)).collect()
}

/// ContainerStatus, with the limits that are in force on a node like this. Nothing in it needs the image to be still there.
#[must_use]
pub fn status(view: &ContainerView, facts: &NodeFacts) -> v1::ContainerStatus {
    let config = view.request.config();
    let (uid, gid, groups) = &view.user;
    let image = v1::ImageSpec {
        image: view.image_name.clone(),
        user_specified_image: view.request.user_specified_image().to_owned(),
        ..config.image.clone().unwrap_or_default()
    };
    v1::ContainerStatus {
        id: view.id.to_string(),
        metadata: config.metadata.clone(),
        state: state(view.state).into(),
        created_at: view.created_at.0,
        started_at: view.started_at.0,
        finished_at: view.finished_at.0,
        exit_code: view.exit_code,
        image: Some(image),
        image_ref: view.image_ref.clone(),
        reason: view.reason.to_owned(),
        message: view.message.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(view),
        log_path: view.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: spec::resources::in_force(&view.request, facts)
            .map(|linux| v1::ContainerResources { linux: Some(linux), windows: None }),
        image_id: view.image.to_string(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: i64::from(*uid),
                gid: i64::from(*gid),
                supplemental_groups: groups.iter().copied().map(i64::from).collect(),
            }),
        }),
        stop_signal: stop_signal(view.stop_signal).into(),
    }
}

/// The mounts as they were asked for. Of an image the id stands in both places: kubelet keeps an image that a mount names
/// by `image`, and shows its user `image_ref`.
fn mounts(view: &ContainerView) -> Vec<v1::Mount> {
    let mut mounts = view.request.config().mounts.clone();
    let images = mounts.iter_mut().filter_map(|mount| mount.image.as_mut());
    for (image, volume) in images.filter(|image| !image.image.is_empty()).zip(&view.image_volumes) {
        let name = std::mem::replace(&mut image.image, volume.image.to_string());
        if image.user_specified_image.is_empty() {
            image.user_specified_image = name;
        }
        image.image_ref.clone_from(&image.image);
    }
    mounts
}

fn stop_signal(number: i32) -> v1::Signal {
    number.to_string().parse::<StopSignal>().map_or(v1::Signal::RuntimeDefault, StopSignal::to_cri)
}

/// The verbose part of ContainerStatus, with the keys that node agents read.
#[must_use]
pub fn info(view: &ContainerView) -> HashMap<String, String> {
    let body = json!({
        "sandboxID": view.sandbox.as_str(),
        "pid": view.pid.unwrap_or_default(),
        "runtimeType": "oci",
        "snapshotter": "overlay",
        "snapshotKey": view.id.as_str(),
        "cgroupsPath": view.cgroup,
        "privileged": view.request.privileged(),
        "runtimeSpec": read_spec(&view.bundle),
    });
    HashMap::from([("info".to_owned(), text(&body))])
}
