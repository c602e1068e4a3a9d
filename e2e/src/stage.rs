//! A node with one running pod and the test image: what most tests of containers start from.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::ContainerStatus;

use crate::{ContainerSpec, ImageBuilder, Media, Node, Options, PodSpec, Registry, Result, patience};

/// What its pod is called.
const POD: &str = "stage";

/// The node and what is on it.
#[derive(Debug)]
pub struct Stage {
    /// The node.
    pub node: Node,
    /// Where the image came from; it goes down with the stage.
    pub registry: Registry,
    /// The image's id.
    pub image: String,
    /// The pod as it was asked for.
    pub pod: PodSpec,
    /// The pod's id.
    pub pod_id: String,
}

impl Stage {
    /// Sets it up on a plain node.
    pub async fn set() -> Result<Self> {
        let (node, registry) = Node::start_with_registry(Options::default()).await?;
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
        let image = node.cri().pull(&pushed.reference).await?;
        let pod = node.pod(POD);
        let pod_id = node.cri().run_pod(&pod).await?;
        Ok(Self { node, registry, image, pod, pod_id })
    }

    /// A container of the image that runs a shell line.
    #[must_use]
    pub fn shell(&self, name: &str, line: &str) -> ContainerSpec {
        ContainerSpec::shell(name, &self.image, line)
    }

    /// Runs a container; gives its id.
    pub async fn run(&self, container: &ContainerSpec) -> Result<String> {
        Ok(self.node.cri().run(&self.pod_id, container, &self.pod).await?)
    }

    /// Runs a container and waits until it has ended; gives its last status.
    pub async fn run_to_end(&self, container: &ContainerSpec) -> Result<ContainerStatus> {
        self.node.run_to_end(&self.pod_id, container, &self.pod).await
    }

    /// Runs a container to its end and gives what it printed.
    pub async fn printed_by(&self, container: ContainerSpec) -> Result<String> {
        let status = self.run_to_end(&container).await?;
        let logs = self.node.dir().join("logs").join(POD);
        let name = Path::new(&status.log_path).strip_prefix(logs)?.display().to_string();
        let lines = self.node.container_log(POD, &name)?;
        Ok(lines.into_iter().map(|(_, _, text)| text).collect::<Vec<_>>().join("\n"))
    }

    /// Waits until a container has logged a line.
    pub async fn says(&self, id: &str, line: &str) -> Result {
        let path = self.node.cri().container(id).await?.log_path;
        let (mut log, mut text) = (std::fs::File::open(&path)?, String::new());
        let heard = async {
            loop {
                log.read_to_string(&mut text)?;
                if text.lines().any(|it| it.ends_with(&format!(" F {line}"))) {
                    return Ok::<_, anyhow::Error>(());
                }
                // Logs may be long: what was looked at is not looked at again, but for a line that goes on.
                text.drain(..text.rfind('\n').map_or(0, |end| end + 1));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience(30), heard).await?
    }

    /// Takes everything down and proves that nothing is left.
    pub async fn finish(self) -> Result {
        self.node.finish().await
    }
}
