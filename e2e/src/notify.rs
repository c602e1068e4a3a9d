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

    /// Waits until the daemon says `READY=1`.
    pub(crate) async fn ready(&self, limit: Duration) -> Result {
        let wait = async {
            let mut buffer = [0_u8; 4096];
            loop {
                let length = self.socket.recv(&mut buffer).await?;
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                if text.lines().any(|line| line == "READY=1") {
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        tokio::time::timeout(limit, wait)
            .await
            .context("the daemon did not get ready in time")?
            .context("notification")
    }

    /// Whether the daemon, which has ended, had said `STOPPING=1`.
    pub(crate) fn has_said_stopping(&self) -> bool {
        let mut buffer = [0_u8; 4096];
        let mut said = std::iter::from_fn(|| self.socket.try_recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
        said.any(|text| text.split(|byte| *byte == b'\n').any(|line| line == b"STOPPING=1"))
    }
}
