//! What subscribers hear of pods: every change of what lists say, in order, over restarts too.

use crate::events::fold::{Client, Listing, assert_in_order};
use crate::events::{Change, Event, Object, Subscription, SubscriptionError};

use super::*;

fn listing(pods: &Pods) -> Listing {
    Listing::of(&pods.list())
}

/// The next events, each with the states that lists show at that moment.
async fn hear(subscription: &mut Subscription, count: usize) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(subscription.next().await.unwrap());
    }
    events
}

fn told(events: &[Arc<Event>]) -> Vec<(Object, Change)> {
    events.iter().map(|event| (event.object.clone(), event.change)).collect()
}

fn state_of(event: &Event, id: &ContainerId) -> Option<(ContainerState, i32, &'static str)> {
    event.pod.container(id).map(|view| (view.state, view.exit_code, view.reason))
}

#[tokio::test]
async fn every_change_is_told_with_the_pod_as_it_was_then() {
    let node = Node::new();
    let pods = node.recovered().await;
    let mut subscription = pods.events().subscribe();
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.oom_kill(&id);
    reaches(&pods, &id, ContainerState::Exited).await;
    pods.remove_container(id.as_str()).await.unwrap();
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();

    let events = hear(&mut subscription, 8).await;
    let s = |change| (Object::Sandbox(sandbox_id.clone()), change);
    let c = |change| (Object::Container(id.clone()), change);
    use Change::{Created, Deleted, Started, Stopped};
    let expected =
        [s(Created), s(Started), c(Created), c(Started), c(Stopped), c(Deleted), s(Stopped), s(Deleted)];
    assert_eq!(told(&events), expected);
    let states: Vec<_> = events[2..6].iter().map(|event| state_of(event, &id)).collect();
    let (created, running) = ((ContainerState::Created, 0, ""), (ContainerState::Running, 0, ""));
    let killed = (ContainerState::Exited, 137, "OOMKilled");
    assert_eq!(states, [Some(created), Some(running), Some(killed), None]);
    let ready = |event: &Arc<Event>| event.pod.sandbox.as_ref().unwrap().state == SandboxState::Ready;
    assert_eq!(events.iter().map(ready).collect::<Vec<_>>(), [[true; 6].as_slice(), &[false; 2]].concat());
    assert_eq!(events[0].pod.sandbox.as_ref().unwrap().ips.len(), 1);
    assert!(events.is_sorted_by(|one, next| one.created_at < next.created_at));
}

#[tokio::test]
async fn a_failed_start_is_an_end_without_a_beginning() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
    let mut subscription = pods.events().subscribe();
    hear(&mut subscription, 3).await;
    pods.shared.faults.arm("start container", "OCI create");
    assert!(pods.start_container(id.as_str()).await.is_err());
    let event = subscription.next().await.unwrap();
    assert_eq!((event.object.id(), event.change), (id.as_str(), Change::Stopped));
    assert_eq!(state_of(&event, &id), Some((ContainerState::Exited, 128, "StartError")));
}

#[tokio::test]
async fn a_sandbox_that_could_not_be_made_was_never_there() {
    let node = Node::new();
    let pods = node.recovered().await;
    let mut client = Client::new(pods.events(), Listing::default());
    node.network.inject(cni::fake::Verb::Setup, cni::fake::Fault::Fail(11));
    assert!(pods.run_sandbox(sandbox("web")).await.is_err());
    assert_eq!(client.catch_up().await, Ok(0));
}

#[tokio::test]
async fn a_pause_container_that_dies_stops_its_sandbox() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = run(&pods, "web").await;
    let mut subscription = pods.events().subscribe();
    hear(&mut subscription, 4).await;
    node.monitors.exit(&ContainerId::parse(sandbox_id.as_str()).unwrap(), 0);
    let event = subscription.next().await.unwrap();
    assert_eq!((&event.object, event.change), (&Object::Sandbox(sandbox_id), Change::Stopped));
}

/// Who looks while things happen can put what it sees between the events.
#[tokio::test]
async fn the_time_of_a_status_lies_between_the_events_that_it_shows_and_the_others() {
    let node = Node::new();
    let pods = node.recovered().await;
    let mut subscription = pods.events().subscribe();
    let (sandbox_id, id) = run(&pods, "web").await;
    let events = hear(&mut subscription, 4).await;
    let (before, _, pod) = pods.sandbox_at(sandbox_id.as_str()).unwrap();
    assert!(events.iter().all(|event| event.created_at < before));
    assert_eq!(pod.containers[0].state, ContainerState::Running);
    node.monitors.exit(&id, 1);
    let event = subscription.next().await.unwrap();
    let (after, _, pod) = pods.sandbox_at(sandbox_id.as_str()).unwrap();
    assert!(before < event.created_at && event.created_at < after);
    assert_eq!(pod.containers[0].state, ContainerState::Exited);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(pods.sandbox_at(sandbox_id.as_str()).unwrap_err().kind(), ErrorKind::NotFound);
}

/// A server of its own, whose tasks die with it.
fn server() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

/// What nobody is told of by the time at which a subscriber of the earlier server comes back.
#[test]
fn what_ended_while_there_was_no_server_is_told_to_the_first_who_comes_back() {
    let node = Node::new();
    let first = server();
    let (sandbox_id, running, ended, latest, mut client) = first.block_on(async {
        let pods = node.recovered().await;
        let mut client = Client::new(pods.events(), Listing::default());
        let (sandbox_id, running) = run(&pods, "web").await;
        let ended = pods.create_container(sandbox_id.as_str(), container("job")).await.unwrap();
        pods.start_container(ended.as_str()).await.unwrap();
        client.catch_up().await.unwrap();
        // As if the wall clock had been ahead when the last of them were told.
        pods.shared.advance(types::Timestamp(types::Timestamp::now().0 + 3_600_000_000_000));
        let (latest, _, _) = pods.sandbox_at(sandbox_id.as_str()).unwrap();
        (sandbox_id, running, ended, latest, client)
    });
    drop(first);
    node.monitors.lose(&sandbox_id);
    node.monitors.exit(&ended, 3);
    server().block_on(async {
        let pods = node.recovered().await;
        client.resubscribe(pods.events());
        assert_eq!(client.catch_up().await, Ok(1), "the first to come");
        assert_eq!(client.known, listing(&pods));
        assert!(client.latest > latest, "an hour ahead still");
        let mut late = Client::new(pods.events(), listing(&pods));
        assert_eq!(late.catch_up().await, Ok(0), "the second");
        node.monitors.exit(&running, 0);
        for client in [&mut late, &mut client] {
            assert_eq!(client.hear().await.unwrap().object.id(), running.as_str());
        }
    });
}

#[tokio::test]
async fn a_removal_that_a_start_carries_through_is_told() {
    let node = Node::new();
    let pods = node.recovered().await;
    let mut client = Client::new(pods.events(), Listing::default());
    let (sandbox_id, _) = run(&pods, "web").await;
    client.catch_up().await.unwrap();
    let path = pods.layout().sandbox_record(&sandbox_id);
    let record = std::fs::read_to_string(&path).unwrap();
    node.monitors.lose(&sandbox_id);
    drop(pods);
    std::fs::write(&path, record.replace("\"Ready\"", "\"Removing\"")).unwrap();
    let pods = node.recovered().await;
    client.resubscribe(pods.events());
    client.catch_up().await.unwrap();
    assert_eq!((&client.known, listing(&pods)), (&Listing::default(), Listing::default()));
}

/// A number below `bound`, and the next of the row.
fn draw(random: &mut u64, bound: usize) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    usize::try_from(*random >> 11).unwrap() % bound
}

/// One client of the node: random verbs on a pod of its own, with several attempts of it.
async fn load(node: Arc<Node>, pods: Pods, n: usize, verbs: usize) {
    let mut random = u64::try_from(n).unwrap() * 7919 + 17;
    let mut names = 0;
    for _ in 0..verbs {
        let mine: Vec<_> = pods
            .list()
            .into_iter()
            .filter(|pod| pod.sandbox.as_ref().is_some_and(|it| it.request.name() == format!("pod-{n}")))
            .collect();
        let Some(pod) = mine.get(draw(&mut random, mine.len() + 1)) else {
            names += 1;
            drop(pods.run_sandbox(attempt(&format!("pod-{n}"), names)).await);
            continue;
        };
        let sandbox_id = pod.sandbox.as_ref().unwrap().id.clone();
        let container_of = |draw: usize| pod.containers.get(draw % pod.containers.len().max(1));
        match (draw(&mut random, 16), container_of(draw(&mut random, 64))) {
            (0, _) => drop(pods.stop_sandbox(sandbox_id.as_str()).await),
            (1, _) => drop(pods.remove_sandbox(sandbox_id.as_str()).await),
            (2..=6, _) | (_, None) => {
                names += 1;
                drop(pods.create_container(sandbox_id.as_str(), container(&format!("c-{names}"))).await);
            }
            (7..=11, Some(it)) => drop(pods.start_container(it.id.as_str()).await),
            (12, Some(it)) => drop(pods.stop_container(it.id.as_str(), Duration::ZERO).await),
            (13, Some(it)) => {
                node.monitors.exit(&it.id, 7);
            }
            (_, Some(it)) => drop(pods.remove_container(it.id.as_str()).await),
        }
    }
}

fn attempt(name: &str, attempt: u32) -> SandboxRequest {
    let mut config = sandbox(name).config().clone();
    config.metadata.as_mut().unwrap().attempt = attempt;
    SandboxRequest::parse(config, String::new()).unwrap()
}

/// Works on the node until all verbs are done and everything is told that has happened.
async fn work(node: &Arc<Node>, pods: &Pods, client: &mut Client) {
    let clients: Vec<_> = (0..4).map(|n| tokio::spawn(load(Arc::clone(node), pods.clone(), n, 40))).collect();
    for client in clients {
        client.await.unwrap();
    }
    // Exits that were told to nobody yet are on their way: equal in the end, not at once.
    let settled = async {
        loop {
            client.catch_up().await?;
            if client.known == listing(pods) {
                return Ok::<(), SubscriptionError>(());
            }
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(60), settled).await;
    assert!(matches!(settled, Ok(Ok(()))), "{:?}\n{:?}", client.known, listing(pods));
}

/// Clients at work side by side, and one that knows pods by events alone. Each server has a runtime of its own, and dies with it.
#[test]
fn folding_events_gives_what_lists_say_whatever_is_done() {
    let node = Arc::new(Node::new());
    let mut runtime = server();
    let mut pods = runtime.block_on(node.recovered());
    let mut client = Client::new(pods.events(), Listing::default());
    for round in 0..4 {
        runtime.block_on(work(&node, &pods, &mut client));
        for pod in pods.list() {
            node.monitors.lose(&pod.sandbox.as_ref().unwrap().id);
        }
        drop(std::mem::replace(&mut runtime, server()));
        for (n, container) in pods.list().iter().flat_map(|pod| &pod.containers).enumerate() {
            if n % 3 == 0 {
                node.monitors.exit(&container.id, 9);
            }
        }
        pods = runtime.block_on(node.recovered());
        client.resubscribe(pods.events());
        runtime.block_on(client.catch_up()).unwrap();
        assert_eq!(client.known, listing(&pods), "after restart {round}");
    }
    client.lives.values().for_each(|life| assert_in_order(life));
    assert!(client.lives.len() > 50);
}
