//! RuntimeService.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1;
use cri_api::v1::runtime_service_server::RuntimeService;
use rustix::fs::StatVfsMountFlags;
use serde_json::json;
use spec::resources::SandboxResources;
use spec::{ContainerRequest, ResourcesUpdate, SandboxRequest};
use tonic::{Request, Response, Status};

use super::chunks::{Streamed, chunked};
use super::convert::{container, json as text, sandbox, stats};
use super::events::Events;
use super::status::{missing, status, unimplemented};
use super::{Parts, Readiness, cri_metrics, streams};
use crate::pod::view::{ContainerView, PodView, SandboxState, SandboxView};

/// The name in `crimson://<container id>`; never changes.
const RUNTIME_NAME: &str = "crimson";
/// The version of the kubelet-runtime contract, which kubelet compares to the letter.
const KUBELET_API_VERSION: &str = "0.1.0";
/// The version of the CRI package.
const RUNTIME_API_VERSION: &str = "v1";

type Reply<T> = Result<Response<T>, Status>;

/// RuntimeService on the pods.
#[derive(Debug)]
pub struct RuntimeEdge {
    parts: Parts,
}

impl RuntimeEdge {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// Lists and verbs wait until the records are true: the first answer is right.
    async fn recovered(&self) -> Result<(), Status> {
        let mut readiness = self.parts.readiness.clone();
        match readiness.wait_for(|readiness| *readiness == Readiness::Ready).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::unavailable("the server is shutting down")),
        }
    }

    /// Conditions from what is really so.
    fn conditions(&self) -> Vec<v1::RuntimeCondition> {
        let network = self.parts.pods.drivers().network.status();
        vec![
            self.runtime_ready(),
            v1::RuntimeCondition {
                r#type: "NetworkReady".to_owned(),
                status: network.ready,
                reason: network.reason,
                message: network.message,
            },
        ]
    }

    fn runtime_ready(&self) -> v1::RuntimeCondition {
        let (reason, message) = match self.parts.pods.settings().handler("") {
            _ if *self.parts.readiness.borrow() == Readiness::Recovering => {
                ("Recovering", "pods of an earlier run are being brought back".to_owned())
            }
            Err(error) => ("NoRuntime", types::error::chain(&error)),
            Ok(_) => match self.store_trouble() {
                Some(trouble) => ("StoreNotWritable", trouble),
                None => ("", String::new()),
            },
        };
        v1::RuntimeCondition {
            r#type: "RuntimeReady".to_owned(),
            status: reason.is_empty(),
            reason: reason.to_owned(),
            message,
        }
    }

    /// Why records could not be written now, if so. A full disk is no reason: everything that frees space goes on.
    fn store_trouble(&self) -> Option<String> {
        let root = self.parts.pods.layout().root();
        match rustix::fs::statvfs(root) {
            Ok(stat) if stat.f_flag.contains(StatVfsMountFlags::RDONLY) => {
                Some(format!("{} is mounted read-only", root.display()))
            }
            Ok(_) => None,
            Err(error) => Some(format!("{}: {error}", root.display())),
        }
    }

    /// Every usable handler by its name, and the default once more as "".
    fn handlers(&self) -> Vec<v1::RuntimeHandler> {
        let settings = self.parts.pods.settings();
        let usable = settings.handlers.values().filter(|handler| handler.broken.is_none());
        let mut handlers = Vec::new();
        for handler in usable {
            let features = v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only,
                user_namespaces: handler.user_namespaces,
            };
            if handler.name == settings.default_handler {
                handlers.push(v1::RuntimeHandler { name: String::new(), features: Some(features) });
            }
            handlers.push(v1::RuntimeHandler { name: handler.name.clone(), features: Some(features) });
        }
        handlers
    }

    /// Whether some handler can give a pod a user namespace; then it can have the node's network as well.
    fn has_user_namespaces(&self) -> bool {
        self.parts.pods.settings().handlers.values().any(|it| it.broken.is_none() && it.user_namespaces)
    }

    fn verbose_status(&self) -> HashMap<String, String> {
        let network = self.parts.pods.drivers().network.status();
        let load = if network.ready { "OK".to_owned() } else { network.message };
        HashMap::from([
            ("config".to_owned(), text(&**self.parts.config.borrow())),
            ("cniconfig".to_owned(), text(&self.parts.pods.drivers().network.describe())),
            ("lastCNILoadStatus".to_owned(), text(&load)),
            ("crimson".to_owned(), text(&json!({ "version": env!("CARGO_PKG_VERSION") }))),
        ])
    }
}

/// Lists, which come whole or in chunks.
impl RuntimeEdge {
    async fn sandboxes_by(
        &self,
        filter: Option<v1::PodSandboxFilter>,
    ) -> Result<Vec<v1::PodSandbox>, Status> {
        self.recovered().await?;
        let pods = self.parts.pods.list();
        let views = pods.iter().filter_map(|pod| pod.sandbox.as_ref());
        let passing = views.filter(|view| sandbox::passes(view, filter.as_ref()));
        Ok(passing.map(|view| sandbox::item(view)).collect())
    }

    async fn containers_by(&self, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>, Status> {
        self.recovered().await?;
        let pods = self.parts.pods.list();
        let views = pods.iter().flat_map(|pod| &pod.containers);
        let passing = views.filter(|view| container::passes(view, filter.as_ref()));
        Ok(passing.map(|view| container::item(view)).collect())
    }

    async fn container_stats_by(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        self.recovered().await?;
        let pods = self.parts.pods.list();
        let views = pods.iter().flat_map(|pod| &pod.containers);
        let wanted = views.filter(|view| stats::container_passes(view, filter.as_ref())).cloned().collect();
        let mut found = self.stats_of(wanted).await;
        // Without figures it has ended since the list was made.
        found.retain(|stats| stats.cpu.is_some());
        Ok(found)
    }

    async fn sandbox_stats_by(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        self.recovered().await?;
        let mut pods = self.parts.pods.list();
        let passes = |view: &SandboxView| {
            view.state == SandboxState::Ready && stats::sandbox_passes(view, filter.as_ref())
        };
        pods.retain(|pod| pod.sandbox.as_deref().is_some_and(passes));
        Ok(self.stats_of_sandboxes(pods).await)
    }

    async fn stats_of(&self, containers: Vec<Arc<ContainerView>>) -> Vec<v1::ContainerStats> {
        let layers = self.parts.meter.layers().display().to_string();
        let found = self.parts.meter.containers(containers).await;
        found.iter().map(|found| stats::container(found, &layers)).collect()
    }

    async fn stats_of_sandboxes(&self, pods: Vec<Arc<PodView>>) -> Vec<v1::PodSandboxStats> {
        let layers = self.parts.meter.layers().display().to_string();
        let found = self.parts.meter.sandboxes(pods).await;
        found.iter().map(|found| stats::sandbox(found, &layers)).collect()
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeEdge {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Reply<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: RUNTIME_API_VERSION.to_owned(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        let info = if request.into_inner().verbose { self.verbose_status() } else { HashMap::new() };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: self.conditions() }),
            info,
            runtime_handlers: self.handlers(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: self.has_user_namespaces(),
            }),
        }))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Reply<v1::RuntimeConfigResponse> {
        let driver = match self.parts.pods.drivers().cgroups.kind() {
            cgroup::DriverKind::Systemd => v1::CgroupDriver::Systemd,
            cgroup::DriverKind::Cgroupfs => v1::CgroupDriver::Cgroupfs,
        };
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.unwrap_or_default();
        let pod_cidr = config.network_config.unwrap_or_default().pod_cidr;
        // Network plugins have their own configuration; nothing here is rendered from the node's range.
        tracing::info!(pod_cidr, "kubelet told the node's pod range");
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Reply<v1::RunPodSandboxResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("config"))?;
        let parsed =
            SandboxRequest::parse(config, request.runtime_handler).map_err(|error| status(&error))?;
        let id = self.parts.pods.run_sandbox(parsed).await.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Reply<v1::StopPodSandboxResponse> {
        self.recovered().await?;
        let id = request.into_inner().pod_sandbox_id;
        self.parts.pods.stop_sandbox(&id).await.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Reply<v1::RemovePodSandboxResponse> {
        self.recovered().await?;
        let id = request.into_inner().pod_sandbox_id;
        self.parts.pods.remove_sandbox(&id).await.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Reply<v1::PodSandboxStatusResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let found = self.parts.pods.sandbox_at(&request.pod_sandbox_id);
        let (time, view, pod) = found.map_err(|error| status(&*error))?;
        let bundle = self.parts.pods.layout().bundle(view.id.as_str());
        let info = if request.verbose { sandbox::info(&view, &bundle) } else { HashMap::new() };
        let facts = &self.parts.pods.settings().facts;
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(sandbox::status(&view)),
            info,
            containers_statuses: container::statuses(&pod, facts),
            timestamp: time.0,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        let items = self.sandboxes_by(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Reply<v1::CreateContainerResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("config"))?;
        let parsed = ContainerRequest::parse(config).map_err(|error| status(&error))?;
        let created = self.parts.pods.create_container(&request.pod_sandbox_id, parsed).await;
        let id = created.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Reply<v1::StartContainerResponse> {
        self.recovered().await?;
        let id = request.into_inner().container_id;
        self.parts.pods.start_container(&id).await.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Reply<v1::StopContainerResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let stopped = self.parts.pods.stop_container(&request.container_id, grace).await;
        stopped.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Reply<v1::RemoveContainerResponse> {
        self.recovered().await?;
        let id = request.into_inner().container_id;
        self.parts.pods.remove_container(&id).await.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Reply<v1::ListContainersResponse> {
        self.recovered().await?;
        let filter = request.into_inner().filter;
        let pods = self.parts.pods.list();
        let views = pods.iter().flat_map(|pod| &pod.containers);
        let passing = views.filter(|view| container::passes(view, filter.as_ref()));
        let entries: Vec<&[u8]> = passing.map(|view| container::entry(view)).collect();
        let encoded = entries.concat();
        Ok(Response::new(v1::ListContainersResponse { containers: Vec::new(), encoded }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Reply<v1::ContainerStatusResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let view = self.parts.pods.container(&request.container_id).map_err(|error| status(&*error))?;
        let info = if request.verbose { container::info(&view) } else { HashMap::new() };
        let status = container::status(&view, &self.parts.pods.settings().facts);
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(status), info }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        self.recovered().await?;
        let id = request.into_inner().container_id;
        self.parts.pods.reopen_log(&id).await.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Reply<v1::ExecSyncResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let limit =
            u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let ran = self.parts.pods.exec_sync(&request.container_id, request.cmd, limit).await;
        let output = ran.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        }))
    }

    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let items = self.sandboxes_by(request.into_inner().filter).await?;
        Ok(chunked(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let items = self.containers_by(request.into_inner().filter).await?;
        Ok(chunked(items, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let limits = request.linux.ok_or_else(|| missing("linux"))?;
        let update = ResourcesUpdate::parse(limits).map_err(|error| status(&error))?;
        let updated = self.parts.pods.update_container(&request.container_id, update).await;
        updated.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Reply<v1::ExecResponse> {
        self.recovered().await?;
        let url = streams::exec(&self.parts, request.into_inner()).await?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        self.recovered().await?;
        let url = streams::attach(&self.parts, request.into_inner()).await?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Reply<v1::PortForwardResponse> {
        self.recovered().await?;
        let url = streams::port_forward(&self.parts, request.into_inner())?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Reply<v1::ContainerStatsResponse> {
        self.recovered().await?;
        let id = request.into_inner().container_id;
        let view = self.parts.pods.container(&id).map_err(|error| status(&*error))?;
        let stats = self.stats_of(vec![view]).await.pop();
        Ok(Response::new(v1::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Reply<v1::ListContainerStatsResponse> {
        let stats = self.container_stats_by(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let stats = self.container_stats_by(request.into_inner().filter).await?;
        Ok(chunked(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Reply<v1::PodSandboxStatsResponse> {
        self.recovered().await?;
        let id = request.into_inner().pod_sandbox_id;
        let (_, pod) = self.parts.pods.sandbox(&id).map_err(|error| status(&*error))?;
        let stats = self.stats_of_sandboxes(vec![pod]).await.pop();
        Ok(Response::new(v1::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        let stats = self.sandbox_stats_by(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let stats = self.sandbox_stats_by(request.into_inner().filter).await?;
        Ok(chunked(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Reply<v1::CheckpointContainerResponse> {
        unimplemented("CheckpointContainer")
    }

    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        self.recovered().await?;
        Ok(Response::new(Box::pin(Events::subscribe(&self.parts.pods))))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Reply<v1::ListMetricDescriptorsResponse> {
        let descriptors = cri_metrics::descriptors();
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Reply<v1::ListPodSandboxMetricsResponse> {
        self.recovered().await?;
        let pod_metrics = cri_metrics::list(&self.parts).await;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        self.recovered().await?;
        let metrics = cri_metrics::list(&self.parts).await;
        Ok(chunked(metrics, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Reply<v1::UpdatePodSandboxResourcesResponse> {
        self.recovered().await?;
        let request = request.into_inner();
        let resources =
            SandboxResources::parse(request.overhead, request.resources).map_err(|error| status(&error))?;
        let updated = self.parts.pods.update_sandbox(&request.pod_sandbox_id, resources).await;
        updated.map_err(|error| status(&*error))?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }
}
