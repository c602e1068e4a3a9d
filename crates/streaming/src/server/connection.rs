//! A connection from its first byte to its upgrade.

use std::convert::Infallible;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::line::{Handle, Line, Stream};
use super::{Server, route};

/// How long a client may take for TLS, and for the head of its request.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
/// How long a head may be.
const HEAD: usize = 16 * 1024;
/// A client whose machine is gone is noticed by the kernel: the first probe after this much silence.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Answers the connection's request; a session goes on in a task of its own.
pub(super) async fn serve(server: Server, stream: TcpStream, permit: OwnedSemaphorePermit) {
    prepare(&stream);
    let Some(stream) = secure(&server, stream).await else { return };
    let handle = Handle { cut: server.0.cut.child_token(), closed: CancellationToken::new() };
    let line = Line::new(stream, permit, server.0.tasks.token(), &handle);
    let service = service_fn(|request| {
        let response = route::answer(&server, &handle, request);
        async { Ok::<_, Infallible>(response) }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(line), service)
        .with_upgrades();
    tokio::select! {
        served = http => if let Err(error) = served {
            tracing::debug!(op = "streaming", error = %error, "a client's request is unusable");
        },
        // Who has no session yet gets none.
        () = server.0.stop.cancelled() => {}
    }
}

async fn secure(server: &Server, stream: TcpStream) -> Option<Stream> {
    let Some(tls) = &server.0.tls else { return Some(Stream::Plain(stream)) };
    match timeout(PATIENCE, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(op = "streaming", error = %error, "a client's TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Neither is needed for a session to work.
fn prepare(stream: &TcpStream) {
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?))
        .and_then(|()| Ok(sockopt::set_socket_keepalive(stream, true)?));
    if let Err(error) = set {
        tracing::debug!(op = "streaming", error = %error, "a connection's options cannot be set");
    }
}
