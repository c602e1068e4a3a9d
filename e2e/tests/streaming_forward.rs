//! Port-forward: either family, refused and broken connections, half-closes, and tunnels that mind their own business.

use std::time::Duration;

use e2e::streaming::{
    FORWARD_PROTOCOLS, Protocol, SPDY_FORWARD, Tunnel, WEBSOCKET_FORWARD, listen_in_network_of, noise,
};
use e2e::trial::Held;
use e2e::{Result, Stage, code_of, patience};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::Code;

/// Protocols whose tunnels carry any number of connections.
const MANY: [Protocol; 2] = [SPDY_FORWARD, Protocol::Tunnelled];

async fn at_rest() -> Result<(Stage, Held)> {
    let stage = Stage::set().await?;
    // What a first session brings about, and stays.
    for protocol in FORWARD_PROTOCOLS {
        stage.tunnel(&[9], protocol).await?.cut();
    }
    let held = Held::by(&stage.node)?;
    Ok((stage, held))
}

async fn nothing_is_left(stage: Stage, held: Held) -> Result {
    held.comes_back(&stage.node).await?;
    stage.finish().await
}

/// Sends everything back, to the end of the input.
fn echo(listener: TcpListener) {
    serve(listener, async |mut stream: TcpStream| {
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await?;
        writer.shutdown().await
    });
}

/// Does the same with each connection.
fn serve<F, W>(listener: TcpListener, each: F)
where
    F: Fn(TcpStream) -> W + Send + 'static,
    W: Future<Output = std::io::Result<()>> + Send + 'static,
{
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
}

/// There and back, with the ends of both directions.
async fn greet(tunnel: &Tunnel, port: u16, half_closes: bool) -> Result {
    let mut connection = tunnel.connect(port).await?;
    let text = format!("hello {port}");
    connection.send(&text).await?;
    assert_eq!(connection.read_exact(text.len()).await?, text.as_bytes());
    if half_closes {
        connection.close().await?;
        assert_eq!(connection.read_to_end().await?, b"");
        assert_eq!(connection.error().await?, "");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_of_either_family_are_reached() -> Result {
    let (stage, held) = at_rest().await?;
    echo(stage.listen("127.0.0.1:7001").await?);
    echo(stage.listen("[::1]:7002").await?);
    echo(stage.listen("0.0.0.0:7003").await?);
    for protocol in FORWARD_PROTOCOLS {
        let ports = [7001, 7002, 7003];
        let tunnel = stage.tunnel(&ports, protocol).await?;
        for port in ports {
            greet(&tunnel, port, protocol.half_closes()).await?;
        }
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_the_network_of_the_host_is_reached_there() -> Result {
    let (stage, held) = at_rest().await?;
    let cri = stage.node.cri();
    let pod_id = cri.run_pod(&stage.node.pod("host").on_host_network()).await?;
    let pid = cri.pause_pid(&pod_id).await?;
    let listener = listen_in_network_of(stage.node.machine(), pid, "127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    echo(listener);
    for protocol in FORWARD_PROTOCOLS {
        let url = cri.forward_url(&pod_id, &[port]).await?;
        let tunnel = Tunnel::open(&stage.dialer(), &url, protocol, &[port]).await?;
        greet(&tunnel, port, protocol.half_closes()).await?;
        // The other pod has a network of its own, where nobody listens.
        let other = stage.tunnel(&[port], protocol).await?;
        assert_ne!(other.connect(port).await?.complaint().await?, "");
    }
    cri.remove_pod(&pod_id).await?;
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_port_is_told_and_disturbs_nobody() -> Result {
    let (stage, held) = at_rest().await?;
    echo(stage.listen("127.0.0.1:7001").await?);
    for protocol in FORWARD_PROTOCOLS {
        let tunnel = stage.tunnel(&[7001, 7999], protocol).await?;
        let mut neighbour = tunnel.connect(7001).await?;
        neighbour.send("before").await?;
        assert_eq!(neighbour.read_exact(6).await?, b"before");
        let complaint = tunnel.connect(7999).await?.complaint().await?;
        assert!(complaint.contains("7999"), "{protocol}: {complaint:?}");
        neighbour.send("after").await?;
        assert_eq!(neighbour.read_exact(5).await?, b"after", "{protocol}");
        if MANY.contains(&protocol) {
            greet(&tunnel, 7001, true).await?;
        }
        assert!(!tunnel.is_closed(), "{protocol}");
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_direction_may_end_before_the_other() -> Result {
    let (stage, held) = at_rest().await?;
    // Answers when the question is over; and ends its own direction before it listens.
    serve(stage.listen("127.0.0.1:7001").await?, async |mut stream: TcpStream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await?;
        stream.write_all(format!("{} bytes", question.len()).as_bytes()).await
    });
    let (heard, mut told) = tokio::sync::mpsc::channel(8);
    serve(stage.listen("127.0.0.1:7002").await?, move |mut stream: TcpStream| {
        let heard = heard.clone();
        async move {
            stream.write_all(b"first").await?;
            stream.shutdown().await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await?;
            heard.send(rest).await.map_err(std::io::Error::other)
        }
    });
    for protocol in MANY {
        let tunnel = stage.tunnel(&[7001, 7002], protocol).await?;
        let mut asks = tunnel.connect(7001).await?;
        asks.send(vec![b'x'; 100_000]).await?;
        asks.close().await?;
        assert_eq!(asks.read_to_end().await?, b"100000 bytes", "{protocol}");
        assert_eq!(asks.error().await?, "");
        // The grace is a second, which a busy machine may take away from anyone now and then.
        let mut delivered = None;
        for _ in 0..5 {
            let mut listens = tunnel.connect(7002).await?;
            assert_eq!(listens.read_to_end().await?, b"first", "{protocol}");
            // It may be over already.
            drop(listens.send("late").await);
            drop(listens.close().await);
            delivered = timeout(patience(30), told.recv()).await?;
            if delivered.as_deref() == Some(&b"late"[..]) {
                break;
            }
        }
        assert_eq!(delivered.as_deref(), Some(&b"late"[..]), "{protocol}: within the grace it is delivered");
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_leaves_its_neighbours_alone() -> Result {
    let (stage, held) = at_rest().await?;
    echo(stage.listen("127.0.0.1:7001").await?);
    // Breaks off in the middle.
    serve(stage.listen("127.0.0.1:7002").await?, async |mut stream: TcpStream| {
        stream.write_all(b"begun").await?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    });
    let (left, mut gone) = tokio::sync::mpsc::channel(8);
    serve(stage.listen("127.0.0.1:7003").await?, move |mut stream: TcpStream| {
        let left = left.clone();
        async move {
            stream.write_all(b"here").await?;
            drop(stream.read_to_end(&mut Vec::new()).await);
            left.send(()).await.map_err(std::io::Error::other)
        }
    });
    for protocol in MANY {
        let tunnel = stage.tunnel(&[7001, 7002, 7003], protocol).await?;
        let mut neighbour = tunnel.connect(7001).await?;
        for n in 0..5_u8 {
            let mut broken = tunnel.connect(7002).await?;
            // It ends, well or not, and what came before it may be lost with it.
            drop(broken.read_to_end().await);
            let mut resets = tunnel.connect(7003).await?;
            assert_eq!(resets.read_exact(4).await?, b"here");
            resets.send("something").await?;
            resets.reset().await?;
            timeout(patience(30), gone.recv()).await?;
            neighbour.send([n]).await?;
            assert_eq!(neighbour.read_exact(1).await?, [n], "{protocol}");
        }
        assert!(!tunnel.is_closed(), "{protocol}");
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_mebibytes_arrive_whole_in_both_directions() -> Result {
    let (stage, held) = at_rest().await?;
    echo(stage.listen("127.0.0.1:7001").await?);
    for (protocol, size) in [
        (SPDY_FORWARD, 10 << 20),
        (Protocol::Tunnelled, 10 << 20),
        (WEBSOCKET_FORWARD, 10 << 20),
        (FORWARD_PROTOCOLS[3], 1 << 20),
    ] {
        let tunnel = stage.tunnel(&[7001], protocol).await?;
        let bytes = noise(9, size);
        let mut connection = tunnel.connect(7001).await?;
        let sender = connection.input();
        let sending = tokio::spawn({
            let bytes = bytes.clone();
            async move { sender.send(&bytes).await }
        });
        assert!(connection.read_exact(size).await? == bytes, "{protocol}: the bytes came back changed");
        sending.await??;
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody_else() -> Result {
    let (stage, held) = at_rest().await?;
    echo(stage.listen("127.0.0.1:7001").await?);
    serve(stage.listen("127.0.0.1:7002").await?, async |mut stream: TcpStream| {
        let chunk = vec![b'x'; 1 << 20];
        loop {
            stream.write_all(&chunk).await?;
        }
    });
    for protocol in FORWARD_PROTOCOLS {
        let slow = stage.tunnel(&[7002], protocol).await?;
        let mut flood = slow.connect(7002).await?;
        flood.read().await?;
        let quick = stage.tunnel(&[7001], protocol).await?;
        greet(&quick, 7001, protocol.half_closes()).await?;
        let growth = held.growth_kib(&stage.node)?;
        assert!(growth < 24 << 10, "{protocol}: the daemon has grown by {growth} KiB");
        slow.cut();
    }
    nothing_is_left(stage, held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_ends_with_its_pod() -> Result {
    let (stage, held) = at_rest().await?;
    let cri = stage.node.cri();
    for (n, protocol) in FORWARD_PROTOCOLS.into_iter().enumerate() {
        let pod_id = cri.run_pod(&stage.node.pod(&format!("ends{n}"))).await?;
        let pid = cri.pause_pid(&pod_id).await?;
        echo(listen_in_network_of(stage.node.machine(), pid, "127.0.0.1:7001").await?);
        let url = cri.forward_url(&pod_id, &[7001]).await?;
        let tunnel = Tunnel::open(&stage.dialer(), &url, protocol, &[7001]).await?;
        greet(&tunnel, 7001, false).await?;
        cri.stop_pod(&pod_id).await?;
        assert_ne!(code_of(&cri.forward_url(&pod_id, &[7001]).await), Code::Ok, "a stopped pod");
        cri.remove_pod(&pod_id).await?;
        if MANY.contains(&protocol) && !tunnel.is_closed() {
            let told = async { tunnel.connect(7001).await?.complaint().await };
            assert_ne!(told.await.unwrap_or_else(|error| error.to_string()), "", "{protocol}");
        }
        assert_eq!(code_of(&cri.forward_url(&pod_id, &[7001]).await), Code::NotFound, "a removed pod");
    }
    nothing_is_left(stage, held).await
}
