//! `make run`: a server with its defaults on a private socket and root runs a pod with two containers from a real image,
//! through CRI alone, and shows each step with its time. It serves until Ctrl-C; `--once` ends it right away. Then it takes
//! everything down and checks that nothing is left; the exit status says whether all steps held.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "showing is what this program does")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use e2e::cri::{StatusRequest, VersionRequest};
use e2e::{ContainerSpec, ImageBuilder, Machine, Media, Node, Options, Registry, Result};
use tokio::signal::unix::{SignalKind, signal};

/// What the web server serves and the client must have read.
const PAGE: &str = "hello from crimson";

#[tokio::main]
async fn main() -> ExitCode {
    let once = std::env::args().any(|argument| argument == "--once");
    match show(once).await {
        Ok(()) => {
            println!("\nAll steps held and nothing was left behind.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn show(once: bool) -> Result {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let shown = async {
        println!("Crimson: one pod with two containers, through CRI\n");
        let machine = Arc::new(Machine::host()?);
        let registry = step("registry on loopback (docker-registry)", Registry::start(&machine)).await?;
        let image = ImageBuilder::busybox(Media::Oci)?;
        let image =
            step("push the busybox of this machine as an image", registry.push(image, "demo/busybox", "1"))
                .await?;
        let (node, pod) = serve(machine, &registry).await?;
        let ids = run(&node, &pod, &image.reference).await?;
        Ok::<_, anyhow::Error>((node, registry, ids))
    };
    let (node, _registry, ids) = tokio::select! {
        shown = shown => shown?,
        _ = interrupted.recv() => anyhow::bail!("interrupted"),
        _ = terminated.recv() => anyhow::bail!("terminated"),
    };
    if !once {
        how_to_go_on(&node, &ids);
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        println!();
    }
    take_down(node, &ids).await
}

/// The ids of what runs.
struct Ids {
    image: String,
    pod: String,
    httpd: String,
    client: String,
}

async fn serve(machine: Arc<Machine>, registry: &Registry) -> Result<(Node, e2e::PodSpec)> {
    let cni_conf_dir = configured_network();
    match &cni_conf_dir {
        Some(dir) => println!("  using the CNI network of {}", dir.display()),
        None => println!("  no CNI configuration on this machine: the demo brings a bridge of its own"),
    }
    let options = Options { machine: Some(machine), cni_conf_dir, ..Options::default() };
    let node = step("crimson serve: start to ready", Node::start(options)).await?;
    registry.describe_to(&node.registry_config_dir())?;
    let version = node.cri().version(VersionRequest::default()).await?;
    println!("  {} {}, CRI {}", version.runtime_name, version.runtime_version, version.runtime_api_version);
    for condition in node.cri().status(StatusRequest::default()).await?.status.unwrap_or_default().conditions
    {
        println!("  {}: {}", condition.r#type, condition.status);
        ensure!(
            condition.status || condition.r#type != "RuntimeReady",
            "{}: {}",
            condition.reason,
            condition.message
        );
    }
    let pod = node.pod("demo");
    Ok((node, pod))
}

async fn run(node: &Node, pod: &e2e::PodSpec, reference: &str) -> Result<Ids> {
    let cri = node.cri();
    let image = step(&format!("PullImage {reference}"), cri.pull(reference)).await?;
    let pulled = Instant::now();
    let pod_id = step("RunPodSandbox", cri.run_pod(pod)).await?;
    node.remember_network_namespaces().await?;
    let address = cri.pod_ip(&pod_id).await?;
    println!("  the pod's address is {address}");

    let httpd = ContainerSpec::new("httpd", &image, &["httpd", "-f", "-v", "-p", "8080", "-h", "/www"])
        .labelled_by(pod);
    let httpd = step("CreateContainer httpd", cri.create(&pod_id, &httpd, pod)).await?;
    step("StartContainer httpd", cri.start(&httpd)).await?;
    println!("  {:.0} ms from the pulled image to a running pod", pulled.elapsed().as_secs_f64() * 1000.0);

    // It asks until the server listens, says what it got, and stays.
    let line = format!(
        "until wget -qO- http://{address}:8080/; do sleep 0.05; done; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"
    );
    let client = ContainerSpec::shell("client", &image, &line).labelled_by(pod);
    let client = step("CreateContainer client", cri.create(&pod_id, &client, pod)).await?;
    step("StartContainer client", cri.start(&client)).await?;

    step("the client has fetched the page", logged(node, "client/0.log", PAGE)).await?;
    let reply = step("the host fetches it, too", node.fetch(&format!("http://{address}:8080/"))).await?;
    ensure!(reply.status == 200 && reply.body.trim_end() == PAGE, "the host got {reply:?}");
    step("the server has logged both", logged(node, "httpd/0.log", "response:200")).await?;
    for name in ["httpd", "client"] {
        for (stream, _, text) in node.container_log("demo", &format!("{name}/0.log"))? {
            println!("  log of {name}: {stream}: {text}");
        }
    }
    let output = step("ExecSync in httpd: hostname; id; ps", cri.shell(&httpd, "hostname; id; ps")).await?;
    for line in output.lines() {
        println!("  {line}");
    }
    Ok(Ids { image, pod: pod_id, httpd, client })
}

async fn take_down(node: Node, ids: &Ids) -> Result {
    let cri = node.cri();
    step("StopContainer client, httpd", async {
        cri.stop(&ids.client, 5).await?;
        cri.stop(&ids.httpd, 0).await
    })
    .await?;
    step("RemoveContainer client, httpd", async {
        cri.remove(&ids.client).await?;
        cri.remove(&ids.httpd).await
    })
    .await?;
    step("StopPodSandbox", cri.stop_pod(&ids.pod)).await?;
    step("RemovePodSandbox", cri.remove_pod(&ids.pod)).await?;
    step("RemoveImage", cri.forget_image(&ids.image)).await?;
    step("nothing leaked, SIGTERM ends the server", node.finish()).await
}

fn how_to_go_on(node: &Node, ids: &Ids) {
    let crictl = format!("crictl --runtime-endpoint unix://{}", node.socket().display());
    println!("\nIt keeps serving. With crictl (from kubernetes-sigs/cri-tools), as root:\n");
    for command in ["info", "pods", "ps", "images"] {
        println!("  {crictl} {command}");
    }
    let short = |id: &str| e2e::prefix_of(id);
    println!("  {crictl} logs {}", short(&ids.client));
    println!("  {crictl} exec -s {} ps", short(&ids.httpd));
    println!("  {crictl} inspectp {}", short(&ids.pod));
    println!("\nCtrl-C takes everything down.");
}

/// Does one step and prints how long it took.
async fn step<T, E: Into<anyhow::Error>>(
    name: &str,
    work: impl Future<Output = std::result::Result<T, E>>,
) -> Result<T> {
    let begun = Instant::now();
    let result = work.await.map_err(Into::into).with_context(|| name.to_owned());
    let mark = if result.is_ok() { "ok" } else { "FAILED" };
    println!("{:>9.1} ms  {name}: {mark}", begun.elapsed().as_secs_f64() * 1000.0);
    result
}

/// Waits until a container has logged a line that contains a text.
async fn logged(node: &Node, path: &str, text: &str) -> Result {
    let wait = async {
        // The file appears with the container's first start.
        while !node
            .container_log("demo", path)
            .is_ok_and(|lines| lines.iter().any(|line| line.2.contains(text)))
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(e2e::patience(30), wait).await.with_context(|| format!("{path} lacks {text:?}"))
}

/// The directory with this machine's CNI configuration, if it has one.
fn configured_network() -> Option<PathBuf> {
    let dir = Path::new("/etc/cni/net.d");
    let mut entries = std::fs::read_dir(dir).ok()?.flatten();
    let is_conf = |path: PathBuf| {
        path.extension().is_some_and(|end| end == "conflist" || end == "conf" || end == "json")
    };
    entries.any(|entry| is_conf(entry.path())).then(|| dir.to_owned())
}
