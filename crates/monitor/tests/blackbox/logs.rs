//! The container's log: nothing lost, rotation.

use std::fs;

use crilog::{Stream, read_output};

use crate::pod::Pod;

#[tokio::test]
async fn a_flood_of_output_is_logged_whole_and_in_order() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("seq 1 200000; seq 1 1000 >&2");
    pod.run(&plan).await;
    assert_eq!(pod.exit().await.exit_code, 0);
    let lines = |last: u32| (1..=last).map(|line| format!("{line}\n")).collect::<String>();
    assert!(Pod::printed(&plan, Stream::Stdout) == lines(200_000));
    assert!(Pod::printed(&plan, Stream::Stderr) == lines(1000));
    assert_eq!(pod.connection.monitor.list().await.unwrap()[0].dropped_log_lines, 0);
    pod.finish().await;
}

#[tokio::test]
async fn rotation_loses_and_doubles_nothing() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("trap 'echo two; exit 0' USR1; echo one; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "one").await;
    let log = plan.request.log.clone().unwrap();
    let old = log.with_extension("old");
    fs::rename(&log, &old).unwrap();
    pod.connection.monitor.reopen_log(&id).await.unwrap();
    pod.connection.monitor.signal(&id, 10, false).await.unwrap();
    pod.exit().await;
    assert_eq!(read_output(&fs::read(&old).unwrap(), Stream::Stdout).unwrap(), b"one\n");
    assert_eq!(Pod::printed(&plan, Stream::Stdout), "two\n");
    // The log of what has ended stays as it is, and kubelet renames it back.
    fs::rename(&log, &old).unwrap();
    let refused = pod.connection.monitor.reopen_log(&id).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(monitor_api::RefusalKind::InvalidState));
    assert!(!log.try_exists().unwrap());
    pod.finish().await;
}

#[tokio::test]
async fn a_disk_without_room_costs_lines_but_never_blocks() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("seq 1 50000; exit 6");
    plan.request.log = Some("/dev/full".into());
    pod.run(&plan).await;
    assert_eq!(pod.exit().await.exit_code, 6);
    assert_eq!(pod.connection.monitor.list().await.unwrap()[0].dropped_log_lines, 50_000);
    pod.finish().await;
}

#[tokio::test]
async fn a_container_without_a_log_is_read_all_the_same() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("seq 1 50000; exit 8");
    plan.request.log = None;
    pod.run(&plan).await;
    assert_eq!(pod.exit().await.exit_code, 8);
    pod.finish().await;
}
