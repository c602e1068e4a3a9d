//! GetContainerEvents against the real daemon: who listens knows what lists say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::cri::runtime_service_client::RuntimeServiceClient;
use e2e::cri::*;
use e2e::{
    ContainerSpec, Cri, ImageBuilder, Media, Node, Options, PodSpec, Result, Stage, code_of, patience,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};

const CREATED: ContainerEventType = ContainerEventType::ContainerCreatedEvent;
const STARTED: ContainerEventType = ContainerEventType::ContainerStartedEvent;
const STOPPED: ContainerEventType = ContainerEventType::ContainerStoppedEvent;
const DELETED: ContainerEventType = ContainerEventType::ContainerDeletedEvent;

/// Events that wait for one client at most.
const QUEUE: usize = 1024;

/// What lists say: sandboxes with their states, containers with theirs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing {
    pods: BTreeMap<String, i32>,
    containers: BTreeMap<String, i32>,
}

impl Listing {
    async fn of(cri: &Cri) -> Result<Self> {
        let pods = cri.all_pods().await?.into_iter().map(|it| (it.id, it.state)).collect();
        let containers = cri.all_containers().await?.into_iter().map(|it| (it.id, it.state)).collect();
        Ok(Self { pods, containers })
    }
}

/// A client that knows pods by events alone.
struct Listener {
    stream: Streaming<ContainerEventResponse>,
    known: Listing,
    latest: i64,
    heard: usize,
}

impl Listener {
    async fn new(cri: &Cri) -> Result<Self> {
        let stream = cri.stream("RuntimeService", "GetContainerEvents", GetEventsRequest {}).await?;
        Ok(Self { stream, known: Listing::of(cri).await?, latest: 0, heard: 0 })
    }

    /// The next event.
    async fn hear(&mut self) -> Result<ContainerEventResponse> {
        let next = tokio::time::timeout(patience(30), self.stream.message()).await??;
        let event = next.ok_or_else(|| anyhow::anyhow!("the stream has ended without a reason"))?;
        self.note(&event);
        Ok(event)
    }

    async fn hear_all(&mut self, count: usize) -> Result<Vec<ContainerEventResponse>> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.hear().await?);
        }
        Ok(events)
    }

    /// Hears until it knows what lists say.
    async fn agree(&mut self, cri: &Cri) -> Result {
        let listed = Listing::of(cri).await?;
        while self.known != listed {
            let heard = self.hear().await;
            anyhow::ensure!(heard.is_ok(), "{:?} is told, {listed:?} is listed: {heard:?}", self.known);
        }
        Ok(())
    }

    fn note(&mut self, event: &ContainerEventResponse) {
        self.heard += 1;
        assert!(event.created_at > self.latest, "{event:?} after {}", self.latest);
        self.latest = event.created_at;
        let pod = event.pod_sandbox_status.as_ref().expect("an event without its pod");
        assert!(pod.metadata.as_ref().is_some_and(|it| !it.uid.is_empty()), "kubelet drops {event:?}");
        self.known.pods.insert(pod.id.clone(), pod.state);
        for container in &event.containers_statuses {
            self.known.containers.insert(container.id.clone(), container.state);
        }
        if event.container_event_type() == DELETED {
            self.known.pods.remove(&event.container_id);
            self.known.containers.remove(&event.container_id);
        }
    }
}

fn told(events: &[ContainerEventResponse]) -> Vec<(&str, ContainerEventType)> {
    events.iter().map(|event| (event.container_id.as_str(), event.container_event_type())).collect()
}

fn status_in<'a>(event: &'a ContainerEventResponse, id: &str) -> &'a ContainerStatus {
    event.containers_statuses.iter().find(|it| it.id == id).expect("the container is in its event")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_told_in_order_with_the_pod_as_it_was() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut listener = Listener::new(&cri).await?;
    // The first who comes hears of the stage's own pod as well.
    listener.hear_all(2).await?;
    let pod = stage.node.pod("told");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("app", &stage.image), &pod).await?;
    let pid = cri.container_pid(&id).await?;
    stage.node.machine().output("sh", &["-c", &format!("kill -9 {pid}")]).await?;
    stage.node.exited(&id).await?;
    let before = cri.container(&id).await?;
    cri.remove(&id).await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;

    let events = listener.hear_all(8).await?;
    let (pod_id, id) = (pod_id.as_str(), id.as_str());
    let expected = [
        (pod_id, CREATED),
        (pod_id, STARTED),
        (id, CREATED),
        (id, STARTED),
        (id, STOPPED),
        (id, DELETED),
        (pod_id, STOPPED),
        (pod_id, DELETED),
    ];
    assert_eq!(told(&events), expected);
    let states: Vec<_> = events[2..5].iter().map(|event| status_in(event, id).state()).collect();
    let all =
        [ContainerState::ContainerCreated, ContainerState::ContainerRunning, ContainerState::ContainerExited];
    assert_eq!(states, all);
    assert_eq!(*status_in(&events[4], id), before, "the whole status, as it is read later");
    assert_eq!((before.exit_code, before.reason.as_str()), (137, "Error"));
    for (n, event) in events.iter().enumerate() {
        let pod = event.pod_sandbox_status.as_ref().expect("its pod");
        let ready = pod.state() == PodSandboxState::SandboxReady;
        assert_eq!((pod.id.as_str(), ready), (pod_id, n < 6), "{event:?}");
        assert_eq!(!pod.network.clone().unwrap_or_default().ip.is_empty(), n < 6);
        assert_eq!(event.containers_statuses.len(), usize::from((2..5).contains(&n)));
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_has_its_containers_and_a_time_between_the_events() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let ids = |of: &[ContainerStatus]| of.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
    let mut listener = Listener::new(&cri).await?;
    let id = stage.run(&stage.shell("hungry", "x=0123456789abcdef; while :; do x=$x$x; done")).await?;
    stage.node.exited(&id).await?;
    let request = PodSandboxStatusRequest { pod_sandbox_id: stage.pod_id.clone(), verbose: false };
    let first = cri.pod_sandbox_status(request.clone()).await?;
    let events = listener.hear_all(5).await?;
    assert!(events.iter().all(|event| event.created_at < first.timestamp));
    let end = status_in(&events[4], &id);
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "OOMKilled"), "{end:?}");
    assert_eq!(first.containers_statuses, std::slice::from_ref(end));
    let later = stage.run(&stage.shell("later", "sleep 1000")).await?;
    let newest_first = [later.clone(), id.clone()];
    for event in listener.hear_all(2).await? {
        assert_eq!(ids(&event.containers_statuses), newest_first);
    }
    assert_eq!(ids(&cri.pod_sandbox_status(request.clone()).await?.containers_statuses), newest_first);
    cri.remove(&id).await?;
    let event = listener.hear().await?;
    let second = cri.pod_sandbox_status(request).await?;
    assert!(first.timestamp < event.created_at && event.created_at < second.timestamp);
    assert_eq!(ids(&second.containers_statuses), [later]);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_the_daemon_is_dead_is_told_to_who_comes_back() -> Result {
    let mut stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut listener = Listener::new(&cri).await?;
    let volume = stage.node.dir().join("signals");
    std::fs::create_dir(&volume)?;
    let waits = "while [ ! -e /signals/go ]; do sleep 0.05; done; exit 42";
    let id = stage.run(&stage.shell("waits", waits).with_mount(&volume, "/signals", false)).await?;
    let lasting = stage.run(&ContainerSpec::lasting("lasts", &stage.image)).await?;
    listener.agree(&cri).await?;
    stage.node.kill9().await?;
    assert!(listener.hear().await.is_err(), "the stream has broken");
    std::fs::write(volume.join("go"), "")?;
    stage.node.end_is_recorded(&id).await?;
    stage.node.restart().await?;

    // Without a list: what is known is from before.
    let cri = stage.node.cri();
    let known = std::mem::take(&mut listener.known);
    let mut back = Listener { known, latest: listener.latest, ..Listener::new(&cri).await? };
    let event = back.hear().await?;
    assert_eq!((event.container_id.as_str(), event.container_event_type()), (id.as_str(), STOPPED));
    assert_eq!(status_in(&event, &id).exit_code, 42);
    assert_eq!(back.known, Listing::of(&cri).await?);
    let mut late = Listener::new(&cri).await?;
    cri.stop(&lasting, 0).await?;
    let event = late.hear().await?;
    assert_eq!((event.container_id, event.container_event_type), (lasting, STOPPED.into()), "no replay");
    back.agree(&cri).await?;
    stage.finish().await
}

/// A connection with the smallest windows there are, so that little is on its way to who does not read.
async fn narrow(socket: &Path) -> Result<RuntimeServiceClient<Channel>> {
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::try_from("http://localhost")?;
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    Ok(RuntimeServiceClient::new(endpoint.connect_with_connector(connector).await?))
}

async fn subscribe_narrowly(node: &Node) -> Result<Streaming<ContainerEventResponse>> {
    Ok(narrow(&node.socket()).await?.get_container_events(GetEventsRequest {}).await?.into_inner())
}

/// Reads a stream to its end; gives how many events there were.
async fn read_out(mut stream: Streaming<ContainerEventResponse>) -> (usize, Option<Status>) {
    let mut heard = 0;
    loop {
        match stream.message().await {
            Ok(Some(_)) => heard += 1,
            Ok(None) => return (heard, None),
            Err(status) => return (heard, Some(status)),
        }
    }
}

/// Containers that come and go: twice as many events.
async fn churn(node: &Node, image: &str, task: usize, count: usize) -> Result {
    let (cri, pod) = (node.cri(), node.pod(&format!("churn-{task}")));
    let pod_id = cri.run_pod(&pod).await?;
    for n in 0..count {
        let spec = ContainerSpec::shell(&format!("brief-{n}"), image, "true");
        let id = cri.create(&pod_id, &spec, &pod).await?;
        cri.remove(&id).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_off_and_nobody_else_notices() -> Result {
    // In memory: hundreds of containers are written down.
    let options = Options { root_mib: Some(512), log_level: "warn".to_owned(), ..Options::default() };
    let (node, registry) = Node::start_with_registry(options).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let cri = node.cri();
    let image = cri.pull(&pushed.reference).await?;
    let mut reader = Listener::new(&cri).await?;
    let stalled = subscribe_narrowly(&node).await?;
    let each = QUEUE / 8 + 20;
    let churned = async {
        let task = |n| churn(&node, &image, n, each);
        tokio::try_join!(task(0), task(1), task(2), task(3)).map(drop)
    };
    let events = 4 * (2 + 2 * each);
    let heard = async { reader.hear_all(events).await.map(drop) };
    tokio::try_join!(churned, heard)?;
    assert_eq!(reader.known, Listing::of(&cri).await?);
    let (heard, end) = read_out(stalled).await;
    let end = end.expect("a reason");
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    assert!(end.message().contains("events were waiting to be read"), "{end:?}");
    assert!(heard < events - QUEUE, "{heard}");
    // It comes back and is served as ever.
    let mut again = Listener::new(&cri).await?;
    churn(&node, &image, 9, 1).await?;
    again.hear_all(4).await?;
    reader.hear_all(4).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_daemon_and_those_that_are_not_read_do_not_hold_it_up() -> Result {
    let options =
        Options { config: "[limits]\nshutdown_timeout_secs = 3600\n".to_owned(), ..Options::default() };
    let mut node = Node::start(options).await?;
    let mut reader = Listener::new(&node.cri()).await?;
    let stalled = subscribe_narrowly(&node).await?;
    let mut pod = node.pod("fat");
    pod.config.annotations.insert("fat".to_owned(), "x".repeat(200_000));
    let pod_id = node.cri().run_pod(&pod).await?;
    reader.hear_all(2).await?;
    assert!(node.stop().await?.success());
    let end = reader.stream.message().await;
    assert_eq!(code_of(&end), Code::Unavailable, "{end:?}");
    assert!(end.is_err_and(|status| status.message().contains("shutting down")));
    drop(stalled);
    node.restart().await?;
    node.cri().remove_pod(&pod_id).await?;
    node.finish().await
}

/// One client's random load; the seed decides what it does. Containers that end by themselves are called `brief`.
async fn load(node: &Node, image: &str, n: u64, actions: usize) -> Result {
    let cri = node.cri();
    let mut random = n * 7919 + u64::from(std::process::id()) + 1;
    let mut draw = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 11).unwrap_or_default() % bound
    };
    let mut pods: Vec<(String, PodSpec, Vec<String>)> = Vec::new();
    for made in 0..actions {
        let place = draw(pods.len() + 1);
        let Some((pod_id, pod, containers)) = pods.get_mut(place).filter(|_| pods_are_enough(place)) else {
            let pod = node.pod(&format!("load-{n}-{made}"));
            pods.push((cri.run_pod(&pod).await?, pod, Vec::new()));
            continue;
        };
        let (kind, line) =
            [("brief", "exit 3"), ("long", "sleep 1000"), ("brief", "sleep 0.2; exit 7")][draw(3)];
        match (draw(10), containers.pop()) {
            (0, _) => {
                cri.stop_pod(pod_id).await?;
                cri.remove_pod(pod_id).await?;
                pods.remove(place);
            }
            (1..=3, Some(id)) => cri.remove(&id).await?,
            (4 | 5, Some(id)) => {
                cri.stop(&id, 0).await?;
                containers.push(id);
            }
            (_, before) => {
                containers.extend(before);
                let spec = ContainerSpec::shell(&format!("{kind}-{made}"), image, line);
                containers.push(cri.run(pod_id, &spec, pod).await?);
            }
        }
    }
    Ok(())
}

fn pods_are_enough(place: usize) -> bool {
    place < 3
}

#[tokio::test(flavor = "multi_thread")]
async fn folding_events_gives_what_lists_say_after_a_random_load() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut listeners = [Listener::new(&cri).await?, Listener::new(&cri).await?];
    for _ in 0..2 {
        let one = load(&stage.node, &stage.image, 1, 20);
        let two = load(&stage.node, &stage.image, 2, 20);
        tokio::try_join!(one, two)?;
        // Nothing changes any more when what ends by itself has done so.
        let is_brief = |it: &Container| it.metadata.as_ref().is_some_and(|it| it.name.starts_with("brief"));
        let ended = async {
            let runs = |it: &Container| it.state() == ContainerState::ContainerRunning;
            while cri.all_containers().await?.iter().any(|it| is_brief(it) && runs(it)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(patience(30), ended).await??;
        for listener in &mut listeners {
            listener.agree(&cri).await?;
        }
        let ids: BTreeSet<String> = cri.all_pods().await?.into_iter().map(|pod| pod.id).collect();
        for id in ids.iter().filter(|id| **id != stage.pod_id) {
            cri.stop_pod(id).await?;
            cri.remove_pod(id).await?;
        }
        for listener in &mut listeners {
            listener.agree(&cri).await?;
        }
    }
    assert!(listeners[0].heard > 20, "{}", listeners[0].heard);
    stage.finish().await
}
