//! What operators are told, while things go well and while they do not.

use cni::fake::{Fault as NetworkFault, Verb};

use super::*;
use crate::pod::{PendingTeardown, StateCounts};

/// Lets the pods' tasks run until it is so.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come about");
        tokio::task::yield_now().await;
    }
}

/// The same for what takes time, in tests whose time passes by itself.
async fn in_time(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{what} did not come about");
}

fn only(pods: &Pods) -> PendingTeardown {
    let pending = pods.pending_teardowns();
    assert_eq!(pending.len(), 1, "{pending:?}");
    pending.into_iter().next().unwrap()
}

#[tokio::test]
async fn states_are_counted_from_what_readers_see() {
    let node = Node::new();
    let pods = node.recovered().await;
    assert_eq!(pods.state_counts(), StateCounts::default());
    let (sandbox_id, id) = run(&pods, "web").await;
    let made = pods.create_container(sandbox_id.as_str(), container("made")).await.unwrap();
    let stopped = pods.run_sandbox(sandbox("stopped")).await.unwrap();
    pods.stop_sandbox(stopped.as_str()).await.unwrap();
    let expected = StateCounts {
        sandboxes_ready: 1,
        sandboxes_not_ready: 1,
        containers_created: 1,
        containers_running: 1,
        ..StateCounts::default()
    };
    assert_eq!(pods.state_counts(), expected);
    node.monitors.exit(&id, 0);
    reaches(&pods, &id, ContainerState::Exited).await;
    pods.remove_container(made.as_str()).await.unwrap();
    let expected = StateCounts {
        sandboxes_ready: 1,
        sandboxes_not_ready: 1,
        containers_exited: 1,
        ..StateCounts::default()
    };
    assert_eq!(pods.state_counts(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_made_counts_as_that_and_holds_no_reader_up() {
    let node = Node::new();
    let pods = node.recovered().await;
    node.network.inject(Verb::Setup, NetworkFault::Hang);
    let making = tokio::spawn({
        let pods = pods.clone();
        async move { pods.run_sandbox(sandbox("web")).await }
    });
    let starting = StateCounts { sandboxes_starting: 1, ..StateCounts::default() };
    until("a pod being made", || pods.state_counts() == starting).await;
    assert!(pods.pending_teardowns().is_empty() && pods.lost_log_lines().total == 0);
    making.abort();
}

#[tokio::test]
async fn monitors_are_listed_while_they_are_connected() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (first, _) = run(&pods, "first").await;
    let (second, _) = run(&pods, "second").await;
    let connected = || pods.monitors().running.into_iter().map(|it| it.sandbox).collect::<Vec<_>>();
    assert_eq!(connected(), [first.clone(), second.clone()]);
    node.monitors.lose(&first);
    until("another connection", || pods.monitors().reconnected == 1).await;
    until("both connections", || connected() == [second.clone(), first.clone()]).await;
    assert_eq!(pods.monitors().lost, 0);
    node.monitors.die(&second);
    node.monitors.lose(&second);
    until("the loss of a monitor", || pods.monitors().lost == 1).await;
    assert_eq!(connected(), std::slice::from_ref(&first));
    pods.stop_sandbox(first.as_str()).await.unwrap();
    until("the end of the last monitor", || connected().is_empty()).await;
    assert_eq!((pods.monitors().lost, pods.monitors().reconnected), (1, 1), "this one was sent away");
}

#[tokio::test]
async fn lost_log_lines_arrive_and_their_total_never_falls() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.drop_log_lines(&id, 10);
    until("the first lines", || pods.lost_log_lines().total == 10).await;
    node.monitors.drop_log_lines(&id, 5);
    until("more of them", || pods.lost_log_lines_of(&id) == 15).await;
    // Said while nobody listens, and found when the connection is made again.
    node.monitors.lose(&sandbox_id);
    node.monitors.drop_log_lines(&id, 7);
    until("what was lost between two connections", || pods.lost_log_lines().total == 22).await;
    assert_eq!(pods.lost_log_lines().containers, [(id.clone(), 22)]);
    pods.remove_container(id.as_str()).await.unwrap();
    assert_eq!((pods.lost_log_lines().total, pods.lost_log_lines_of(&id)), (22, 0));
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(pods.lost_log_lines().total, 22);
    assert!(pods.lost_log_lines().containers.is_empty());
}

/// Each life of the daemon is a runtime of its own, with which all of its tasks die.
#[test]
fn a_server_that_starts_counts_what_nobody_has_heard_of() {
    let life = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = Node::new();
    let (sandbox_id, id) = life().block_on(async {
        let pods = node.recovered().await;
        let ids = run(&pods, "web").await;
        node.monitors.drop_log_lines(&ids.1, 30);
        until("the lines", || pods.lost_log_lines().total == 30).await;
        ids
    });
    node.monitors.lose(&sandbox_id);
    node.monitors.drop_log_lines(&id, 4);
    life().block_on(async {
        let pods = node.recovered().await;
        assert_eq!((pods.lost_log_lines().total, pods.lost_log_lines_of(&id)), (4, 34));
    });
    node.monitors.lose(&sandbox_id);
    life().block_on(async {
        let pods = node.recovered().await;
        assert_eq!((pods.lost_log_lines().total, pods.lost_log_lines_of(&id)), (0, 34));
    });
    node.monitors.die(&sandbox_id);
    life().block_on(async {
        let pods = node.recovered().await;
        assert_eq!(pods.monitors().lost, 1, "it died while no server ran");
        assert!(pods.monitors().running.is_empty());
    });
}

#[tokio::test(start_paused = true)]
async fn a_network_that_cannot_be_detached_is_pending_until_it_is() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = run(&pods, "web").await;
    for _ in 0..5 {
        node.network.inject(Verb::Teardown, NetworkFault::Fail(100));
    }
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    let pending = only(&pods);
    assert_eq!((pending.id.as_str(), pending.stage), (sandbox_id.as_str(), "network"));
    assert_eq!((pending.verb, pending.object.as_str()), ("stop sandbox", "sandbox default/web"));
    assert!(pending.failures >= 2, "{pending:?}");
    assert!(pending.last_error.as_ref().is_some_and(|error| error.contains("code 100")), "{pending:?}");
    in_time("the end of the teardown", || pods.pending_teardowns().is_empty()).await;
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert!(pods.pending_teardowns().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_hangs_is_pending_without_a_failure() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = run(&pods, "web").await;
    node.network.inject(Verb::Teardown, NetworkFault::Hang);
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    let pending = only(&pods);
    assert_eq!((pending.stage, pending.failures, pending.last_error), ("network", 0, None));
}

#[tokio::test]
async fn a_removal_that_failed_is_pending_until_one_succeeds() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = run(&pods, "web").await;
    for failures in 1..3 {
        pods.shared.faults.arm("remove sandbox", "files");
        pods.remove_sandbox(sandbox_id.as_str()).await.unwrap_err();
        let pending = only(&pods);
        assert_eq!((pending.verb, pending.failures), ("remove sandbox", failures));
        assert!(pending.last_error.is_some_and(|error| error.contains("files")));
    }
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    until("an empty list", || pods.pending_teardowns().is_empty()).await;
}
