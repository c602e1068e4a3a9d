//! Sessions of users: bytes in both directions, every way in which one ends, and what is left then.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use monitor_api::fake::Call;
use monitor_api::{Refusal, RefusalKind};
use streaming::Backend as _;
use streaming::backend::{Attach, BackendError, End, Exec, Process, Size, Streams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use types::ExecId;

use super::*;

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

/// A container whose stdin is open.
pub(super) fn open(request: &ContainerRequest) -> ContainerRequest {
    let config = v1::ContainerConfig { stdin: true, ..request.config().clone() };
    ContainerRequest::parse(config).unwrap()
}

pub(super) fn attach_to(container: &ContainerId) -> Attach {
    Attach { container: container.clone(), streams: ALL }
}

fn exec_in(container: &ContainerId, streams: Streams) -> Exec {
    Exec { container: container.clone(), command: vec!["/bin/sh".to_owned()], streams }
}

/// A pod with a running container whose stdin is open.
async fn pod(pods: &Pods) -> (SandboxId, ContainerId) {
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), open(&container("app"))).await.unwrap();
    pods.start_container(id.as_str()).await.unwrap();
    (sandbox_id, id)
}

impl Node {
    /// The exec or client that a call was about last.
    fn about(&self, call: Call) -> Option<ExecId> {
        let calls = self.monitors.calls();
        let last = calls.iter().rev().find(|(made, _)| *made == call)?;
        Some(ExecId::parse(&last.1).unwrap())
    }

    /// Waits until this call has been made about the session.
    async fn is_asked(&self, call: Call, session: &ExecId) {
        let seen = async {
            while !self.monitors.calls().contains(&(call, session.as_str().to_owned())) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
        assert!(seen.is_ok(), "{call:?} was not called");
    }

    /// The process files of a container.
    fn process_files(&self, id: &ContainerId) -> Vec<String> {
        let bundle = self.dir.path().join("state/containers").join(id.as_str());
        entries(&bundle).into_iter().filter(|file| file.contains("/exec-")).collect()
    }
}

/// Reads to the end, as a program does.
async fn read_all(end: OwnedFd) -> String {
    let read = move || {
        let mut text = String::new();
        File::from(end).read_to_string(&mut text).map(|_| text)
    };
    tokio::task::spawn_blocking(read).await.unwrap().unwrap()
}

async fn heard(stream: &mut Option<streaming::backend::Reader>) -> String {
    let mut text = String::new();
    stream.as_mut().unwrap().read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_command_gets_its_input_and_its_user_the_output_and_the_code() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let mut process = pods.exec(exec_in(&id, ALL), None).await.unwrap();
    let exec = node.about(Call::Exec).unwrap();
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(node.monitors.take_streams(&exec)).unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(b"question").await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(read_all(stdin).await, "question");
    File::from(stdout).write_all(b"answer").unwrap();
    File::from(stderr).write_all(b"doubt").unwrap();
    assert_eq!(
        (heard(&mut process.stdout).await, heard(&mut process.stderr).await),
        ("answer".into(), "doubt".into())
    );
    assert!(node.monitors.exit_exec(&exec, 7));
    assert_eq!(process.control.ended().await, End::Exited(7));
    assert_eq!(process.control.ended().await, End::Exited(7), "it can be asked again");
    drop(process);
    assert_eq!(node.process_files(&id), [""; 0]);
    tokio::task::yield_now().await;
    assert_eq!(node.about(Call::KillExec), None, "what has ended is not killed");
}

#[tokio::test]
async fn only_what_was_asked_for_is_there() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let streams = Streams { stdin: false, stdout: true, stderr: false, tty: false };
    let process = pods.exec(exec_in(&id, streams), None).await.unwrap();
    assert!(process.stdin.is_none() && process.stdout.is_some() && process.stderr.is_none());
    assert_eq!(node.monitors.take_streams(&node.about(Call::Exec).unwrap()).len(), 1);
    let process = pods.attach(Attach { streams, ..attach_to(&id) }).await.unwrap();
    assert!(process.stdin.is_none() && process.stdout.is_some() && process.stderr.is_none());
    assert_eq!(node.monitors.take_streams(&node.about(Call::Attach).unwrap()).len(), 1);
}

#[tokio::test]
async fn a_terminal_carries_both_directions_and_changes_its_size() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let mut process = pods.exec(exec_in(&id, TERMINAL), Some(Size { width: 80, height: 24 })).await.unwrap();
    let exec = node.about(Call::Exec).unwrap();
    process.control.resize(Size { width: 132, height: 43 }).await;
    assert_eq!(node.monitors.sizes(), [(Some(exec.clone()), 132, 43)]);
    let mut user = File::from(node.monitors.take_streams(&exec).pop().unwrap());
    process.stdin.as_mut().unwrap().write_all(b"ls\n").await.unwrap();
    let mut line = [0; 3];
    let (user, line) = tokio::task::spawn_blocking(move || user.read_exact(&mut line).map(|()| (user, line)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&line, b"ls\n");
    drop(user);
    assert_eq!(heard(&mut process.stdout).await, "ls\r\n", "what a terminal echoes");
    assert!(node.monitors.exit_exec(&exec, 0));
    assert_eq!(process.control.ended().await, End::Exited(0));
}

#[tokio::test]
async fn a_command_is_killed_when_its_user_leaves() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let process = pods.exec(exec_in(&id, ALL), None).await.unwrap();
    let exec = node.about(Call::Exec).unwrap();
    drop(process);
    node.is_asked(Call::KillExec, &exec).await;
    assert_eq!(node.monitors.sessions(), []);
    assert_eq!(node.process_files(&id), [""; 0]);
}

#[tokio::test]
async fn a_command_is_killed_when_its_user_leaves_before_it_runs() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    node.monitors.inject(Call::Exec, Fault::Hang);
    tokio::select! {
        begun = pods.exec(exec_in(&id, ALL), None) => panic!("{begun:?}"),
        () = async { while node.about(Call::Exec).is_none() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
    }
    node.is_asked(Call::KillExec, &node.about(Call::Exec).unwrap()).await;
    pods.drain(Duration::from_secs(60)).await;
    assert_eq!(node.process_files(&id), [""; 0]);
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_told_of_and_leaves_nothing() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let words = "exec: \"nope\": executable file not found";
    node.monitors.inject(Call::Exec, Fault::Refuse(Refusal::new(RefusalKind::RuntimeFailed, words)));
    let error = pods.exec(exec_in(&id, ALL), None).await.unwrap_err();
    assert!(matches!(&error, BackendError::Failed(text) if text.ends_with(words)), "{error}");
    pods.drain(Duration::from_secs(60)).await;
    assert_eq!(node.process_files(&id), [""; 0]);
}

#[tokio::test]
async fn a_container_that_ends_takes_its_sessions_along_with_a_reason() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let mut command = pods.exec(exec_in(&id, ALL), None).await.unwrap();
    let mut client = pods.attach(attach_to(&id)).await.unwrap();
    let (stopped, ended, over) = tokio::join!(
        pods.stop_container(id.as_str(), Duration::from_secs(5)),
        command.control.ended(),
        client.control.ended()
    );
    stopped.unwrap();
    assert_eq!(ended, End::Lost("container \"app\" has ended".to_owned()));
    assert_eq!(over, End::Exited(0), "an attached client has seen what it came for");
    assert_eq!(heard(&mut client.stdout).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_somebody_kills_has_the_code_of_that() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let mut process = pods.exec(exec_in(&id, ALL), None).await.unwrap();
    let exec = node.about(Call::Exec).unwrap();
    // As a `kill -9` does inside the container.
    node.monitors.kill_exec(&exec);
    assert_eq!(process.control.ended().await, End::Exited(137));
}

#[tokio::test]
async fn sessions_end_when_their_monitor_is_lost() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = pod(&pods).await;
    let mut command = pods.exec(exec_in(&id, ALL), None).await.unwrap();
    let mut client = pods.attach(attach_to(&id)).await.unwrap();
    node.monitors.lose(&sandbox_id);
    for process in [&mut command, &mut client] {
        let end = process.control.ended().await;
        assert!(matches!(&end, End::Lost(why) if why.contains("monitor")), "{end:?}");
        assert_eq!(heard(&mut process.stdout).await, "");
    }
    drop((command, client));
    let _again = pods.exec(exec_in(&id, ALL), None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_command_works_during_the_grace_of_a_stop() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    node.monitors.ignore_sigterm(&id);
    let stop = pods.stop_container(id.as_str(), Duration::from_millis(300));
    let during = async {
        while !node.monitors.calls().iter().any(|(call, _)| *call == Call::Signal) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pods.exec(exec_in(&id, ALL), None).await.unwrap().control.ended().await
    };
    let (stopped, ended) = tokio::join!(stop, during);
    stopped.unwrap();
    assert!(matches!(&ended, End::Lost(why) if why.ends_with("has ended")), "{ended:?}");
}

#[tokio::test]
async fn clients_look_on_and_speak_and_leave() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = pod(&pods).await;
    let mut first = pods.attach(attach_to(&id)).await.unwrap();
    let session = node.about(Call::Attach).unwrap();
    let mut second = pods.attach(attach_to(&id)).await.unwrap();
    let other = node.about(Call::Attach).unwrap();
    let [stdout, stderr, stdin] = <[OwnedFd; 3]>::try_from(node.monitors.take_streams(&session)).unwrap();
    File::from(stdout).write_all(b"printed").unwrap();
    drop(stderr);
    assert_eq!(heard(&mut first.stdout).await, "printed");
    let mut input = first.stdin.take().unwrap();
    input.write_all(b"typed").await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(read_all(stdin).await, "typed");
    node.is_asked(Call::CloseStdin, &session).await;
    first.control.resize(Size { width: 80, height: 24 }).await;
    assert_eq!(node.monitors.sizes(), [(None, 80, 24)]);
    drop(first);
    node.is_asked(Call::Detach, &session).await;
    assert_eq!(node.monitors.sessions(), std::slice::from_ref(&other), "the others stay");
    second.stdin.as_mut().unwrap().write_all(b"x").await.unwrap();
    drop(second);
    node.is_asked(Call::CloseStdin, &other).await;
    node.is_asked(Call::Detach, &other).await;
    assert_eq!(pods.container(id.as_str()).unwrap().state, ContainerState::Running);
}

#[tokio::test]
async fn what_is_sent_to_a_container_without_stdin_goes_nowhere() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    let mut process = pods.attach(attach_to(&id)).await.unwrap();
    let input = process.stdin.as_mut().unwrap();
    input.write_all(&[b'x'; 100_000]).await.unwrap();
    input.shutdown().await.unwrap();
}

#[tokio::test]
async fn sessions_are_for_what_runs() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = pod(&pods).await;
    let kind = |error: super::super::SharedError| error.kind();
    assert_eq!(pods.session_in(id.short(), "attach to").await.unwrap(), id);
    assert_eq!(pods.session_to(sandbox_id.short()).unwrap(), sandbox_id);
    pods.stop_container(id.as_str(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(
        pods.session_in(id.as_str(), "attach to").await.map_err(kind),
        Err(ErrorKind::FailedPrecondition)
    );
    assert_eq!(pods.session_in("none", "attach to").await.map_err(kind), Err(ErrorKind::NotFound));
    let unavailable =
        |begun: Result<Process, BackendError>| matches!(begun, Err(BackendError::Unavailable(_)));
    assert!(unavailable(pods.exec(exec_in(&id, ALL), None).await));
    assert!(unavailable(pods.attach(attach_to(&id)).await));
    pods.stop_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(pods.session_to(sandbox_id.as_str()).map_err(kind), Err(ErrorKind::FailedPrecondition));
    let gone = pods.connect(sandbox_id, 80).await;
    assert!(matches!(&gone, Err(BackendError::Unavailable(text)) if text.contains("not ready")), "{gone:?}");
    assert_eq!(pods.session_to("none").map_err(kind), Err(ErrorKind::NotFound));
}

#[tokio::test]
async fn a_port_without_a_listener_is_told_of() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, _) = pod(&pods).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stream = pods.connect(sandbox_id.clone(), port).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    drop(stream);
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    // Held, so that nobody else is given it, but without a listener.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = pods.connect(sandbox_id, held.local_addr().unwrap().port()).await.unwrap_err();
    assert!(matches!(&refused, BackendError::Failed(text) if text.contains("refused")), "{refused}");
}
