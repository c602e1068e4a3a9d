//! Create, start, exit, signals, deletion, terminals.

use std::fs;
use std::time::{Duration, Instant};

use crilog::Stream;
use monitor_api::{Event, ExitRecord, MonitorError, Monitors as _, Phase, RefusalKind};
use serde_json::json;
use types::ContainerId;

use crate::pod::{Pod, processes};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGUSR1: i32 = 10;
/// How long the monitor lets the end of what it kills take, until it has the runtime delete it all the same.
const KILL_GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_container_runs_to_its_end_and_all_of_it_is_recorded() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("echo out; echo err >&2; cat; printf open; exit 7");
    let pid = pod.create(&plan).await.unwrap();
    let [state] = &pod.connection.monitor.list().await.unwrap()[..] else { panic!("one container") };
    assert_eq!((state.pid, state.phase), (Some(pid), Phase::Created));
    let started_at = pod.connection.monitor.start(&plan.request.container).await.unwrap();
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.signal, record.oom_killed), (7, None, false));
    assert_eq!(record.started_at, started_at);
    assert!(record.finished_at >= started_at);
    let written = ExitRecord::from_json(&fs::read(&plan.request.exit_file).unwrap()).unwrap();
    assert_eq!(written, record);
    assert_eq!(Pod::printed(&plan, Stream::Stdout), "out\nopen");
    assert_eq!(Pod::printed(&plan, Stream::Stderr), "err\n");
    let [state] = &pod.connection.monitor.list().await.unwrap()[..] else { panic!("one container") };
    assert_eq!((state.phase, state.exit.as_ref(), state.pid), (Phase::Exited, Some(&record), None));
    pod.finish().await;
}

#[tokio::test]
async fn a_container_that_has_ended_keeps_no_monitor() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("exit 0");
    pod.run(&plan).await;
    pod.exit().await;
    // As when the runtime cannot delete it: the daemon frees what it held, and the monitor has nothing left to do.
    pod.connection.monitor.shutdown().await.unwrap();
    while pod.connection.events.recv().await.is_some() {}
    assert!(pod.monitors.connect(&pod.sandbox).await.unwrap().is_none());
}

#[tokio::test]
async fn requests_that_the_state_forbids_are_refused_and_repeated_ones_are_not() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("exit 0");
    let id = pod.run(&plan).await;
    pod.exit().await;
    let monitor = pod.connection.monitor.clone();
    let refused = |result: Result<(), MonitorError>| result.unwrap_err().refusal();
    assert_eq!(refused(monitor.start(&id).await.map(drop)), Some(RefusalKind::InvalidState));
    assert_eq!(refused(pod.create(&plan).await.map(drop)), Some(RefusalKind::InvalidState));
    let living = pod.plan("sleep 60");
    let living = pod.run(&living).await;
    assert_eq!(refused(monitor.shutdown().await), Some(RefusalKind::InvalidState));
    monitor.delete(&living).await.unwrap();
    monitor.signal(&id, SIGTERM, false).await.unwrap();
    monitor.delete(&id).await.unwrap();
    monitor.delete(&id).await.unwrap();
    let stranger = ContainerId::from_random([99; 32]);
    assert_eq!(refused(monitor.start(&stranger).await.map(drop)), Some(RefusalKind::NotFound));
    assert_eq!(refused(monitor.signal(&stranger, SIGTERM, true).await), Some(RefusalKind::NotFound));
    assert_eq!(refused(monitor.reopen_log(&stranger).await), Some(RefusalKind::NotFound));
    monitor.delete(&stranger).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn signals_reach_the_init_and_its_end_tells_which() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    pod.connection.monitor.signal(&id, SIGTERM, false).await.unwrap();
    assert_eq!(pod.exit().await.exit_code, 3);
    let plan = pod.plan("while :; do sleep 1; done");
    let id = pod.run(&plan).await;
    pod.connection.monitor.signal(&id, SIGKILL, true).await.unwrap();
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.signal), (137, Some(SIGKILL)));
    assert!(pod.connection.monitor.signal(&id, SIGKILL, true).await.is_ok());
    pod.finish().await;
}

/// A host that shuts down waits for everybody whom it told to end.
#[tokio::test]
async fn a_monitor_that_is_told_to_end_does_so_with_its_last_container() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    sys::process::kill(pod.connection.pid, SIGTERM).unwrap();
    assert_eq!(pod.connection.monitor.list().await.unwrap().len(), 1, "it stays for the container");
    pod.connection.monitor.signal(&id, SIGTERM, false).await.unwrap();
    assert_eq!(pod.exit().await.exit_code, 3);
    while pod.connection.events.recv().await.is_some() {}
    assert!(pod.monitors.connect(&pod.sandbox).await.unwrap().is_none());
    assert!(plan.request.exit_file.is_file());
}

#[tokio::test]
async fn a_signal_for_all_reaches_more_than_the_init() {
    let mut pod = Pod::new().await;
    let child = "(trap \"echo child; exit\" USR1; echo ready; while :; do sleep 0.05; done)";
    let plan = pod.plan(&format!("trap 'echo init' USR1; {child} & wait; wait; exit 0"));
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    pod.connection.monitor.signal(&id, SIGUSR1, true).await.unwrap();
    assert_eq!(pod.exit().await.exit_code, 0);
    let printed = Pod::printed(&plan, Stream::Stdout);
    assert!(printed.contains("child\n") && printed.contains("init\n"), "{printed:?}");
    pod.finish().await;
}

#[tokio::test]
async fn a_running_or_unstarted_container_is_deleted_at_once_and_its_end_still_told() {
    let mut pod = Pod::new().await;
    let running = pod.plan("trap '' TERM; while :; do sleep 1; done");
    pod.run(&running).await;
    let created = pod.plan("exit 0");
    pod.create(&created).await.unwrap();
    for plan in [&running, &created] {
        let begin = Instant::now();
        pod.connection.monitor.delete(&plan.request.container).await.unwrap();
        let record = pod.exit().await;
        assert_eq!((record.container.clone(), record.exit_code), (plan.request.container.clone(), 137));
        assert_eq!(record.started_at.is_set(), plan.request.container == running.request.container);
        assert!(plan.request.exit_file.is_file());
        assert!(begin.elapsed() < KILL_GRACE, "it was not killed at once");
    }
    assert!(pod.connection.monitor.list().await.unwrap().is_empty());
    pod.finish().await;
}

#[tokio::test]
async fn what_a_container_without_a_pid_namespace_leaves_dies_with_it() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("sleep 98765 & echo ready; exit 4");
    plan.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    pod.run(&plan).await;
    assert_eq!(pod.exit().await.exit_code, 4);
    assert_eq!(processes(|text| text.contains("98765")), []);
    assert_eq!(Pod::printed(&plan, Stream::Stdout), "ready\n");
    pod.finish().await;
}

#[tokio::test]
async fn an_oom_kill_is_recorded() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("tail /dev/zero; exit 0");
    plan.config["linux"]["resources"] = json!({"memory": {"limit": 20 << 20}});
    plan.config["process"]["args"] = json!(["/bin/tail", "/dev/zero"]);
    plan.config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    plan.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/pts");
    pod.run(&plan).await;
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.oom_killed), (137, true));
    pod.finish().await;
}

#[tokio::test]
async fn a_terminal_is_logged_as_stdout_and_resized() {
    let mut pod = Pod::new().await;
    let mut plan =
        pod.plan("trap 'stty size; exit 5' WINCH; tty; echo err >&2; while :; do sleep 0.05; done");
    plan.config["process"]["terminal"] = json!(true);
    plan.request.terminal = true;
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "err").await;
    pod.connection.monitor.resize(&id, None, 91, 33).await.unwrap();
    assert_eq!(pod.exit().await.exit_code, 5);
    assert_eq!(Pod::printed(&plan, Stream::Stdout), "/dev/pts/0\nerr\n33 91\n");
    assert_eq!(Pod::printed(&plan, Stream::Stderr), "");
    pod.finish().await;
}

#[tokio::test]
async fn a_container_mounts_nothing_on_the_host_and_writes_to_its_layer_only() {
    let mut pod = Pod::new().await;
    let before = sys::mount::list().unwrap().len();
    let plan = pod.plan("echo hello > /tmp/written; echo ready; while :; do sleep 1; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    assert_eq!(fs::read_to_string(pod.path("upper-1/tmp/written")).unwrap(), "hello\n");
    assert!(!pod.path("image/tmp/written").try_exists().unwrap());
    let own = pod.path("");
    let mounts = sys::mount::list().unwrap();
    assert_eq!(mounts.iter().filter(|mount| mount.mount_point.starts_with(&own)).count(), 1, "of {before}");
    pod.connection.monitor.signal(&id, SIGKILL, false).await.unwrap();
    pod.exit().await;
    pod.finish().await;
}

/// A shell has its background jobs ignore SIGINT and SIGQUIT, and what is ignored or blocked is inherited from program to
/// program.
#[tokio::test]
async fn what_the_starter_ignored_or_blocked_does_not_reach_containers_and_execs() {
    let signals = "INT,QUIT,HUP,USR1,TERM,RTMIN+2";
    let starter = format!("env --ignore-signal={signals},CHLD,PIPE --block-signal={signals},CHLD,PIPE");
    let mut pod = Pod::with_monitor_started_by(&starter).await;
    // By a program: busybox's shell itself ignores SIGQUIT.
    let plan = pod.plan("cat /proc/self/status; echo shown; while :; do sleep 1; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "shown").await;
    let exec = pod.process(&id, "cat /proc/self/status > /exec; kill -INT $$; exit 0");
    pod.connection.monitor.exec(exec, Vec::new()).await.unwrap();
    let Event::ExecExited { signal, .. } = pod.event().await else { panic!("the container runs") };
    assert_eq!(signal, Some(2));
    let upper = plan.request.rootfs.as_ref().unwrap().upper.as_ref().unwrap();
    let seen_by_exec = fs::read_to_string(upper.join("exec"));
    for seen in [seen_by_exec.unwrap(), Pod::printed(&plan, Stream::Stdout)] {
        let masks: Vec<u64> = seen
            .lines()
            .filter(|line| line.starts_with("SigBlk:") || line.starts_with("SigIgn:"))
            .map(|line| u64::from_str_radix(line.split_once(':').unwrap().1.trim(), 16).unwrap())
            .collect();
        // The C library ignores two of its own for every program, who sets them before using them.
        assert_eq!(masks.iter().map(|mask| mask & !(3 << 31)).collect::<Vec<_>>(), [0, 0], "{seen}");
    }
    pod.finish().await;
}
