//! The service manager's side of `sd_notify`: a datagram socket that receives the daemon's state changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixDatagram;

use crate::Result;

/// A socket for `NOTIFY_SOCKET`.
#[derive(Debug)]
pub(crate) struct Notify {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Notify {
    pub(crate) fn bind(dir: &Path) -> Result<Self> {
        let path = dir.join("notify.sock");
        // Left by the daemon's previous start.
        drop(std::fs::remove_file(&path));
        let socket = UnixDatagram::bind(&path).context("binding the notification socket")?;
        Ok(Self { path, socket })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the daemon says `wanted`, such as `READY=1`.
    pub(crate) async fn hear(&self, wanted: &str, limit: Duration) -> Result {
        let wait = async {
            let mut buffer = [0_u8; 4096];
            loop {
                let length = self.socket.recv(&mut buffer).await?;
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                if text.lines().any(|line| line == wanted) {
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        tokio::time::timeout(limit, wait)
            .await
            .with_context(|| format!("the daemon did not say {wanted} in time"))?
            .context("notification")
    }
}
