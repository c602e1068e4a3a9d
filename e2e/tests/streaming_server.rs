//! The streaming server itself: tokens, what is refused, garbage, and its own end.

use std::time::Duration;

use e2e::streaming::{
    Dialer, FORWARD_PROTOCOLS, Protocol, REMOTE_PROTOCOLS, Remote, SPDY, SPDY_FORWARD, Streams, WEBSOCKET,
    ask, noise, offer,
};
use e2e::trial::Held;
use e2e::{ContainerSpec, Result, Stage, code_of, patience};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tonic::Code;

const BOTH: [Protocol; 2] = [SPDY, WEBSOCKET];

async fn with_container() -> Result<(Stage, String, Held)> {
    let stage = Stage::set().await?;
    let id = stage.run(&ContainerSpec::lasting("stays", &stage.image)).await?;
    for protocol in BOTH {
        stage.exec_line(&id, "true", Streams::OUTPUT, protocol).await?.finish().await?;
    }
    let held = Held::by(&stage.node)?;
    Ok((stage, id, held))
}

async fn nothing_is_left(stage: Stage, held: Held) -> Result {
    held.comes_back(&stage.node).await?;
    stage.finish().await
}

/// An address to run `true` at.
async fn address(stage: &Stage, id: &str) -> Result<String> {
    Ok(stage.node.cri().exec_url(id, &["true"], Streams::OUTPUT).await?)
}

/// The status of the answer to the usual request of a protocol.
async fn status(dialer: &Dialer, url: &str, protocol: Protocol) -> Result<u16> {
    let (method, headers) = offer(protocol);
    Ok(ask(dialer, url, method, &headers).await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_secret_local_and_good_for_once() -> Result {
    let (stage, id, held) = with_container().await?;
    let dialer = stage.dialer();
    let (first, second) = (address(&stage, &id).await?, address(&stage, &id).await?);
    assert_ne!(first, second);
    for url in [&first, &second] {
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let token = url.rsplit('/').next().unwrap_or_default();
        assert!(token.len() >= 22, "128 bits at 6 bits a letter: {token}");
    }
    let (base, token) = first.rsplit_once('/').unwrap_or_default();
    let base = base.trim_end_matches("/exec");
    for unknown in ["/exec/", "/exec/AAAAAAAAAAAAAAAAAAAAAAAA", "/", "/nothing", "/exec/../exec/x"] {
        for protocol in BOTH {
            assert_eq!(status(&dialer, &format!("{base}{unknown}"), protocol).await?, 404, "{unknown}");
        }
    }
    for protocol in BOTH {
        let url = address(&stage, &id).await?;
        assert_eq!(Remote::open(&dialer, &url, protocol, Streams::OUTPUT).await?.finish().await?.code()?, 0);
        assert_eq!(status(&dialer, &url, protocol).await?, 404, "it was used");
    }
    // Under another verb's path it is not known, and does not become so.
    assert_eq!(status(&dialer, &format!("{base}/attach/{token}"), SPDY).await?, 404);
    assert_eq!(status(&dialer, &format!("{base}/portforward/{token}"), SPDY_FORWARD).await?, 404);
    // Either method is good for either transport's clients.
    for (protocol, method) in [(SPDY, "GET"), (SPDY, "POST"), (WEBSOCKET, "GET")] {
        let url = address(&stage, &id).await?;
        assert_eq!(ask(&dialer, &url, method, &offer(protocol).1).await?.status, 101, "{protocol} {method}");
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_refused_with_a_reason() -> Result {
    let (stage, id, held) = with_container().await?;
    let dialer = stage.dialer();
    let with = |protocol: Protocol, name: &'static str, value: &str| {
        let (method, mut headers) = offer(protocol);
        headers.retain(|(it, _)| *it != name);
        headers.push((name, value.to_owned()));
        (method, headers)
    };
    let plain: (&str, Vec<(&'static str, String)>) = ("GET", Vec::new());
    for (what, (method, headers)) in [
        ("no upgrade", plain),
        ("another upgrade", with(SPDY, "Upgrade", "h2c")),
        (
            "no version of the channels that is known",
            with(SPDY, "X-Stream-Protocol-Version", "v9.channel.k8s.io"),
        ),
        ("port-forward's protocol", with(SPDY, "X-Stream-Protocol-Version", "portforward.k8s.io")),
        (
            "no subprotocol that is known",
            with(WEBSOCKET, "Sec-WebSocket-Protocol", "chat, v9.channel.k8s.io"),
        ),
        ("another version of WebSocket", with(WEBSOCKET, "Sec-WebSocket-Version", "8")),
        ("no key", with(WEBSOCKET, "Sec-WebSocket-Key", "")),
    ] {
        let answer = ask(&dialer, &address(&stage, &id).await?, method, &headers).await?;
        assert!([400, 403, 426].contains(&answer.status), "{what}: {answer:?}");
        assert!(!answer.body.trim().is_empty(), "{what}: {answer:?}");
    }
    // Of several the server takes one it knows.
    for protocol in BOTH {
        let header = if protocol == SPDY { "X-Stream-Protocol-Version" } else { "Sec-WebSocket-Protocol" };
        let (method, headers) = with(protocol, header, &format!("v9.channel.k8s.io, {}", protocol.name()));
        let answer = ask(&dialer, &address(&stage, &id).await?, method, &headers).await?;
        assert_eq!(answer.status, 101, "{protocol}: {answer:?}");
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_only() -> Result {
    let (stage, id, held) = with_container().await?;
    let mut others = Vec::new();
    for protocol in BOTH {
        others.push(stage.exec_line(&id, "exec cat", Streams::ALL, protocol).await?);
    }
    let cri = stage.node.cri();
    let mut kinds: Vec<Vec<u8>> = (1..4).map(|seed| noise(seed, 100_000)).collect();
    kinds.extend([
        // Another version of SPDY; a type that does not exist, and a header block that is not compressed.
        vec![0x80, 2, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [vec![0x80, 3, 0, 1, 0, 0, 0, 30, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], vec![0xff; 20]].concat(),
        // A header block of 16 MiB is promised.
        vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff, 0, 0, 0, 1],
        // A frame without a mask, one of a type that does not exist, one that is endless.
        b"\x82\x05hello".to_vec(),
        vec![0x8f, 0x80, 0, 0, 0, 0],
        vec![0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ]);
    for protocol in REMOTE_PROTOCOLS.into_iter().chain(FORWARD_PROTOCOLS) {
        let forwards = FORWARD_PROTOCOLS.contains(&protocol) && protocol.name() != "v4.channel.k8s.io";
        for (n, garbage) in kinds.iter().enumerate() {
            let url = match forwards {
                true => cri.forward_url(&stage.pod_id, &[7001]).await?,
                false => cri.exec_url(&id, &["cat"], Streams::ALL).await?,
            };
            let (method, headers) = offer(protocol);
            let mut pipe = ask(&stage.dialer(), &url, method, &headers).await?.upgraded()?;
            // It may be closed while there is more to be sent.
            drop(pipe.writer.write_all(garbage).await);
            // Some of it is the beginning of something that would be good if it went on.
            drop(pipe.writer.shutdown().await);
            pipe.closed().await.map_err(|error| error.context(format!("{protocol}, garbage {n}")))?;
        }
    }
    for other in &mut others {
        other.send("unharmed\n").await?;
        other.until("unharmed\n").await?;
    }
    drop(others);
    assert!(!stage.node.log().contains("panicked"), "{}", stage.node.log());
    nothing_is_left(stage, held).await
}

/// Whoever asks for addresses and never comes is refused some day, and nobody else after they have expired.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_wait_are_bounded() -> Result {
    let (stage, id, held) = with_container().await?;
    let cri = stage.node.cri();
    let mut refused = Code::Ok;
    for _ in 0..5000 {
        refused = code_of(&cri.exec_url(&id, &["true"], Streams::OUTPUT).await);
        if refused != Code::Ok {
            break;
        }
    }
    assert_eq!(refused, Code::ResourceExhausted);
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_ends_its_sessions_with_their_commands() -> Result {
    let (mut stage, id, _) = with_container().await?;
    let mut sessions = begun_sessions(&stage, &id).await?;
    let attached = stage.attach(&id, Streams::OUTPUT, SPDY).await?;
    stage.node.kill9().await?;
    sessions.push(attached);
    for session in sessions {
        // A connection that dies in the middle of a frame is an end too.
        drop(session.closed().await);
    }
    stage.node.restart().await?;
    commands_are_gone(&stage, &id).await?;
    assert_eq!(stage.node.cri().shell(&id, "echo alive").await?, "alive", "the container has not noticed");
    let outcome = stage.exec_line(&id, "echo new", Streams::OUTPUT, SPDY).await?.finish().await?;
    assert_eq!(outcome.stdout, b"new\n");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_goodbye() -> Result {
    let (mut stage, id, _) = with_container().await?;
    let sessions = begun_sessions(&stage, &id).await?;
    let tunnel = stage.tunnel(&[7001], SPDY_FORWARD).await?;
    let stopping = async {
        let status = stage.node.stop().await?;
        anyhow::ensure!(status.success(), "it ended with {status}");
        Ok::<_, anyhow::Error>(())
    };
    let goodbyes = async {
        for session in sessions {
            let outcome = session.closed().await?;
            anyhow::ensure!(outcome.code().is_err(), "neither a success nor a code: {outcome:?}");
            anyhow::ensure!(
                !outcome.error.is_empty() || outcome.goodbye.is_some(),
                "it says nothing: {outcome:?}"
            );
        }
        tunnel.closed().await.map(drop)
    };
    tokio::try_join!(stopping, goodbyes)?;
    stage.node.restart().await?;
    commands_are_gone(&stage, &id).await?;
    assert_eq!(stage.node.cri().shell(&id, "echo alive").await?, "alive");
    stage.finish().await
}

/// Commands that end by nothing but a signal, over both transports, with and without a terminal.
async fn begun_sessions(stage: &Stage, id: &str) -> Result<Vec<Remote>> {
    let mut sessions = Vec::new();
    for protocol in BOTH {
        for streams in [Streams::ALL, Streams::TERMINAL] {
            let line = "trap '' HUP; echo up; sleep 7777 & sleep 7777";
            let mut session = stage.exec_line(id, line, streams, protocol).await?;
            session.until("up").await?;
            sessions.push(session);
        }
    }
    Ok(sessions)
}

async fn commands_are_gone(stage: &Stage, id: &str) -> Result {
    let gone = async {
        while stage.node.cri().shell(id, "ps | grep -c '[s]leep 7777' || true").await? != "0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    timeout(patience(30), gone).await?
}
