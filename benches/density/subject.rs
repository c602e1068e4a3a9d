//! The server that is measured: the daemon on a machine of its own, or whichever listens on a socket of this host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use e2e::faulty::{Faulty, real_runtime};
use e2e::{Cri, ImageBuilder, Machine, Media, Node, Options, PodSpec, Registry, Result};
use tempfile::TempDir;

/// A slow server is to be measured, not cut off.
const CALL_LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Subject {
    pub(crate) machine: Arc<Machine>,
    pub(crate) cri: Cri,
    pub(crate) pid: u32,
    /// For calls that hang on purpose.
    pub(crate) patient: Cri,
    /// The id of the image that containers are made of.
    pub(crate) image: String,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Ours(Box<Ours>),
    /// Where logs of containers go.
    Peer(TempDir),
}

/// The daemon and what disturbs it.
pub(crate) struct Ours {
    pub(crate) node: Node,
    pub(crate) registry: Registry,
    pub(crate) faulty: Faulty,
}

impl Subject {
    pub(crate) async fn prepare(endpoint: Option<&Path>, image: Option<&str>) -> Result<Self> {
        match endpoint {
            None => Self::ours().await,
            Some(socket) => Self::peer(socket, image.context("--endpoint needs --image")?).await,
        }
    }

    async fn ours() -> Result<Self> {
        let faulty = Faulty::new()?;
        let good = format!("good={}", real_runtime()?.display());
        let options = Options {
            args: [vec!["--runtime".to_owned(), good], faulty.args()].concat(),
            // What hangs is to hang for as long as is measured.
            config: "[runtime]\ndefault = \"good\"\n[limits]\ncreate_timeout_secs = 600\n".to_owned(),
            log_level: "info".to_owned(),
            ..Options::default()
        };
        let (node, registry) = Node::start_with_registry(options).await?;
        let machine = Arc::clone(node.machine());
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "bench/busybox", "1").await?;
        let cri = Cri::connect_for(&machine.path(&node.socket()), CALL_LIMIT).await?;
        let patient = Cri::connect_for(&machine.path(&node.socket()), 10 * CALL_LIMIT).await?;
        let image = cri.pull(&pushed.reference).await?;
        let pid = node.pid().context("a running daemon")?;
        let kind = Kind::Ours(Box::new(Ours { node, registry, faulty }));
        Ok(Self { machine, cri, pid, patient, image, kind })
    }

    async fn peer(socket: &Path, image: &str) -> Result<Self> {
        let machine = Arc::new(Machine::host()?);
        let cri = Cri::connect_for(socket, CALL_LIMIT).await?;
        let image = cri.pull(image).await?;
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let pid = stream.peer_cred()?.pid().context("the server's process id")?;
        let logs = tempfile::tempdir().context("making a directory of logs")?;
        let patient = cri.clone();
        Ok(Self { machine, cri, pid: u32::try_from(pid)?, patient, image, kind: Kind::Peer(logs) })
    }

    /// A pod with names of its own.
    pub(crate) fn pod(&self, name: &str) -> PodSpec {
        match &self.kind {
            Kind::Ours(ours) => ours.node.pod(name),
            Kind::Peer(logs) => {
                let uid = format!("{name}-{}", self.machine.token());
                PodSpec::new(name, &uid, self.machine.pod_parent(&uid), &logs.path().join(name))
            }
        }
    }

    /// The end. Of ours nothing may be left, not even a connection.
    pub(crate) async fn finish(self) -> Result {
        let Self { cri, patient, kind, .. } = self;
        drop((cri, patient));
        match kind {
            Kind::Ours(ours) => ours.node.finish().await,
            Kind::Peer(_) => Ok(()),
        }
    }
}
