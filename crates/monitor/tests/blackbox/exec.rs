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

/// A terminal's next line, which may come in pieces.
fn read_line(mut terminal: &File) -> String {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        terminal.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
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
    let terminal = File::from(started.terminal.unwrap());
    assert_eq!(read_line(&terminal), "/dev/pts/0\r\n");
    pod.connection.monitor.resize(&plan.request.container, Some(&id), 50, 20).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &id).await, (2, None));
    assert_eq!(read_line(&terminal), "20 50\r\n");
    pod.finish().await;
}

#[tokio::test]
async fn an_exec_is_as_dear_to_the_oom_killer_as_its_container() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan(SLEEPER);
    plan.config["process"]["oomScoreAdj"] = json!(300);
    pod.run(&plan).await;
    let mut request = pod.process(&plan.request.container, "sh -c 'exec cat /proc/self/oom_score_adj'");
    request.stdout = true;
    let (stdout, to_stdout) = pipe();
    let id = request.exec.clone();
    pod.connection.monitor.exec(request, vec![to_stdout]).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &id).await, (0, None));
    assert_eq!(read_all(stdout), "300\n");
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
async fn killing_an_exec_takes_those_who_left_its_session_and_lost_their_parent() {
    let (mut pod, plan) = running().await;
    let script = "(setsid sh -c 'sleep 31415 & exec sleep 31415' &); sleep 31415";
    let sleepers = || processes(|text| text.starts_with("sleep\u{0}31415"));
    let others = || processes(|text| text.starts_with("sleep\u{0}27182")).len();
    let other = pod.process(&plan.request.container, "(setsid sleep 27182 &); exec sleep 27182");
    pod.connection.monitor.exec(other.clone(), Vec::new()).await.unwrap();
    let request = pod.process(&plan.request.container, script);
    let id = request.exec.clone();
    pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
    wait_until("both trees", || sleepers().len() == 3 && others() == 2).await;
    assert_eq!(pod.exec_cgroups().len(), 2);
    pod.connection.monitor.kill_exec(&id).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &id).await, (137, Some(9)));
    assert_eq!(sleepers(), [], "its end is told when all are dead");
    assert_eq!(others(), 2, "the other exec goes on");
    assert_eq!(pod.exec_cgroups().len(), 1);
    pod.connection.monitor.kill_exec(&other.exec).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &other.exec).await, (137, Some(9)));
    pod.finish().await;
}

#[tokio::test]
async fn what_an_exec_leaves_behind_goes_on_as_the_containers() {
    let (mut pod, plan) = running().await;
    let request = pod.process(&plan.request.container, "(setsid sleep 16180 &); exit 4");
    let id = request.exec.clone();
    pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
    assert_eq!(exec_exit(&mut pod, &id).await, (4, None));
    let left = || processes(|text| text.starts_with("sleep\u{0}16180"));
    wait_until("the one that was left", || left().len() == 1).await;
    wait_until("its cgroup is the container's", || pod.exec_cgroups().is_empty()).await;
    pod.connection.monitor.kill_exec(&id).await.unwrap();
    assert_eq!(left().len(), 1, "an exec that has ended is not killed");
    pod.connection.monitor.signal(&plan.request.container, 9, true).await.unwrap();
    pod.exit().await;
    assert_eq!(left(), []);
    pod.finish().await;
}

/// A third of them leave somebody behind, a third are killed. `CRIMSON_EXECS=10000` for the long form.
#[tokio::test]
async fn many_execs_leave_nothing() {
    let count: usize = std::env::var("CRIMSON_EXECS").map_or(45, |count| count.parse().unwrap());
    let (mut pod, plan) = running().await;
    exec_round(&mut pod, &plan, 0, 6).await;
    let begin = usage(&pod);
    for round in 0..count.div_ceil(30) {
        exec_round(&mut pod, &plan, round, 30).await;
    }
    wait_until("nobody is left", || processes(|text| text.starts_with("sleep\u{0}0.29")).is_empty()).await;
    assert_eq!(pod.exec_cgroups(), [] as [std::path::PathBuf; 0]);
    let end = usage(&pod);
    println!(
        "{count} execs: descriptors {} -> {}, private memory {} -> {} KiB",
        begin.0, end.0, begin.1, end.1
    );
    assert_eq!(begin.0, end.0, "descriptors");
    assert!(end.1 <= begin.1 + 64, "private memory grew from {} to {} KiB", begin.1, end.1);
    pod.finish().await;
}

/// Ten execs at a time; each ends by itself, leaves somebody, or is killed with two that it has started.
async fn exec_round(pod: &mut Pod, plan: &Plan, round: usize, count: usize) {
    for first in (0..count).step_by(10) {
        let mut expected = Vec::new();
        for number in first..count.min(first + 10) {
            let (script, ending) = match number % 3 {
                0 => ("echo out; exit 5", (5, None)),
                1 => ("(setsid sleep 0.29 &); exit 6", (6, None)),
                _ => ("(setsid sleep 500 &); sleep 500 & wait", (137, Some(9))),
            };
            let request = pod.process(&plan.request.container, script);
            let (id, process) = (request.exec.clone(), request.process.clone());
            pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
            std::fs::remove_file(process).unwrap();
            if ending.1.is_some() {
                pod.connection.monitor.kill_exec(&id).await.unwrap();
            }
            expected.push((id, ending));
        }
        while !expected.is_empty() {
            let Event::ExecExited { exec, exit_code, signal } = pod.event().await else {
                panic!("round {round}")
            };
            let at = expected.iter().position(|(id, _)| *id == exec).unwrap();
            assert_eq!((exit_code, signal), expected.remove(at).1);
        }
    }
}

/// The monitor's open descriptors and private memory in KiB.
fn usage(pod: &Pod) -> (usize, u64) {
    let proc = std::path::PathBuf::from(format!("/proc/{}", pod.connection.pid));
    let rollup = std::fs::read_to_string(proc.join("smaps_rollup")).unwrap();
    let private = rollup.lines().filter_map(|line| line.strip_prefix("Private_Dirty:"));
    let private: u64 = private.map(|size| size.trim().trim_end_matches(" kB").parse::<u64>().unwrap()).sum();
    (std::fs::read_dir(proc.join("fd")).unwrap().count(), private)
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
            other => panic!("{other:?}"),
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
