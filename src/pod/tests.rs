//! Whole lives of pods against fakes: every verb, every step broken once, every restart.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cgroup::DriverKind;
use cgroup::fake::FakeCgroups;
use cni::fake::FakeNetwork;
use cri_api::v1;
use image::fake::FakeImages;
use monitor_api::RuntimeCommand;
use monitor_api::fake::{Call, FakeMonitors, Fault};
use spec::oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use spec::{ContainerRequest, SandboxRequest};
use tempfile::TempDir;
use types::{ContainerId, ErrorKind, Kind, SandboxId};

use super::confinement::Confinement as _;
use super::confinement::fake::FakeConfinement;
use super::host::fake::FakeHost;
use super::view::{ContainerState, SandboxState};
use super::{Drivers, Handler, Layout, PodError, Pods, Settings, SharedError, StepError};

mod confine;
mod events;
mod failpoints;
mod figures;
mod image_volumes;
mod in_flight;
mod observer;
mod retries;
mod rules;
mod sessions;
mod strays;
mod update;
mod userns;
mod volumes;

const IMAGE: &str = "example.test/app:1";

/// A node in memory, whose daemon can be killed and started again.
struct Node {
    dir: TempDir,
    images: Arc<FakeImages>,
    network: Arc<FakeNetwork>,
    cgroups: Arc<FakeCgroups>,
    monitors: Arc<FakeMonitors>,
    host: Arc<FakeHost>,
    confinement: Arc<FakeConfinement>,
}

/// A daemon. Dropping it is what `kill -9` does: what it has begun in this process comes no further.
struct Server(Pods);

impl Deref for Server {
    type Target = Pods;

    fn deref(&self) -> &Pods {
        &self.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.faults.die();
    }
}

impl Node {
    fn new() -> Self {
        // In memory where that is possible: a life syncs dozens of files, and there are hundreds of lives.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let layer = dir.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        let images = Arc::new(FakeImages::new());
        let config = ConfigBuilder::default().cmd(vec!["/app".to_owned()]).build().unwrap();
        let config = ImageConfigurationBuilder::default()
            .architecture("amd64")
            .os("linux")
            .config(config)
            .rootfs(
                spec::oci_spec::image::RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids(Vec::<String>::new())
                    .build()
                    .unwrap(),
            )
            .history(Vec::new())
            .build()
            .unwrap();
        images.add(IMAGE, config, vec![layer]).unwrap();
        Self {
            dir,
            images,
            network: Arc::new(FakeNetwork::new()),
            cgroups: Arc::new(FakeCgroups::new(DriverKind::Cgroupfs)),
            monitors: Arc::new(FakeMonitors::new()),
            host: Arc::new(FakeHost::default()),
            confinement: Arc::new(FakeConfinement::default()),
        }
    }

    /// A daemon on this node.
    fn boot(&self) -> Server {
        self.boot_with_pause(None)
    }

    fn boot_with_pause(&self, pause_image: Option<String>) -> Server {
        let layout = Layout::new(self.dir.path().join("root"), self.dir.path().join("state"));
        for path in [layout.pods(), layout.bundles(), layout.layers(), layout.records()] {
            std::fs::create_dir_all(path).unwrap();
        }
        let root = self.dir.path().join("runtime");
        std::fs::create_dir_all(&root).unwrap();
        // Stands in for an OCI runtime where one is called without the monitor.
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/runtime/tests/update.sh");
        let command = RuntimeCommand { path, root, systemd_cgroup: false };
        let handler = Handler::new("runc".to_owned(), command);
        let settings = Settings {
            handlers: [("runc".to_owned(), handler)].into(),
            default_handler: "runc".to_owned(),
            pause_image,
            runtime_timeout: Duration::from_secs(60),
            netns_dir: self.dir.path().join("netns"),
            exec_output_bytes: 1 << 20,
            facts: spec::NodeFacts {
                apparmor: self.confinement.has_apparmor(),
                selinux: self.confinement.selinux().is_some(),
                ..spec::NodeFacts::default()
            },
            ..Settings::at(layout)
        };
        let drivers = Drivers {
            images: Arc::<FakeImages>::clone(&self.images),
            network: Arc::<FakeNetwork>::clone(&self.network),
            cgroups: Arc::<FakeCgroups>::clone(&self.cgroups),
            monitors: Arc::<FakeMonitors>::clone(&self.monitors),
            host: Arc::<FakeHost>::clone(&self.host),
            confinement: Arc::<FakeConfinement>::clone(&self.confinement),
        };
        Server(Pods::new(drivers, settings))
    }

    async fn recovered(&self) -> Server {
        let pods = self.boot();
        pods.recover().await.unwrap();
        pods
    }

    /// Everything that exists outside the daemon's memory.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self.host.left().iter().map(|path| path.display().to_string()).collect();
        left.extend(self.cgroups.left());
        left.extend(self.network.attached().iter().map(SandboxId::to_string));
        left.extend(image::ImageSource::leases(&*self.images));
        left.extend(self.monitors.alive().iter().map(SandboxId::to_string));
        for dir in ["root/pods", "root/containers", "state/pods", "state/containers"] {
            left.extend(entries(&self.dir.path().join(dir)));
        }
        left
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
}

fn sandbox(name: &str) -> SandboxRequest {
    let metadata = v1::PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        namespace: "default".to_owned(),
        attempt: 0,
    };
    let config = v1::PodSandboxConfig { metadata: Some(metadata), ..v1::PodSandboxConfig::default() };
    SandboxRequest::parse(config, String::new()).unwrap()
}

fn container(name: &str) -> ContainerRequest {
    container_with(name, Vec::new())
}

fn container_with(name: &str, mounts: Vec<v1::Mount>) -> ContainerRequest {
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..v1::ImageSpec::default() }),
        mounts,
        ..v1::ContainerConfig::default()
    };
    ContainerRequest::parse(config).unwrap()
}

/// A mount of an image, or of a directory in it.
fn image_mount(container_path: &str, image: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: container_path.to_owned(),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() }),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..v1::Mount::default()
    }
}

/// A pod with one running container.
async fn run(pods: &Pods, name: &str) -> (SandboxId, ContainerId) {
    let sandbox_id = pods.run_sandbox(sandbox(name)).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
    pods.start_container(id.as_str()).await.unwrap();
    (sandbox_id, id)
}

/// Waits until the container is seen in this state.
async fn reaches(pods: &Pods, id: &ContainerId, state: ContainerState) {
    let (_, handle) = pods.find_container(id.as_str()).unwrap();
    let seen =
        handle.watch().wait_for(|view| view.container(id).is_some_and(|c| c.state == state)).await.is_ok();
    assert!(seen, "{id} never became {state:?}");
}

#[tokio::test]
async fn a_pod_lives_and_dies_and_leaves_nothing() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    let (view, pod) = pods.sandbox(sandbox_id.as_str()).unwrap();
    assert_eq!((view.state, view.ips.len(), pod.containers.len()), (SandboxState::Ready, 1, 1));
    assert_eq!(pods.container(id.short()).unwrap().state, ContainerState::Running);

    pods.stop_container(id.as_str(), Duration::from_secs(5)).await.unwrap();
    let stopped = pods.container(id.as_str()).unwrap();
    assert_eq!((stopped.state, stopped.exit_code), (ContainerState::Exited, 143));
    pods.remove_container(id.as_str()).await.unwrap();
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(pods.sandbox(sandbox_id.as_str()).unwrap().0.state, SandboxState::NotReady);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert!(pods.list().is_empty());
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn removing_a_sandbox_takes_running_containers_along() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = run(&pods, "web").await;
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_running_container_is_killed_by_its_removal() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    node.monitors.ignore_sigterm(&id);
    pods.remove_container(id.as_str()).await.unwrap();
    assert!(pods.container(id.as_str()).is_err());
}

#[tokio::test]
async fn the_same_request_gets_the_same_object() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (first, second) = tokio::join!(pods.run_sandbox(sandbox("web")), pods.run_sandbox(sandbox("web")));
    let id = first.unwrap();
    assert_eq!(id, second.unwrap());
    assert_eq!(id, pods.run_sandbox(sandbox("web")).await.unwrap());
    let (one, two) = tokio::join!(
        pods.create_container(id.as_str(), container("app")),
        pods.create_container(id.as_str(), container("app"))
    );
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(pods.list().len(), 1);
    pods.stop_sandbox(id.as_str()).await.unwrap();
    let error = pods.run_sandbox(sandbox("web")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_stop_the_work() {
    let node = Node::new();
    let pods = node.recovered().await;
    let abandoned = pods.run_sandbox(sandbox("web"));
    // Polled once, so that the operation has begun, and dropped.
    assert!(poll_once(abandoned).await.is_none());
    let id = pods.run_sandbox(sandbox("web")).await.unwrap();
    assert_eq!(pods.sandbox(id.as_str()).unwrap().0.state, SandboxState::Ready);
    assert_eq!(node.monitors.alive(), [id]);
}

/// Polls a future once.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test]
async fn unknown_objects_are_stopped_and_removed_already() {
    let node = Node::new();
    let pods = node.recovered().await;
    for id in ["0b6a1f0e-8d0e-4b5a-9c57-1b1d9f2f3a4c", &"0".repeat(64), ""] {
        pods.stop_sandbox(id).await.unwrap();
        pods.remove_sandbox(id).await.unwrap();
        pods.stop_container(id, Duration::ZERO).await.unwrap();
        pods.remove_container(id).await.unwrap();
        assert_eq!(pods.container(id).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(pods.sandbox(id).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(pods.start_container(id).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_container_starts_once() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    assert_eq!(pods.start_container(id.as_str()).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    node.monitors.exit(&id, 7);
    reaches(&pods, &id, ContainerState::Exited).await;
    let view = pods.container(id.as_str()).unwrap();
    assert_eq!((view.exit_code, view.reason), (7, "Error"));
    assert_eq!(pods.start_container(id.as_str()).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
}

#[tokio::test]
async fn an_oom_kill_is_named() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    node.monitors.oom_kill(&id);
    reaches(&pods, &id, ContainerState::Exited).await;
    let view = pods.container(id.as_str()).unwrap();
    assert_eq!((view.exit_code, view.reason), (137, "OOMKilled"));
}

#[tokio::test]
async fn a_container_that_cannot_start_is_exited_with_the_reason() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
    pods.shared.faults.arm("start container", "OCI create");
    assert!(pods.start_container(id.as_str()).await.is_err());
    let view = pods.container(id.as_str()).unwrap();
    assert_eq!((view.state, view.exit_code, view.reason), (ContainerState::Exited, 128, "StartError"));
    assert!(view.finished_at.is_set());
}

#[tokio::test(start_paused = true)]
async fn stop_kills_when_the_grace_is_over() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    node.monitors.ignore_sigterm(&id);
    let begun = tokio::time::Instant::now();
    pods.stop_container(id.as_str(), Duration::from_secs(30)).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!(pods.container(id.as_str()).unwrap().exit_code, 137);
}

#[tokio::test]
async fn a_restart_finds_what_runs_and_what_ended_meanwhile() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, running) = run(&pods, "web").await;
    let ended = pods.create_container(sandbox_id.as_str(), container("job")).await.unwrap();
    pods.start_container(ended.as_str()).await.unwrap();
    let created = pods.create_container(sandbox_id.as_str(), container("later")).await.unwrap();
    let before = pods.container(running.as_str()).unwrap();
    node.monitors.lose(&sandbox_id);
    drop(pods);
    node.monitors.exit(&ended, 3);

    let pods = node.recovered().await;
    let (view, _) = pods.sandbox(sandbox_id.as_str()).unwrap();
    assert_eq!((view.state, view.ips.len()), (SandboxState::Ready, 1));
    let after = pods.container(running.as_str()).unwrap();
    assert_eq!((after.state, after.pid), (ContainerState::Running, before.pid));
    assert_eq!((after.created_at, after.started_at), (before.created_at, before.started_at));
    let after = pods.container(ended.as_str()).unwrap();
    assert_eq!((after.state, after.exit_code), (ContainerState::Exited, 3));
    assert_eq!(pods.container(created.as_str()).unwrap().state, ContainerState::Created);
    pods.start_container(created.as_str()).await.unwrap();
    assert_eq!(pods.run_sandbox(sandbox("web")).await.unwrap(), sandbox_id);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_dead_monitor_is_never_shown_as_a_running_container() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.die(&sandbox_id);
    reaches(&pods, &id, ContainerState::Exited).await;
    let view = pods.container(id.as_str()).unwrap();
    assert_eq!((view.exit_code, view.reason), (255, "Unknown"));
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn after_a_reboot_nothing_is_shown_as_running() {
    let mut node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    drop(pods);
    node.monitors.die(&sandbox_id);
    node.cgroups = Arc::new(FakeCgroups::new(DriverKind::Cgroupfs));
    std::fs::remove_dir_all(node.dir.path().join("state")).unwrap();

    let pods = node.recovered().await;
    assert_eq!(pods.sandbox(sandbox_id.as_str()).unwrap().0.state, SandboxState::NotReady);
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Exited);
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

/// The daemon dies while a call of the monitor hangs, which is where its work can be cut.
#[tokio::test(start_paused = true)]
async fn a_sandbox_half_made_is_gone_after_a_restart() {
    for call in [Call::Spawn, Call::Create, Call::Start] {
        let node = Node::new();
        let pods = node.recovered().await;
        node.monitors.inject(call, Fault::Hang);
        let making = tokio::spawn({
            let pods = pods.clone();
            async move { pods.run_sandbox(sandbox("web")).await }
        });
        while !node.monitors.calls().iter().any(|(seen, _)| *seen == call) {
            tokio::task::yield_now().await;
        }
        making.abort();
        // The call still hangs in this process; its successor must win over it.
        drop(pods);
        let pods = node.recovered().await;
        assert!(pods.list().is_empty(), "{call:?}");
        assert_eq!(node.left(), Vec::<String>::new(), "{call:?}");
    }
}

/// The OCI runtime of the dead daemon's start may still be at work when its successor asks.
#[tokio::test(start_paused = true)]
async fn a_start_cut_off_in_the_runtime_can_be_repeated_after_a_restart() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("c")).await.unwrap();
    node.monitors.inject(Call::Create, Fault::Linger);
    let starting = tokio::spawn({
        let (pods, id) = (pods.clone(), id.clone());
        async move { pods.start_container(id.as_str()).await }
    });
    while !node.monitors.calls().contains(&(Call::Create, id.to_string())) {
        tokio::task::yield_now().await;
    }
    starting.abort();
    drop(pods);
    let pods = node.recovered().await;
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Created);
    let frees = |call: &cgroup::fake::Call| matches!(call, cgroup::fake::Call::Release(path) if path.contains(id.as_str()));
    assert!(
        node.cgroups.calls().iter().any(frees),
        "its scope may have come to be without the runtime's knowing"
    );
    pods.start_container(id.as_str()).await.unwrap();
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Running);
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

/// An OCI runtime whose systemd does not answer, as while that replaces itself, deletes a container but not its scope.
#[tokio::test]
async fn a_cgroup_that_the_runtime_has_left_is_freed() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    let cgroup = cgroup::CgroupDriver::oci_path(&*node.cgroups, None, id.as_str()).unwrap();
    node.cgroups.add(&cgroup, &[]);
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    let calls = node.cgroups.calls();
    assert!(calls.contains(&cgroup::fake::Call::KillAll(cgroup.clone())), "a process may be frozen in it");
    assert!(calls.contains(&cgroup::fake::Call::Release(cgroup)));
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn what_nobody_owns_is_swept_away() {
    let node = Node::new();
    let stray = node.dir.path().join("state/containers").join("a".repeat(64));
    std::fs::create_dir_all(stray.join("rootfs")).unwrap();
    let image = image::ImageSource::resolve(&*node.images, IMAGE).unwrap();
    image::ImageSource::lease(&*node.images, &"b".repeat(64), &image.id).await.unwrap();
    let pods = node.recovered().await;
    assert_eq!(node.left(), Vec::<String>::new());
    drop(pods);
}

#[tokio::test]
async fn a_record_of_another_version_is_left_alone() {
    let node = Node::new();
    let dir: PathBuf = node.dir.path().join("root/pods").join("c".repeat(64));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("sandbox.json"), r#"{"version":99}"#).unwrap();
    let pods = node.boot();
    let found = pods.recover().await.unwrap();
    assert_eq!(found.broken, 1);
    assert!(dir.join("sandbox.json").try_exists().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_network_that_cannot_be_detached_holds_nobody_up() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    for _ in 0..5 {
        node.network.inject(cni::fake::Verb::Teardown, cni::fake::Fault::Fail(11));
    }
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert!(pods.sandbox(sandbox_id.as_str()).is_err());
    // Its name is free, and what is needed for the DEL is still there.
    assert_eq!(node.network.attached(), [sandbox_id]);
    while !node.left().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_teardown_survives_a_restart() {
    let node = Node::new();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    node.network.inject(cni::fake::Verb::Teardown, cni::fake::Fault::Hang);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert!(!node.host.left().is_empty(), "the namespace stays for the DEL");
    drop(pods);
    let pods = node.recovered().await;
    assert!(pods.list().is_empty());
    while !node.left().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn a_configured_pause_image_is_held_while_the_sandbox_lives() {
    let node = Node::new();
    let pods = node.boot_with_pause(Some(IMAGE.to_owned()));
    pods.recover().await.unwrap();
    let id = pods.run_sandbox(sandbox("web")).await.unwrap();
    assert_eq!(image::ImageSource::leases(&*node.images), [id.to_string()]);
    let pause = ContainerId::parse(id.as_str()).unwrap();
    assert!(node.monitors.request(&pause).unwrap().rootfs.is_some(), "its own root file system is mounted");
    pods.remove_sandbox(id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());

    let pods = node.boot_with_pause(Some("example.test/absent:1".to_owned()));
    pods.recover().await.unwrap();
    assert!(pods.run_sandbox(sandbox("web")).await.is_err());
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_stop_cut_off_by_a_crash_is_completed() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.inject(Call::Signal, Fault::Hang);
    let stopping = tokio::spawn({
        let (pods, id) = (pods.clone(), sandbox_id.clone());
        async move { pods.stop_sandbox(id.as_str()).await }
    });
    while !node.monitors.calls().iter().any(|(seen, _)| *seen == Call::Signal) {
        tokio::task::yield_now().await;
    }
    stopping.abort();
    drop(pods);
    let pods = node.recovered().await;
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Exited);
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_handler_that_a_reload_takes_away_stays_with_the_pods_that_have_it() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = run(&pods, "web").await;
    let mut settings = Settings::clone(&pods.settings());
    let runc = settings.handlers.remove("runc").unwrap();
    settings.handlers.insert("crun".to_owned(), Handler { name: "crun".to_owned(), ..runc.clone() });
    settings.default_handler = "crun".to_owned();
    pods.reconfigure(settings.clone());
    // Once more, as if another key had changed.
    pods.reconfigure(Settings { exec_output_bytes: 7, ..settings.clone() });

    let id = pods.create_container(sandbox_id.as_str(), container("late")).await.unwrap();
    pods.start_container(id.as_str()).await.unwrap();
    assert_eq!(pods.settings().exec_output_bytes, 7);
    let error = pods.settings().handler("runc").unwrap_err();
    assert!(matches!(error, PodError::UnknownHandler(_)), "new pods do not get it: {error}");
    let next = pods.run_sandbox(sandbox("next")).await.unwrap();
    assert_eq!(pods.sandbox(next.as_str()).unwrap().0.handler, "crun");

    // Back again, and broken: that counts.
    let broken = Some("gone".to_owned());
    settings.handlers.insert("runc".to_owned(), Handler { broken, ..runc });
    pods.reconfigure(settings);
    assert!(pods.create_container(sandbox_id.as_str(), container("later")).await.is_err());
    for id in [sandbox_id, next] {
        pods.remove_sandbox(id.as_str()).await.unwrap();
    }
    assert_eq!(node.left(), Vec::<String>::new());
}
