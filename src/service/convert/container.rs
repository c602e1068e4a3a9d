//! Containers on the wire.

use std::collections::HashMap;

use cri_api::v1;
use serde_json::json;
use spec::{NodeFacts, StopSignal};

use super::sandbox::read_spec;
use super::{json as text, selects};
use crate::pod::view::{ContainerState, ContainerView};

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

/// Whether a filter lets the container through; ids may be prefixes.
#[must_use]
pub fn passes(view: &ContainerView, filter: Option<&v1::ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    view.id.as_str().starts_with(&filter.id)
        && view.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(state(view.state)))
        && selects(&filter.label_selector, view.request.labels())
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
        mounts: config.mounts.clone(),
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
