//! Lists and figures wait for nobody: not for an OCI runtime or a registry that hangs, not for pods that come and go, not for a
//! monitor that is stuck. What vanishes under the daemon is missing in its answers, and nothing else is.

use std::time::Duration;

use e2e::cri::*;
use e2e::faulty::{Fault, Faulty, HANDLER, Moment, Program, real_runtime};
use e2e::{
    ContainerSpec, Cri, ImageBuilder, Layer, Media, Node, Options, PodSpec, RegistryProxy, Result, Stage,
    Trouble, code_of, patience,
};
use tokio::task::JoinHandle;
use tonic::Code;

/// How long an answer may take that waits for nothing, on the slowest machine: less than the ten seconds that the daemon gives a
/// monitor, whereas a runtime or registry hangs until it is let go.
const AT_ONCE: Duration = Duration::from_secs(8);
/// Rounds of questions while things hang, and lives of other pods in each.
const ROUNDS: usize = 3;

/// What the answers tell: ids, sorted.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    pods: Vec<String>,
    containers: Vec<String>,
    streamed: Vec<String>,
    pods_with_figures: Vec<String>,
    containers_with_figures: Vec<String>,
}

impl Told {
    async fn by(cri: &Cri) -> Result<Self> {
        let pods = at_once(cri.all_pods()).await?;
        let containers = at_once(cri.all_containers()).await?;
        let streaming = cri.call_stream("RuntimeService", "StreamContainers", ());
        let streamed: Option<ListContainersResponse> = at_once(streaming).await?;
        let streamed = streamed.unwrap_or_default().containers;
        let of_pods = at_once(cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())).await?.stats;
        let of_containers =
            at_once(cri.list_container_stats(ListContainerStatsRequest::default())).await?.stats;
        let has_figures = |it: &PodSandboxStats| it.linux.as_ref().is_some_and(|linux| linux.cpu.is_some());
        let pod_id = |it: PodSandboxStats| it.attributes.unwrap_or_default().id;
        let container_id = |it: ContainerStats| it.attributes.unwrap_or_default().id;
        Ok(Self {
            pods: sorted(pods.into_iter().map(|it| it.id)),
            containers: sorted(containers.into_iter().map(|it| it.id)),
            streamed: sorted(streamed.into_iter().map(|it| it.id)),
            pods_with_figures: sorted(of_pods.into_iter().filter(has_figures).map(pod_id)),
            containers_with_figures: sorted(
                of_containers.into_iter().filter(|it| it.cpu.is_some()).map(container_id),
            ),
        })
    }
}

fn sorted(ids: impl Iterator<Item = String>) -> Vec<String> {
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}

fn ids<const N: usize>(ids: [&str; N]) -> Vec<String> {
    sorted(ids.into_iter().map(str::to_owned))
}

/// The answer, which must not wait for anything.
async fn at_once<T>(asked: impl Future<Output = std::result::Result<T, tonic::Status>>) -> Result<T> {
    let answered = tokio::time::timeout(AT_ONCE, asked).await;
    Ok(answered.map_err(|_| anyhow::anyhow!("an answer waits for something"))??)
}

/// A node with a runtime that hangs on demand, the one that is the default, and an image.
async fn disturbed() -> Result<(Node, e2e::Registry, Faulty, String)> {
    let faulty = Faulty::new()?;
    let good = format!("good={}", real_runtime()?.display());
    let options = Options {
        args: [vec!["--runtime".to_owned(), good], faulty.args()].concat(),
        config: "[runtime]\ndefault = \"good\"\n[limits]\ncreate_timeout_secs = 300\n".to_owned(),
        ..Options::default()
    };
    let (node, registry) = Node::start_with_registry(options).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let image = node.cri().pull(&pushed.reference).await?;
    Ok((node, registry, faulty, image))
}

async fn a_whole_life(cri: &Cri, pod: &PodSpec, image: &str) -> Result {
    let id = cri.run_pod(pod).await?;
    let container = cri.run(&id, &ContainerSpec::lasting("c", image), pod).await?;
    cri.stop(&container, 5).await?;
    cri.stop_pod(&id).await?;
    Ok(cri.remove_pod(&id).await?)
}

async fn nothing_is_found_by_unknown_ids(cri: &Cri) -> Result {
    let unknown = || "f".repeat(64);
    for (id, pod_sandbox_id) in [(unknown(), String::new()), (String::new(), unknown())] {
        let filter =
            ContainerFilter { id: id.clone(), pod_sandbox_id: pod_sandbox_id.clone(), ..Default::default() };
        let listed = at_once(cri.list_containers(ListContainersRequest { filter: Some(filter) })).await?;
        assert_eq!(listed.containers, []);
        let filter = ContainerStatsFilter { id, pod_sandbox_id, ..Default::default() };
        let request = ListContainerStatsRequest { filter: Some(filter) };
        assert_eq!(at_once(cri.list_container_stats(request)).await?.stats, []);
    }
    let filter = PodSandboxFilter { id: unknown(), ..Default::default() };
    let listed = at_once(cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) })).await?;
    assert_eq!(listed.items, []);
    let filter = PodSandboxStatsFilter { id: unknown(), ..Default::default() };
    let request = ListPodSandboxStatsRequest { filter: Some(filter) };
    assert_eq!(at_once(cri.list_pod_sandbox_stats(request)).await?.stats, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_wait_for_a_hung_runtime_a_slow_registry_or_other_pods() -> Result {
    let (node, registry, faulty, image) = disturbed().await?;
    let cri = node.cri();
    let (calm, tried) = (node.pod("calm"), PodSpec { handler: HANDLER.to_owned(), ..node.pod("tried") });
    let calm_id = cri.run_pod(&calm).await?;
    let runs = cri.run(&calm_id, &ContainerSpec::lasting("runs", &image), &calm).await?;
    let tried_id = cri.run_pod(&tried).await?;
    let waits = cri.create(&tried_id, &ContainerSpec::lasting("waits", &image), &tried).await?;
    let expected = Told {
        pods: ids([&calm_id, &tried_id]),
        containers: ids([&runs, &waits]),
        streamed: ids([&runs, &waits]),
        pods_with_figures: ids([&calm_id, &tried_id]),
        containers_with_figures: ids([&runs]),
    };
    assert_eq!(Told::by(&cri).await?, expected, "before anything hangs");

    let proxy = RegistryProxy::start(node.machine(), registry.host()).await?;
    proxy.describe_to(&node.registry_config_dir())?;
    let noise =
        (0..2_u32 << 20).flat_map(|it| it.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>();
    let large = ImageBuilder::new(Media::Oci).layer(Layer::new().file("noise", 0o644, &noise));
    let large = registry.push(large, "large", "1").await?;
    let held = proxy.put("/blobs/", Trouble::Hold { after: 1000 });
    // What hangs does so for as long as the rounds take.
    let patient = Cri::connect_for(&node.machine().path(&node.socket()), patience(280)).await?;
    let (puller, reference) = (patient.clone(), proxy.reference_of(&large));
    let pull: JoinHandle<Result<String>> = tokio::spawn(async move { Ok(puller.pull(&reference).await?) });
    proxy.wait_for("for a blob", e2e::Request::fetches_blob).await?;

    let stall = faulty.inject(Program::Runtime, "create", Moment::Before, Fault::Hang)?;
    let (starter, id) = (patient.clone(), waits.clone());
    let start: JoinHandle<Result> = tokio::spawn(async move { Ok(starter.start(&id).await?) });
    let (runner, pod) = (patient, PodSpec { handler: HANDLER.to_owned(), ..node.pod("never") });
    let run: JoinHandle<Result<String>> = tokio::spawn(async move { Ok(runner.run_pod(&pod).await?) });
    faulty.wait_for_hung(Program::Runtime, "create", 2).await?;

    for round in 0..ROUNDS {
        // Pods that come and go are listed or not; those that stay are.
        let (liver, pod, theirs) = (cri.clone(), node.pod(&format!("passing{round}")), image.clone());
        let life = tokio::spawn(async move { a_whole_life(&liver, &pod, &theirs).await });
        while !life.is_finished() {
            let told = Told::by(&cri).await?;
            assert!(expected.pods.iter().all(|id| told.pods.contains(id)), "{told:?}");
            assert!(told.containers_with_figures.contains(&runs), "{told:?}");
        }
        life.await??;
        nothing_is_found_by_unknown_ids(&cri).await?;
    }
    let mut told = Told::by(&cri).await?;
    // The pod whose making hangs may be shown, not ready, and has no figures.
    told.pods.retain(|id| expected.pods.contains(id));
    assert_eq!(told, expected, "while things hang");
    assert_eq!(at_once(cri.container(&waits)).await?.state(), ContainerState::ContainerCreated);
    at_once(cri.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: tried_id.clone() })).await?;
    assert!(at_once(cri.all_images()).await?.iter().any(|it| it.id == image));
    at_once(cri.image_fs_info(ImageFsInfoRequest {})).await?;
    assert!(!pull.is_finished() && !start.is_finished() && !run.is_finished(), "something has not hung");

    stall.lift();
    held.lift();
    start.await??;
    let never = run.await??;
    pull.await??;
    for id in [&never, &tried_id, &calm_id] {
        cri.stop_pod(id).await?;
        cri.remove_pod(id).await?;
    }
    drop(cri);
    node.finish().await
}

/// Makes what happens in a pod unseen by the daemon until it is dropped into [`Stuck::free`].
struct Stuck<'a>(&'a Node, Vec<u32>);

impl<'a> Stuck<'a> {
    async fn monitors_of(node: &'a Node) -> Result<Self> {
        let stuck = Self(node, node.monitors()?);
        stuck.signal("STOP").await?;
        Ok(stuck)
    }

    async fn free(self) -> Result {
        self.signal("CONT").await
    }

    async fn signal(&self, name: &str) -> Result {
        let pids: Vec<String> = self.1.iter().map(u32::to_string).collect();
        self.0.machine().output("sh", &["-c", &format!("kill -{name} {}", pids.join(" "))]).await.map(drop)
    }
}

/// Kills processes, and removes all cgroups that have a word in their path once nothing is left in them.
async fn wipe_out(node: &Node, pids: &[u32], word: &str) -> Result {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    node.machine().output("sh", &["-c", &format!("kill -KILL {}", pids.join(" "))]).await?;
    let remove = format!("find /sys/fs/cgroup -depth -type d -path '*{word}*' -exec rmdir {{}} + 2>&1; true");
    let left = format!("find /sys/fs/cgroup -type d -path '*{word}*'");
    let gone = async {
        loop {
            let said = node.machine().output("sh", &["-c", &remove]).await?;
            if node.machine().output("sh", &["-c", &left]).await?.is_empty() {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(said);
        }
    };
    tokio::time::timeout(patience(30), gone).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn cgroups_that_vanish_take_only_their_own_figures_along() -> Result {
    let stage = Stage::set().await?;
    let (node, cri) = (&stage.node, stage.node.cri());
    let stays = stage.run(&ContainerSpec::lasting("stays", &stage.image)).await?;
    let goes = stage.run(&ContainerSpec::lasting("goes", &stage.image)).await?;
    let other = node.pod("other");
    let other_id = cri.run_pod(&other).await?;
    let lost = cri.run(&other_id, &ContainerSpec::lasting("lost", &stage.image), &other).await?;
    let both = ids([&stage.pod_id, &other_id]);
    let all = ids([&stays, &goes, &lost]);
    let before = Told::by(&cri).await?;
    assert_eq!((&before.pods_with_figures, &before.containers_with_figures), (&both, &all));

    let pid = cri.container_pid(&goes).await?;
    let whole_pod = [cri.container_pid(&lost).await?, cri.pause_pid(&other_id).await?];
    let stuck = Stuck::monitors_of(node).await?;
    wipe_out(node, &[pid], &goes).await?;
    let told = Told::by(&cri).await?;
    assert_eq!(told.containers, all, "the daemon does not know yet");
    assert_eq!(told.containers_with_figures, ids([&stays, &lost]));
    assert_eq!(told.pods_with_figures, both, "what is left of a pod has figures");
    let asked = ContainerStatsRequest { container_id: goes.clone() };
    let alone = at_once(cri.container_stats(asked)).await;
    assert!(alone.is_ok_and(|it| it.stats.is_some_and(|it| it.cpu.is_none())), "known, without figures");

    // Now a pod whole, with the group that the kubelet made for it.
    let uid = other.config.metadata.as_ref().map(|it| it.uid.clone()).unwrap_or_default();
    // The name of a slice has another sign for its dashes.
    wipe_out(node, &whole_pod, &uid.replace('-', "?")).await?;
    let told = Told::by(&cri).await?;
    assert_eq!((told.pods, told.containers), (both, all));
    assert_eq!(told.containers_with_figures, ids([&stays]));
    assert_eq!(told.pods_with_figures, ids([&stage.pod_id]));
    assert!(node.log().contains("no figures"), "it is said in the log, where one looks for details");

    stuck.free().await?;
    for ended in [&goes, &lost] {
        assert_eq!(node.exited(ended).await?.exit_code, 137);
    }
    let gone = PodSandboxStatsRequest { pod_sandbox_id: other_id.clone() };
    assert!(matches!(code_of(&cri.pod_sandbox_stats(gone).await), Code::Ok | Code::NotFound));
    cri.stop_pod(&other_id).await?;
    cri.remove_pod(&other_id).await?;
    stage.finish().await
}
