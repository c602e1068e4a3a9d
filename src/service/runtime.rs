//! RuntimeService.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use cri_api::v1;
use cri_api::v1::runtime_service_server::RuntimeService;
use rustix::fs::StatVfsMountFlags;
use serde_json::json;
use spec::resources::SandboxResources;
use spec::{ContainerRequest, ResourcesUpdate, SandboxRequest};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::convert::{container, json as text, sandbox};
use super::status::{missing, status, unimplemented};
use super::{Parts, Readiness};

/// The name in `crimson://<container id>`; never changes.
const RUNTIME_NAME: &str = "crimson";
/// The version of the kubelet-runtime contract, which kubelet compares to the letter.
const KUBELET_API_VERSION: &str = "0.1.0";
/// The version of the CRI package.
const RUNTIME_API_VERSION: &str = "v1";

type Reply<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
                user_namespaces: false,
            };
            if handler.name == settings.default_handler {
                handlers.push(v1::RuntimeHandler { name: String::new(), features: Some(features) });
            }
            handlers.push(v1::RuntimeHandler { name: handler.name.clone(), features: Some(features) });
        }
        handlers
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
                user_namespaces_host_network: false,
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
        let (view, pod) =
            self.parts.pods.sandbox(&request.pod_sandbox_id).map_err(|error| status(&*error))?;
        let bundle = self.parts.pods.layout().bundle(view.id.as_str());
        let info = if request.verbose { sandbox::info(&view, &bundle) } else { HashMap::new() };
        let facts = &self.parts.pods.settings().facts;
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(sandbox::status(&view)),
            info,
            containers_statuses: pod.containers.iter().map(|view| container::status(view, facts)).collect(),
            timestamp: types::Timestamp::now().0,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        self.recovered().await?;
        let filter = request.into_inner().filter;
        let pods = self.parts.pods.list();
        let views = pods.iter().filter_map(|pod| pod.sandbox.as_ref());
        let items =
            views.filter(|view| sandbox::passes(view, filter.as_ref())).map(|view| sandbox::item(view));
        Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
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
        let items =
            views.filter(|view| container::passes(view, filter.as_ref())).map(|view| container::item(view));
        Ok(Response::new(v1::ListContainersResponse { containers: items.collect() }))
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
        _: Request<v1::StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        unimplemented("StreamPodSandboxes")
    }

    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        _: Request<v1::StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        unimplemented("StreamContainers")
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

    async fn exec(&self, _: Request<v1::ExecRequest>) -> Reply<v1::ExecResponse> {
        unimplemented("Exec")
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        unimplemented("Attach")
    }

    async fn port_forward(&self, _: Request<v1::PortForwardRequest>) -> Reply<v1::PortForwardResponse> {
        unimplemented("PortForward")
    }

    async fn container_stats(
        &self,
        _: Request<v1::ContainerStatsRequest>,
    ) -> Reply<v1::ContainerStatsResponse> {
        unimplemented("ContainerStats")
    }

    async fn list_container_stats(
        &self,
        _: Request<v1::ListContainerStatsRequest>,
    ) -> Reply<v1::ListContainerStatsResponse> {
        unimplemented("ListContainerStats")
    }

    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        unimplemented("StreamContainerStats")
    }

    async fn pod_sandbox_stats(
        &self,
        _: Request<v1::PodSandboxStatsRequest>,
    ) -> Reply<v1::PodSandboxStatsResponse> {
        unimplemented("PodSandboxStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        unimplemented("ListPodSandboxStats")
    }

    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        unimplemented("StreamPodSandboxStats")
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
        unimplemented("GetContainerEvents")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Reply<v1::ListMetricDescriptorsResponse> {
        unimplemented("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Reply<v1::ListPodSandboxMetricsResponse> {
        unimplemented("ListPodSandboxMetrics")
    }

    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        unimplemented("StreamPodSandboxMetrics")
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
