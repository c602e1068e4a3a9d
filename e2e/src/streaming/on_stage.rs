//! Sessions with the pod and the containers of a [`Stage`].

use anyhow::Context;
use tokio::net::TcpListener;

use super::{Dialer, Protocol, Remote, Streams, Tunnel, listen_in_network_of};
use crate::{Result, Stage};

impl Stage {
    /// Connections from where the daemon runs.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        Dialer::on(self.node.machine())
    }

    /// Begins to run a command.
    pub async fn exec(
        &self,
        id: &str,
        command: &[&str],
        streams: Streams,
        protocol: Protocol,
    ) -> Result<Remote> {
        let url = self.node.cri().exec_url(id, command, streams).await?;
        Remote::open(&self.dialer(), &url, protocol, streams).await
    }

    /// Begins to run a shell line.
    pub async fn exec_line(
        &self,
        id: &str,
        line: &str,
        streams: Streams,
        protocol: Protocol,
    ) -> Result<Remote> {
        self.exec(id, &["sh", "-c", line], streams, protocol).await.with_context(|| protocol.to_string())
    }

    /// Attaches to a container.
    pub async fn attach(&self, id: &str, streams: Streams, protocol: Protocol) -> Result<Remote> {
        let url = self.node.cri().attach_url(id, streams).await?;
        Remote::open(&self.dialer(), &url, protocol, streams).await
    }

    /// A tunnel to ports of the pod.
    pub async fn tunnel(&self, ports: &[u16], protocol: Protocol) -> Result<Tunnel> {
        let url = self.node.cri().forward_url(&self.pod_id, ports).await?;
        Tunnel::open(&self.dialer(), &url, protocol, ports).await
    }

    /// Listens in the network of the pod.
    pub async fn listen(&self, address: &str) -> Result<TcpListener> {
        let pid = self.node.cri().pause_pid(&self.pod_id).await?;
        listen_in_network_of(self.node.machine(), pid, address).await
    }
}
