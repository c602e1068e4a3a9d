//! Daemons come and go; the monitor stays.

use std::fs;
use std::path::PathBuf;

use monitor_api::{Event, Monitors, Phase};

use crate::pod::{Pod, wait_until};

#[tokio::test]
async fn an_exit_while_no_daemon_is_connected_is_recorded_and_found_later() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("trap 'echo last words; exit 11' USR1; echo ready; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    let init = pod.connection.monitor.list().await.unwrap()[0].pid.unwrap();
    let monitor_pid = pod.connection.pid;
    // The daemon dies: nobody holds the connection any more.
    let connection = pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
    drop(std::mem::replace(&mut pod.connection, connection));
    pod.connection = {
        let gone = pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
        drop(gone);
        sys::process::kill(init, 10).unwrap();
        wait_until("the exit file", || plan.request.exit_file.is_file()).await;
        pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap()
    };
    assert_eq!(pod.connection.pid, monitor_pid);
    let state = pod.connection.monitor.list().await.unwrap().remove(0);
    assert_eq!((state.container, state.phase), (id, Phase::Exited));
    assert_eq!(state.exit.unwrap().exit_code, 11);
    assert!(Pod::printed(&plan, crilog::Stream::Stdout).ends_with("last words\n"));
    pod.finish().await;
}

#[tokio::test]
async fn every_connected_daemon_hears_of_an_exit() {
    let mut pod = Pod::new().await;
    let mut other = pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
    let plan = pod.plan("exit 1");
    pod.run(&plan).await;
    let record = pod.exit().await;
    assert_eq!(other.events.recv().await, Some(Event::Exited(record)));
    pod.finish().await;
}

#[tokio::test]
async fn spawning_twice_joins_the_one_that_is_alive() {
    let pod = Pod::new().await;
    let again = pod.monitors.spawn(&pod.sandbox).await.unwrap();
    assert_eq!(again.pid, pod.connection.pid);
    let file = pod.path("state/pods").join(pod.sandbox.as_str()).join("monitor.pid");
    let text = fs::read_to_string(file).unwrap();
    let start = sys::pidfd::start_time(again.pid).unwrap();
    assert_eq!(text, format!("{} {start}\n", again.pid));
    drop(again);
    pod.finish().await;
}

#[tokio::test]
async fn signals_that_end_daemons_do_not_end_a_monitor_with_containers() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("echo ready; while :; do sleep 1; done");
    let id = pod.run(&plan).await;
    for signal in [1, 2, 13, 15] {
        sys::process::kill(pod.connection.pid, signal).unwrap();
    }
    assert_eq!(pod.connection.monitor.list().await.unwrap()[0].phase, Phase::Running);
    pod.connection.monitor.delete(&id).await.unwrap();
    pod.exit().await;
    // With its last container there is no reason left to put off the end that it was told to come to.
    assert_eq!(pod.connection.events.recv().await, None);
    let again = pod.monitors.spawn(&pod.sandbox).await.unwrap();
    assert_ne!(again.pid, pod.connection.pid);
    pod.connection = again;
    pod.finish().await;
}

#[tokio::test]
async fn a_monitor_is_alone_in_its_session_and_keeps_no_descriptor_of_ours() {
    let pod = Pod::new().await;
    let status = fs::read_to_string(format!("/proc/{}/stat", pod.connection.pid)).unwrap();
    let session = status.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pod.connection.pid.to_string());
    let fds = fs::read_dir(format!("/proc/{}/fd", pod.connection.pid)).unwrap();
    let targets: Vec<_> = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    // stdio, listener, epoll, the signal pipe's ends, our connection.
    assert!(targets.len() <= 8, "{targets:?}");
    pod.finish().await;
}

/// A cgroup for monitors in a hierarchy for whose mount `fits`; `None` where there is none.
fn own_cgroup(sandbox: &types::SandboxId, fits: impl Fn(&sys::mount::MountEntry) -> bool) -> Option<PathBuf> {
    let mounts = sys::mount::list().unwrap();
    let mount = mounts.iter().find(|mount| fits(mount))?;
    let dir = mount.mount_point.join(format!("crimson-monitor-test-{}-own", sandbox.short()));
    fs::create_dir(&dir).unwrap();
    Some(dir)
}

fn cgroups_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[tokio::test]
async fn a_monitor_can_begin_by_entering_a_cgroup_of_its_own() {
    let pod = Pod::new().await;
    let sandbox = types::SandboxId::from_random(sys::random::bytes());
    let freezer = |mount: &sys::mount::MountEntry| mount.options.split(',').any(|option| option == "freezer");
    let dir = own_cgroup(&sandbox, |mount| mount.fstype == "cgroup2" || freezer(mount)).unwrap();
    let groups = vec!["/no/such/cgroup".into(), dir.clone()];
    let placed = pod.monitors.clone().in_cgroups(Vec::new(), groups).unwrap();
    let connection = placed.spawn(&sandbox).await.unwrap();
    let name = dir.file_name().unwrap().to_str().unwrap();
    let cgroups = cgroups_of(connection.pid);
    assert!(cgroups.lines().any(|line| line.ends_with(&format!("/{name}"))), "{cgroups}");
    let log = pod.path("state/pods").join(sandbox.as_str()).join("monitor.log");
    assert!(fs::read_to_string(log).unwrap().contains("/no/such/cgroup"));
    assert_eq!(placed.connect(&sandbox).await.unwrap().unwrap().pid, connection.pid);
    connection.monitor.shutdown().await.unwrap();
    wait_until("its cgroup is empty", || fs::remove_dir(&dir).is_ok()).await;
    pod.finish().await;
}

/// On v1: nothing of the monitor was ever anywhere else, and the process that started it has not moved.
#[tokio::test]
async fn a_monitor_can_be_born_in_a_cgroup_of_its_own() {
    let pod = Pod::new().await;
    let sandbox = types::SandboxId::from_random(sys::random::bytes());
    let pids = |mount: &sys::mount::MountEntry| {
        mount.fstype == "cgroup" && mount.options.split(',').any(|option| option == "pids")
    };
    let Some(dir) = own_cgroup(&sandbox, pids) else { return pod.finish().await };
    let before = cgroups_of(i32::try_from(std::process::id()).unwrap());
    let placed = pod.monitors.clone().in_cgroups(vec![dir.clone()], Vec::new()).unwrap();
    let connection = placed.spawn(&sandbox).await.unwrap();
    let name = dir.file_name().unwrap().to_str().unwrap();
    let cgroups = cgroups_of(connection.pid);
    assert!(cgroups.lines().any(|line| line.ends_with(&format!("/{name}"))), "{cgroups}");
    assert_eq!(cgroups_of(i32::try_from(std::process::id()).unwrap()), before);
    connection.monitor.shutdown().await.unwrap();
    placed.leave();
    assert!(placed.spawn(&sandbox).await.is_err(), "there is no place to be born in any more");
    wait_until("its cgroup is empty", || fs::remove_dir(&dir).is_ok()).await;
    pod.finish().await;
}
