//! The server of sessions as part of the daemon: where it listens, and what its URLs name.
//!
//! It listens before the first RPC is answered, since answers name its port; it ends its sessions as soon as the daemon is asked to
//! stop, while RPCs still finish.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ::streaming::{Backend, Server, TlsError, TlsFiles};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config;

/// Why there can be no sessions.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// The configured address cannot be listened on.
    #[error("streaming.address: listening on {0:?}")]
    Listen(String, #[source] io::Error),
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A server that has its port, and serves nobody yet.
#[derive(Debug)]
pub struct Opened {
    /// To give out URLs.
    pub server: Server,
    listener: TcpListener,
}

impl Opened {
    /// Takes the configured port, for sessions that lead to `backend`.
    ///
    /// # Errors
    /// When it cannot be had, or TLS cannot be set up.
    pub async fn open(config: &config::Streaming, backend: Arc<dyn Backend>) -> Result<Self, StreamingError> {
        let failed = |error| StreamingError::Listen(config.address.clone(), error);
        let listener = TcpListener::bind(&config.address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        if !bound.ip().is_loopback() && config.tls.is_none() {
            tracing::warn!(address = %bound, "sessions of exec, attach and port-forward can be read on the network: there is no TLS");
        }
        let tls = config.tls.as_ref().map(|tls| TlsFiles {
            certificate: tls.cert.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
        });
        let server = ::streaming::Config {
            tls,
            idle: config.idle_timeout,
            creation: config.creation_timeout,
            ..::streaming::Config::new(authority(&config.address, bound))
        };
        Ok(Self { server: Server::new(server, backend)?, listener })
    }

    /// Serves until told to stop; returns when the last session has ended.
    pub async fn serve(self, stop: CancellationToken) {
        self.server.serve(self.listener, stop).await;
    }
}

/// What URLs name: a host name as it was configured, since a certificate is made out to it; an address that a client on this node can
/// connect to; and the port that was taken.
fn authority(configured: &str, bound: SocketAddr) -> String {
    let host = configured.rsplit_once(':').map_or(configured, |(host, _)| host);
    let is_name = configured.parse::<SocketAddr>().is_err();
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    if is_name { format!("{host}:{}", bound.port()) } else { SocketAddr::new(ip, bound.port()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_what_clients_of_this_node_can_reach() {
        let cases = [
            ("127.0.0.1:0", "127.0.0.1:4000", "127.0.0.1:4000"),
            ("[::1]:0", "[::1]:4000", "[::1]:4000"),
            ("localhost:0", "127.0.0.1:4000", "localhost:4000"),
            ("node.example.test:4000", "192.0.2.1:4000", "node.example.test:4000"),
            ("192.0.2.1:4000", "192.0.2.1:4000", "192.0.2.1:4000"),
            ("0.0.0.0:0", "0.0.0.0:4000", "127.0.0.1:4000"),
            ("[::]:0", "[::]:4000", "[::1]:4000"),
        ];
        for (configured, bound, expected) in cases {
            assert_eq!(authority(configured, bound.parse().unwrap()), expected);
        }
    }
}
