//! Where containers are looked at: a node with every OCI runtime of the machine that works.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use e2e::cri::{NamespaceMode, StatusRequest};
use e2e::{ContainerSpec, ImageBuilder, Node, Options, PodSpec, Registry, Result, patience, program};

use crate::cases::{Case, Pod};
use crate::look::{LOOK, STAY, Seen, parse};

/// A node on which the pods of every handler that works may run.
pub(super) struct Ground {
    pub(super) node: Node,
    _registry: Registry,
    pub(super) image: String,
    pub(super) handlers: Vec<String>,
}

impl Ground {
    pub(super) async fn set(image: ImageBuilder) -> Result<Self> {
        Self::with_limits(image, "").await
    }

    /// The same with limits of the configuration.
    #[expect(clippy::print_stdout, reason = "what a test cannot do here is told beside its result")]
    pub(super) async fn with_limits(image: ImageBuilder, limits: &str) -> Result<Self> {
        let mut args = Vec::new();
        for name in ["crun", "runc"] {
            if let Some(path) = program(name) {
                args.extend(["--runtime".to_owned(), format!("{name}={}", path.display())]);
            }
        }
        // Both limits alike: runc before 1.1.13 raises the lower one of an exec to the higher now and then.
        let config =
            format!("[runtime]\ndefault_ulimits = [\"nofile=1024\", \"core=0\"]\n[limits]\n{limits}\n");
        let options = Options { args, config, ..Options::default() };
        let (node, registry) = Node::start_with_registry(options).await?;
        let pushed = registry.push(image, "busybox", "1").await?;
        let image = node.cri().pull(&pushed.reference).await?;
        let status = node.cri().status(StatusRequest { verbose: false }).await?;
        let names = status.runtime_handlers.into_iter().map(|handler| handler.name);
        let handlers: Vec<String> = names.filter(|name| !name.is_empty()).collect();
        assert!(!handlers.is_empty(), "no OCI runtime works");
        if let [only] = handlers.as_slice() {
            println!("not here: one OCI runtime against another, as {only} alone works");
        }
        Ok(Self { node, _registry: registry, image, handlers })
    }

    pub(super) async fn run_pod(&self, kind: Pod, handler: &str) -> Result<(String, PodSpec)> {
        let name = match kind {
            Pod::Plain => "plain",
            Pod::Privileged => "privileged",
            Pod::OfTheNode => "node",
        };
        let mut pod = self.node.pod(&format!("{name}-{handler}"));
        pod.config.hostname = name.to_owned();
        handler.clone_into(&mut pod.handler);
        let context =
            pod.config.linux.as_mut().and_then(|it| it.security_context.as_mut()).context("context")?;
        context.privileged = kind == Pod::Privileged;
        if kind == Pod::OfTheNode {
            let options = context.namespace_options.as_mut().context("options")?;
            (options.pid, options.ipc, options.network) =
                (NamespaceMode::Node.into(), NamespaceMode::Node.into(), NamespaceMode::Node.into());
        }
        Ok((self.node.cri().run_pod(&pod).await?, pod))
    }

    /// What the first process of the container has printed, and what an exec prints.
    pub(super) async fn look(&self, case: &Case, pod_id: &str, pod: &PodSpec) -> Result<(Seen, Seen)> {
        let name: String =
            case.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let mut spec = ContainerSpec::shell(&name, &self.image, &format!("{LOOK}\n{STAY}")).secured(case.ask);
        (case.change)(&mut spec);
        let cri = self.node.cri();
        let id = cri.run(pod_id, &spec, pod).await.with_context(|| case.name.to_owned())?;
        let log = Path::new(&pod.config.log_directory).join(format!("{name}/0.log"));
        let first = printed(&log).await.with_context(|| format!("{}: nothing was printed", case.name))?;
        let exec = cri.shell(&id, LOOK).await.with_context(|| format!("exec in {}", case.name))?;
        cri.remove(&id).await?;
        Ok((parse(&first), parse(&exec)))
    }

    /// All capabilities that there are to give.
    pub(super) fn capabilities(&self) -> Result<u64> {
        let pid = self.node.pid().context("the daemon runs")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("CapEff")?;
        Ok(u64::from_str_radix(line.trim(), 16)?)
    }
}

/// What a log says, when it is complete.
async fn printed(log: &Path) -> Result<String> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            if text.contains("[end]") {
                let line = |line: &str| line.splitn(4, ' ').nth(3).map(str::to_owned);
                return text.lines().filter_map(line).collect::<Vec<_>>().join("\n");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    Ok(tokio::time::timeout(patience(30), read).await?)
}
