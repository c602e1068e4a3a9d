//! A pod's network as the CNI driver wants it described.

use cni::{Attachment, Bandwidth, Dns, PodNetwork};

use super::error::PodError;
use super::record::SandboxRecord;
use super::shared::Shared;
use super::steps::Steps;

/// Attaches the pod to the node's network; a pod on the host's network has none of its own.
pub(super) async fn attach(
    shared: &Shared,
    steps: &Steps<'_>,
    record: &SandboxRecord,
) -> Result<Option<Attachment>, PodError> {
    if record.netns.is_none() {
        return Ok(None);
    }
    let settings = shared.settings();
    let conf_dir = settings.handler_of_pod(&record.handler)?.rules.cni_conf_dir.clone();
    let pod = PodNetwork { conf_dir, ..describe(record) };
    steps.run("CNI", shared.drivers.network.setup(&pod)).await.map(Some)
}

/// The pod as network plugins are told of it.
pub(super) fn describe(record: &SandboxRecord) -> PodNetwork {
    let request = &record.request;
    let annotations = request.annotations().clone().into_iter().collect();
    PodNetwork {
        sandbox: record.id.clone(),
        name: request.name().to_owned(),
        namespace: request.namespace().to_owned(),
        uid: request.uid().to_owned(),
        netns: record.netns.clone(),
        port_mappings: request.port_mappings(),
        bandwidth: Bandwidth::from_annotations(&annotations).ok().flatten(),
        dns: dns(record),
        cgroup_parent: request.cgroup_parent().unwrap_or_default().to_owned(),
        annotations,
        conf_dir: None,
    }
}

fn dns(record: &SandboxRecord) -> Dns {
    let dns = record.request.dns();
    Dns { servers: dns.servers.to_vec(), searches: dns.searches.to_vec(), options: dns.options.to_vec() }
}
