//! Exec and attach with streams: every protocol, terminals, input that ends, slow and vanished clients.

use std::time::Duration;

use e2e::cri::ContainerState;
use e2e::streaming::{Channel, Protocol, REMOTE_PROTOCOLS, Remote, SPDY, Streams, WEBSOCKET, noise};
use e2e::trial::Held;
use e2e::{ContainerSpec, Result, Stage, code_of, patience};
use tokio::time::timeout;
use tonic::Code;

const V4_WEBSOCKET: Protocol = Protocol::WebSocket("v4.channel.k8s.io");
const V4_BASE64: Protocol = Protocol::WebSocket("v4.base64.channel.k8s.io");
/// What a client of either transport asks for.
const BOTH: [Protocol; 2] = [SPDY, WEBSOCKET];

/// A stage with a container that stays.
async fn with_container() -> Result<(Stage, String, Held)> {
    let stage = Stage::set().await?;
    let id = stage.run(&ContainerSpec::lasting("stays", &stage.image)).await?;
    stage.node.cri().shell(&id, "true").await?;
    for protocol in BOTH {
        stage.exec_line(&id, "true", Streams::OUTPUT, protocol).await?.finish().await?;
    }
    let held = Held::by(&stage.node)?;
    Ok((stage, id, held))
}

/// Proves that nothing of the sessions is left, neither at once nor after the pod.
async fn nothing_is_left(stage: Stage, held: Held) -> Result {
    held.comes_back(&stage.node).await?;
    stage.finish().await
}

/// Waits until no process of a container has such a command line.
async fn no_process(stage: &Stage, id: &str, text: &str) -> Result {
    let gone = async {
        // The command that looks is one itself; `[x]` does not match itself.
        let (first, rest) = text.split_at(1);
        let line = format!("ps | grep -c '[{first}]{rest}' || true");
        while stage.node.cri().shell(id, &line).await? != "0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    match timeout(patience(30), gone).await {
        Ok(done) => done,
        Err(_) => anyhow::bail!("{text} still runs: {}", stage.node.cri().shell(id, "ps").await?),
    }
}

/// Whether the end of the bytes has the text in it.
fn contains(bytes: &[u8], text: &str) -> bool {
    let tail = bytes.get(bytes.len().saturating_sub(100_000)..).unwrap_or_default();
    String::from_utf8_lossy(tail).contains(text)
}

/// How much the container has written as far as a client knows: what has come, and what it was told is missing.
fn written(heard: &[u8]) -> usize {
    const NOTICE: (&[u8], &[u8]) = (b"\r\n[crimson: ", b" bytes are missing here]\r\n");
    let mut written = heard.len();
    let mut rest = heard;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\r') {
        let notice = rest.get(at..).unwrap_or_default();
        rest = notice.get(1..).unwrap_or_default();
        let Some(number) = notice.strip_prefix(NOTICE.0) else { continue };
        let digits = number.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, end) = number.split_at(digits);
        let lost = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
        if let (Some(lost), true) = (lost, end.starts_with(NOTICE.1)) {
            written = written + lost - (NOTICE.0.len() + digits.len() + NOTICE.1.len());
        }
    }
    written
}

/// A container that reads input, with or without a terminal.
fn reader(stage: &Stage, name: &str, line: &str, once: bool, tty: bool) -> ContainerSpec {
    let mut spec = stage.shell(name, line);
    (spec.config.stdin, spec.config.stdin_once, spec.config.tty) = (true, once, tty);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_tells_output_and_end() -> Result {
    let (stage, id, held) = with_container().await?;
    for protocol in REMOTE_PROTOCOLS {
        let line = "echo out; echo err >&2; exit 3";
        let failed = stage.exec_line(&id, line, Streams::OUTPUT, protocol).await?.closed().await?;
        assert_eq!(
            (failed.stdout.as_slice(), failed.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..]),
            "{protocol}"
        );
        let good = stage.exec_line(&id, "true", Streams::OUTPUT, protocol).await?.closed().await?;
        if protocol.tells_status() {
            assert_eq!((failed.code()?, good.code()?), (3, 0), "{protocol}: {failed:?}");
            let status: serde_json::Value = serde_json::from_str(&failed.error)?;
            assert_eq!(status["metadata"], serde_json::json!({}), "{protocol}: {status}");
            assert!(status["message"].as_str().is_some_and(|text| text.contains(" 3")), "{status}");
        } else {
            assert!(failed.error.contains(" 3"), "{protocol}: {failed:?}");
            assert_eq!(good.error, "", "{protocol}: success is told by silence");
        }
        if protocol == SPDY {
            for channel in [Channel::Stdout, Channel::Stderr, Channel::Error] {
                assert!(
                    failed.ended.contains(&channel),
                    "a half-close tells that {channel:?} is whole: {failed:?}"
                );
            }
        }
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_or_told() -> Result {
    let (stage, id, held) = with_container().await?;
    let cri = stage.node.cri();
    let refusal = |streams| {
        let (cri, id) = (cri.clone(), id.clone());
        async move { code_of(&cri.exec_url(&id, &["true"], streams).await) }
    };
    assert_eq!(refusal(Streams::default()).await, Code::InvalidArgument, "no stream at all");
    let both = Streams { tty: true, ..Streams::ALL };
    assert_eq!(refusal(both).await, Code::InvalidArgument, "a terminal has one output");
    assert_eq!(code_of(&cri.exec_url(&id, &[], Streams::OUTPUT).await), Code::InvalidArgument, "no command");
    assert_eq!(code_of(&cri.exec_url("0123456789", &["true"], Streams::OUTPUT).await), Code::NotFound);
    assert_eq!(code_of(&cri.attach_url("0123456789", Streams::OUTPUT).await), Code::NotFound);
    let created =
        cri.create(&stage.pod_id, &ContainerSpec::lasting("created", &stage.image), &stage.pod).await?;
    let ended = stage.run_to_end(&stage.shell("ended", "true")).await?.id;
    for not_running in [created, ended] {
        assert_ne!(code_of(&cri.exec_url(&not_running, &["true"], Streams::OUTPUT).await), Code::Ok);
        assert_ne!(code_of(&cri.attach_url(&not_running, Streams::OUTPUT).await), Code::Ok);
        cri.remove(&not_running).await?;
    }
    for protocol in REMOTE_PROTOCOLS {
        let outcome = stage.exec(&id, &["/no/such"], Streams::OUTPUT, protocol).await?.finish().await?;
        assert!(outcome.error.contains("/no/such"), "{protocol}: {outcome:?}");
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn input_ends_and_the_rest_still_comes() -> Result {
    let (stage, id, held) = with_container().await?;
    for protocol in
        REMOTE_PROTOCOLS.into_iter().filter(|it| it.half_closes() && it.name() != "channel.k8s.io")
    {
        let mut remote = stage.exec_line(&id, "cat; echo over", Streams::ALL, protocol).await?;
        remote.send("one\n").await?;
        remote.until("one\n").await?;
        remote.input().close().await?;
        let outcome = remote.finish().await?;
        assert_eq!(outcome.stdout, b"one\nover\n", "{protocol}: {outcome:?}");
        let remote = stage.exec_line(&id, "cat; echo over", Streams::OUTPUT, protocol).await?;
        assert_eq!(
            remote.finish().await?.stdout,
            b"over\n",
            "{protocol}: input that was not asked for is empty"
        );
        // The end of a process that has not read all of its input is told in time.
        let remote = stage.exec_line(&id, "head -c 1; exit 4", Streams::ALL, protocol).await?;
        let input = remote.input();
        let sending = tokio::spawn(async move { input.send(vec![b'x'; 300_000]).await });
        let outcome = remote.finish().await?;
        assert_eq!(outcome.stdout, b"x", "{protocol}: {outcome:?}");
        // Nobody waits for the rest of it.
        sending.abort();
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_size_that_was_told_and_obeys_keys() -> Result {
    let (stage, id, held) = with_container().await?;
    for protocol in REMOTE_PROTOCOLS.into_iter().filter(|it| it.resizes()) {
        let line = "while sleep 0.03; do busybox stty size; done";
        let mut remote = stage.exec_line(&id, line, Streams::TERMINAL, protocol).await?;
        remote.input().resize(101, 31).await?;
        remote.until("31 101\r\n").await?;
        remote.input().resize(72, 20).await?;
        remote.until("20 72\r\n").await?;
        remote.send([3]).await?;
        let outcome = remote.finish().await?;
        if protocol.tells_status() {
            assert_eq!(outcome.code()?, 130, "{protocol}: Ctrl-C ends it: {outcome:?}");
        }

        let line = "echo out; echo err >&2; test -t 0 && test -t 1 && test -t 2 && cat";
        let mut remote = stage.exec_line(&id, line, Streams::TERMINAL, protocol).await?;
        remote.until("out\r\nerr\r\n").await?;
        remote.send("typed\n").await?;
        remote.until("typed\r\ntyped\r\n").await?;
        remote.send([4]).await?;
        let outcome = remote.finish().await?;
        if protocol.tells_status() {
            assert_eq!(outcome.code()?, 0, "{protocol}: Ctrl-D ends its input: {outcome:?}");
        }
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_mebibytes_arrive_whole_in_both_directions() -> Result {
    let (stage, id, held) = with_container().await?;
    for (protocol, size) in
        [(SPDY, 10 << 20), (WEBSOCKET, 10 << 20), (V4_WEBSOCKET, 1 << 20), (V4_BASE64, 1 << 20)]
    {
        let line = format!("head -c {size}; echo end >&2");
        let remote = stage.exec_line(&id, &line, Streams::ALL, protocol).await?;
        let (input, bytes) = (remote.input(), noise(7, size));
        let sending = tokio::spawn({
            let bytes = bytes.clone();
            async move { input.send(&bytes).await }
        });
        let outcome = remote.finish().await?;
        sending.await??;
        assert!(
            outcome.stdout == bytes,
            "{protocol}: {} bytes came, changed or too few",
            outcome.stdout.len()
        );
        assert_eq!((outcome.stderr.as_slice(), outcome.code()?), (&b"end\n"[..], 0), "{protocol}");
    }
    nothing_is_left(stage, held).await
}

/// A client that does not read stops its own command and nothing else, and costs the daemon a bounded amount of memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_holds_up_nobody_else() -> Result {
    let (stage, id, held) = with_container().await?;
    let much = "busybox yes $(busybox seq 200 | busybox tr -d '\\n') | head -n 20000";
    let line =
        format!("while read -r what; do test \"${{what#l}}\" != \"$what\" || {much}; echo after $what; done");
    let line = line.as_str();
    let loud = stage.run(&reader(&stage, "loud", line, false, false)).await?;
    for protocol in BOTH {
        let mut slow = stage.exec_line(&id, "echo up; exec busybox yes", Streams::OUTPUT, protocol).await?;
        slow.until("up").await?;
        let stalled = stage.attach(&loud, Streams::ALL, protocol).await?;
        let mut quick = stage.attach(&loud, Streams::ALL, protocol).await?;
        quick.send("little\n").await?;
        quick.until("after little").await?;
        // 11 MB, of which one client reads nothing and the other as much as it can.
        stalled.input().send(format!("{protocol}\n")).await?;
        let over = format!("after {protocol}");
        let all = quick.heard().stdout.len() + 20_000 * 493 + over.len() + 1;
        // What is said while this client is behind may be among what it loses, so it catches up first.
        let caught_up = |heard: &[u8]| {
            let near = contains(heard, "missing here") || contains(heard, &over);
            near && written(heard) >= all
        };
        let reading = async {
            while !caught_up(&quick.heard().stdout) {
                quick.read().await?;
            }
            Ok(())
        };
        tokio::try_join!(stage.says(&loud, &over), reading)?;
        quick.send("least\n").await?;
        quick.until("after least").await?;
        for other in BOTH {
            let outcome = stage.exec_line(&id, "echo quick", Streams::OUTPUT, other).await?.finish().await?;
            assert_eq!(outcome.stdout, b"quick\n");
        }
        let growth = held.growth_kib(&stage.node)?;
        assert!(growth < 24 << 10, "{protocol}: the daemon has grown by {growth} KiB");
        slow.cut();
        stalled.cut();
        quick.cut();
        no_process(&stage, &id, "yes").await?;
    }
    stage.node.cri().remove(&loud).await?;
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_vanished_leaves_no_process() -> Result {
    let (stage, id, held) = with_container().await?;
    for protocol in [SPDY, WEBSOCKET, V4_WEBSOCKET] {
        for (line, streams) in [
            ("echo up; sleep 7777 & sleep 7777", Streams::OUTPUT),
            ("echo up; sleep 7777 & cat; sleep 7777", Streams::ALL),
            ("echo up; busybox setsid sleep 7777 & exec busybox yes", Streams::ALL),
            ("echo up; trap '' HUP INT TERM; sleep 7777", Streams::TERMINAL),
        ] {
            let mut remote = stage.exec_line(&id, line, streams, protocol).await?;
            remote.until("up").await?;
            remote.cut();
            no_process(&stage, &id, "sleep 7777").await?;
            no_process(&stage, &id, "yes").await?;
        }
        // Before it has opened a stream, or while the command is being started.
        for delay in [0, 5, 20, 60] {
            let beginning = stage.exec_line(&id, "sleep 7777", Streams::OUTPUT, protocol);
            drop(timeout(Duration::from_millis(delay), beginning).await);
        }
        no_process(&stage, &id, "sleep 7777").await?;
    }
    nothing_is_left(stage, held).await
}

/// Attaches, and waits until that is in force: what is said comes back then.
async fn attached(stage: &Stage, id: &str, protocol: Protocol) -> Result<Remote> {
    let mut remote = stage.attach(id, Streams::ALL, protocol).await?;
    remote.send("hello\n").await?;
    remote.until("got hello\n").await?;
    Ok(remote)
}

#[tokio::test(flavor = "multi_thread")]
async fn several_attached_clients_see_and_say_the_same() -> Result {
    let (stage, _, held) = with_container().await?;
    let line = "while read -r line; do echo \"got $line\"; echo \"err $line\" >&2; done; echo over";
    let id = stage.run(&reader(&stage, "several", line, false, false)).await?;
    let mut clients: Vec<Remote> = Vec::new();
    for protocol in [SPDY, WEBSOCKET, V4_BASE64, Protocol::Spdy("v3.channel.k8s.io")] {
        clients.push(attached(&stage, &id, protocol).await?);
    }
    for n in 0..clients.len() {
        clients[n].send(format!("from {n}\n")).await?;
        for client in &mut clients {
            client.until(&format!("got from {n}\n")).await?;
        }
    }
    // One who leaves takes neither the container nor its input with him, however he does it.
    clients.remove(0).input().close().await?;
    clients.remove(0).cut();
    clients[0].send("still\n").await?;
    for client in &mut clients {
        client.until("got still\n").await?;
        while !client.heard().stderr.ends_with(b"err still\n") && client.read().await? {}
    }
    drop(clients);
    // Nothing is said twice to who comes later.
    let later = attached(&stage, &id, SPDY).await?;
    assert_eq!(later.heard().stdout, b"got hello\n");
    stage.node.cri().stop(&id, 0).await?;
    let outcome = later.closed().await?;
    assert_eq!(outcome.stdout, b"got hello\n");
    stage.node.cri().remove(&id).await?;
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn input_for_one_client_ends_with_it() -> Result {
    let (stage, _, held) = with_container().await?;
    for (n, protocol) in BOTH.into_iter().enumerate() {
        let once = reader(&stage, &format!("closed{n}"), "cat; echo over; exit 5", true, false);
        let id = stage.run(&once).await?;
        let mut remote = stage.attach(&id, Streams::ALL, protocol).await?;
        remote.send("first\n").await?;
        remote.until("first\n").await?;
        remote.input().close().await?;
        let outcome = remote.finish().await?;
        assert_eq!(outcome.stdout, b"first\nover\n", "{protocol}: {outcome:?}");
        let status = stage.node.exited(&id).await?;
        assert_eq!(status.exit_code, 5);
        stage.node.cri().remove(&id).await?;

        let once = reader(&stage, &format!("vanished{n}"), "cat; exit 6", true, false);
        let id = stage.run(&once).await?;
        let mut remote = stage.attach(&id, Streams::ALL, protocol).await?;
        remote.send("first\n").await?;
        remote.until("first\n").await?;
        remote.cut();
        assert_eq!(stage.node.exited(&id).await?.exit_code, 6, "{protocol}");
        stage.node.cri().remove(&id).await?;
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_of_a_container_is_attached_to() -> Result {
    let (stage, _, held) = with_container().await?;
    let line = "while read -r line; do busybox stty size; test -t 2 && echo terminal; done";
    let id = stage.run(&reader(&stage, "terminal", line, false, true)).await?;
    for (n, protocol) in BOTH.into_iter().enumerate() {
        let size = |n| format!("{} {}\r\nterminal\r\n", 30 + n, 90 + n);
        let mut remote = stage.attach(&id, Streams::TERMINAL, protocol).await?;
        let (width, height) = (u16::try_from(90 + n)?, u16::try_from(30 + n)?);
        remote.input().resize(width, height).await?;
        let answers =
            |remote: &Remote| String::from_utf8_lossy(&remote.heard().stdout).matches("terminal\r\n").count();
        // A size travels on a channel of its own, and may arrive later than what is typed.
        while !String::from_utf8_lossy(&remote.heard().stdout).contains(&size(n)) {
            let before = answers(&remote);
            remote.send("\n").await?;
            while answers(&remote) == before {
                assert!(remote.read().await?, "{protocol}: closed: {:?}", remote.heard());
            }
        }
        remote.cut();
    }
    stage.node.cri().remove(&id).await?;
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_container() -> Result {
    let (stage, _, held) = with_container().await?;
    let cri = stage.node.cri();
    for (n, protocol) in BOTH.into_iter().enumerate() {
        let gentle = "trap 'echo asked; until [ -e /done ]; do sleep 0.05; done; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
        let id = stage.run(&stage.shell(&format!("gentle{n}"), gentle)).await?;
        stage.says(&id, "ready").await?;
        let mut long = stage.exec_line(&id, "echo up; sleep 7777", Streams::ALL, protocol).await?;
        long.until("up").await?;
        let mut terminal = stage.exec_line(&id, "echo up; sleep 7777", Streams::TERMINAL, protocol).await?;
        terminal.until("up").await?;
        let attached = stage.attach(&id, Streams::OUTPUT, protocol).await?;
        let stopping = tokio::spawn({
            let (cri, id) = (cri.clone(), id.clone());
            async move { cri.stop(&id, 40).await }
        });
        // During the grace commands are run as ever.
        stage.says(&id, "asked").await?;
        let outcome =
            stage.exec_line(&id, "echo still; > /done", Streams::OUTPUT, protocol).await?.finish().await?;
        assert!(outcome.stdout == b"still\n", "{protocol}: {outcome:?}");
        stopping.await??;
        assert_eq!(cri.container(&id).await?.state(), ContainerState::ContainerExited);
        for remote in [long, terminal] {
            let outcome = remote.closed().await?;
            assert!(outcome.code().unwrap_or(-1) != 0, "{protocol}: it did not succeed: {outcome:?}");
            assert!(!outcome.error.is_empty(), "{protocol}: its end is told: {outcome:?}");
        }
        attached.closed().await?;
        cri.remove(&id).await?;
    }
    nothing_is_left(stage, held).await
}
