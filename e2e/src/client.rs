//! The CRI client: thin wrappers that turn one call into one line of a test and remember the ids they were given.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use prost::Message;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};

use crate::streaming::Streams;
use crate::{ContainerSpec, PodSpec, Result};

/// What a call gives: the server's refusals are what tests look at.
pub(crate) type Reply<T> = std::result::Result<T, Status>;

/// After how long an unanswered call is given up.
const CALL_LIMIT_SECONDS: u64 = 45;

/// The largest message that is taken, in bytes: the kubelet's limit.
const LARGEST: usize = 16 << 20;

/// A connection to a CRI server.
#[derive(Debug, Clone)]
pub struct Cri {
    channel: Channel,
    seen: Arc<Mutex<BTreeSet<String>>>,
}

/// The code of a refused call; a call that was not refused is `Ok`.
pub fn code_of<T>(reply: &Reply<T>) -> Code {
    reply.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

/// The beginning of an id, as people type it.
#[must_use]
pub fn prefix_of(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Wraps one method of a generated client: clone the client, send, unwrap the envelope.
macro_rules! methods {
    ($($(#[$doc:meta])* $service:ident . $method:ident ($request:ty) -> $response:ty;)*) => {
        $($(#[$doc])* pub async fn $method(&self, request: $request) -> Reply<$response> {
            self.$service().$method(request).await.map(tonic::Response::into_inner)
        })*
    };
}

impl Cri {
    /// Connects to a unix socket. No call of a test takes long: one that hangs becomes an error with the daemon's log beside it.
    pub async fn connect(socket: &Path) -> Result<Self> {
        Self::connect_for(socket, crate::patience(CALL_LIMIT_SECONDS)).await
    }

    /// The same with another limit for each call.
    pub async fn connect_for(socket: &Path, limit: std::time::Duration) -> Result<Self> {
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::try_from("http://localhost")?.timeout(limit);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self { channel, seen: Arc::default() })
    }

    /// The ids this connection (and its clones) has been given, and any added by [`Cri::remember`].
    #[must_use]
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Adds an id to those whose traces must be gone in the end.
    pub(crate) fn remember(&self, id: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    methods! {
        /// RuntimeService.Version
        runtime.version(VersionRequest) -> VersionResponse;
        /// RuntimeService.RunPodSandbox
        runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        /// RuntimeService.StopPodSandbox
        runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        /// RuntimeService.RemovePodSandbox
        runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        /// RuntimeService.PodSandboxStatus
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        /// RuntimeService.ListPodSandbox
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        /// RuntimeService.CreateContainer
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
        /// RuntimeService.StartContainer
        runtime.start_container(StartContainerRequest) -> StartContainerResponse;
        /// RuntimeService.StopContainer
        runtime.stop_container(StopContainerRequest) -> StopContainerResponse;
        /// RuntimeService.RemoveContainer
        runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        /// RuntimeService.UpdateContainerResources
        runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        /// RuntimeService.ListContainers
        runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
        /// RuntimeService.ContainerStatus
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        /// RuntimeService.ContainerStats
        runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        /// RuntimeService.ListContainerStats
        runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        /// RuntimeService.PodSandboxStats
        runtime.pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        /// RuntimeService.ListPodSandboxStats
        runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        /// RuntimeService.ReopenContainerLog
        runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        /// RuntimeService.ExecSync
        runtime.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        /// RuntimeService.Status
        runtime.status(StatusRequest) -> StatusResponse;
        /// RuntimeService.UpdateRuntimeConfig
        runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        /// RuntimeService.RuntimeConfig
        runtime.runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        /// ImageService.ListImages
        images.list_images(ListImagesRequest) -> ListImagesResponse;
        /// ImageService.ImageStatus
        images.image_status(ImageStatusRequest) -> ImageStatusResponse;
        /// ImageService.PullImage
        images.pull_image(PullImageRequest) -> PullImageResponse;
        /// ImageService.RemoveImage
        images.remove_image(RemoveImageRequest) -> RemoveImageResponse;
        /// ImageService.ImageFsInfo
        images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    /// Calls a method by name with a message of any type and reads the answer as another: for methods newer than the
    /// client crate. `()` is the empty message.
    pub async fn call<Q, R>(&self, service: &str, method: &str, request: Q) -> Reply<R>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/runtime.v1.{service}/{method}");
        let path = path.parse().map_err(|_| Status::internal(format!("{path} is no path")))?;
        let codec = tonic_prost::ProstCodec::<Q, R>::default();
        grpc.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
    }

    /// Like [`Cri::call`] for a method that answers with a stream: the first message, if any.
    pub async fn call_stream<Q, R>(&self, service: &str, method: &str, request: Q) -> Reply<Option<R>>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        self.stream(service, method, request).await?.message().await
    }

    /// Like [`Cri::call_stream`]: the messages as they come. The stream ends when it is dropped.
    pub async fn stream<Q, R>(&self, service: &str, method: &str, request: Q) -> Reply<Streaming<R>>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/runtime.v1.{service}/{method}");
        let path = path.parse().map_err(|_| Status::internal(format!("{path} is no path")))?;
        let codec = tonic_prost::ProstCodec::<Q, R>::default();
        let reply = grpc.server_streaming(tonic::Request::new(request), path, codec).await?;
        Ok(reply.into_inner())
    }

    /// Pulls an image without credentials; gives its id.
    pub async fn pull(&self, reference: &str) -> Reply<String> {
        let request = PullImageRequest { image: Some(image_spec(reference)), ..Default::default() };
        self.pull_image(request).await.map(|it| it.image_ref)
    }

    /// Pulls an image as a user.
    pub async fn pull_as(&self, reference: &str, user: &str, password: &str) -> Reply<String> {
        let auth =
            AuthConfig { username: user.to_owned(), password: password.to_owned(), ..Default::default() };
        let request =
            PullImageRequest { image: Some(image_spec(reference)), auth: Some(auth), ..Default::default() };
        self.pull_image(request).await.map(|it| it.image_ref)
    }

    /// The image of that name or id, if it is there.
    pub async fn image(&self, reference: &str) -> Reply<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        self.image_status(request).await.map(|it| it.image)
    }

    /// All images.
    pub async fn all_images(&self) -> Reply<Vec<Image>> {
        self.list_images(ListImagesRequest::default()).await.map(|it| it.images)
    }

    /// Removes an image.
    pub async fn forget_image(&self, reference: &str) -> Reply<()> {
        self.remove_image(RemoveImageRequest { image: Some(image_spec(reference)) }).await.map(drop)
    }

    /// Runs a pod; gives its id.
    pub async fn run_pod(&self, pod: &PodSpec) -> Reply<String> {
        let request =
            RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: pod.handler.clone() };
        let id = self.run_pod_sandbox(request).await?.pod_sandbox_id;
        self.remember(&id);
        Ok(id)
    }

    /// The status of a pod.
    pub async fn pod(&self, id: &str) -> Reply<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.pod_sandbox_status(request)
            .await?
            .status
            .ok_or_else(|| Status::internal("an answer without status"))
    }

    /// The first address of a pod.
    pub async fn pod_ip(&self, id: &str) -> Reply<String> {
        Ok(self.pod(id).await?.network.unwrap_or_default().ip)
    }

    /// All pods.
    pub async fn all_pods(&self) -> Reply<Vec<PodSandbox>> {
        self.list_pod_sandbox(ListPodSandboxRequest::default()).await.map(|it| it.items)
    }

    /// Stops a pod.
    pub async fn stop_pod(&self, id: &str) -> Reply<()> {
        self.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await.map(drop)
    }

    /// Removes a pod.
    pub async fn remove_pod(&self, id: &str) -> Reply<()> {
        self.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await.map(drop)
    }

    /// Creates a container; gives its id. The directory of its log is made first, as the kubelet does.
    pub async fn create(&self, pod_id: &str, container: &ContainerSpec, pod: &PodSpec) -> Reply<String> {
        let log = Path::new(&pod.config.log_directory).join(&container.config.log_path);
        std::fs::create_dir_all(log.parent().unwrap_or(&log))?;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(container.config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = self.create_container(request).await?.container_id;
        self.remember(&id);
        Ok(id)
    }

    /// Starts a container.
    pub async fn start(&self, id: &str) -> Reply<()> {
        self.start_container(StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
    }

    /// Creates and starts a container.
    pub async fn run(&self, pod_id: &str, container: &ContainerSpec, pod: &PodSpec) -> Reply<String> {
        let id = self.create(pod_id, container, pod).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// The status of a container.
    pub async fn container(&self, id: &str) -> Reply<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.container_status(request)
            .await?
            .status
            .ok_or_else(|| Status::internal("an answer without status"))
    }

    /// The first process of a running container, as the host numbers it.
    pub async fn container_pid(&self, id: &str) -> Result<u32> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info = self.container_status(request).await?.info;
        pid_in(&info).with_context(|| format!("container {id} has no process: {info:?}"))
    }

    /// The pause process of a pod, as the host numbers it.
    pub async fn pause_pid(&self, id: &str) -> Result<u32> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let info = self.pod_sandbox_status(request).await?.info;
        pid_in(&info).with_context(|| format!("pod {id} has no process: {info:?}"))
    }

    /// All containers.
    pub async fn all_containers(&self) -> Reply<Vec<Container>> {
        self.list_containers(ListContainersRequest::default()).await.map(|it| it.containers)
    }

    /// Stops a container with a grace in seconds.
    pub async fn stop(&self, id: &str, grace: i64) -> Reply<()> {
        self.stop_container(StopContainerRequest { container_id: id.to_owned(), timeout: grace })
            .await
            .map(drop)
    }

    /// Removes a container.
    pub async fn remove(&self, id: &str) -> Reply<()> {
        self.remove_container(RemoveContainerRequest { container_id: id.to_owned() }).await.map(drop)
    }

    /// Runs a command in a container with no time limit.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Reply<ExecSyncResponse> {
        self.exec_for(id, command, 0).await
    }

    /// Runs a command in a container for at most some seconds.
    pub async fn exec_for(&self, id: &str, command: &[&str], seconds: i64) -> Reply<ExecSyncResponse> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        self.exec_sync(ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: seconds }).await
    }

    /// Where to run a command with streams.
    pub async fn exec_url(&self, id: &str, command: &[&str], streams: Streams) -> Reply<String> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = ExecRequest { container_id: id.to_owned(), cmd, tty, stdin, stdout, stderr };
        Ok(self.runtime().exec(request).await?.into_inner().url)
    }

    /// Where to attach to a container.
    pub async fn attach_url(&self, id: &str, streams: Streams) -> Reply<String> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let request = AttachRequest { container_id: id.to_owned(), stdin, tty, stdout, stderr };
        Ok(self.runtime().attach(request).await?.into_inner().url)
    }

    /// Where to forward ports of a pod.
    pub async fn forward_url(&self, pod_id: &str, ports: &[u16]) -> Reply<String> {
        let port = ports.iter().map(|port| i32::from(*port)).collect();
        let request = PortForwardRequest { pod_sandbox_id: pod_id.to_owned(), port };
        Ok(self.runtime().port_forward(request).await?.into_inner().url)
    }

    /// What a shell line prints inside a container; a line that fails is an error.
    pub async fn shell(&self, id: &str, line: &str) -> Result<String> {
        let output = self.exec(id, &["sh", "-c", line]).await?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.exit_code == 0, "`{line}` ended with {}: {stdout}{stderr}", output.exit_code);
        Ok(stdout.trim_end().to_owned())
    }
}

/// The process id in what a verbose status tells.
fn pid_in(info: &HashMap<String, String>) -> Option<u32> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    u32::try_from(info["pid"].as_u64()?).ok().filter(|pid| *pid > 0)
}

/// An image reference as CRI carries it.
pub(crate) fn image_spec(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.to_owned(), ..Default::default() }
}
