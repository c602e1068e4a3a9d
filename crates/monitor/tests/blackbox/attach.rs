//! Clients that look on at a running container.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use monitor_api::{AttachRequest, Monitors, RefusalKind};
use serde_json::json;
use types::{ContainerId, ExecId};

use crate::pod::{Pod, descriptors, sockets, wait_until};

const USR1: i32 = 10;

fn request(container: &ContainerId, stdin: bool, stderr: bool) -> AttachRequest {
    let session = ExecId::from_random(sys::random::bytes());
    AttachRequest { session, container: container.clone(), stdin, stdout: true, stderr }
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

/// Reads to the end, away from the test's one thread.
async fn read_all(mut file: File) -> String {
    let read = move || {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
async fn all_clients_see_what_comes_and_then_the_end() {
    let mut pod = Pod::new().await;
    let plan =
        pod.plan("trap 'echo out; echo err >&2; exit 0' USR1; echo unseen; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "unseen").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let ((out, to_out), (err, to_err)) = (pipe(), pipe());
        let attached = pod.connection.monitor.attach(request(&id, true, true), vec![to_out, to_err]).await;
        assert!(attached.unwrap().is_none(), "it has no stdin");
        clients.push((out, err));
    }
    pod.connection.monitor.signal(&id, USR1, false).await.unwrap();
    for (out, err) in clients {
        assert_eq!((read_all(out).await, read_all(err).await), ("out\n".to_owned(), "err\n".to_owned()));
    }
    pod.exit().await;
    let (_out, to_out) = pipe();
    let refused = pod.connection.monitor.attach(request(&id, false, false), vec![to_out]).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(RefusalKind::InvalidState));
    pod.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let mut pod = Pod::new().await;
    // In two halves, each of which the monitor keeps for a client: the good one need not be quick, only go on.
    let wait_for = |file: &str| format!("while ! [ -e {file} ]; do sleep 0.02; done");
    let plan = pod.plan(&format!(
        "{}; seq 1 125000; {}; seq 125001 250000; exit 3",
        wait_for("/go"),
        wait_for("/more")
    ));
    let id = pod.run(&plan).await;
    let ((slow, to_slow), (good, to_good)) = (pipe(), pipe());
    pod.connection.monitor.attach(request(&id, false, false), vec![to_slow]).await.unwrap();
    pod.connection.monitor.attach(request(&id, false, false), vec![to_good]).await.unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let reading = tokio::task::spawn_blocking({
        let (mut good, seen) = (good, Arc::clone(&seen));
        move || {
            let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                match good.read(&mut buffer).unwrap() {
                    0 => break String::from_utf8(text).unwrap(),
                    len => text.extend_from_slice(&buffer[..len]),
                }
                seen.store(text.len(), Ordering::Relaxed);
            }
        }
    });
    let lines =
        |range: std::ops::RangeInclusive<u32>| range.map(|line| format!("{line}\n")).collect::<String>();
    let half = lines(1..=125_000).len();
    let go = pod.process(&id, ": > /go");
    pod.connection.monitor.exec(go, Vec::new()).await.unwrap();
    wait_until("the first half", || seen.load(Ordering::Relaxed) == half).await;
    let more = pod.process(&id, ": > /more");
    pod.connection.monitor.exec(more, Vec::new()).await.unwrap();
    let record = loop {
        if let monitor_api::Event::Exited(record) = pod.event().await {
            break record;
        }
    };
    assert_eq!(record.exit_code, 3);
    // What is left of an ended container waits some seconds only.
    let (text, copy) = (read_all(slow).await, reading.await.unwrap());
    let all = lines(1..=250_000);
    assert!(Pod::printed(&plan, crilog::Stream::Stdout) == all, "the log is whole");
    assert!(copy == all, "and so is what the other client got");
    let (kept, notice) = text.split_once("\r\n[crimson: ").unwrap();
    assert!(all.starts_with(kept));
    assert_eq!(notice, format!("{} bytes are missing here]\r\n", all.len() - kept.len()));
    pod.finish().await;
}

#[tokio::test]
async fn stdin_is_the_clients_until_it_leaves_if_it_is_for_once() {
    let mut pod = Pod::new().await;
    for once in [true, false] {
        let mut plan = pod
            .plan("read first; echo \"1 $first\"; cat; echo end; while [ -z \"$first\" ]; do sleep 1; done");
        (plan.request.stdin, plan.request.stdin_once) = (true, once);
        let id = pod.run(&plan).await;
        let ((out, to_out), attach) = (pipe(), request(&id, true, false));
        let session = attach.session.clone();
        let stdin = pod.connection.monitor.attach(attach, vec![to_out]).await.unwrap();
        let mut stdin = File::from(stdin.expect("its stdin is open"));
        stdin.write_all(b"hello\nrest\n").unwrap();
        drop(stdin);
        Pod::wait_printed(&plan, "rest").await;
        pod.connection.monitor.close_stdin(&session).await.unwrap();
        if once {
            assert_eq!(read_all(out).await, "1 hello\nrest\nend\n");
            assert_eq!(pod.exit().await.exit_code, 0);
        } else {
            pod.connection.monitor.detach(&session).await.unwrap();
            assert_eq!(read_all(out).await, "1 hello\nrest\n");
            let (again, to_again) = pipe();
            let attach = request(&id, true, false);
            let stdin = pod.connection.monitor.attach(attach, vec![to_again]).await.unwrap();
            File::from(stdin.unwrap()).write_all(b"more\n").unwrap();
            Pod::wait_printed(&plan, "more").await;
            pod.connection.monitor.delete(&id).await.unwrap();
            assert_eq!(read_all(again).await, "more\n");
            assert_eq!(pod.exit().await.exit_code, 137);
        }
    }
    pod.finish().await;
}

#[tokio::test]
async fn a_terminal_is_spoken_to_and_seen_by_its_clients() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("stty -echo; echo ready; read line; echo \"got $line\"; exit 0");
    plan.request.terminal = true;
    plan.config["process"]["terminal"] = json!(true);
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    let (out, to_out) = pipe();
    let stdin = pod.connection.monitor.attach(request(&id, true, false), vec![to_out]).await.unwrap();
    File::from(stdin.unwrap()).write_all(b"typed\n").unwrap();
    assert_eq!(read_all(out).await, "got typed\r\n");
    pod.exit().await;
    pod.finish().await;
}

#[tokio::test]
async fn a_session_ends_with_its_client_or_its_connection() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("echo ready; while :; do echo tick; sleep 0.02; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    // Both ends of a pipe are one inode.
    let name = |pipe: &File| format!("pipe:[{}]", pipe.metadata().unwrap().ino());
    let held = |name: &String| descriptors(pod.connection.pid).contains(name);
    let (gone, to_gone) = pipe();
    let gone_name = name(&gone);
    pod.connection.monitor.attach(request(&id, false, false), vec![to_gone]).await.unwrap();
    assert!(held(&gone_name));
    drop(gone);
    wait_until("its pipe is closed", || !held(&gone_name)).await;
    let (half, to_half) = pipe();
    let (rest, to_rest) = pipe();
    let (half_name, rest_name) = (name(&half), name(&rest));
    let both = vec![to_half, to_rest];
    pod.connection.monitor.attach(request(&id, false, true), both).await.unwrap();
    drop(half);
    wait_until("one of two is closed", || !held(&half_name)).await;
    assert!(held(&rest_name));
    drop(rest);
    wait_until("the other too", || !held(&rest_name)).await;
    let connected = sockets(pod.connection.pid);
    let other = pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
    let (out, to_out) = pipe();
    let out_name = name(&out);
    other.monitor.attach(request(&id, false, false), vec![to_out]).await.unwrap();
    drop(other);
    assert!(read_all(out).await.chars().all(|char| "tick\n".contains(char)));
    wait_until("both are closed", || !held(&out_name) && sockets(pod.connection.pid) == connected).await;
    let nothing_sent =
        pod.connection.monitor.attach(request(&id, false, false), Vec::new()).await.unwrap_err();
    assert_eq!(nothing_sent.refusal(), Some(RefusalKind::Io));
    pod.finish().await;
}
