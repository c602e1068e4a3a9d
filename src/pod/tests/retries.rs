//! Callers that leave and come back: every verb goes on without them, and the retry gets what came of it.

use std::time::Instant;

use super::*;

/// Asks, and leaves once the monitor has been called; its answer comes later.
async fn leave_at<T: std::fmt::Debug>(node: &Node, call: Call, asked: impl Future<Output = T>) {
    let before = seen(node, call);
    tokio::select! {
        biased;
        outcome = asked => panic!("it was not to end: {outcome:?}"),
        () = async { while seen(node, call) == before { tokio::task::yield_now().await } } => {}
    }
}

fn seen(node: &Node, call: Call) -> usize {
    node.monitors.calls().iter().filter(|(seen, _)| *seen == call).count()
}

/// Slow, then broken: the fake's answer to a hung call is an error, which is also the case that matters most.
#[tokio::test(start_paused = true)]
async fn who_comes_back_during_an_attempt_that_fails_hears_of_it_and_the_next_begins_anew() {
    let node = Node::new();
    let pods = node.recovered().await;
    node.monitors.inject(Call::Start, Fault::Hang);
    leave_at(&node, Call::Start, pods.run_sandbox(sandbox("web"))).await;
    assert!(pods.run_sandbox(sandbox("web")).await.is_err());
    let id = pods.run_sandbox(sandbox("web")).await.unwrap();
    pods.remove_sandbox(id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn callers_that_leave_in_the_middle_of_creates_get_the_same_ids() {
    let node = Node::new();
    let pods = node.recovered().await;
    let mut sandboxes = Vec::new();
    for index in 0..40 {
        let name = format!("web-{index}");
        assert!(poll_once(pods.run_sandbox(sandbox(&name))).await.is_none());
        assert!(poll_once(pods.run_sandbox(sandbox(&name))).await.is_none());
        let sandbox_id = pods.run_sandbox(sandbox(&name)).await.unwrap();
        for _ in 0..2 {
            assert!(poll_once(pods.create_container(sandbox_id.as_str(), container("app"))).await.is_none());
        }
        let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
        assert_eq!(id, pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap());
        assert_eq!(pods.sandbox(sandbox_id.as_str()).unwrap().1.containers.len(), 1);
        sandboxes.push(sandbox_id);
    }
    assert_eq!(pods.list().len(), sandboxes.len());
    for id in sandboxes {
        pods.remove_sandbox(id.as_str()).await.unwrap();
    }
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_that_nobody_waited_for_is_told_once() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
    assert!(poll_once(pods.start_container(id.as_str())).await.is_none());
    reaches(&pods, &id, ContainerState::Running).await;
    pods.start_container(id.as_str()).await.unwrap();
    let again = pods.start_container(id.as_str()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::FailedPrecondition);

    let id = pods.create_container(sandbox_id.as_str(), container("bad")).await.unwrap();
    pods.shared.faults.arm("start container", "OCI create");
    assert!(poll_once(pods.start_container(id.as_str())).await.is_none());
    reaches(&pods, &id, ContainerState::Exited).await;
    let told = pods.start_container(id.as_str()).await.unwrap_err();
    assert!(matches!(&*told, PodError::Step { step: "OCI create", .. }), "{told:?}");
}

/// The daemon died between the process's first moment and its answer.
#[tokio::test]
async fn a_start_that_a_dead_server_told_nobody_of_is_told_by_the_next() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
    let path = pods.layout().container_record(&sandbox_id, &id);
    let record = std::fs::read(&path).unwrap();
    pods.start_container(id.as_str()).await.unwrap();
    drop(pods);
    std::fs::write(&path, record).unwrap();
    node.monitors.lose(&sandbox_id);
    let pods = node.recovered().await;
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Running);
    pods.start_container(id.as_str()).await.unwrap();
    assert!(pods.start_container(id.as_str()).await.is_err());
    drop(pods);
    node.monitors.lose(&sandbox_id);
    let pods = node.recovered().await;
    assert!(pods.start_container(id.as_str()).await.is_err(), "it was told before the restart");
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_joins_and_may_only_shorten_the_grace() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    node.monitors.ignore_sigterm(&id);
    let begun = tokio::time::Instant::now();
    let stop = |seconds| {
        let (pods, id) = (pods.clone(), id.clone());
        async move {
            let outcome = pods.stop_container(id.as_str(), Duration::from_secs(seconds)).await;
            (outcome, begun.elapsed().as_secs())
        }
    };
    // The first caller has left by the time at which the others come.
    leave_at(&node, Call::Signal, stop(60)).await;
    let (longer, shorter, longest) = tokio::join!(stop(300), stop(10), stop(u64::MAX));
    for (outcome, ended) in [longer, shorter, longest] {
        outcome.unwrap();
        assert_eq!(ended, 10);
    }
    let asked = node
        .monitors
        .calls()
        .into_iter()
        .filter(|(call, about)| *call == Call::Signal && about == id.as_str());
    assert_eq!(asked.count(), 3, "asked once, killed once by process and once by cgroup");
    assert_eq!(pods.container(id.as_str()).unwrap().exit_code, 137);
}

#[tokio::test(start_paused = true)]
async fn a_removal_shortens_a_stop_to_nothing() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.ignore_sigterm(&id);
    let begun = tokio::time::Instant::now();
    leave_at(&node, Call::Signal, pods.stop_container(id.as_str(), Duration::from_secs(3600))).await;
    pods.remove_container(id.as_str()).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 0);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn whoever_removes_at_once_succeeds() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.ignore_sigterm(&id);
    let mut removals = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (pods, id) = (pods.clone(), id.clone());
        removals.spawn(async move { pods.remove_container(id.as_str()).await });
    }
    // One that leaves does not disturb the others.
    drop(poll_once(pods.remove_container(id.as_str())).await);
    for outcome in removals.join_all().await {
        outcome.unwrap();
    }
    let mut removals = tokio::task::JoinSet::new();
    for index in 0..32 {
        let (pods, id) = (pods.clone(), sandbox_id.clone());
        removals.spawn(async move {
            if index % 2 == 0 {
                pods.remove_sandbox(id.as_str()).await
            } else {
                pods.stop_sandbox(id.as_str()).await
            }
        });
    }
    for outcome in removals.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(node.left(), Vec::<String>::new());
}

/// A removal that is given up by its caller goes on, and a stop that is left goes on, too.
#[tokio::test]
async fn stops_and_removals_go_on_without_their_callers() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    assert!(poll_once(pods.stop_container(id.as_str(), Duration::from_secs(5))).await.is_none());
    reaches(&pods, &id, ContainerState::Exited).await;
    assert!(poll_once(pods.stop_sandbox(sandbox_id.as_str())).await.is_none());
    assert!(poll_once(pods.remove_sandbox(sandbox_id.as_str())).await.is_none());
    let patience = Instant::now() + Duration::from_secs(60);
    while !node.left().is_empty() && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(node.left(), Vec::<String>::new());
}

/// Whatever comes first, the monitor's end or the report of the start: what it had started ends with it.
#[tokio::test]
async fn a_monitor_that_dies_while_a_start_is_being_reported_leaves_nothing_running() {
    let node = Node::new();
    let pods = node.recovered().await;
    for index in 0..20 {
        let sandbox_id = pods.run_sandbox(sandbox(&format!("web-{index}"))).await.unwrap();
        let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
        let before = seen(&node, Call::Start);
        tokio::select! {
            started = pods.start_container(id.as_str()) => started.unwrap(),
            () = async { while seen(&node, Call::Start) == before { tokio::task::yield_now().await } } => {}
        }
        node.monitors.die(&sandbox_id);
        reaches(&pods, &id, ContainerState::Exited).await;
        pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    }
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn an_end_between_two_connections_to_the_monitor_is_heard_of() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.lose(&sandbox_id);
    node.monitors.exit(&id, 3);
    reaches(&pods, &id, ContainerState::Exited).await;
    assert_eq!(pods.container(id.as_str()).unwrap().exit_code, 3);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}
