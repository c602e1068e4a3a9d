//! Whether the daemon still works, as its watchdog asks.
//!
//! What is proven: the runtime's workers take turns (the check is one of its tasks), the socket accepts connections and the
//! gRPC server answers on them, and the directory of pods, through which every call goes, is not locked up. What is not asked:
//! whether the OCI runtime, plugins, registries, disks or a single pod are well, since a restart of the daemon mends none of
//! them; and nothing is measured, since load alone is no reason to be killed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::pod::Pods;

/// What a client of HTTP/2 says first: the preface, and settings that are all at their defaults.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Length of a frame's header; its fourth byte is the kind of the frame.
const HEADER: usize = 9;
/// The kind of frame that a server sends first.
const SETTINGS: u8 = 4;

/// What is asked.
#[derive(Debug)]
pub struct Health {
    /// The socket of the server.
    pub socket: PathBuf,
    /// Whether systemd made the socket: a daemon started anew would not make it again.
    pub inherited: bool,
    /// The pods.
    pub pods: Pods,
}

impl Health {
    /// Asks once.
    ///
    /// # Errors
    /// What does not work, in a sentence.
    pub async fn check(self: Arc<Self>) -> Result<(), String> {
        // Waits for a lock that is never held for long, and then for nothing.
        drop(self.pods.list());
        match greet(&self.socket).await {
            Err(error) if self.inherited && error.kind() == io::ErrorKind::NotFound => Ok(()),
            answer => answer.map_err(|error| format!("the server does not answer on its socket: {error}")),
        }
    }
}

/// Connects as a client does, and waits for the server's first words.
async fn greet(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(GREETING).await?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let kind = header.get(3).copied();
    if kind == Some(SETTINGS) { Ok(()) } else { Err(io::Error::other(format!("it sends {header:?}"))) }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tonic::service::Routes;
    use tonic::transport::Server;

    use super::*;

    #[tokio::test]
    async fn a_grpc_server_answers_the_greeting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = crate::listener::Listener::open(&path, &dir.path().join("state"), None).unwrap();
        let incoming = listener.into_incoming().unwrap();
        let serving =
            tokio::spawn(Server::builder().add_routes(Routes::default()).serve_with_incoming(incoming));
        greet(&path).await.unwrap();
        greet(&path).await.unwrap();
        serving.abort();
    }

    #[tokio::test]
    async fn a_server_that_accepts_nothing_or_is_gone_does_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let limit = std::time::Duration::from_millis(50);
        tokio::time::timeout(limit, greet(&path)).await.unwrap_err();
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        // Not one that was dropped: what another test is just starting may have that for another moment.
        let refusing = tokio::net::UnixSocket::new_stream().unwrap();
        refusing.bind(&path).unwrap();
        assert_eq!(greet(&path).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(greet(&path).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
