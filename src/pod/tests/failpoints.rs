//! Every step of every verb, of every undoing and of recovery: failing once, and as the last that a server reached or did.

use spec::ResourcesUpdate;
use spec::resources::SandboxResources;
use streaming::Backend as _;
use types::ExecId;

use super::super::faults::Strike;
use super::*;

type Point = (&'static str, &'static str);
type Verb = (&'static str, &'static [&'static str]);

/// What a life passes through, in the order of names. A step that is missing here is new, and has to be written down; work
/// that is no step at all is not broken by anybody, so there should be none with an effect.
const LIFE: &[Verb] = &[
    ("attach to", &["attach"]),
    ("close stdin of", &["close stdin"]),
    (
        "create container",
        &[
            "bundle",
            "confinement",
            "identity",
            "image",
            "image volumes",
            "layer",
            "mounts",
            "publish",
            "record",
            "volumes",
        ],
    ),
    ("detach from", &["detach"]),
    ("end container", &["processes", "record"]),
    ("exec in", &["kill", "process", "start", "tidy"]),
    ("forward to", &["connect"]),
    ("remove container", &["files", "image", "intent", "processes", "record"]),
    (
        "remove sandbox",
        &[
            "cgroup",
            "container files",
            "container image",
            "container record",
            "containers",
            "files",
            "image",
            "intent",
            "netns",
            "network",
            "pause",
            "processes",
            "record",
            "shm",
        ],
    ),
    ("reopen log of", &["reopen"]),
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
    ("start container", &["OCI create", "OCI start", "heard", "publish"]),
    ("stop container", &["kill", "signal"]),
    (
        "stop sandbox",
        &["containers", "intent", "monitor", "netns", "network", "pause", "processes", "publish", "shm"],
    ),
    (
        "update container",
        &["OCI update", "announce", "config", "huge pages", "intent", "look", "oom score", "publish", "room"],
    ),
    ("update sandbox", &["record"]),
];

/// Steps whose failure the caller hears nothing of: the server makes up for it.
const UNHEARD: &[Point] = &[
    ("close stdin of", "close stdin"),
    ("detach from", "detach"),
    ("end container", "processes"),
    ("end container", "record"),
    ("exec in", "tidy"),
    ("remove container", "intent"),
    ("remove sandbox", "intent"),
    ("remove sandbox", "netns"),
    ("remove sandbox", "network"),
    ("start container", "heard"),
    ("stop sandbox", "intent"),
    ("stop sandbox", "netns"),
    ("stop sandbox", "network"),
    ("stop sandbox", "publish"),
];

const WHOLE_SANDBOX: &[&str] =
    &["cgroup", "containers", "files", "image", "monitor", "netns", "network", "pause", "record", "shm"];

/// What follows when a step has failed.
const UNDOING: &[(Point, Verb)] = &[
    (("run sandbox", "publish"), ("undo run sandbox", WHOLE_SANDBOX)),
    (("create container", "publish"), ("undo create container", &["files", "image", "record"])),
    (("start container", "publish"), ("undo start container", &["processes", "record"])),
    (
        ("update container", "publish"),
        ("undo update container", &["OCI update", "config", "oom score", "record", "restore"]),
    ),
    (("exec in", "start"), ("undo exec in", &["kill", "tidy"])),
];

/// What the next server does after one that ended at a step.
const RECOVERING: &[(Point, Strike, Verb)] = &[
    (("run sandbox", "publish"), Strike::Kill, ("recover sandbox", WHOLE_SANDBOX)),
    (
        ("create container", "publish"),
        Strike::Kill,
        ("recover container", &["files", "image", "processes", "record"]),
    ),
    (("start container", "OCI start"), Strike::Kill, ("recover container", &["processes", "publish"])),
    (("exec in", "start"), Strike::KillAfter, ("recover container", &["publish", "tidy"])),
    (
        ("remove container", "intent"),
        Strike::KillAfter,
        ("recover container", &["files", "image", "processes", "record"]),
    ),
    (("remove sandbox", "intent"), Strike::KillAfter, ("recover sandbox", WITH_CONTAINERS)),
];

/// What a removal has to do that is cut off before its first effect.
const WITH_CONTAINERS: &[&str] = &[
    "cgroup",
    "container files",
    "container image",
    "container record",
    "containers",
    "files",
    "image",
    "netns",
    "network",
    "pause",
    "processes",
    "record",
    "shm",
];

const SWEEP: Verb = ("sweep", &["cgroup", "directory", "lease", "monitor", "mount", "netns", "networks"]);

fn points(verbs: &[Verb]) -> Vec<Point> {
    verbs.iter().flat_map(|(verb, steps)| steps.iter().map(move |step| (*verb, *step))).collect()
}

fn boot(node: &Node) -> Server {
    node.boot_with_pause(Some(IMAGE.to_owned()))
}

async fn recovered(node: &Node) -> Server {
    let pods = boot(node);
    pods.recover().await.unwrap();
    pods
}

/// The steps of some verb that were reached.
fn seen(pods: &Pods, verb: &str) -> Vec<&'static str> {
    let seen = pods.shared.faults.seen.lock().unwrap();
    seen.iter().filter(|(of, _)| *of == verb).map(|(_, step)| *step).collect()
}

/// A life in which every verb is used, and how many of them failed. It goes on past failures as a caller does.
async fn live(node: &Node, pods: &Pods) -> usize {
    let Ok(sandbox_id) = pods.run_sandbox(sandbox("web")).await else { return 1 };
    let resources = SandboxResources::parse(Some(limits()), Some(limits())).unwrap();
    let mut failed = usize::from(pods.update_sandbox(sandbox_id.as_str(), resources).await.is_err());
    for name in ["app", "other"] {
        let wanted = sessions::open(&container_with(name, vec![image_mount("/data", IMAGE, "")]));
        let Ok(id) = pods.create_container(sandbox_id.as_str(), wanted).await else {
            failed += 1;
            continue;
        };
        let started = pods.start_container(id.as_str()).await.is_ok();
        failed += usize::from(!started);
        node.monitors.ignore_sigterm(&id);
        if name == "app" {
            failed +=
                if started { used(node, pods, &id).await + led(pods, &sandbox_id, &id).await } else { 0 };
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

fn limits() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() }
}

/// What is asked of a container while it runs; how much of it failed.
async fn used(node: &Node, pods: &Pods, id: &ContainerId) -> usize {
    let ends = async {
        loop {
            for (call, about) in node.monitors.calls() {
                if call == Call::Exec {
                    node.monitors.exit_exec(&ExecId::parse(&about).unwrap(), 0);
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let command = || vec!["/true".to_owned()];
    let ended = tokio::select! {
        ended = pods.exec_sync(id.as_str(), command(), None) => ended.is_ok(),
        () = ends => false,
    };
    let late = pods.exec_sync(id.as_str(), command(), Some(Duration::from_millis(5))).await.unwrap_err();
    let update = ResourcesUpdate::parse(limits()).unwrap();
    let all = [
        ended,
        matches!(*late, PodError::ExecTimeout { .. }),
        pods.update_container(id.as_str(), update).await.is_ok(),
        pods.reopen_log(id.as_str()).await.is_ok(),
    ];
    all.iter().filter(|went_well| !**went_well).count()
}

/// Sessions; how much of them failed.
async fn led(pods: &Pods, sandbox: &SandboxId, id: &ContainerId) -> usize {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let attached = pods.attach(sessions::attach_to(id)).await.map(drop);
    // A paused clock does not wait for the kernel's answer.
    tokio::time::resume();
    let connected = pods.connect(sandbox.clone(), port).await.map(drop);
    tokio::time::pause();
    usize::from(attached.is_err()) + usize::from(connected.is_err())
}

async fn becomes(node: &Node, expected: &[&str], when: &str) {
    for _ in 0..1000 {
        if node.left() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{when}: {:?}", node.left());
}

/// Removes what there is as a caller would; then nothing is left and the same life goes well.
async fn ends_well(node: &Node, pods: &Pods, when: &str) {
    for pod in pods.list() {
        pods.remove_sandbox(pod.sandbox.as_ref().unwrap().id.as_str()).await.unwrap();
    }
    becomes(node, &[], when).await;
    assert_eq!(live(node, pods).await, 0, "{when}");
    becomes(node, &[], &format!("{when}, once more")).await;
    nothing_in_flight(pods, when).await;
}

/// However operations and callers end, they are not shown any more.
pub(super) async fn nothing_in_flight(pods: &Pods, when: &str) {
    for _ in 0..1000 {
        if pods.in_flight().count() == 0 && pods.in_flight().callers().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{when}: {:?}, {:?}", pods.in_flight().list(), pods.in_flight().callers());
}

#[tokio::test(start_paused = true)]
async fn a_life_passes_through_all_steps_and_no_others() {
    let node = Node::new();
    let pods = recovered(&node).await;
    assert_eq!(live(&node, &pods).await, 0);
    let seen = pods.shared.faults.seen.lock().unwrap().clone();
    // The sweep belongs to the start, and goes on meanwhile.
    let seen: Vec<Point> = seen.into_iter().filter(|(verb, _)| *verb != SWEEP.0).collect();
    assert_eq!(seen, points(LIFE));
}

#[tokio::test(start_paused = true)]
async fn every_step_that_fails_leaves_a_pod_that_can_be_removed() {
    for (verb, step) in points(LIFE) {
        let (node, when) = (Node::new(), format!("{verb}: {step}"));
        let pods = recovered(&node).await;
        pods.shared.faults.arm(verb, step);
        let failed = live(&node, &pods).await;
        assert!(pods.shared.faults.are_spent(), "{when} was not reached");
        assert_eq!(failed == 0, UNHEARD.contains(&(verb, step)), "{when}: {failed} calls failed");
        assert!(pods.list().is_empty(), "{when}");
        ends_well(&node, &pods, &when).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_undoing_that_fails_is_repeated_by_the_server() {
    for ((verb, cause), (undo, steps)) in UNDOING {
        for step in *steps {
            let (node, when) = (Node::new(), format!("{undo}: {step}"));
            let pods = recovered(&node).await;
            pods.shared.faults.arm(verb, cause);
            pods.shared.faults.arm(undo, step);
            assert_ne!(live(&node, &pods).await, 0, "{when}");
            assert!(pods.shared.faults.are_spent(), "{when} was not reached");
            becomes(&node, &[], &when).await;
            assert_eq!(seen(&pods, undo), *steps);
            ends_well(&node, &pods, &when).await;
        }
    }
}

/// Runs `life` on a server that is gone with all its tasks when this returns.
pub(super) fn on_a_server<T: Send>(life: impl Future<Output = T> + Send) -> T {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(life)).join()).unwrap()
}

/// A server that ends in the middle of a life.
fn killed(node: &Node, strikes: &[(Point, Strike)], when: &str) {
    on_a_server(async {
        let pods = recovered(node).await;
        for (point, strike) in strikes {
            pods.shared.faults.strike(*point, *strike);
        }
        tokio::select! {
            failed = live(node, &pods) => panic!("{when} was not reached, {failed} failed"),
            () = pods.shared.faults.ended.notified() => {}
        }
    });
}

/// The next server: all that it shows is true, and can be gone on with.
fn goes_on(node: &Node, when: &str, check: impl FnOnce(&Pods) + Send) {
    on_a_server(async {
        let pods = recovered(node).await;
        assert_eq!(pods.strays().await.unwrap(), [], "{when}");
        check(&pods);
        for container in pods.list().iter().flat_map(|pod| &pod.containers) {
            let running = container.state == ContainerState::Running;
            let alive = node.monitors.containers().iter().any(|it| it.container == container.id);
            assert!(alive || !running, "{when}: {} does not run", container.id);
            let bundle = entries(&container.bundle);
            assert!(!bundle.iter().any(|file| file.contains("/exec-")), "{when}: {bundle:?}");
            assert!(!bundle.is_empty() || container.state != ContainerState::Created, "{when}: half removed");
        }
        ends_well(node, &pods, when).await;
    });
}

#[test]
fn a_server_killed_at_any_step_is_followed_by_one_that_undoes_or_completes() {
    for point in points(LIFE) {
        for strike in [Strike::Kill, Strike::KillAfter] {
            let (node, when) = (Node::new(), format!("{strike:?} at {}: {}", point.0, point.1));
            killed(&node, &[(point, strike)], &when);
            goes_on(&node, &when, |pods| {
                let pod = pods.list().first().map(|pod| pod.sandbox.clone().unwrap().state);
                let begun = (point.1, strike) != ("intent", Strike::Kill);
                match point.0 {
                    // Its last step makes it complete, and until then nobody has heard of it.
                    "run sandbox" => {
                        assert_eq!(
                            pod.is_some(),
                            (point.1, strike) == ("publish", Strike::KillAfter),
                            "{when}"
                        )
                    }
                    "remove sandbox" => assert_eq!(pod.is_none(), begun, "{when}"),
                    "stop sandbox" => assert_eq!(pod == Some(SandboxState::NotReady), begun, "{when}"),
                    _ => assert_eq!(pod, Some(SandboxState::Ready), "{when}"),
                }
            });
        }
    }
}

#[test]
fn a_server_killed_in_an_undoing_is_followed_by_one_that_ends_it() {
    for (cause, (undo, steps)) in UNDOING {
        for step in *steps {
            for strike in [Strike::Kill, Strike::KillAfter] {
                let (node, when) = (Node::new(), format!("{strike:?} at {undo}: {step}"));
                killed(&node, &[(*cause, Strike::Fail), ((undo, step), strike)], &when);
                goes_on(&node, &when, |_| {});
            }
        }
    }
}

#[test]
fn a_recovery_that_fails_or_is_killed_is_ended_in_the_end() {
    for (cause, how, (verb, steps)) in RECOVERING {
        for step in *steps {
            for strike in [Strike::Fail, Strike::Kill, Strike::KillAfter] {
                let (node, when) = (Node::new(), format!("{strike:?} at {verb}: {step} after {cause:?}"));
                killed(&node, &[(*cause, *how)], &when);
                on_a_server(async {
                    let pods = boot(&node);
                    pods.shared.faults.strike((verb, step), strike);
                    let done = tokio::select! {
                        done = pods.recover() => Some(done.unwrap()),
                        () = pods.shared.faults.ended.notified() => None,
                    };
                    assert!(pods.shared.faults.are_spent(), "{when} was not reached");
                    if strike == Strike::Fail {
                        assert!(done.is_some(), "{when}");
                        // What comes behind a failure may have to wait for its repetition.
                        while !steps.iter().all(|step| seen(&pods, verb).contains(step)) {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        // A repetition looks for a monitor that cannot be reached any more.
                        let all = |step: &&str| steps.contains(step) || *step == "monitor";
                        assert!(seen(&pods, verb).iter().all(all), "{when}");
                    }
                });
                goes_on(&node, &when, |_| {});
            }
        }
    }
}

#[test]
fn a_sweep_that_fails_or_is_killed_is_made_up_for_by_the_next() {
    let (verb, steps) = SWEEP;
    for step in steps {
        for strike in [Strike::Fail, Strike::Kill, Strike::KillAfter] {
            let (node, when) = (Node::new(), format!("{strike:?} at {verb}: {step}"));
            strays::lose_records(&node);
            on_a_server(async {
                let pods = boot(&node);
                pods.shared.faults.strike((verb, step), strike);
                let ended = tokio::select! {
                    () = pods.shared.faults.ended.notified() => true,
                    () = async { pods.recover().await.unwrap(); reach(&pods, (verb, step)).await } => false,
                };
                assert_eq!(ended, strike != Strike::Fail, "{when}");
                if strike == Strike::Fail {
                    reach(&pods, (verb, "netns")).await;
                    assert_eq!(seen(&pods, verb), steps, "{when}");
                }
            });
            on_a_server(async {
                let pods = recovered(&node).await;
                becomes(&node, &["/crimson"], &when).await;
                assert_eq!(pods.strays().await.unwrap(), [], "{when}");
            });
        }
    }
}

/// Waits until a step in the background has been reached, and a server that ends there has ended.
async fn reach(pods: &Pods, point: Point) {
    while !pods.shared.faults.seen.lock().unwrap().contains(&point) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
}
