//! Changes of limits: of what is created, of what runs, refused halfway, cut off, and at once.

use cgroup::fake::{Call as Asked, Method};
use spec::ResourcesUpdate;
use spec::resources::SandboxResources;
use tokio::task::JoinHandle;

use super::super::SharedError;
use super::*;

fn limits(memory: i64, shares: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources { memory_limit_in_bytes: memory, cpu_shares: shares, ..Default::default() }
}

fn change(resources: v1::LinuxContainerResources) -> ResourcesUpdate {
    ResourcesUpdate::parse(resources).unwrap()
}

const BEFORE: (i64, i64) = (64 << 20, 512);
const AFTER: (i64, i64) = (96 << 20, 512);

fn more_memory() -> ResourcesUpdate {
    change(limits(AFTER.0, 0))
}

fn limited(name: &str) -> ContainerRequest {
    let linux = v1::LinuxContainerConfig {
        resources: Some(v1::LinuxContainerResources { oom_score_adj: 500, ..limits(BEFORE.0, BEFORE.1) }),
        ..Default::default()
    };
    let config = v1::ContainerConfig { linux: Some(linux), ..container(name).config().clone() };
    ContainerRequest::parse(config).unwrap()
}

/// A pod with a container that is limited.
async fn pod(pods: &Pods, start: bool) -> (SandboxId, ContainerId) {
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), limited("app")).await.unwrap();
    if start {
        pods.start_container(id.as_str()).await.unwrap();
    }
    (sandbox_id, id)
}

/// Memory and shares as readers see them.
fn shown(pods: &Pods, id: &ContainerId) -> (i64, i64) {
    let view = pods.container(id.as_str()).unwrap();
    let resources = view.request.wire_resources().unwrap();
    (resources.memory_limit_in_bytes, resources.cpu_shares)
}

impl Node {
    /// Memory, shares and score in config.json, from which the container would be started.
    fn configured(&self, id: &ContainerId) -> (i64, i64, i64) {
        let path = self.dir.path().join("state/containers").join(id.as_str()).join("config.json");
        let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let resources = &spec["linux"]["resources"];
        assert!(resources["devices"].is_array());
        let number = |value: &serde_json::Value| value.as_i64().unwrap();
        let memory = number(&resources["memory"]["limit"]);
        (memory, number(&resources["cpu"]["shares"]), number(&spec["process"]["oomScoreAdj"]))
    }

    /// Memory and shares that the OCI runtime was asked for, in order.
    fn asked(&self) -> Vec<(i64, i64)> {
        let calls = std::fs::read_to_string(self.dir.path().join("runtime/calls")).unwrap_or_default();
        let resources = calls.lines().map(|line| line.split_once(' ').unwrap().1);
        let parsed = resources.map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap());
        parsed
            .map(|it| (it["memory"]["limit"].as_i64().unwrap(), it["cpu"]["shares"].as_i64().unwrap()))
            .collect()
    }

    fn steer(&self, file: &str, text: &str) {
        std::fs::write(self.dir.path().join("runtime").join(file), text).unwrap();
    }

    /// The calls of the cgroup driver that concern limits.
    fn limiting(&self) -> Vec<&'static str> {
        let calls = self.cgroups.calls();
        let names = calls.iter().filter_map(|call| match call {
            Asked::SaveLimits(_) => Some("save"),
            Asked::MakeRoom(..) => Some("room"),
            Asked::SetHugepages(..) => Some("huge pages"),
            Asked::AnnounceLimits(..) => Some("announce"),
            Asked::SetOomScore(..) => Some("oom score"),
            Asked::RestoreLimits(_) => Some("restore"),
            _ => None,
        });
        names.collect()
    }
}

#[tokio::test]
async fn a_created_container_starts_with_its_new_limits() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods, false).await;
    let score = v1::LinuxContainerResources { oom_score_adj: 700, ..limits(AFTER.0, 0) };
    pods.update_container(id.short(), change(score)).await.unwrap();
    assert_eq!(shown(&pods, &id), AFTER);
    assert_eq!(node.configured(&id), (AFTER.0, AFTER.1, 700));
    assert_eq!((node.asked(), node.limiting()), (vec![], vec![]), "nothing of it exists yet");
    drop(pods);
    let pods = node.recovered().await;
    assert_eq!(shown(&pods, &id), AFTER);
    pods.start_container(id.as_str()).await.unwrap();
}

#[tokio::test]
async fn a_running_container_is_changed_by_the_runtime_and_stays_so() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = pod(&pods, true).await;
    pods.update_container(id.as_str(), more_memory()).await.unwrap();
    // What the update does not name is said too: runtimes disagree on what is left out.
    assert_eq!(node.asked(), [AFTER]);
    assert_eq!(node.limiting(), ["save", "room", "huge pages", "announce"]);
    assert_eq!((shown(&pods, &id), node.configured(&id)), (AFTER, (AFTER.0, AFTER.1, 500)));
    let score = v1::LinuxContainerResources { oom_score_adj: 700, ..Default::default() };
    pods.update_container(id.as_str(), change(score)).await.unwrap();
    assert!(node.cgroups.calls().iter().any(|call| matches!(call, Asked::SetOomScore(_, 500, 700))));
    drop(pods);
    node.monitors.lose(&sandbox_id);
    let pods = node.recovered().await;
    assert_eq!(shown(&pods, &id), AFTER);
    assert_eq!(node.asked().len(), 2, "what was done is not done again");
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

/// The steps of an update that succeeds.
async fn steps_of(running: bool) -> Vec<&'static str> {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods, running).await;
    pods.update_container(id.as_str(), more_memory()).await.unwrap();
    let seen = pods.shared.faults.seen.lock().unwrap();
    seen.iter().filter(|(verb, _)| *verb == "update container").map(|(_, step)| *step).collect()
}

#[tokio::test]
async fn every_step_that_fails_leaves_the_old_limits() {
    for running in [false, true] {
        let steps = steps_of(running).await;
        assert_eq!(steps.len(), if running { 9 } else { 3 }, "{steps:?}");
        for step in steps {
            let node = Node::new();
            let pods = node.recovered().await;
            let (sandbox_id, id) = pod(&pods, running).await;
            pods.shared.faults.arm("update container", step);
            pods.update_container(id.as_str(), more_memory()).await.unwrap_err();
            assert_eq!(shown(&pods, &id), BEFORE, "{step}");
            assert_eq!(node.configured(&id), (BEFORE.0, BEFORE.1, 500), "{step}");
            assert_eq!(node.asked().last().copied().unwrap_or(BEFORE), BEFORE, "{step}");
            let looked = node.limiting().contains(&"save");
            assert_eq!(node.limiting().last() == Some(&"restore"), looked, "{step}: {:?}", node.limiting());
            let asked = node.asked().len();
            drop(pods);
            node.monitors.lose(&sandbox_id);
            let pods = node.recovered().await;
            assert_eq!(shown(&pods, &id), BEFORE, "{step}");
            // A second time it goes well, and nothing of the first is taken up.
            pods.update_container(id.as_str(), more_memory()).await.unwrap();
            assert_eq!(node.asked().len(), asked + usize::from(running), "{step}");
            assert_eq!(shown(&pods, &id), AFTER, "{step}");
            pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
            assert_eq!(node.left(), Vec::<String>::new(), "{step}");
        }
    }
}

#[tokio::test]
async fn what_the_runtime_or_systemd_refuses_is_told_with_the_reason() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods, true).await;
    node.steer("refuse", "too little memory");
    let error = pods.update_container(id.as_str(), more_memory()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let text = types::error::chain(&*error);
    assert!(text.contains("too little memory") && text.contains("update container \"app\""), "{text}");
    assert!(!text.contains(id.as_str()), "{text}");
    assert_eq!(node.limiting().last(), Some(&"restore"));
    std::fs::remove_file(node.dir.path().join("runtime/refuse")).unwrap();
    node.cgroups.fail(Method::AnnounceLimits, 1);
    pods.update_container(id.as_str(), more_memory()).await.unwrap_err();
    assert_eq!((shown(&pods, &id), node.asked().last().copied().unwrap()), (BEFORE, BEFORE));
}

#[tokio::test]
async fn what_has_ended_is_unknown_or_makes_no_sense_is_refused() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods, true).await;
    let kind = async |id: &str, update| pods.update_container(id, update).await.unwrap_err().kind();
    let swap = v1::LinuxContainerResources { memory_swap_limit_in_bytes: 1 << 20, ..Default::default() };
    assert_eq!(kind(id.as_str(), change(swap)).await, ErrorKind::InvalidArgument);
    assert_eq!(kind(id.as_str(), change(limits(1, 0))).await, ErrorKind::InvalidArgument);
    let huge = v1::HugepageLimit { page_size: "3MB".to_owned(), limit: 1 };
    let huge = v1::LinuxContainerResources { hugepage_limits: vec![huge], ..Default::default() };
    assert_eq!(kind(id.as_str(), change(huge)).await, ErrorKind::FailedPrecondition);
    assert_eq!((node.asked(), node.limiting()), (vec![], vec![]));
    assert_eq!(kind(&"0".repeat(64), more_memory()).await, ErrorKind::NotFound);
    pods.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
    assert_eq!(kind(id.as_str(), more_memory()).await, ErrorKind::FailedPrecondition);
    assert_eq!(shown(&pods, &id), BEFORE);
}

#[tokio::test]
async fn updates_at_once_follow_one_another() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods, true).await;
    let (one, two) = tokio::join!(
        pods.update_container(id.as_str(), more_memory()),
        pods.update_container(id.as_str(), change(limits(0, 1024))),
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(shown(&pods, &id), (AFTER.0, 1024));
    assert_eq!(node.asked(), [AFTER, (AFTER.0, 1024)]);
}

/// Holds the runtime's next update until it is dropped.
struct Hold(PathBuf);

impl Hold {
    fn new(node: &Node) -> Self {
        let path = node.dir.path().join("runtime/hold");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        Self(path)
    }

    /// An update that has come as far as the runtime.
    async fn begun(&self, pods: &Pods, id: &ContainerId) -> JoinHandle<Result<(), SharedError>> {
        let (pods, id) = (pods.clone(), id.clone());
        let update = tokio::spawn(async move { pods.update_container(id.as_str(), more_memory()).await });
        while !self.0.with_file_name("calls").try_exists().unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        update
    }

    /// Lets it go on, and ends when the call of the runtime has ended: that of a daemon that died would have ended with it.
    async fn ended(self, node: &Node, id: &ContainerId) {
        tokio::task::spawn_blocking(move || drop(self)).await.unwrap();
        let bundle = node.dir.path().join("state/containers").join(id.as_str());
        while bundle.join("update.json").try_exists().unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Opening waits for the reader; whoever comes later finds no fifo any more.
        let writer = std::fs::OpenOptions::new().write(true).open(&self.0);
        std::fs::remove_file(&self.0).unwrap();
        drop(writer);
    }
}

#[tokio::test]
async fn a_slow_update_holds_nobody_up_but_what_would_undo_it() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = pod(&pods, true).await;
    let hold = Hold::new(&node);
    let update = hold.begun(&pods, &id).await;
    assert_eq!(shown(&pods, &id), BEFORE, "readers see what is in force");
    pods.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Exited);
    let removal = tokio::spawn({
        let (pods, id) = (pods.clone(), sandbox_id.clone());
        async move { pods.remove_sandbox(id.as_str()).await }
    });
    tokio::task::spawn_blocking(move || drop(hold)).await.unwrap();
    update.await.unwrap().unwrap();
    removal.await.unwrap().unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn an_update_cut_off_by_a_crash_is_taken_up_again() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = pod(&pods, true).await;
    let hold = Hold::new(&node);
    let update = hold.begun(&pods, &id).await;
    update.abort();
    drop(pods);
    node.monitors.lose(&sandbox_id);
    hold.ended(&node, &id).await;
    let pods = node.recovered().await;
    let (_, handle) = pods.find_container(id.as_str()).unwrap();
    let changed = |view: &Arc<super::super::view::PodView>| {
        view.container(&id).is_some_and(|it| {
            it.request.wire_resources().is_some_and(|now| now.memory_limit_in_bytes == AFTER.0)
        })
    };
    handle.watch().wait_for(changed).await.unwrap();
    assert_eq!(node.asked().last(), Some(&AFTER));
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_sandbox_remembers_the_resources_it_is_told_of() {
    let node = Node::new();
    let pods = node.recovered().await;
    let id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let told = || SandboxResources::parse(Some(limits(1, 2)), Some(limits(3, 4))).unwrap();
    let linux = |pods: &Pods| {
        let view = pods.sandbox(id.as_str()).unwrap().0;
        view.request.config().linux.clone().map(|linux| (linux.overhead, linux.resources))
    };
    pods.shared.faults.arm("update sandbox", "record");
    pods.update_sandbox(id.as_str(), told()).await.unwrap_err();
    assert_eq!(linux(&pods), None);
    pods.update_sandbox(id.as_str(), told()).await.unwrap();
    let expected = Some((Some(limits(1, 2)), Some(limits(3, 4))));
    assert_eq!(linux(&pods), expected);
    drop(pods);
    node.monitors.lose(&id);
    let pods = node.recovered().await;
    assert_eq!(linux(&pods), expected);
    assert_eq!(pods.run_sandbox(sandbox("web")).await.unwrap(), id, "it is still the same pod");
    pods.stop_sandbox(id.as_str()).await.unwrap();
    let kind = async |id: &str| pods.update_sandbox(id, told()).await.unwrap_err().kind();
    assert_eq!(kind(id.as_str()).await, ErrorKind::FailedPrecondition);
    assert_eq!(kind(&"0".repeat(64)).await, ErrorKind::NotFound);
}
