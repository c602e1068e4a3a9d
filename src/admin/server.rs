//! The connections of the admin endpoint, and their bounds.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Doors;
use super::answer::{self, Door};
use super::board::Board;

/// How long a client may take for the head of its request.
const HEAD_TIME: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// And for everything, the answer included.
const TIME: Duration = Duration::from_secs(15);
/// How long a head may be, and how many headers it may have.
const HEAD: usize = 16 * 1024;
const HEADERS: usize = 32;
/// Connections of each door at a time. Who comes beyond that waits until one has ended, which bounds their time.
pub(super) const CONNECTIONS: usize = 16;
/// Threads for what may have to wait for a lock. One that is stuck is not waited for.
const THREADS: usize = 4;

/// The runtime of the endpoint's thread.
pub(super) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .thread_name("crimson-admin")
        .build()
}

/// Serves both doors until the end.
pub(super) fn run(runtime: Runtime, doors: Doors, board: &Arc<Board>, end: &CancellationToken) {
    runtime.block_on(async {
        // Dropping either door at any moment loses clients at most, and there is nobody left to answer them.
        tokio::select! {
            served = serve(doors, board) => if let Err(error) = served {
                tracing::error!(%error, "the admin endpoint cannot be served");
            },
            () = end.cancelled() => {}
        }
    });
    runtime.shutdown_background();
}

async fn serve(doors: Doors, board: &Arc<Board>) -> io::Result<()> {
    doors.socket.set_nonblocking(true)?;
    let socket = UnixListener::from_std(doors.socket)?;
    match doors.tcp {
        None => serve_socket(&socket, board).await,
        Some(tcp) => {
            tcp.set_nonblocking(true)?;
            let tcp = TcpListener::from_std(tcp)?;
            tokio::join!(serve_socket(&socket, board), serve_tcp(&tcp, board));
        }
    }
    Ok(())
}

async fn serve_socket(socket: &UnixListener, board: &Arc<Board>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match socket.accept().await {
            Ok((stream, _)) if is_ours(&stream) => {
                tokio::spawn(converse(stream, Door::Socket, Arc::clone(board), place));
            }
            Ok(_) => tracing::warn!("another user than root has tried to use the admin socket"),
            Err(error) => rest(&error).await,
        }
    }
}

async fn serve_tcp(listener: &TcpListener, board: &Arc<Board>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, Door::Tcp, Arc::clone(board), place));
            }
            Err(error) => rest(&error).await,
        }
    }
}

/// Descriptors may have run out.
async fn rest(error: &io::Error) {
    tracing::warn!(%error, "the admin endpoint cannot accept a connection");
    sleep(Duration::from_millis(100)).await;
}

/// Whether root, or whoever this daemon runs as, is at the other end; the mode of the socket says so already.
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn converse<S>(stream: S, door: Door, board: Arc<Board>, _place: OwnedSemaphorePermit)
where
    TokioIo<S>: Read + Write + Unpin,
{
    let service = service_fn(|request| {
        let board = Arc::clone(&board);
        async move { Ok::<_, Infallible>(answer::answer(door, &board, request).await) }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(TIME, http).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request to the admin endpoint is unusable"),
        Err(_) => tracing::debug!("a client of the admin endpoint took too long"),
    }
}
