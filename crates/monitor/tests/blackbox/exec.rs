//! Processes run in a container.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use monitor_api::{Event, Monitors, RefusalKind};
use serde_json::json;
use types::ExecId;

use crate::pod::{Plan, Pod, process_of, processes, wait_until};

const SLEEPER: &str = "echo ready; while :; do sleep 1; done";

/// A pod with one container that runs until it is deleted.
async fn running() -> (Pod, Plan) {
    let mut pod = Pod::new().await;
    let plan = pod.plan(SLEEPER);
    pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    (pod, plan)
}

async fn exec_exit(pod: &mut Pod, expected: &ExecId) -> (i32, Option<i32>) {
    match pod.event().await {
        Event::ExecExited { exec, exit_code, signal } if exec == *expected => (exit_code, signal),
        other => panic!("{other:?}"),
    }
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

fn read_all(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn an_exec_speaks_through_the_daemons_descriptors() {
    let (mut pod, plan) = running().await;
    let mut request = pod.process(&plan.request.container, "cat; echo oops >&2; exit 9");
    (request.stdin, request.stdout, request.stderr) = (true, true, true);
    let ((stdin, mut to_stdin), (stdout, to_stdout), (stderr, to_stderr)) = {
        let (reader, writer) = pipe();
        ((OwnedFd::from(reader), File::from(writer)), pipe(), pipe())
    };
    to_stdin.write_all(b"through the pipe").unwrap();
    drop(to_stdin);
    let id = request.exec.clone();
    let started = pod.connection.monitor.exec(request, vec![stdin, to_stdout, to_stderr]).await.unwrap();
    assert!(started.pid > 0 && started.terminal.is_none());
    assert_eq!(exec_exit(&mut pod, &id).await, (9, None));
    assert_eq!((read_all(stdout), read_all(stderr)), ("through the pipe".to_owned(), "oops\n".to_owned()));
    pod.finish().await;
}

#[tokio::test]
async fn an_exec_with_a_terminal_gets_one() {
    let (mut pod, plan) = running().await;
    let mut request = pod.process(
        &plan.request.container,
        "trap 'stty size; exit 2' WINCH; tty; while :; do sleep 0.05; done",
    );
    request.terminal = true;
    let mut process = process_of("trap 'stty size; exit 2' WINCH; tty; while :; do sleep 0.05; done");
    process["terminal"] = json!(true);
    std::fs::write(&request.process, process.to_string()).unwrap();
    let id = request.exec.clone();
    let started = pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
    let mut terminal = File::from(started.terminal.unwrap());
    let mut text = [0; 64];
    let len = terminal.read(&mut text).unwrap();
    assert_eq!(&text[..len], b"/dev/pts/0\r\n");
    pod.connection.monitor.resize(&plan.request.container, Some(&id), 50, 20).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &id).await, (2, None));
    let len = terminal.read(&mut text).unwrap();
    assert_eq!(&text[..len], b"20 50\r\n");
    pod.finish().await;
}

#[tokio::test]
async fn killing_an_exec_takes_its_tree_and_twice_is_no_error() {
    let (mut pod, plan) = running().await;
    let request = pod.process(&plan.request.container, "sh -c 'sleep 76543 & sleep 76543' & sleep 76543");
    let id = request.exec.clone();
    let started = pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
    wait_until("the tree", || processes(|text| text.starts_with("sleep\u{0}76543")).len() == 3).await;
    pod.connection.monitor.kill_exec(&id).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &id).await, (137, Some(9)));
    wait_until("the end of all", || processes(|text| text.starts_with("sleep\u{0}76543")).is_empty()).await;
    pod.connection.monitor.kill_exec(&id).await.unwrap();
    assert!(started.pid > 0);
    pod.finish().await;
}

#[tokio::test]
async fn execs_end_with_the_connection_they_were_asked_on() {
    let (mut pod, plan) = running().await;
    let other = pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
    let request = pod.process(&plan.request.container, "sleep 65432 & sleep 65432");
    let id = request.exec.clone();
    other.monitor.exec(request, Vec::new()).await.unwrap();
    drop(other);
    assert_eq!(exec_exit(&mut pod, &id).await, (137, Some(9)));
    wait_until("the end of all", || processes(|text| text.starts_with("sleep\u{0}65432")).is_empty()).await;
    pod.finish().await;
}

#[tokio::test]
async fn an_exec_dies_with_its_container() {
    let (mut pod, plan) = running().await;
    let request = pod.process(&plan.request.container, "sleep 1000");
    let id = request.exec.clone();
    pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
    pod.connection.monitor.signal(&plan.request.container, 9, false).await.unwrap();
    let (mut exec, mut container) = (false, false);
    while !(exec && container) {
        match pod.event().await {
            Event::ExecExited { exec: ended, signal: Some(9), .. } if ended == id => exec = true,
            Event::Exited(record) => container = record.signal == Some(9),
            other @ Event::ExecExited { .. } => panic!("{other:?}"),
        }
    }
    pod.finish().await;
}

#[tokio::test]
async fn what_cannot_run_is_refused_in_the_runtimes_words() {
    let (pod, plan) = running().await;
    let request = pod.process(&plan.request.container, "exit 0");
    let mut process = process_of("");
    process["args"] = json!(["/no/such/program"]);
    std::fs::write(&request.process, process.to_string()).unwrap();
    let error = pod.connection.monitor.exec(request.clone(), Vec::new()).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::RuntimeFailed));
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    let stranger = pod.process(&types::ContainerId::from_random([77; 32]), "exit 0");
    let error = pod.connection.monitor.exec(stranger, Vec::new()).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::NotFound));
    let mut nothing_sent = pod.process(&plan.request.container, "exit 0");
    nothing_sent.stdout = true;
    let error = pod.connection.monitor.exec(nothing_sent, Vec::new()).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::Io));
    pod.finish().await;
}
