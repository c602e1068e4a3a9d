//! Connections to ports of pods.
//!
//! A socket belongs to the network namespace that it was made in, wherever it is used. So a short-lived thread makes it inside, and
//! it is connected by the server like any other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use types::SandboxId;

use super::super::error::{PodError, SharedError, StepError};
use super::super::host::Host;
use super::super::record::blocking;
use super::super::steps::Steps;
use super::super::view::{SandboxState, SandboxView};
use super::super::{Pods, display};

/// The verb, in errors and logs.
const VERB: &str = "forward to";
/// How long one address may take to answer. It is a loopback: what takes longer has a full queue.
const ANSWER: Duration = Duration::from_secs(10);
/// A pod's loopback, in the order in which its addresses are tried.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl Pods {
    /// A sandbox whose network can be used.
    pub(super) fn reachable(&self, id: &str) -> Result<Arc<SandboxView>, SharedError> {
        let (sandbox, _) = self.sandbox(id)?;
        if sandbox.state == SandboxState::Ready {
            return Ok(sandbox);
        }
        let object = display(&sandbox.request);
        Err(Arc::new(PodError::WrongState { object, state: "not ready", verb: "forward ports of" }))
    }
}

/// Connects to a port of the sandbox.
pub(super) async fn connect(pods: &Pods, sandbox: &SandboxId, port: u16) -> Result<TcpStream, SharedError> {
    let sandbox = pods.reachable(sandbox.as_str())?;
    let steps = Steps::new(&pods.shared, VERB, display(&sandbox.request), sandbox.id.as_str());
    let host = Arc::clone(&pods.shared.drivers.host);
    steps.run("connect", dial(host, sandbox.netns.clone(), port)).await.map_err(Arc::new)
}

/// Tries the loopback addresses one after the other. The first failure is told: most programs listen on IPv4.
async fn dial(host: Arc<dyn Host>, netns: Option<PathBuf>, port: u16) -> Result<TcpStream, StepError> {
    let sockets = blocking(move || host.loopback_sockets(netns.as_deref()));
    let mut failure = None;
    for (socket, address) in sockets.await?.into_iter().zip(LOOPBACK) {
        match connect_to(socket, SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let failure = failure.unwrap_or_else(|| io::ErrorKind::NotFound.into());
    Err(StepError::io(format!("connecting to port {port}"))(failure))
}

async fn connect_to(socket: io::Result<OwnedFd>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket?.into());
    let connected = tokio::time::timeout(ANSWER, socket.connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    // What is forwarded comes in the pieces that its user wants sent.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::super::host::Kernel;
    use super::*;

    /// A network namespace of its own, removed with it.
    struct Netns(tempfile::TempDir);

    impl Netns {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            sys::netns::create(&dir.path().join("ns")).unwrap();
            Self(dir)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("ns")
        }
    }

    impl Drop for Netns {
        fn drop(&mut self) {
            sys::netns::remove(&self.path()).unwrap();
        }
    }

    /// Answers one connection with `word`.
    fn answer(listener: TcpListener, word: &'static str) -> u16 {
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            io::Write::write_all(&mut client, word.as_bytes()).unwrap();
        });
        port
    }

    async fn heard(mut stream: TcpStream) -> String {
        let mut heard = String::new();
        stream.shutdown().await.unwrap();
        stream.read_to_string(&mut heard).await.unwrap();
        heard
    }

    #[tokio::test]
    async fn a_port_is_reached_inside_the_namespace_and_not_outside() {
        let ns = Netns::new();
        let listener = sys::netns::run_in(&ns.path(), || TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let port = answer(listener, "inside");
        assert_eq!(heard(dial(Arc::new(Kernel), Some(ns.path()), port).await.unwrap()).await, "inside");
        let other = Netns::new();
        let error = types::error::chain(&dial(Arc::new(Kernel), Some(other.path()), port).await.unwrap_err());
        assert!(error.starts_with(&format!("connecting to port {port}: ")), "{error}");
        assert!(error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn who_listens_on_ipv6_only_is_reached_too() {
        let ns = Netns::new();
        let listener = sys::netns::run_in(&ns.path(), || TcpListener::bind("[::1]:0"));
        // A kernel may have no IPv6; then there is nobody to reach.
        let Ok(listener) = listener.unwrap() else { return };
        let port = answer(listener, "six");
        assert_eq!(heard(dial(Arc::new(Kernel), Some(ns.path()), port).await.unwrap()).await, "six");
    }

    #[tokio::test]
    async fn without_a_namespace_it_is_the_nodes_own_port() {
        let port = answer(TcpListener::bind("127.0.0.1:0").unwrap(), "node");
        assert_eq!(heard(dial(Arc::new(Kernel), None, port).await.unwrap()).await, "node");
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_is_an_error() {
        let ns = Netns::new();
        sys::netns::remove(&ns.path()).unwrap();
        assert!(matches!(dial(Arc::new(Kernel), Some(ns.path()), 80).await, Err(StepError::Netns(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_does_not_answer_takes_a_bounded_time() {
        let listener =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        // Fills the queue: what comes after gets no answer.
        let _first = std::net::TcpStream::connect(address).unwrap();
        let error = dial(Arc::new(Kernel), None, address.port()).await.unwrap_err();
        assert_eq!(error.kind(), types::ErrorKind::DeadlineExceeded, "{error}");
    }
}
