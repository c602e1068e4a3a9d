//! Forwarded connections to listeners on loopback.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{all, bounds};
use crate::channels::Forwarded;
use crate::fake;
use crate::session::{Farewell, forward};

/// A client's side of one connection.
struct Pair {
    input: Option<DuplexStream>,
    output: DuplexStream,
    error: DuplexStream,
    reset: CancellationToken,
}

fn pair(port: u16) -> (Forwarded, Pair) {
    let ((input, near_input), (output, near_output)) = (duplex(256), duplex(256));
    let (error, near_error) = duplex(256);
    let reset = CancellationToken::new();
    let forwarded = Forwarded {
        port,
        input: Box::new(input),
        output: Box::new(output),
        error: Box::new(error),
        reset: reset.clone(),
    };
    (forwarded, Pair { input: Some(near_input), output: near_output, error: near_error, reset })
}

struct Tunnel {
    forwards: mpsc::Sender<Forwarded>,
    session: JoinHandle<Farewell>,
    stop: CancellationToken,
}

impl Tunnel {
    fn new() -> Self {
        let (forwards, receiver) = mpsc::channel(4);
        let bounds = bounds();
        let stop = bounds.stop.clone();
        let session = tokio::spawn(async move {
            let (backend, _) = fake::backend();
            forward(&backend, fake::sandbox(), receiver, &bounds).await
        });
        Self { forwards, session, stop }
    }

    async fn open(&self, port: u16) -> Pair {
        let (forwarded, pair) = pair(port);
        assert!(self.forwards.send(forwarded).await.is_ok());
        pair
    }
}

/// Serves every connection with `serve`.
async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection));
        }
    });
    port
}

async fn echo(mut connection: TcpStream) {
    let (mut read, mut write) = connection.split();
    drop(tokio::io::copy(&mut read, &mut write).await);
    drop(write.shutdown().await);
}

#[tokio::test]
async fn what_is_sent_before_a_half_close_is_answered_after_it() {
    let port = listen(echo).await;
    let tunnel = Tunnel::new();
    let mut pair = tunnel.open(port).await;
    let mut input = pair.input.take().unwrap();
    let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let send = async {
        input.write_all(&sent).await.unwrap();
        drop(input);
    };
    let ((), received) = tokio::join!(send, all(&mut pair.output));
    assert!(received == sent);
    assert!(all(&mut pair.error).await.is_empty(), "nothing went wrong");
    drop(tunnel.forwards);
    assert_eq!(tunnel.session.await.unwrap(), Farewell::Left);
}

#[tokio::test]
async fn a_pod_that_has_finished_ends_the_connection_though_the_client_holds_it() {
    let port = listen(|mut connection| async move {
        connection.write_all(b"bye").await.unwrap();
    })
    .await;
    let tunnel = Tunnel::new();
    let mut pair = tunnel.open(port).await;
    assert_eq!(all(&mut pair.output).await, b"bye");
    assert!(all(&mut pair.error).await.is_empty());
    assert!(!tunnel.session.is_finished());
}

#[tokio::test]
async fn a_port_without_a_listener_is_explained_and_hurts_nobody_else() {
    let (closed, _held) = fake::closed_port();
    let tunnel = Tunnel::new();
    let mut good = tunnel.open(listen(echo).await).await;
    let mut bad = tunnel.open(closed).await;
    let text = String::from_utf8(all(&mut bad.error).await).unwrap();
    assert!(text.starts_with(&format!("error forwarding port {closed} to pod")), "{text}");
    assert!(all(&mut bad.output).await.is_empty());
    good.input.as_mut().unwrap().write_all(b"still").await.unwrap();
    let mut answer = [0; 5];
    good.output.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"still");
}

#[tokio::test]
async fn a_pod_that_resets_a_connection_resets_this_one_only() {
    let port = listen(|mut connection| async move {
        let mut first = [0; 1];
        connection.read_exact(&mut first).await.unwrap();
        if first == *b"r" {
            rustix::net::sockopt::set_socket_linger(&connection, Some(std::time::Duration::ZERO)).unwrap();
            return;
        }
        echo(connection).await;
    })
    .await;
    let tunnel = Tunnel::new();
    let (mut good, mut bad) = (tunnel.open(port).await, tunnel.open(port).await);
    good.input.as_mut().unwrap().write_all(b"g1").await.unwrap();
    bad.input.as_mut().unwrap().write_all(b"r").await.unwrap();
    bad.reset.cancelled().await;
    assert!(all(&mut bad.error).await.is_empty(), "text would end the tunnel of some clients");
    let mut answer = [0; 1];
    good.output.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"1");
    assert!(!good.reset.is_cancelled());
}

#[tokio::test]
async fn a_client_that_resets_a_connection_closes_it_in_the_pod() {
    let (closed, mut is_closed) = mpsc::channel(1);
    let closed = Arc::new(closed);
    let port = listen(move |mut connection| {
        let closed = Arc::clone(&closed);
        async move {
            connection.write_all(b"hello").await.unwrap();
            let mut buffer = [0; 16];
            while matches!(connection.read(&mut buffer).await, Ok(1..)) {}
            closed.send(()).await.unwrap();
        }
    })
    .await;
    let tunnel = Tunnel::new();
    let mut pair = tunnel.open(port).await;
    pair.output.read_exact(&mut [0; 5]).await.unwrap();
    pair.reset.cancel();
    is_closed.recv().await.unwrap();
}

#[tokio::test]
async fn of_many_connections_the_broken_ones_leave_the_others_alone() {
    let port = listen(echo).await;
    let tunnel = Tunnel::new();
    let mut clients = JoinSet::new();
    for number in 0..200u32 {
        let mut pair = tunnel.open(port).await;
        clients.spawn(async move {
            let mut input = pair.input.take().unwrap();
            let sent = number.to_le_bytes().repeat(2000);
            match number % 10 {
                3 => pair.reset.cancel(),
                7 => drop((input, pair.output)),
                _ => {
                    let send = async {
                        input.write_all(&sent).await.unwrap();
                        drop(input);
                    };
                    let ((), received) = tokio::join!(send, all(&mut pair.output));
                    assert!(received == sent, "connection {number}");
                }
            }
        });
    }
    clients.join_all().await;
    assert!(!tunnel.session.is_finished());
    tunnel.stop.cancel();
    assert_eq!(tunnel.session.await.unwrap(), Farewell::Told);
}
