//! Sessions between processes and clients in memory. Time is virtual wherever it matters.

mod forward;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backend::{End, Size};
use crate::channels::StatusForm;
use crate::fake::{self, Client, Far, PIPE};

fn bounds() -> Bounds {
    Bounds { idle: Duration::from_secs(3600), stop: CancellationToken::new() }
}

/// A session under way.
struct Running {
    client: Client,
    far: Far,
    session: JoinHandle<Farewell>,
    stop: CancellationToken,
}

async fn start(program: &str, names: &str, room: usize) -> Running {
    let (client, session, mut processes, stop) = launch(program, names, StatusForm::Json, room);
    Running { far: processes.recv().await.unwrap(), client, session, stop }
}

type Launched = (Client, JoinHandle<Farewell>, mpsc::Receiver<Far>, CancellationToken);

fn launch(program: &str, names: &str, form: StatusForm, room: usize) -> Launched {
    let (backend, processes) = fake::backend();
    let (channels, client) = fake::channels(names, form, room);
    let bounds = bounds();
    let stop = bounds.stop.clone();
    let request = fake::exec(program, names);
    let session = tokio::spawn(async move { exec(&*backend, request, channels, &bounds).await });
    (client, session, processes, stop)
}

async fn all(stream: &mut DuplexStream) -> Vec<u8> {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    read
}

async fn status(client: &mut Client) -> Value {
    serde_json::from_slice(&all(&mut client.error).await).unwrap()
}

fn exit_code(code: &str) -> Value {
    json!({"causes": [{"reason": "ExitCode", "message": code}]})
}

#[tokio::test(start_paused = true)]
async fn the_output_is_delivered_before_the_status() {
    let Running { mut client, mut far, session, .. } = start("run", "oe", 4).await;
    far.stdout.take().unwrap().write_all(&[b'o'; 1000]).await.unwrap();
    far.stderr.take().unwrap().write_all(&[b'e'; 1000]).await.unwrap();
    far.exit(3);
    // A slow reader loses nothing, however long it takes.
    let mut early = [0; 1];
    assert!(timeout(Duration::from_secs(600), client.error.read(&mut early)).await.is_err());
    assert_eq!(all(client.stdout.as_mut().unwrap()).await, [b'o'; 1000]);
    assert!(timeout(Duration::from_secs(600), client.error.read(&mut early)).await.is_err());
    assert_eq!(all(client.stderr.as_mut().unwrap()).await, [b'e'; 1000]);
    let status = status(&mut client).await;
    assert_eq!((&status["status"], &status["details"]), (&json!("Failure"), &exit_code("3")));
    assert_eq!(session.await.unwrap(), Farewell::Told);
}

#[tokio::test]
async fn the_exit_code_arrives_though_the_client_has_closed_its_input() {
    let Running { mut client, mut far, session, .. } = start("run", "io", PIPE).await;
    client.stdin.take().unwrap().write_all(b"last words").await.unwrap();
    assert_eq!(all(far.stdin.as_mut().unwrap()).await, b"last words", "the process sees the end");
    far.stdout.as_mut().unwrap().write_all(b"answer").await.unwrap();
    far.exit(0);
    assert_eq!(all(client.stdout.as_mut().unwrap()).await, b"answer");
    assert_eq!(status(&mut client).await, json!({"metadata": {}, "status": "Success"}));
    assert_eq!(session.await.unwrap(), Farewell::Told);
}

#[tokio::test(start_paused = true)]
async fn who_holds_the_output_after_the_end_does_not_hold_the_session() {
    let Running { mut client, mut far, session, .. } = start("run", "o", PIPE).await;
    let mut held = far.stdout.take().unwrap();
    far.exit(0);
    sleep(GRACE / 2).await;
    held.write_all(b"late").await.unwrap();
    sleep(GRACE / 2 + GRACE / 4).await;
    held.write_all(b"later").await.unwrap();
    let silent = Instant::now();
    assert_eq!(all(client.stdout.as_mut().unwrap()).await, b"latelater");
    assert_eq!(status(&mut client).await["status"], "Success");
    assert!(silent.elapsed() < GRACE * 2);
    assert_eq!(session.await.unwrap(), Farewell::Told);
    assert!(held.write_all(b"too late").await.is_err(), "nobody reads any more");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_command_with_it() {
    let Running { client, far, session, .. } = start("run", "io", 4).await;
    client.gone.cancel();
    far.released.cancelled().await;
    assert_eq!(session.await.unwrap(), Farewell::Left);
}

#[tokio::test]
async fn output_that_the_client_refuses_does_not_block_the_process() {
    let Running { mut client, mut far, session, .. } = start("run", "oe", 16).await;
    drop(client.stdout.take());
    far.stdout.as_mut().unwrap().write_all(&[b'o'; PIPE * 10]).await.unwrap();
    far.stderr.as_mut().unwrap().write_all(b"e").await.unwrap();
    far.exit(1);
    assert_eq!(all(client.stderr.as_mut().unwrap()).await, b"e");
    assert_eq!(status(&mut client).await["details"], exit_code("1"));
    assert_eq!(session.await.unwrap(), Farewell::Told);
}

#[tokio::test]
async fn input_that_the_process_refuses_does_not_block_the_client() {
    let Running { mut client, mut far, .. } = start("run", "io", 16).await;
    drop(far.stdin.take());
    client.stdin.as_mut().unwrap().write_all(&[b'i'; PIPE * 10]).await.unwrap();
    far.exit(0);
    assert_eq!(status(&mut client).await["status"], "Success");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_still_types_and_resizes() {
    let Running { mut client, mut far, .. } = start("run", "iot", 4).await;
    let mut output = far.stdout.take().unwrap();
    let busy = tokio::spawn(async move { output.write_all(&[b'o'; PIPE * 3]).await });
    client.stdin.as_mut().unwrap().write_all(b"q").await.unwrap();
    let mut typed = [0; 1];
    far.stdin.as_mut().unwrap().read_exact(&mut typed).await.unwrap();
    let resize = client.resize.as_mut().unwrap();
    resize.write_all(br#"{"Width":7,"Height":8}"#).await.unwrap();
    assert_eq!(far.sizes.recv().await, Some(Size { width: 7, height: 8 }));
    assert!(!busy.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_first_size_is_there_before_the_command_and_others_follow() {
    let (mut client, _session, mut processes, _) = launch("run", "ot", StatusForm::Json, PIPE);
    let resize = client.resize.as_mut().unwrap();
    resize.write_all(br#"{"Width":80,"Height":24}"#).await.unwrap();
    let mut far = processes.recv().await.unwrap();
    assert_eq!(far.size, Some(Size { width: 80, height: 24 }));
    resize.write_all(br#"{"Width":81,"Height":25}{"Width":82,"Height":26}"#).await.unwrap();
    assert_eq!(far.sizes.recv().await, Some(Size { width: 81, height: 25 }));
    assert_eq!(far.sizes.recv().await, Some(Size { width: 82, height: 26 }));
}

#[tokio::test(start_paused = true)]
async fn a_command_does_not_wait_long_for_a_size() {
    let Running { far, .. } = start("run", "ot", PIPE).await;
    assert_eq!(far.size, None);
}

#[tokio::test]
async fn a_command_that_cannot_start_is_explained() {
    for form in [StatusForm::Json, StatusForm::Text] {
        let (mut client, session, _processes, _) = launch("missing", "o", form, PIPE);
        let text = String::from_utf8(all(&mut client.error).await).unwrap();
        let expected = "Internal error occurred: error executing command in container: no such program";
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.starts_with('{'), form == StatusForm::Json);
        assert_eq!(session.await.unwrap(), Farewell::Told);
    }
}

#[tokio::test]
async fn a_container_that_ends_meanwhile_is_the_reason_that_is_told() {
    let Running { mut client, mut far, .. } = start("run", "o", PIPE).await;
    drop(far.stdout.take());
    far.end(End::Lost("its container has ended".to_owned()));
    let status = status(&mut client).await;
    assert_eq!(status["reason"], "InternalError");
    assert!(status["message"].as_str().unwrap().ends_with("its container has ended"));
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_lets_go_of_the_process() {
    let Running { mut client, far, session, stop } = start("run", "io", PIPE).await;
    stop.cancel();
    assert!(status(&mut client).await["message"].as_str().unwrap().contains("the server is stopping"));
    far.released.cancelled().await;
    assert_eq!(session.await.unwrap(), Farewell::Told);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_session_and_bytes_prolong_it() {
    let Running { mut client, mut far, session, .. } = start("run", "io", PIPE).await;
    let begin = Instant::now();
    sleep(bounds().idle / 2).await;
    far.stdout.as_mut().unwrap().write_all(b"x").await.unwrap();
    sleep(bounds().idle / 4 * 3).await;
    assert!(!session.is_finished());
    let status = status(&mut client).await;
    assert!(status["message"].as_str().unwrap().contains("no data for 3600 s"), "{status}");
    assert!(begin.elapsed() >= bounds().idle / 2 * 3);
    far.released.cancelled().await;
}

#[tokio::test]
async fn an_attached_client_is_told_success_whatever_the_code() {
    let (backend, mut processes) = fake::backend();
    let (channels, mut client) = fake::channels("io", StatusForm::Json, PIPE);
    let session =
        tokio::spawn(async move { attach(&*backend, fake::attach("io"), channels, &bounds()).await });
    let mut far = processes.recv().await.unwrap();
    client.stdin.as_mut().unwrap().write_all(b"in").await.unwrap();
    let mut typed = [0; 2];
    far.stdin.as_mut().unwrap().read_exact(&mut typed).await.unwrap();
    far.exit(7);
    assert_eq!(status(&mut client).await["status"], "Success");
    assert_eq!(session.await.unwrap(), Farewell::Told);
}
