//! Traces, as a collector gets them: calls are part of their caller's trace, steps are part of their call, and whatever the
//! collector does, pods start.

mod collector;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use e2e::cri::image_service_client::ImageServiceClient;
use e2e::cri::runtime_service_client::RuntimeServiceClient;
use e2e::cri::{
    AuthConfig, CreateContainerRequest, ExecSyncRequest, ImageSpec, PullImageRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest, VersionRequest,
};
use e2e::faulty::{Fault, Faulty, Moment, Program};
use e2e::{ContainerSpec, ImageBuilder, Machine, Media, Node, Options, Result, patience};
use hyper_util::rt::TokioIo;
use tonic::codegen::InterceptedService;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use collector::{Collector, Span};

/// What must never leave the machine.
const SECRET: &str = "hunter2-of-the-test";

/// A trace of the caller's, with one span of its.
struct Caller {
    trace: String,
    span: &'static str,
    is_sampled: bool,
}

impl Caller {
    fn new(number: u8, is_sampled: bool) -> Self {
        Self {
            trace: format!("0af7651916cd43dd8448eb211c8031{number:02x}"),
            span: "b7ad6b7169203331",
            is_sampled,
        }
    }

    fn parent(&self) -> String {
        format!("00-{}-{}-0{}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

/// Adds what kubelet's instrumentation adds.
#[derive(Clone)]
struct Propagator(AsciiMetadataValue);

impl tonic::service::Interceptor for Propagator {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        request.metadata_mut().insert("traceparent", self.0.clone());
        request.metadata_mut().insert("tracestate", AsciiMetadataValue::from_static("e2e=1"));
        Ok(request)
    }
}

struct Client {
    runtime: RuntimeServiceClient<InterceptedService<Channel, Propagator>>,
    images: ImageServiceClient<InterceptedService<Channel, Propagator>>,
}

async fn client(node: &Node, traceparent: &str) -> Result<Client> {
    let path = node.machine().path(&node.socket());
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::try_from("http://localhost")?.connect_with_connector(connector).await?;
    let propagator = Propagator(traceparent.parse()?);
    Ok(Client {
        runtime: RuntimeServiceClient::with_interceptor(channel.clone(), propagator.clone()),
        images: ImageServiceClient::with_interceptor(channel, propagator),
    })
}

fn options(machine: &Arc<Machine>, endpoint: &str) -> Options {
    let config =
        if endpoint.is_empty() { String::new() } else { format!("[tracing]\nendpoint = \"{endpoint}\"\n") };
    Options { machine: Some(Arc::clone(machine)), config, ..Options::default() }
}

/// The names of the spans beneath `parent`, in the order of their beginning, after a look at each.
fn children(parent: &Span, others: &[Span]) -> Vec<String> {
    let mut found: Vec<_> = others.iter().filter(|span| span.parent == parent.id).collect();
    found.sort_by_key(|span| span.begun);
    for span in &found {
        assert!(span.is_within(parent), "{span:?} is not within {parent:?}");
    }
    found.into_iter().map(|span| span.name.clone()).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name:?} in {spans:#?}"))
}

/// Whether these stand in the list in this order; others may stand between them.
fn has_in_order(found: &[String], wanted: &[&str]) -> bool {
    let mut found = found.iter();
    wanted.iter().all(|wanted| found.any(|name| name == wanted))
}

fn is_call(call: &Span, caller: &Caller, service: &str, method: &str) {
    assert_eq!(call.name, format!("runtime.v1.{service}/{method}"));
    assert_eq!(call.parent, caller.span, "{call:?}");
    assert_eq!((call.kind, call.state.as_str()), (2, "e2e=1"), "a server's span with the caller's state");
    for (key, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", &format!("runtime.v1.{service}")),
        ("rpc.method", method),
        ("rpc.grpc.status_code", "0"),
    ] {
        assert_eq!(call.attributes.get(key).map(String::as_str), Some(value), "{key} of {call:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_part_of_their_callers_traces_and_steps_of_their_calls() -> Result {
    let machine = Arc::new(Machine::boot().await?);
    let collector = Collector::start(&machine).await?;
    let (mut node, registry) = Node::start_with_registry(options(&machine, &collector.endpoint)).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let caller = Caller::new(1, true);
    let Client { mut runtime, mut images } = client(&node, &caller.parent()).await?;

    let auth =
        AuthConfig { username: "somebody".to_owned(), password: SECRET.to_owned(), ..Default::default() };
    let spec = ImageSpec { image: pushed.reference.clone(), ..Default::default() };
    let pull = PullImageRequest { image: Some(spec), auth: Some(auth), ..Default::default() };
    let image = images.pull_image(pull).await?.into_inner().image_ref;
    let (call, others) = collector.call(&caller.trace, "PullImage").await?;
    is_call(&call, &caller, "ImageService", "PullImage");
    assert_eq!(call.resource["service.name"], "crimson");
    assert!(call.resource.contains_key("host.name") && call.resource.contains_key("service.version"));
    assert_eq!(children(&call, &others), ["pull image"]);
    let pull = named(&others, "pull image");
    assert_eq!(pull.attributes["image.ref"], pushed.reference);
    assert_eq!(children(pull, &others), ["resolve", "config", "layer", "commit"]);
    let mut parts = children(named(&others, "layer"), &others);
    parts.sort();
    assert_eq!(parts, ["fetch", "unpack"]);

    // What fails says so, beneath a call that fails.
    let spec = ImageSpec { image: format!("{}/none:1", registry.host()), ..Default::default() };
    let failing = Caller::new(2, true);
    let mut failing_client = client(&node, &failing.parent()).await?;
    let pull = PullImageRequest { image: Some(spec), ..Default::default() };
    assert!(failing_client.images.pull_image(pull).await.is_err());
    let (call, others) = collector.call(&failing.trace, "PullImage").await?;
    assert_ne!(call.attributes["rpc.grpc.status_code"], "0");
    assert!(named(&others, "resolve").failure.as_ref().is_some_and(|text| !text.is_empty()), "{others:#?}");

    let pod = node.pod("traced");
    let run = RunPodSandboxRequest { config: Some(pod.config.clone()), ..Default::default() };
    let pod_id = runtime.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
    let (call, others) = collector.call(&caller.trace, "RunPodSandbox").await?;
    is_call(&call, &caller, "RuntimeService", "RunPodSandbox");
    let steps = children(&call, &others);
    let step = |name: &str| format!("run sandbox: {name}");
    let (record, netns, network, publish) = (step("record"), step("netns"), step("CNI"), step("publish"));
    assert!(has_in_order(&steps, &[&record, &step("files"), &netns, &network, &publish]), "{steps:?}");
    assert!(has_in_order(&steps, &[&step("monitor"), &step("pause create"), &step("pause start"), &publish]));
    assert_eq!(steps.first(), Some(&record));
    assert_eq!(steps.last(), Some(&publish));
    assert!(children(named(&others, &network), &others).contains(&"CNI ADD bridge".to_owned()));
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    for (key, value) in [
        ("op", "run sandbox"),
        ("step", "netns"),
        ("pod.id", &pod_id),
        ("k8s.pod.name", "traced"),
        ("k8s.pod.uid", &metadata.uid),
        ("k8s.namespace.name", "e2e"),
    ] {
        assert_eq!(named(&others, &netns).attributes.get(key).map(String::as_str), Some(value), "{key}");
    }

    let container = ContainerSpec::lasting("traced", &image).with_env("PASSWORD", SECRET);
    let log = std::path::Path::new(&pod.config.log_directory).join(&container.config.log_path);
    std::fs::create_dir_all(log.parent().unwrap_or(&log))?;
    let create = CreateContainerRequest {
        pod_sandbox_id: pod_id.clone(),
        config: Some(container.config.clone()),
        sandbox_config: Some(pod.config.clone()),
    };
    let id = runtime.create_container(create).await?.into_inner().container_id;
    let (call, others) = collector.call(&caller.trace, "CreateContainer").await?;
    assert!(has_in_order(
        &children(&call, &others),
        &["create container: record", "create container: image"]
    ));
    let image_step = named(&others, "create container: image");
    assert_eq!((&image_step.attributes["container.id"], &image_step.attributes["pod.id"]), (&id, &pod_id));
    assert_eq!(image_step.attributes["k8s.pod.name"], "traced");

    runtime.start_container(StartContainerRequest { container_id: id.clone() }).await?;
    let (call, others) = collector.call(&caller.trace, "StartContainer").await?;
    let expected = ["start container: OCI create", "start container: OCI start", "start container: publish"];
    let beneath: Vec<_> = others.iter().filter(|span| span.parent == call.id).collect();
    for name in expected {
        let step = beneath.iter().find(|span| span.name == name);
        assert!(step.is_some_and(|step| step.is_within(&call)), "{name} in {beneath:#?}");
    }

    let cmd = ["/bin/sh", "-c", &format!("echo {SECRET}; exit 3")].map(str::to_owned).to_vec();
    runtime.exec_sync(ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 }).await?;
    collector.call(&caller.trace, "ExecSync").await?;
    let cmd = vec![format!("/no/such/{SECRET}"), SECRET.to_owned()];
    drop(runtime.exec_sync(ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 }).await);

    runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await?;
    let (call, others) = collector.call(&caller.trace, "StopContainer").await?;
    assert!(children(&call, &others).iter().any(|name| name.starts_with("stop container: ")), "{others:#?}");
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_id }).await?;
    let (call, others) = collector.call(&caller.trace, "StopPodSandbox").await?;
    assert!(others.iter().any(|span| span.name == "CNI DEL bridge"), "{others:#?}");
    let steps = children(&call, &others);
    assert!(
        has_in_order(&steps, &["stop sandbox: intent", "stop sandbox: network", "stop sandbox: publish"]),
        "{steps:?}"
    );

    // The end delivers what is left.
    node.stop().await?;
    let all = collector.all();
    for span in &all {
        assert!(
            [&caller.trace, &failing.trace].contains(&&span.trace),
            "nobody else has asked for a trace: {span:?}"
        );
        assert!(!span.all.contains(SECRET) && !format!("{:?}", span.resource).contains(SECRET), "{span:?}");
    }
    let log = node.log();
    assert!(!log.contains("rpc.method") && !log.contains("otel."), "spans are in the log:\n{log}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_decision_holds_and_bad_contexts_are_none() -> Result {
    let machine = Arc::new(Machine::boot().await?);
    let collector = Collector::start(&machine).await?;
    let mut node = Node::start(options(&machine, &collector.endpoint)).await?;
    let (quiet, loud) = (Caller::new(1, false), Caller::new(2, true));
    for parent in [quiet.parent(), String::new(), "00-nonsense-01".to_owned(), "x".repeat(4000)] {
        let mut silent = client(&node, &parent).await?.runtime;
        silent.version(VersionRequest::default()).await?;
    }
    let mut silent = client(&node, &quiet.parent()).await?.runtime;
    let pod = node.pod("unsampled");
    let run = RunPodSandboxRequest { config: Some(pod.config.clone()), ..Default::default() };
    silent.run_pod_sandbox(run).await?;
    let mut traced = client(&node, &loud.parent()).await?.runtime;
    traced.version(VersionRequest::default()).await?;
    // It is sent after the others.
    collector.call(&loud.trace, "Version").await?;
    assert!(collector.all().iter().all(|span| span.trace == loud.trace), "{:#?}", collector.all());
    // Without its connection to the collector, which counts as left behind.
    node.stop().await?;
    node.finish().await
}

/// Waits until two callers wait for the one operation that is under way.
async fn two_wait(node: &Node) -> Result {
    let looking = async {
        loop {
            let mut status = node.daemon_command("status --json")?;
            let output = status.arg("--state").arg(node.state()).output().await?;
            let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            if status["tasks"][0]["callers"] == 2 {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(patience(30), looking).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_joins_refers_to_the_call_that_it_joins() -> Result {
    let machine = Arc::new(Machine::boot().await?);
    let collector = Collector::start(&machine).await?;
    let faulty = Faulty::new()?;
    let options = Options { args: faulty.args(), ..options(&machine, &collector.endpoint) };
    let mut node = Node::start(options).await?;
    faulty.wrap_network(&node).await?;
    let (first, second) = (Caller::new(1, true), Caller::new(2, true));
    let mut clients =
        [client(&node, &first.parent()).await?.runtime, client(&node, &second.parent()).await?.runtime];
    let pod = node.pod("joined");
    let run = || RunPodSandboxRequest { config: Some(pod.config.clone()), ..Default::default() };
    let [one, other] = &mut clients;
    // The pod is being made until both have asked for it.
    let stall = faulty.inject(Program::Bridge, "ADD", Moment::Before, Fault::Hang)?;
    let (one, other, joined) =
        tokio::join!(one.run_pod_sandbox(run()), other.run_pod_sandbox(run()), async {
            let joined = two_wait(&node).await;
            stall.lift();
            joined
        });
    joined?;
    assert_eq!(one?.into_inner().pod_sandbox_id, other?.into_inner().pod_sandbox_id);
    let (one, with_one) = collector.call(&first.trace, "RunPodSandbox").await?;
    let (other, with_other) = collector.call(&second.trace, "RunPodSandbox").await?;
    let (joined, joining, nothing) =
        if with_other.is_empty() { (one, other, with_other) } else { (other, one, with_one) };
    assert_eq!(joining.links, [joined.id], "it refers to the other");
    assert!(nothing.is_empty(), "one of them has the steps: {nothing:#?}");
    node.stop().await?;
    node.finish().await
}

/// Neither nobody there nor somebody who never answers is noticed by pods.
#[tokio::test(flavor = "multi_thread")]
async fn pods_start_whatever_the_collector_does() -> Result {
    let machine = Arc::new(Machine::boot().await?);
    let silent = collector::silent(&machine).await?;
    let dead = collector::silent(&machine).await?.local_addr()?.to_string();
    for endpoint in [silent.local_addr()?.to_string(), dead] {
        let mut node = Node::start(options(&machine, &endpoint)).await?;
        let mut traced = client(&node, &Caller::new(1, true).parent()).await?.runtime;
        for name in ["one", "two"] {
            let config = Some(node.pod(name).config);
            let run = RunPodSandboxRequest { config, ..Default::default() };
            let id = traced.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
            traced.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id }).await?;
        }
        // Its end is that of a server with a collector, a moment later.
        assert!(node.stop().await?.success());
        let log = node.log();
        assert!(
            log.contains("spans were lost") || log.contains("did not take the last spans"),
            "nobody tells of the loss:\n{log}"
        );
        node.finish().await?;
    }
    Ok(())
}

/// Not even where the environment has an endpoint, which the library would go by.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_nothing_is_sent() -> Result {
    let machine = Arc::new(Machine::boot().await?);
    let listener: TcpListener = collector::silent(&machine).await?;
    listener.set_nonblocking(true)?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let names = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    let env = names.map(|name| (name.to_owned(), endpoint.clone())).to_vec();
    let mut node = Node::start(Options { env, ..options(&machine, "") }).await?;
    let mut traced = client(&node, &Caller::new(1, true).parent()).await?.runtime;
    let run = RunPodSandboxRequest { config: Some(node.pod("off").config), ..Default::default() };
    traced.run_pod_sandbox(run).await?;
    assert!(node.stop().await?.success());
    let connected = listener.accept().map(|(_, from)| from);
    assert!(connected.is_err(), "{connected:?} has connected");
    node.finish().await
}
