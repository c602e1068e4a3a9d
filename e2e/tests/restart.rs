//! The daemon may die at any moment: containers, logs and exit codes do not notice, and nothing half-made stays.

use std::time::Duration;

use e2e::cri::{ContainerState, PodSandboxState, VersionRequest};
use e2e::{ContainerSpec, Cri, ImageBuilder, Media, Node, Options, Result, code_of};
use tonic::Code;

/// At how many moments of the flow the daemon is killed.
const KILLS: u32 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn running_containers_keep_running_and_are_listed_right() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let cri = node.cri();
    let image = cri.pull(&pushed.reference).await?;
    let pod = node.pod("steady").with_port(18081, 80);
    let pod_id = cri.run_pod(&pod).await?;
    let counter =
        ContainerSpec::shell("counter", &image, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done");
    let counter = cri.run(&pod_id, &counter, &pod).await?;
    let created = cri.create(&pod_id, &ContainerSpec::lasting("created", &image), &pod).await?;
    let ended = node.run_to_end(&pod_id, &ContainerSpec::shell("ended", &image, "exit 9"), &pod).await?;
    let address = cri.pod_ip(&pod_id).await?;
    let (pod_before, counter_before) = (cri.pod(&pod_id).await?, cri.container(&counter).await?);

    node.kill9().await?;
    let lines = node.container_log("steady", "counter/0.log")?.len();
    while node.container_log("steady", "counter/0.log")?.len() < lines + 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.restart().await?;
    let cri = node.cri();

    assert_eq!(cri.pod(&pod_id).await?, pod_before);
    assert_eq!(cri.pod_ip(&pod_id).await?, address);
    assert_eq!(cri.container(&counter).await?, counter_before);
    assert_eq!(cri.container(&created).await?.state(), ContainerState::ContainerCreated);
    assert_eq!(cri.container(&ended.id).await?, ended);
    assert_eq!((cri.all_pods().await?.len(), cri.all_containers().await?.len()), (1, 3));
    assert_eq!(cri.image(&pushed.reference).await?.expect("the image is there").id, image);
    assert_eq!(cri.run_pod(&pod).await?, pod_id, "a retry over the restart finds the pod");

    assert_eq!(cri.shell(&counter, "echo alive").await?, "alive");
    cri.start(&created).await?;
    cri.stop(&counter, 0).await?;
    let numbers = node.container_log("steady", "counter/0.log")?;
    let gapless = numbers.iter().enumerate().all(|(n, (_, _, text))| *text == n.to_string());
    assert!(gapless, "the log of {} lines goes on over the crash", numbers.len());
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_while_the_daemon_is_down_is_seen_with_its_code() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let cri = node.cri();
    let image = cri.pull(&pushed.reference).await?;
    let pod = node.pod("unseen");
    let pod_id = cri.run_pod(&pod).await?;
    let volume = node.dir().join("signals");
    std::fs::create_dir(&volume)?;
    let waits = "while [ ! -e /signals/go ]; do sleep 0.05; done; exit 42";
    let spec = ContainerSpec::shell("waits", &image, waits).with_mount(&volume, "/signals", false);
    let id = cri.run(&pod_id, &spec, &pod).await?;

    node.kill9().await?;
    let before = nanoseconds();
    std::fs::write(volume.join("go"), "")?;
    node.end_is_recorded(&id).await?;
    let after = nanoseconds();
    node.restart().await?;
    let status = node.cri().container(&id).await?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 42));
    assert!(
        before <= status.finished_at && status.finished_at <= after,
        "{} {} {after}",
        before,
        status.finished_at
    );
    assert_eq!(node.cri().pod(&pod_id).await?.state(), PodSandboxState::SandboxReady);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_and_removing_work_right_after_a_restart() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let image = node.cri().pull(&pushed.reference).await?;
    let pod = node.pod("brief");
    let pod_id = node.cri().run_pod(&pod).await?;
    let id = node.cri().run(&pod_id, &ContainerSpec::lasting("c", &image), &pod).await?;
    node.kill9().await?;
    node.restart().await?;
    node.cri().stop(&id, 5).await?;
    assert_eq!(node.cri().container(&id).await?.exit_code, 0, "it ended by the signal, not by the kill");
    node.kill9().await?;
    node.restart().await?;
    assert_eq!(node.cri().container(&id).await?.exit_code, 0);
    node.cri().stop_pod(&pod_id).await?;
    node.kill9().await?;
    node.restart().await?;
    assert_eq!(node.cri().pod(&pod_id).await?.state(), PodSandboxState::SandboxNotready);
    node.cri().remove_pod(&pod_id).await?;
    node.kill9().await?;
    node.restart().await?;
    assert_eq!(code_of(&node.cri().pod(&pod_id).await), Code::NotFound);
    node.finish().await
}

/// A stop that was cut off right after it had begun is carried through by the next daemon, and asking again does not hang.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_cut_off_is_completed_after_the_restart() -> Result {
    let mut node = Node::boot().await?;
    let pod_id = node.cri().run_pod(&node.pod("half-stopped")).await?;
    let stopping = tokio::spawn({
        let (cri, pod_id) = (node.cri(), pod_id.clone());
        async move { cri.stop_pod(&pod_id).await }
    });
    while node.cri().pod(&pod_id).await?.state() == PodSandboxState::SandboxReady {}
    node.kill9().await?;
    drop(stopping.await?);
    node.restart().await?;
    node.cri().stop_pod(&pod_id).await?;
    assert_eq!(node.cri().pod(&pod_id).await?.state(), PodSandboxState::SandboxNotready);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_dies_is_noticed_and_its_pod_can_be_removed() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let image = cri.pull(&pushed.reference).await?;
    let pod = node.pod("orphaned");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("c", &image), &pod).await?;
    for monitor in node.monitors()? {
        node.machine().output("kill", &["-KILL", &monitor.to_string()]).await?;
    }
    let noticed = async {
        while cri.container(&id).await?.state() == ContainerState::ContainerRunning {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(e2e::patience(30), noticed).await??;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    node.finish().await
}

/// The flow of a pod's whole life, killed at ten random moments. After each restart every id is complete or gone, the same
/// flow goes through to its end, and nothing is left over. `CRIMSON_E2E_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread")]
async fn the_flow_survives_being_killed_at_any_moment() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let reference = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?.reference;
    let seed = match std::env::var("CRIMSON_E2E_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => u64::from(std::process::id()) ^ u64::try_from(nanoseconds())?,
    };
    println!("CRIMSON_E2E_SEED={seed}");
    let mut random = seed;

    let begun = tokio::time::Instant::now();
    flow(&node.cri(), &Script::new(&node, &reference, 0)).await?;
    let whole = begun.elapsed();
    node.assert_nothing_leaked().await?;

    for round in 1..=KILLS {
        random = next_random(random);
        let moment = whole.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64);
        println!("round {round}: killed after {moment:?} of {whole:?}");
        let script = Script::new(&node, &reference, round);
        let running = tokio::spawn({
            let (cri, script) = (node.cri(), script.clone());
            async move { flow(&cri, &script).await }
        });
        tokio::time::sleep(moment).await;
        node.kill9().await?;
        // It was cut off, or the moment came after its end.
        drop(running.await?);
        node.restart().await?;
        let cri = node.cri();
        cri.version(VersionRequest::default()).await?;
        everything_is_complete(&cri)
            .await
            .map_err(|error| error.context(format!("round {round}, seed {seed}")))?;
        flow(&cri, &script)
            .await
            .map_err(|error| error.context(format!("round {round}, seed {seed}: again")))?;
        node.assert_nothing_leaked()
            .await
            .map_err(|error| error.context(format!("round {round}, seed {seed}")))?;
    }
    node.finish().await
}

/// What one round works with.
#[derive(Clone)]
struct Script {
    pod: e2e::PodSpec,
    reference: String,
}

impl Script {
    fn new(node: &Node, reference: &str, round: u32) -> Self {
        Self { pod: node.pod(&format!("round{round}")), reference: reference.to_owned() }
    }
}

/// pull → run → create → start → exec → stop → remove, written so that it goes through whatever an earlier, cut-off run of it
/// has reached.
async fn flow(cri: &Cri, script: &Script) -> Result {
    let image = cri.pull(&script.reference).await?;
    let pod_id = cri.run_pod(&script.pod).await?;
    // Like the kubelet it looks before it creates: what runs is not created again.
    let there = cri.all_containers().await?.into_iter().find(|it| it.pod_sandbox_id == pod_id);
    let id = match there {
        Some(container) => container.id,
        None => cri.create(&pod_id, &ContainerSpec::lasting("c", &image), &script.pod).await?,
    };
    if cri.container(&id).await?.state() == ContainerState::ContainerCreated {
        cri.start(&id).await?;
    }
    if cri.container(&id).await?.state() == ContainerState::ContainerRunning {
        answers_or_ends(cri, &id).await?;
    }
    cri.stop(&id, 2).await?;
    cri.remove(&id).await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    cri.forget_image(&image).await?;
    Ok(())
}

/// A container that runs can be used, unless the stop that was cut off had told it to end: then that is soon seen.
async fn answers_or_ends(cri: &Cri, id: &str) -> Result {
    let Err(error) = cri.shell(id, "echo here").await.map(|said| assert_eq!(said, "here")) else {
        return Ok(());
    };
    let ended = async {
        while cri.container(id).await?.state() == ContainerState::ContainerRunning {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(e2e::patience(30), ended).await.map_err(|_| error)?
}

/// Every listed object answers for itself, in a state it can be in; ready pods work. What has ended is removed, as the kubelet
/// would: the flow asks for its names again.
async fn everything_is_complete(cri: &Cri) -> Result {
    for container in cri.all_containers().await? {
        let status = cri.container(&container.id).await?;
        let pod = cri.pod(&container.pod_sandbox_id).await?;
        match status.state() {
            ContainerState::ContainerRunning => answers_or_ends(cri, &container.id).await?,
            ContainerState::ContainerCreated => assert_eq!(status.started_at, 0),
            ContainerState::ContainerExited => assert!(status.finished_at > 0, "{status:?}"),
            ContainerState::ContainerUnknown => panic!("unknown after a restart: {status:?}"),
        }
        if status.state() == ContainerState::ContainerRunning {
            assert_eq!(
                pod.state(),
                PodSandboxState::SandboxReady,
                "a running container in a pod that is not ready"
            );
        }
    }
    for pod in cri.all_pods().await? {
        let status = cri.pod(&pod.id).await?;
        if status.state() == PodSandboxState::SandboxReady {
            assert!(!cri.pod_ip(&pod.id).await?.is_empty(), "ready without an address");
        } else {
            cri.stop_pod(&pod.id).await?;
            cri.remove_pod(&pod.id).await?;
        }
    }
    for image in cri.all_images().await? {
        assert!(image.size > 0 && cri.image(&image.id).await?.is_some(), "{image:?}");
    }
    Ok(())
}

fn nanoseconds() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or_default()
}

/// A step of splitmix64: enough to scatter ten moments, and the same everywhere for one seed.
fn next_random(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A shell has its background jobs ignore SIGINT and SIGQUIT, `nohup` SIGHUP; who starts programs from threads may have blocked
/// signals. All of that would be inherited down to the applications.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_starter_did_with_signals_ends_at_the_daemon() -> Result {
    let signals = "INT,QUIT,HUP,CHLD,USR1,TERM,RTMIN+3";
    let starter =
        ["env".to_owned(), format!("--ignore-signal={signals}"), format!("--block-signal={signals}")];
    let options = Options { starter: starter.to_vec(), ..Options::default() };
    let (node, registry) = Node::start_with_registry(options).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let cri = node.cri();
    let image = cri.pull(&pushed.reference).await?;
    let pod = node.pod("signals");
    let pod_id = cri.run_pod(&pod).await?;
    let spec = ContainerSpec::shell("shows", &image, "cat /proc/self/status; while :; do sleep 1; done");
    let id = cri.run(&pod_id, &spec, &pod).await?;
    // Busybox's shell ignores SIGQUIT itself, and would become its last command.
    let of_exec = cri.shell(&id, "cat /proc/self/status; true").await?;
    let shown = || node.container_log("signals", "shows/0.log");
    while !shown()?.iter().any(|(_, _, text)| text.starts_with("SigCgt:")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let of_container: String = shown()?.into_iter().map(|(_, _, text)| text + "\n").collect();
    // What plugins and OCI runtimes inherit.
    let of_daemon = std::fs::read_to_string(format!("/proc/{}/status", node.pid().expect("it runs")))?;
    for status in [of_exec, of_container, of_daemon] {
        assert_eq!(inherited_signals(&status)?, [0, 0], "{status}");
    }
    node.finish().await
}

/// Which signals a process blocks and ignores. Three do not count: SIGPIPE, which the standard library ignores in its own programs
/// only, and two that the C library ignores for every program, who sets them before using them.
fn inherited_signals(status: &str) -> Result<Vec<u64>> {
    const OWN: u64 = 1 << 12 | 1 << 31 | 1 << 32;
    let lines = status.lines().filter(|line| line.starts_with("SigBlk:") || line.starts_with("SigIgn:"));
    let masks = lines.filter_map(|line| line.split_once(':'));
    masks.map(|(_, mask)| Ok(u64::from_str_radix(mask.trim(), 16)? & !OWN)).collect()
}
