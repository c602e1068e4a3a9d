//! The container's log: nothing lost, rotation.

use std::fs;

use crilog::{Stream, read_output};
use monitor_api::{Event, Monitors};

use crate::pod::{Pod, sockets, wait_until};

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

/// The log's file system is full for a while: nobody waits, what is kept is in order, and the place of the rest is told.
#[tokio::test]
async fn a_file_system_that_was_full_costs_what_did_not_fit_and_no_more() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan(
        "seq 1 20000; echo full; : > /paused; while ! [ -e /go ]; do sleep 0.02; done; seq 20001 20100; exit 2",
    );
    let disk = pod.path("disk");
    fs::create_dir(&disk).unwrap();
    sys::mount::tmpfs(&disk, 256 << 10, 0o700).unwrap();
    fs::write(disk.join("ballast"), [0; 64 << 10]).unwrap();
    let log = disk.join("0.log");
    plan.request.log = Some(log.clone());
    let id = pod.run(&plan).await;
    let monitor = pod.connection.monitor.clone();
    let dropped = async || monitor.list().await.unwrap()[0].dropped_log_lines;
    // All is in the monitor's pipe then.
    wait_until("the pause", || pod.path("upper-1/paused").is_file()).await;
    let all = async {
        // The last line before the pause is among those that do not fit, so the count stands still when it is there.
        let mut seen = (0, 0);
        while seen.0 == 0 || seen.1 < 20 {
            let now = dropped().await;
            seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        seen.0
    };
    let missing = tokio::time::timeout(crate::pod::LIMIT, all).await.expect("the container is not held up");
    fs::remove_file(disk.join("ballast")).unwrap();
    let go = pod.process(&id, ": > /go");
    pod.connection.monitor.exec(go, Vec::new()).await.unwrap();
    let record = loop {
        if let Event::Exited(record) = pod.event().await {
            break record;
        }
    };
    assert_eq!(record.exit_code, 2);
    assert_eq!(dropped().await, missing, "the count stays known");
    let text = fs::read(&log).unwrap();
    let kept = 20001 - missing;
    let expected = (1..=kept).chain(20001..=20100).map(|line| format!("{line}\n")).collect::<String>();
    assert!(read_output(&text, Stream::Stdout).unwrap() == expected.as_bytes());
    let notice = String::from_utf8(read_output(&text, Stream::Stderr).unwrap()).unwrap();
    assert!(notice.starts_with(&format!("crimson: {missing} log lines are missing here: ")), "{notice}");
    sys::mount::unmount(&disk).unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn rotation_in_a_flood_loses_doubles_and_reorders_nothing() {
    let mut pod = Pod::new().await;
    // It goes on until there were rotations enough, however slow those are.
    let round = "seq $((i * 1000 + 1)) $((i * 1000 + 1000)); i=$((i + 1))";
    let flood = format!("trap enough=1 USR1; i=0; while [ -z \"$enough\" ]; do {round}; done; echo all $i");
    let plan = pod.plan(&flood);
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "1\n").await;
    let log = plan.request.log.clone().unwrap();
    let mut parts = Vec::new();
    let (mut reopened, mut enough) = (0, false);
    while pod.connection.monitor.list().await.unwrap()[0].phase != monitor_api::Phase::Exited {
        let old = log.with_extension(format!("{:04}", parts.len()));
        fs::rename(&log, &old).unwrap();
        match pod.connection.monitor.reopen_log(&id).await {
            Ok(()) => reopened += 1,
            // It ended meanwhile, and kubelet renames back.
            Err(_) => fs::rename(&old, &log).unwrap(),
        }
        if old.is_file() {
            parts.push(old);
        }
        if reopened == 20 && !enough {
            pod.connection.monitor.signal(&id, 10, false).await.unwrap();
            enough = true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    parts.push(log);
    let text: Vec<u8> = parts.iter().flat_map(|part| fs::read(part).unwrap()).collect();
    let printed = String::from_utf8(read_output(&text, Stream::Stdout).unwrap()).unwrap();
    let rounds = printed.rsplit_once("all ").unwrap().1.trim().parse::<u32>().unwrap();
    let lines: String = (1..=rounds * 1000).map(|line| format!("{line}\n")).collect();
    assert!(printed == format!("{lines}all {rounds}\n"));
    assert_eq!(pod.exit().await.exit_code, 0);
    pod.finish().await;
}

#[tokio::test]
async fn a_log_directory_that_is_removed_comes_back_with_the_next_rotation() {
    let mut pod = Pod::new().await;
    let mut plan = pod
        .plan("trap 'echo two' USR1; trap 'echo three; exit 0' USR2; echo one; while :; do sleep 0.05; done");
    let (dir, log) = (pod.path("logs"), pod.path("logs/0.log"));
    fs::create_dir(&dir).unwrap();
    plan.request.log = Some(log.clone());
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "one").await;
    fs::remove_dir_all(&dir).unwrap();
    pod.connection.monitor.signal(&id, 10, false).await.unwrap();
    let refused = pod.connection.monitor.reopen_log(&id).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(monitor_api::RefusalKind::Io));
    fs::create_dir(&dir).unwrap();
    pod.connection.monitor.reopen_log(&id).await.unwrap();
    pod.connection.monitor.signal(&id, 12, false).await.unwrap();
    pod.exit().await;
    assert!(Pod::printed(&plan, Stream::Stdout).ends_with("three\n"));
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

/// A pipe that nobody reads stands for a file system that has stopped to answer: a write to it does not return.
#[tokio::test]
async fn a_log_that_hangs_holds_up_nobody() {
    let mut pod = Pod::new().await;
    let stuck = pod.plan("while :; do echo 0123456789012345678901234567890123456789; done");
    let log = stuck.request.log.clone().unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &log, rustix::fs::Mode::RWXU).unwrap();
    let mut options = fs::OpenOptions::new();
    let unread = options.read(true).write(true).open(&log).unwrap();
    let id = pod.run(&stuck).await;
    let dropped = async || {
        let states = pod.connection.monitor.list().await.unwrap();
        states.iter().find(|state| state.container == id).map_or(0, |state| state.dropped_log_lines)
    };
    while dropped().await < 1_000 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let refused = pod.connection.monitor.reopen_log(&id).await.unwrap_err();
    assert!(refused.to_string().contains("does not answer"), "{refused}");
    // The others of the pod are seen as ever.
    let other = pod.plan("echo fine; exit 5");
    pod.run(&other).await;
    let record = pod.exit().await;
    assert_eq!((&record.container, record.exit_code), (&other.request.container, 5));
    assert_eq!(Pod::printed(&other, Stream::Stdout), "fine\n");
    // And so is its own end, which is told although the log has not everything.
    pod.connection.monitor.signal(&id, 9, true).await.unwrap();
    let record = pod.exit().await;
    assert_eq!((&record.container, record.signal), (&id, Some(9)));
    drop(unread);
    pod.finish().await;
}

#[tokio::test]
async fn lost_lines_are_told_as_they_come_and_before_the_end() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("echo one; while ! [ -e /go ]; do sleep 0.02; done; seq 1 500; exit 3");
    plan.request.log = Some("/dev/full".into());
    let id = pod.run(&plan).await;
    assert_eq!(pod.event().await, Event::LogLinesDropped { container: id.clone(), lines: 1 });
    let go = pod.process(&id, ": > /go");
    pod.connection.monitor.exec(go, Vec::new()).await.unwrap();
    let mut told = 1;
    let record = loop {
        match pod.event().await {
            Event::LogLinesDropped { container, lines } => {
                assert!(container == id && lines > told, "{lines} after {told}");
                told = lines;
            }
            Event::Exited(record) => break record,
            Event::ExecExited { .. } => {}
        }
    };
    assert_eq!((record.exit_code, told), (3, 501));
    let state = pod.connection.monitor.list().await.unwrap().remove(0);
    assert_eq!((state.dropped_log_lines, state.dropped_log_lines_told), (501, Some(501)));
    pod.finish().await;
}

#[tokio::test]
async fn what_was_lost_while_no_daemon_was_connected_is_untold() {
    let (mut pod, elsewhere) = (Pod::new().await, Pod::new().await);
    let mut plan = pod.plan("trap 'seq 1 100; exit 11' USR1; echo ready; while :; do sleep 0.05; done");
    plan.request.log = Some("/dev/full".into());
    let id = pod.run(&plan).await;
    assert_eq!(pod.event().await, Event::LogLinesDropped { container: id, lines: 1 });
    let init = pod.connection.monitor.list().await.unwrap()[0].pid.unwrap();
    let monitor = pod.connection.pid;
    let connected = sockets(monitor);
    // The daemon dies, and the next one comes when the container has ended.
    let nobody = elsewhere.monitors.connect(&elsewhere.sandbox).await.unwrap().unwrap();
    drop(std::mem::replace(&mut pod.connection, nobody));
    wait_until("the end of the connection", || sockets(monitor) < connected).await;
    sys::process::kill(init, 10).unwrap();
    wait_until("the exit file", || plan.request.exit_file.is_file()).await;
    pod.connection = pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
    let state = pod.connection.monitor.list().await.unwrap().remove(0);
    assert_eq!((state.dropped_log_lines, state.dropped_log_lines_told), (101, Some(1)));
    let state = pod.connection.monitor.list().await.unwrap().remove(0);
    assert_eq!(state.dropped_log_lines_told, Some(101), "the list has told it");
    elsewhere.finish().await;
    pod.finish().await;
}
