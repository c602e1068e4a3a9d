//! The hub by itself: random lives of pods, subscribers of all kinds, restarts.

use std::sync::Arc;

use cri_api::v1;
use proptest::prelude::*;
use spec::{ContainerRequest, SandboxRequest};
use tempfile::TempDir;
use types::{ContainerId, SandboxId, Timestamp};

use super::fold::{Client, Listing, assert_in_order};
use super::*;
use crate::pod::view::{ContainerState, ContainerView, SandboxState, Shown};

/// A node without a server: what there is, and the hub that is told of it.
struct World {
    dir: TempDir,
    hub: Hub,
    pods: Vec<Pod>,
    made: u64,
    random: u64,
}

#[derive(Clone)]
struct Pod {
    sandbox: SandboxView,
    containers: Vec<ContainerView>,
}

impl Pod {
    fn view(&self) -> Arc<PodView> {
        let containers = self.containers.iter().cloned().map(Arc::new).collect();
        Arc::new(PodView { sandbox: Some(Arc::new(self.sandbox.clone())), containers })
    }
}

fn sandbox_request(uid: u64, attempt: u32) -> Arc<SandboxRequest> {
    let metadata = v1::PodSandboxMetadata {
        name: format!("pod-{uid}"),
        uid: format!("uid-{uid}"),
        namespace: "default".to_owned(),
        attempt,
    };
    let config = v1::PodSandboxConfig { metadata: Some(metadata), ..v1::PodSandboxConfig::default() };
    Arc::new(SandboxRequest::parse(config, String::new()).unwrap())
}

fn container_request() -> Arc<ContainerRequest> {
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "example.test/app:1".to_owned(), ..v1::ImageSpec::default() }),
        ..v1::ContainerConfig::default()
    };
    Arc::new(ContainerRequest::parse(config).unwrap())
}

impl World {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let hub = Hub::new(dir.path().join("clock"));
        Self { dir, hub, pods: Vec::new(), made: 0, random: seed | 1 }
    }

    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 11).unwrap() % bound
    }

    fn bytes(&mut self) -> [u8; 32] {
        self.made += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.made.to_be_bytes());
        bytes
    }

    fn listing(&self) -> Listing {
        let views: Vec<_> = self.pods.iter().map(Pod::view).collect();
        Listing::of(&views)
    }

    /// A ready sandbox of a pod, which others may precede.
    fn add_pod(&mut self, uid: u64) -> usize {
        let id = SandboxId::from_random(self.bytes());
        let attempt = u32::try_from(self.made).unwrap();
        let sandbox = SandboxView {
            id,
            request: sandbox_request(uid, attempt),
            state: SandboxState::Ready,
            created_at: self.hub.now(),
            ips: Vec::new(),
            network: None,
            netns: None,
            netns_closed: false,
            pid: None,
            handler: "runc".to_owned(),
            cgroup: String::new(),
        };
        self.pods.push(Pod { sandbox, containers: Vec::new() });
        self.pods.len() - 1
    }

    fn add_container(&mut self, pod: usize) -> usize {
        let id = ContainerId::from_random(self.bytes());
        let created_at = self.hub.now();
        let digest = format!("sha256:{}", "0".repeat(64));
        let container = ContainerView {
            id,
            sandbox: self.pods[pod].sandbox.id.clone(),
            request: container_request(),
            state: ContainerState::Created,
            created_at,
            started_at: Timestamp::UNSET,
            finished_at: Timestamp::UNSET,
            exit_code: 0,
            reason: "",
            message: String::new(),
            image: types::ImageId(digest.parse().unwrap()),
            image_ref: String::new(),
            image_name: String::new(),
            image_volumes: Vec::new(),
            log_path: None,
            pid: None,
            user: (0, 0, Vec::new()),
            stop_signal: 15,
            bundle: PathBuf::new(),
            cgroup: String::new(),
            shown: Shown::default(),
        };
        self.pods[pod].containers.push(container);
        self.pods[pod].containers.len() - 1
    }

    fn start(&mut self, pod: usize, container: usize) {
        let started_at = self.hub.now();
        let container = &mut self.pods[pod].containers[container];
        if container.state == ContainerState::Created {
            (container.state, container.started_at) = (ContainerState::Running, started_at);
        }
    }

    fn end(&mut self, pod: usize, container: usize, code: i32) {
        let finished_at = self.hub.now();
        let container = &mut self.pods[pod].containers[container];
        if container.state != ContainerState::Exited {
            (container.state, container.exit_code) = (ContainerState::Exited, code);
            (container.reason, container.finished_at) = ("Error", finished_at);
        }
    }

    fn publish(&self, pod: usize) {
        self.hub.publish(self.pods[pod].view(), drop);
    }

    /// Brings so many events about, of containers that come and go.
    fn tell(&mut self, pod: usize, count: usize) {
        for _ in 0..count {
            match self.pods[pod].containers.pop() {
                Some(_) => {}
                None => drop(self.add_container(pod)),
            }
            self.publish(pod);
        }
    }

    fn remove(&mut self, pod: usize) {
        let view = self.pods.remove(pod).view();
        self.hub.remove(view, drop);
    }

    /// Something happens to a pod, which is not published yet.
    fn change(&mut self, pod: usize) {
        let count = self.pods[pod].containers.len();
        let any = self.below(count.max(1));
        match self.below(10) {
            0 => self.pods[pod].sandbox.state = SandboxState::NotReady,
            1..=3 if count < 6 => drop(self.add_container(pod)),
            4..=6 if count > 0 => self.start(pod, any),
            7 | 8 if count > 0 => {
                let code = i32::try_from(self.below(256)).unwrap();
                self.end(pod, any, code);
            }
            9 if count > 0 => drop(self.pods[pod].containers.remove(any)),
            _ => {}
        }
    }

    /// Something happens to some pod.
    fn step(&mut self) {
        let pod = match self.pods.len() {
            0 => self.begin_pod(),
            count if count < 12 && self.below(12) == 0 => self.begin_pod(),
            count => self.below(count),
        };
        if self.below(25) == 0 {
            return self.remove(pod);
        }
        // A view may leave out what was between.
        for _ in 0..=self.below(3) {
            self.change(pod);
        }
        self.publish(pod);
    }

    fn begin_pod(&mut self) -> usize {
        let uid = u64::try_from(self.below(6)).unwrap();
        self.add_pod(uid)
    }

    /// The server is killed; things happen; the next one finds them.
    fn restart(&mut self) {
        let before: Vec<_> = self.pods.iter().map(Pod::view).collect();
        self.hub = Hub::new(self.dir.path().join("clock"));
        for view in &before {
            self.hub.remember(Arc::clone(view));
        }
        for pod in (0..self.pods.len()).rev() {
            match self.below(8) {
                0 => self.remove(pod),
                1..=3 => {
                    self.change(pod);
                    self.publish(pod);
                }
                _ => self.publish(pod),
            }
        }
    }
}

/// Some thousand random transitions, with a client that reads at once, one that reads when it likes, and restarts.
async fn live(seed: u64, steps: usize) {
    let mut world = World::new(seed);
    let mut prompt = Client::new(&world.hub, Listing::default());
    let mut lazy = Client::new(&world.hub, Listing::default());
    for step in 0..steps {
        world.step();
        let (time, _) = world.hub.at(|| ());
        prompt.catch_up().await.unwrap();
        assert!(prompt.latest < time, "what was told before a look lies before it");
        prompt.latest = time;
        if world.below(200) == 0 && lazy.catch_up().await.is_err() {
            lazy = Client::new(&world.hub, world.listing());
        }
        if step % 50 == 0 {
            assert_eq!(prompt.known, world.listing(), "seed {seed} step {step}");
        }
        if world.below(2000) == 0 {
            world.hub.advance(Timestamp(Timestamp::now().0 + 1_000_000_000));
        }
        if world.below(1000) == 0 {
            world.restart();
            // It has lost its stream and does not list: what happened meanwhile was kept for it.
            prompt.resubscribe(&world.hub);
            lazy = Client::new(&world.hub, world.listing());
        }
    }
    prompt.catch_up().await.unwrap();
    if lazy.catch_up().await.is_ok() {
        assert_eq!(lazy.known, world.listing(), "seed {seed}");
    }
    assert_eq!(prompt.known, world.listing(), "seed {seed}");
    prompt.lives.values().for_each(|life| assert_in_order(life));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]
    /// 10^5 transitions.
    #[test]
    fn folding_events_gives_what_a_list_says(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(live(seed, 5000));
    }
}

fn told(event: &Event) -> (String, Change) {
    (event.object.id().to_owned(), event.change)
}

async fn all(subscription: &mut Client) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    while let Some(event) = subscription.take().await {
        events.push(event.unwrap());
    }
    events
}

#[tokio::test]
async fn a_life_is_told_in_order_with_the_pod_at_each_moment() {
    let mut world = World::new(1);
    let mut client = Client::new(&world.hub, Listing::default());
    let pod = world.add_pod(1);
    world.publish(pod);
    let container = world.add_container(pod);
    world.publish(pod);
    world.start(pod, container);
    world.publish(pod);
    world.end(pod, container, 3);
    world.publish(pod);
    let (sandbox, id) =
        (world.pods[pod].sandbox.id.to_string(), world.pods[pod].containers[container].id.clone());
    world.pods[pod].containers.clear();
    world.publish(pod);
    world.pods[pod].sandbox.state = SandboxState::NotReady;
    world.publish(pod);
    world.publish(pod);
    world.remove(pod);
    let events = all(&mut client).await;
    let lines: Vec<_> = events.iter().map(|event| told(event)).collect();
    use Change::{Created, Deleted, Started, Stopped};
    let (s, c) = (|change| (sandbox.clone(), change), |change| (id.to_string(), change));
    assert_eq!(
        lines,
        [s(Created), s(Started), c(Created), c(Started), c(Stopped), c(Deleted), s(Stopped), s(Deleted)]
    );
    let seen: Vec<_> = events.iter().map(|event| event.pod.container(&id).map(|it| it.state)).collect();
    let (created, running, exited) =
        (Some(ContainerState::Created), Some(ContainerState::Running), Some(ContainerState::Exited));
    assert_eq!(seen, [None, None, created, running, exited, None, None, None]);
    assert!(events.iter().all(|event| event.pod.sandbox.as_ref().unwrap().id.as_str() == sandbox));
}

/// kubelet keeps one status per pod: an old attempt's must not take the place of the new one's.
#[tokio::test]
async fn events_of_a_superseded_sandbox_bear_the_newest() {
    let mut world = World::new(1);
    let (old, new) = (world.add_pod(1), world.add_pod(1));
    let stranger = world.add_pod(2);
    for pod in [old, new, stranger] {
        world.publish(pod);
    }
    world.add_container(old);
    world.add_container(new);
    world.publish(new);
    let mut client = Client::new(&world.hub, world.listing());
    all(&mut client).await;
    world.publish(old);
    let newest = world.pods[new].sandbox.id.clone();
    let (of_new, of_old) =
        (world.pods[new].containers[0].id.clone(), world.pods[old].containers[0].id.clone());
    world.remove(old);
    let events = all(&mut client).await;
    assert_eq!(events.len(), 4);
    for event in &events {
        assert_eq!(event.pod.sandbox.as_ref().unwrap().id, newest, "{event:?}");
        assert!(event.pod.container(&of_new).is_some(), "{event:?}");
    }
    assert!(events[0].pod.container(&of_old).is_some());
    assert_eq!(events[3].change, Change::Deleted);
    assert_ne!(events[3].object.id(), newest.as_str());
    assert_eq!(client.known, world.listing());
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_nobody_else_notices() {
    let mut world = World::new(1);
    let mut stalled = Client::new(&world.hub, Listing::default());
    let mut reader = Client::new(&world.hub, Listing::default());
    let pod = world.add_pod(1);
    world.publish(pod);
    for _ in 0..QUEUE {
        world.tell(pod, 1);
        reader.catch_up().await.unwrap();
    }
    assert_eq!(stalled.catch_up().await, Err(SubscriptionError::Stalled));
    assert_eq!(SubscriptionError::Stalled.kind(), ErrorKind::ResourceExhausted);
    assert!(SubscriptionError::Stalled.to_string().contains("1024 events were waiting"));
    assert_eq!(reader.known, world.listing());
    assert_eq!(world.hub.state().subscribers.len(), 1);
    stalled.resubscribe(&world.hub);
    stalled.known = world.listing();
    world.remove(pod);
    stalled.catch_up().await.unwrap();
    assert_eq!(stalled.known, Listing::default());
}

#[tokio::test]
async fn a_full_queue_is_not_too_full() {
    let mut world = World::new(1);
    let mut client = Client::new(&world.hub, Listing::default());
    let pod = world.add_pod(1);
    world.publish(pod);
    world.tell(pod, QUEUE - 2);
    assert_eq!(client.catch_up().await, Ok(QUEUE));
}

#[tokio::test]
async fn only_the_first_after_a_start_hears_what_was_before() {
    let mut world = World::new(1);
    let pod = world.add_pod(1);
    world.publish(pod);
    let mut first = Client::new(&world.hub, Listing::default());
    let mut second = Client::new(&world.hub, world.listing());
    assert_eq!((first.catch_up().await, second.catch_up().await), (Ok(2), Ok(0)));
    world.add_container(pod);
    world.publish(pod);
    drop(first);
    let mut third = Client::new(&world.hub, world.listing());
    assert_eq!((second.catch_up().await, third.catch_up().await), (Ok(1), Ok(0)));
    assert_eq!(world.hub.state().subscribers.len(), 2, "who has left is forgotten");
}

#[tokio::test]
async fn what_waits_too_long_for_a_first_subscriber_is_let_go_of() {
    let mut world = World::new(1);
    let pod = world.add_pod(1);
    world.tell(pod, QUEUE + 1);
    assert!(world.hub.state().held.is_none());
    world.restart();
    world.hub.state().held.as_mut().unwrap().until = Instant::now();
    world.add_container(pod);
    world.publish(pod);
    assert!(world.hub.state().held.is_none());
    assert_eq!(Client::new(&world.hub, Listing::default()).catch_up().await, Ok(0));
}

#[tokio::test]
async fn subscriptions_end_with_the_server() {
    let mut world = World::new(1);
    let mut early = Client::new(&world.hub, Listing::default());
    let waiting = tokio::spawn({
        let mut subscription = world.hub.subscribe();
        async move { subscription.next().await.map(|event| event.change) }
    });
    tokio::task::yield_now().await;
    world.hub.close();
    assert_eq!(waiting.await.unwrap(), Err(SubscriptionError::ShuttingDown));
    let pod = world.add_pod(1);
    world.publish(pod);
    let mut late = Client::new(&world.hub, Listing::default());
    for client in [&mut early, &mut late] {
        assert_eq!(client.catch_up().await, Err(SubscriptionError::ShuttingDown));
    }
    assert_eq!(SubscriptionError::ShuttingDown.kind(), ErrorKind::Unavailable);
}
