//! Sessions over WebSocket.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::backend::{End, Size};

const ALL: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

fn message(protocol: &str, channel: u8, data: &[u8]) -> Message {
    if protocol.contains("base64") {
        return Message::text(format!("{channel}{}", base64::Engine::encode(&STANDARD, data)));
    }
    Message::binary([&[channel], data].concat())
}

async fn typed(far: &mut Far, expected: &[u8]) {
    let mut input = vec![0; expected.len()];
    far.stdin.as_mut().unwrap().read_exact(&mut input).await.unwrap();
    assert_eq!(input, expected);
}

#[tokio::test]
async fn exec_speaks_every_subprotocol() {
    let mut running = Running::new().await;
    for protocol in ALL {
        let (mut client, mut far) = running.session("ioe", protocol).await;
        let first = client.next().await.unwrap().unwrap();
        assert_eq!(
            first,
            message(protocol, 1, b""),
            "{protocol}: the client learns that the connection stands"
        );
        client.send(message(protocol, 0, b"in\xff")).await.unwrap();
        client.send(message(protocol, 9, b"for nobody")).await.unwrap();
        client.send(message(protocol, 0, b"put")).await.unwrap();
        typed(&mut far, b"in\xffput").await;
        far.stdout.as_mut().unwrap().write_all(b"out\xff").await.unwrap();
        far.stderr.as_mut().unwrap().write_all(b"err").await.unwrap();
        far.exit(3);
        let (channels, code) = rest(&mut client, protocol).await;
        assert_eq!((&*channels[&1], &*channels[&2]), (&b"out\xff"[..], &b"err"[..]), "{protocol}");
        let text = String::from_utf8(channels[&3].clone()).unwrap();
        if protocol.starts_with('v') {
            let status: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        } else {
            assert!(text.ends_with("exit status 3"), "{protocol}: {text}");
        }
        assert_eq!(code, CloseCode::Normal, "clients take other codes for failures");
    }
}

#[tokio::test]
async fn the_newest_subprotocol_closes_the_input() {
    let mut running = Running::new().await;
    let (mut client, mut far) = running.session("io", "v5.channel.k8s.io").await;
    client.send(Message::binary(&b"\x00input"[..])).await.unwrap();
    client.send(Message::binary(&b"\xff\x00"[..])).await.unwrap();
    let mut input = Vec::new();
    far.stdin.as_mut().unwrap().read_to_end(&mut input).await.unwrap();
    assert_eq!(input, b"input");
    far.stdout.as_mut().unwrap().write_all(b"after it").await.unwrap();
    far.exit(0);
    let (channels, _) = rest(&mut client, "").await;
    assert_eq!(channels[&1], b"after it");
    assert_eq!(serde_json::from_slice::<Value>(&channels[&3]).unwrap()["status"], "Success");
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let mut running = Running::new().await;
    let mut client = connect(&running.exec("iot"), "v4.channel.k8s.io").await.unwrap();
    client.send(message("", 4, br#"{"Width":80,"Height":24}"#)).await.unwrap();
    let mut far = running.processes.recv().await.unwrap();
    if far.size.is_none() {
        // The command did not wait for it: this host is busy.
        assert_eq!(far.sizes.recv().await, Some(Size { width: 80, height: 24 }));
    }
    client.send(message("", 4, br#"{"Width":81,"Height":25}"#)).await.unwrap();
    assert_eq!(far.sizes.recv().await, Some(Size { width: 81, height: 25 }));
}

#[tokio::test]
async fn much_output_arrives_whole_while_input_flows() {
    const AMOUNT: usize = 8 * 1024 * 1024;
    let mut running = Running::new().await;
    let (client, mut far) = running.session("io", "v5.channel.k8s.io").await;
    let data: Vec<u8> = (0..AMOUNT / 4).flat_map(|n| u32::try_from(n).unwrap().to_le_bytes()).collect();
    let (mut sending, mut receiving) = client.split();
    let expected = data.clone();
    let typing = tokio::spawn(async move {
        for chunk in data.chunks(100_000) {
            sending.send(message("", 0, chunk)).await.unwrap();
        }
        sending.send(Message::binary(&b"\xff\x00"[..])).await.unwrap();
    });
    let cat = tokio::spawn(async move {
        let (mut stdin, mut stdout) = (far.stdin.take().unwrap(), far.stdout.take().unwrap());
        tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
        drop(stdout);
        far.exit(0);
    });
    let mut received = Vec::new();
    while let Message::Binary(data) = receiving.next().await.unwrap().unwrap() {
        if data[0] == 1 {
            received.extend_from_slice(&data[1..]);
        }
    }
    assert!(received == expected);
    typing.await.unwrap();
    cat.await.unwrap();
}

#[tokio::test]
async fn garbage_ends_its_own_session_only() {
    let mut running = Running::new().await;
    let (mut good, mut good_far) = running.session("io", "v5.channel.k8s.io").await;
    let garbage = [
        ("v5.channel.k8s.io", Message::binary(&b"\xff"[..])),
        ("v5.channel.k8s.io", Message::binary(&b"\xff\x00\x00"[..])),
        ("base64.channel.k8s.io", Message::text("0 not base64 !")),
    ];
    for (protocol, message) in garbage {
        let (mut bad, far) = running.session("io", protocol).await;
        bad.send(message).await.unwrap();
        far.released.cancelled().await;
        assert_eq!(rest(&mut bad, protocol).await.1, CloseCode::Protocol);
    }
    // Not even frames.
    let (mut bad, far) = running.session("io", "").await;
    bad.get_mut().write_all(&[0xff; 64]).await.unwrap();
    far.released.cancelled().await;
    good.send(message("", 0, b"x")).await.unwrap();
    typed(&mut good_far, b"x").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_command() {
    let mut running = Running::new().await;
    let (client, far) = running.session("io", "").await;
    drop(client);
    far.released.cancelled().await;
    let (mut client, far) = running.session("io", "").await;
    client.close(None).await.unwrap();
    far.released.cancelled().await;
}

#[tokio::test]
async fn a_client_that_leaves_behind_unread_input_is_noticed_and_one_that_waits_is_kept_alive() {
    let mut running = Running::new().await;
    let (mut client, far) = running.session("io", "").await;
    let flood = async { while client.send(message("", 0, &[b'i'; 30_000])).await.is_ok() {} };
    // The process does not read: from some message on there is no room.
    assert!(tokio::time::timeout(Duration::from_millis(500), flood).await.is_err());
    assert!(!far.released.is_cancelled());
    let alive = async {
        loop {
            if let Message::Pong(_) = client.next().await.unwrap().unwrap() {
                return;
            }
        }
    };
    alive.await;
    drop(client);
    far.released.cancelled().await;
}

#[tokio::test]
async fn a_server_that_stops_tells_its_clients_and_ends() {
    let mut running = Running::new().await;
    let (mut client, far) = running.session("io", "v4.channel.k8s.io").await;
    // Somebody who connected and says nothing does not hold it.
    let _silent = TcpStream::connect(running.address).await.unwrap();
    running.stop.cancel();
    let (channels, code) = rest(&mut client, "").await;
    assert!(String::from_utf8_lossy(&channels[&3]).contains("the server is stopping"));
    assert_eq!(code, CloseCode::Normal);
    far.released.cancelled().await;
    running.serving.await.unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn a_server_that_stops_does_not_wait_for_clients_that_do_not_read() {
    let mut running = Running::new().await;
    let (_client, mut far) = running.session("io", "").await;
    let mut stdout = far.stdout.take().unwrap();
    let fill = async { while stdout.write_all(&[b'o'; 4096]).await.is_ok() {} };
    assert!(tokio::time::timeout(Duration::from_millis(500), fill).await.is_err(), "it is held up");
    running.stop.cancel();
    far.released.cancelled().await;
    running.serving.await.unwrap();
}

#[tokio::test]
async fn attach_ends_with_its_container() {
    let mut running = Running::new().await;
    let url = running.server.attach_url(fake::attach("io")).unwrap();
    let mut client = connect(&url, "v4.channel.k8s.io").await.unwrap();
    let mut far = running.processes.recv().await.unwrap();
    far.stdout.take().unwrap().write_all(b"log").await.unwrap();
    far.end(End::Exited(5));
    let (channels, _) = rest(&mut client, "").await;
    assert_eq!(channels[&1], b"log");
    assert_eq!(serde_json::from_slice::<Value>(&channels[&3]).unwrap()["status"], "Success");
}

#[tokio::test]
async fn ports_have_two_channels_each() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = listener.local_addr().unwrap().port();
    let (closed, _held) = fake::closed_port();
    let running = Running::new().await;
    let url = running.server.port_forward_url(fake::sandbox(), vec![closed, open]).unwrap();
    let mut client = connect(&url, "v4.channel.k8s.io").await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    client.send(message("", 2, b"ping")).await.unwrap();
    let mut request = [0; 4];
    connection.read_exact(&mut request).await.unwrap();
    assert_eq!(&request, b"ping");
    connection.write_all(b"pong").await.unwrap();
    drop(connection);
    let (channels, code) = rest(&mut client, "").await;
    assert_eq!(channels[&0], closed.to_le_bytes());
    assert_eq!(channels[&1][..2], closed.to_le_bytes());
    assert!(String::from_utf8_lossy(&channels[&1][2..]).contains("error forwarding port"));
    assert_eq!(channels[&2], [&open.to_le_bytes()[..], b"pong"].concat());
    assert_eq!(channels[&3], open.to_le_bytes());
    assert_eq!(code, CloseCode::Normal);
}
