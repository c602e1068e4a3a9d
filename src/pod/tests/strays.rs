//! What no record owns: found, told from what others own, removed by the next start and by hand.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::super::strays::{Stray, persisting};
use super::*;
use cgroup::CgroupDriver as _;

/// Leaves one of each kind behind: the pod's records are lost while the daemon is away. That one has a runtime of its own,
/// lest its tasks live on in this process and write the records again.
pub(super) fn lose_records(node: &Node) -> (SandboxId, ContainerId) {
    let life = async {
        let pods = node.recovered().await;
        let (sandbox_id, id) = run(&pods, "web").await;
        (pods.layout().record_dir(&sandbox_id), sandbox_id, id)
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = std::thread::scope(|scope| scope.spawn(|| runtime().block_on(life)).join());
    let (records, sandbox_id, id) = ended.unwrap();
    for owner in [sandbox_id.as_str(), id.as_str()] {
        let group = node.cgroups.oci_path(Some("/kubepods/pod1"), owner).unwrap();
        node.cgroups.add(&group, &[4242]);
        std::fs::create_dir_all(node.dir.path().join("state/runtime/runc").join(owner)).unwrap();
    }
    node.host.processes.lock().unwrap().push((77, sandbox_id.clone()));
    std::fs::remove_dir_all(records).unwrap();
    (sandbox_id, id)
}

/// Things of another runtime, and of another crimson, named like ours.
fn foreign(node: &Node) -> Vec<String> {
    let id = "c".repeat(64);
    let group = node.cgroups.oci_path(None, &id).unwrap();
    node.cgroups.add(&group, &[1]);
    let netns = node.dir.path().join("netns/cni-0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0");
    super::super::Host::create_netns(&*node.host, &netns, None).unwrap();
    vec![netns.display().to_string(), group]
}

/// Waits until nothing is left but this, which is in order.
async fn settled(node: &Node, expected: &[String]) {
    let begun = Instant::now();
    loop {
        let mut left = node.left();
        left.sort();
        if left == expected {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{left:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(node.host.processes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_start_removes_everything_of_a_lost_pod_and_nothing_of_others() {
    let node = Node::new();
    lose_records(&node);
    let mut others = foreign(&node);
    // The parent that our own pod had asked for stays until the next pod is removed.
    others.extend(node.cgroups.left().into_iter().filter(|group| group == "/crimson"));
    let pods = node.recovered().await;
    others.sort();
    settled(&node, &others).await;
    assert!(entries(&node.dir.path().join("state/runtime/runc")).is_empty());
    assert_eq!(pods.strays().await.unwrap(), []);
}

#[tokio::test]
async fn every_kind_is_shown_and_can_be_removed_by_hand() {
    let node = Node::new();
    let (sandbox_id, id) = lose_records(&node);
    let pods = node.boot();
    let strays = pods.strays().await.unwrap();
    let count = |wanted: fn(&Stray) -> bool| strays.iter().filter(|stray| wanted(stray)).count();
    assert_eq!(count(|it| matches!(it, Stray::Monitor { pid: 77, .. })), 1);
    assert_eq!(count(|it| matches!(it, Stray::Cgroup { .. })), 2);
    assert_eq!(count(|it| matches!(it, Stray::Namespace { .. })), 1);
    assert_eq!(count(|it| matches!(it, Stray::Mount { .. })), 1, "shared memory");
    assert_eq!(count(|it| matches!(it, Stray::Directory { .. })), 6, "{strays:?}");
    assert!(strays.contains(&Stray::Lease { owner: id.to_string() }));
    assert!(strays.contains(&Stray::Network { sandbox: sandbox_id }));
    assert!(strays.is_sorted(), "what uses goes before what is used");
    for stray in &strays {
        pods.remove_stray(stray).await.unwrap();
    }
    assert_eq!(pods.strays().await.unwrap(), []);
    settled(&node, &["/crimson".to_owned()]).await;
}

#[tokio::test]
async fn what_is_on_record_is_no_stray_at_any_moment_of_its_life() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (looks, present) = (pods.clone(), Arc::new(AtomicUsize::new(0)));
    let round = Arc::clone(&present);
    let watcher = tokio::spawn(async move {
        // What was seen, and the round in which the look ended.
        let mut before = (0, Vec::new());
        loop {
            let begun = round.load(Ordering::Relaxed);
            let now = looks.strays().await.unwrap();
            // A removal shows for as long as it takes, which ends with its round.
            if before.0 < begun {
                assert_eq!(persisting(before.1, &now), []);
            }
            before = (round.load(Ordering::Relaxed), now);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for round in 0..6 {
        present.store(round, Ordering::Relaxed);
        let (sandbox_id, id) = run(&pods, &format!("web-{round}")).await;
        assert_eq!(pods.strays().await.unwrap(), []);
        pods.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
        pods.remove_container(id.as_str()).await.unwrap();
        pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    }
    watcher.abort();
    assert!(watcher.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_record_that_cannot_be_read_protects_what_it_owns_until_it_is_set_aside() {
    let node = Node::new();
    // Its tasks must not live on here: they would write the record again.
    let (sandbox_id, path) = failpoints::on_a_server(async {
        let pods = node.recovered().await;
        let (sandbox_id, _) = run(&pods, "web").await;
        let path = pods.layout().sandbox_record(&sandbox_id);
        (sandbox_id, path)
    });
    std::fs::write(&path, "{ damaged").unwrap();
    let pods = node.recovered().await;
    let strays = pods.strays().await.unwrap();
    assert!(
        matches!(strays.as_slice(), [Stray::Record { path: shown, other_version: false, .. }] if *shown == path),
        "{strays:?}"
    );
    pods.remove_stray(&strays[0]).await.unwrap();
    assert!(
        node.dir
            .path()
            .join("root/broken")
            .join(sandbox_id.as_str())
            .join("sandbox.json")
            .try_exists()
            .unwrap()
    );
    for _ in 0..2 {
        for stray in pods.strays().await.unwrap() {
            pods.remove_stray(&stray).await.unwrap();
        }
    }
    settled(&node, &["/crimson".to_owned()]).await;

    let dir = pods.layout().record_dir(&sandbox_id);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("sandbox.json"), r#"{"version":99}"#).unwrap();
    let strays = pods.strays().await.unwrap();
    assert!(matches!(strays.as_slice(), [Stray::Record { other_version: true, .. }]), "{strays:?}");
    assert!(pods.remove_stray(&strays[0]).await.is_err(), "another version may read it");
}

/// The DEL of a stopped sandbox goes on after a restart, although nobody asks for it again.
#[tokio::test(start_paused = true)]
async fn the_network_of_a_stopped_sandbox_is_detached_by_the_next_server() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    node.network.inject(cni::fake::Verb::Teardown, cni::fake::Fault::Hang);
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.network.attached(), std::slice::from_ref(&sandbox_id));
    drop(pods);
    for _ in 0..3 {
        node.network.inject(cni::fake::Verb::Teardown, cni::fake::Fault::Fail(11));
    }
    let begun = tokio::time::Instant::now();
    let pods = node.recovered().await;
    while !node.network.attached().is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(pods.sandbox(sandbox_id.as_str()).unwrap().0.state, SandboxState::NotReady);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn networks_of_lost_pods_are_collected_as_often_as_it_takes() {
    let node = Node::new();
    lose_records(&node);
    for _ in 0..3 {
        node.network.inject(cni::fake::Verb::Gc, cni::fake::Fault::Fail(11));
    }
    let _pods = node.recovered().await;
    assert_eq!(node.network.attached().len(), 1);
    assert!(
        node.host.left().iter().any(|path| path.starts_with(node.dir.path().join("netns"))),
        "plugins may need it"
    );
    settled(&node, &["/crimson".to_owned()]).await;
}
