//! Every step of every verb of a pod's life, failing once, and as the last that a server reached.

use super::*;

/// What a life passes through, in the order of names. A step that is missing here is new, and has to be written down; work
/// that is no step at all is not broken by anybody, so there should be none with an effect.
const STEPS: &[(&str, &[&str])] = &[
    ("create container", &["bundle", "identity", "image", "layer", "mounts", "publish", "record"]),
    ("remove container", &["files"]),
    (
        "remove sandbox",
        &["cgroup", "container", "containers", "files", "image", "network", "processes", "record", "shm"],
    ),
    (
        "run sandbox",
        &[
            "CNI",
            "bundle",
            "cgroup",
            "files",
            "image",
            "monitor",
            "netns",
            "pause create",
            "pause image",
            "pause start",
            "publish",
            "record",
            "shm",
        ],
    ),
    ("start container", &["OCI create", "OCI start", "publish"]),
    ("stop container", &["kill", "signal"]),
    ("stop sandbox", &["containers", "network", "processes", "shm"]),
];

fn steps() -> impl Iterator<Item = (&'static str, &'static str)> {
    STEPS.iter().flat_map(|(verb, steps)| steps.iter().map(move |step| (*verb, *step)))
}

async fn boot(node: &Node) -> Pods {
    let pods = node.boot_with_pause(Some(IMAGE.to_owned()));
    pods.recover().await.unwrap();
    pods
}

/// A life in which every verb is used, and how many of them failed. It goes on past failures as a caller does.
async fn live(node: &Node, pods: &Pods) -> usize {
    let Ok(sandbox_id) = pods.run_sandbox(sandbox("web")).await else { return 1 };
    let mut failed = 0;
    for name in ["app", "other"] {
        let Ok(id) = pods.create_container(sandbox_id.as_str(), container(name)).await else {
            failed += 1;
            continue;
        };
        failed += usize::from(pods.start_container(id.as_str()).await.is_err());
        node.monitors.ignore_sigterm(&id);
        if name == "app" {
            failed += usize::from(pods.stop_container(id.as_str(), Duration::from_millis(5)).await.is_err());
            failed += usize::from(pods.remove_container(id.as_str()).await.is_err());
        }
    }
    failed += usize::from(pods.stop_sandbox(sandbox_id.as_str()).await.is_err());
    let removed = pods.remove_sandbox(sandbox_id.as_str()).await;
    if removed.is_err() {
        pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    }
    failed + usize::from(removed.is_err())
}

async fn becomes_empty(node: &Node, when: &str) {
    for _ in 0..1000 {
        if node.left().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{when}: {:?}", node.left());
}

#[tokio::test]
async fn a_life_passes_through_all_steps_and_no_others() {
    let node = Node::new();
    let pods = boot(&node).await;
    assert_eq!(live(&node, &pods).await, 0);
    let seen: Vec<_> = pods.shared.faults.seen.lock().unwrap().iter().copied().collect();
    assert_eq!(seen, steps().collect::<Vec<_>>());
}

#[tokio::test]
async fn every_step_that_fails_leaves_a_pod_that_can_be_removed() {
    for (verb, step) in steps() {
        let node = Node::new();
        let pods = boot(&node).await;
        pods.shared.faults.arm(verb, step);
        assert_ne!(live(&node, &pods).await, 0, "{verb}: {step} was not reached");
        assert!(pods.list().is_empty(), "{verb}: {step}");
        becomes_empty(&node, &format!("{verb}: {step}")).await;
        // The name is free at once.
        assert_eq!(live(&node, &pods).await, 0, "{verb}: {step}");
        becomes_empty(&node, &format!("{verb}: {step}, once more")).await;
    }
}

/// Runs `life` on a server that is gone with all its tasks when this returns.
fn on_a_server<T: Send>(life: impl Future<Output = T> + Send) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(life)).join()).unwrap()
}

#[test]
fn a_server_killed_at_any_step_is_followed_by_one_that_undoes_or_completes() {
    for (verb, step) in steps() {
        let node = Node::new();
        let when = format!("{verb}: {step}");
        on_a_server(async {
            let pods = boot(&node).await;
            pods.shared.faults.arm_crash(verb, step);
            tokio::select! {
                failed = live(&node, &pods) => panic!("{when} was not reached, {failed} failed"),
                () = pods.shared.faults.crashed.notified() => {}
            }
        });
        on_a_server(async {
            let pods = boot(&node).await;
            assert_eq!(pods.strays().await.unwrap(), [], "{when}");
            for pod in pods.list() {
                let sandbox = pod.sandbox.clone().unwrap();
                for container in &pod.containers {
                    let running = container.state == ContainerState::Running;
                    assert!(
                        !running || node.monitors.containers().iter().any(|it| it.container == container.id)
                    );
                }
                assert!(
                    verb != "run sandbox" && verb != "remove sandbox",
                    "{when}: neither undone nor completed"
                );
                assert!(sandbox.state == SandboxState::NotReady || verb != "stop sandbox", "{when}");
                pods.remove_sandbox(sandbox.id.as_str()).await.unwrap();
            }
            becomes_empty(&node, &when).await;
            assert_eq!(live(&node, &pods).await, 0, "{when}");
        });
    }
}
