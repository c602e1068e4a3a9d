//! Every step of every verb, of undoing and of recovery, struck in the real program: failing, and as the last thing that the daemon
//! did not come to, or did. `src/pod/faults.rs` says how. A release build has no failpoints, and then that is what is shown.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use e2e::cri::{
    ContainerState, LinuxContainerResources, PodSandboxState, ReopenContainerLogRequest,
    UpdateContainerResourcesRequest,
};
use e2e::streaming::{Dialer, Remote, SPDY, SPDY_FORWARD, Streams, Tunnel, listen_in_network_of};
use e2e::{
    ContainerSpec, ImageBuilder, Media, Node, Options, PodSpec, Registry, Result, Snapshot, binary_dir,
    code_of, patience,
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tonic::{Code, Status};

type Verb = (&'static str, &'static [&'static str]);
type Point = (&'static str, &'static str);

/// What a life passes through. A step that is missing here is new: it is to be written down, and is struck then.
const LIFE: &[Verb] = &[
    ("attach to", &["attach"]),
    ("close stdin of", &["close stdin"]),
    (
        "create container",
        &[
            "bundle",
            "confinement",
            "identity",
            "image",
            "image volumes",
            "layer",
            "mounts",
            "publish",
            "record",
            "volumes",
        ],
    ),
    ("detach from", &["detach"]),
    ("end container", &["processes", "record"]),
    ("exec in", &["kill", "process", "start", "tidy"]),
    ("forward to", &["connect"]),
    ("remove container", &["files", "image", "intent", "processes", "record"]),
    (
        "remove sandbox",
        &[
            "cgroup",
            "container files",
            "container image",
            "container record",
            "containers",
            "files",
            "intent",
            "monitor",
            "netns",
            "network",
            "pause",
            "processes",
            "record",
            "shm",
        ],
    ),
    ("reopen log of", &["reopen"]),
    (
        "run sandbox",
        &[
            "CNI",
            "bundle",
            "cgroup",
            "files",
            "monitor",
            "netns",
            "pause create",
            "pause start",
            "publish",
            "record",
            "shm",
        ],
    ),
    ("start container", &["OCI create", "OCI start", "heard", "publish"]),
    ("stop container", &["kill", "signal"]),
    (
        "stop sandbox",
        &["containers", "intent", "monitor", "netns", "network", "pause", "processes", "publish", "shm"],
    ),
    (
        "update container",
        &["OCI update", "announce", "config", "huge pages", "intent", "look", "oom score", "publish", "room"],
    ),
    ("update sandbox", &["record"]),
];

/// Steps whose failure the caller hears nothing of: the server makes up for it.
const UNHEARD: &[Point] = &[
    ("close stdin of", "close stdin"),
    ("detach from", "detach"),
    ("end container", "processes"),
    ("end container", "record"),
    ("exec in", "tidy"),
    ("remove container", "intent"),
    ("remove sandbox", "intent"),
    ("remove sandbox", "netns"),
    ("remove sandbox", "network"),
    ("start container", "heard"),
    ("stop sandbox", "intent"),
    ("stop sandbox", "netns"),
    ("stop sandbox", "network"),
    ("stop sandbox", "publish"),
];

const WHOLE_SANDBOX: &[&str] =
    &["cgroup", "containers", "files", "monitor", "netns", "network", "pause", "record", "shm"];

/// What follows when a step has failed.
const UNDOING: &[(Point, Verb)] = &[
    (("run sandbox", "publish"), ("undo run sandbox", WHOLE_SANDBOX)),
    (("create container", "publish"), ("undo create container", &["files", "image", "record"])),
    (("start container", "publish"), ("undo start container", &["processes", "record"])),
    (
        ("update container", "publish"),
        ("undo update container", &["OCI update", "config", "oom score", "record", "restore"]),
    ),
    (("exec in", "start"), ("undo exec in", &["kill", "tidy"])),
];

/// What the next daemon does after one that was killed at a step.
const RECOVERING: &[(Point, &str, Verb)] = &[
    (("run sandbox", "publish"), "kill", ("recover sandbox", WHOLE_SANDBOX)),
    (
        ("create container", "publish"),
        "kill",
        ("recover container", &["files", "image", "processes", "record"]),
    ),
    (("start container", "OCI start"), "kill", ("recover container", &["processes", "publish"])),
    (("exec in", "start"), "kill-after", ("recover container", &["publish", "tidy"])),
    // What it shares with the first is struck there.
    (
        ("remove sandbox", "intent"),
        "kill-after",
        ("recover sandbox", &["container files", "container image", "container record", "processes"]),
    ),
];

/// A command that ends by being killed.
const LASTING: &[&str] = &["sleep", "7301"];

const MIB: i64 = 1 << 20;
/// The memory that the container has, and gets by an update.
const MEMORY: (i64, i64) = (128 * MIB, 96 * MIB);

/// UpdatePodSandboxResourcesRequest, which the client crate does not have yet.
#[derive(Clone, PartialEq, prost::Message)]
struct UpdatePod {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    resources: Option<LinuxContainerResources>,
}

/// What has to be there before a verb can be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Pod,
    Created,
    Running,
}

/// A verb that is missing here is new.
fn need(verb: &str) -> Need {
    match verb {
        "run sandbox" => Need::Nothing,
        "create container" | "update sandbox" => Need::Pod,
        "start container" | "remove container" => Need::Created,
        "attach to" | "close stdin of" | "detach from" | "forward to" | "exec in" | "update container"
        | "reopen log of" | "stop container" | "end container" | "stop sandbox" | "remove sandbox" => {
            Need::Running
        }
        other => panic!("how is {other:?} brought about?"),
    }
}

/// Whether the verb leaves the running container as it is, so that the next step can be struck in the same one.
fn keeps_container(verb: &str) -> bool {
    matches!(verb, "exec in" | "update container" | "reopen log of") || is_session(verb)
}

/// Whether it is a user's client that gets there.
fn is_session(verb: &str) -> bool {
    matches!(verb, "attach to" | "close stdin of" | "detach from" | "forward to")
}

/// Whether the pod of one step is not that of the next.
fn ends_pod(verb: &str) -> bool {
    matches!(verb, "run sandbox" | "stop sandbox" | "remove sandbox")
}

/// A node whose daemon has failpoints.
struct Ground {
    node: Node,
    _registry: Registry,
    points: TempDir,
    image: String,
    pod: PodSpec,
    before: Snapshot,
}

impl Ground {
    async fn set() -> Result<Self> {
        let points = TempDir::new()?;
        let env = vec![("CRIMSON_FAILPOINTS".to_owned(), points.path().display().to_string())];
        let (node, registry) = Node::start_with_registry(Options { env, ..Options::default() }).await?;
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
        let image = node.cri().pull(&pushed.reference).await?;
        let pod = node.pod("struck");
        Ok(Self { node, _registry: registry, points, image, pod, before: Snapshot::default() })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.points.path().join(name)
    }

    fn arm(&self, lines: &[(Point, &str)]) -> Result {
        let line = |((verb, step), strike): &(Point, &str)| format!("{verb}/{step}={strike}\n");
        Ok(std::fs::write(self.file("armed"), lines.iter().map(line).collect::<String>())?)
    }

    /// Waits until everything that was armed has struck.
    async fn spent(&self) -> Result {
        let spent = async {
            while !std::fs::read_to_string(self.file("armed"))?.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(patience(30), spent).await.context("the step was not reached")?
    }

    fn container(&self) -> ContainerSpec {
        let mut spec = ContainerSpec::lasting("c", &self.image);
        spec.config.stdin = true;
        let linux = spec.config.linux.as_mut().expect("it has a Linux part");
        linux.resources = Some(LinuxContainerResources { oom_score_adj: 1000, ..resources(MEMORY.0) });
        spec
    }

    /// The pod, which is made if it is not there.
    async fn pod(&self) -> Result<String> {
        Ok(self.node.cri().run_pod(&self.pod).await?)
    }

    /// Brings about what the verb needs; gives the ids of the pod and of its container.
    async fn prepare(&self, need: Need) -> Result<(String, String)> {
        if need == Need::Nothing {
            return Ok((String::new(), String::new()));
        }
        let (cri, pod_id) = (self.node.cri(), self.pod().await?);
        if need == Need::Pod {
            return Ok((pod_id, String::new()));
        }
        let id = match cri.all_containers().await?.first() {
            Some(there) => there.id.clone(),
            None => cri.create(&pod_id, &self.container(), &self.pod).await?,
        };
        if need == Need::Running && cri.container(&id).await?.state() == ContainerState::ContainerCreated {
            cri.start(&id).await?;
            // The first process of a namespace does not get a SIGTERM that it has not asked for.
            cri.shell(&id, "until grep -q '^SigCgt:.*[4567cdef]...$' /proc/1/status; do sleep 0.01; done")
                .await?;
        }
        Ok((pod_id, id))
    }

    /// Uses the verb in a way that passes the step.
    async fn act(&self, (verb, step): Point, pod_id: &str, id: &str) -> std::result::Result<(), Status> {
        let cri = self.node.cri();
        match verb {
            "run sandbox" => cri.run_pod(&self.pod).await.map(drop),
            "create container" => cri.create(pod_id, &self.container(), &self.pod).await.map(drop),
            "start container" => cri.start(id).await,
            "stop container" if step == "kill" => cri.stop(id, 0).await,
            "stop container" | "end container" => cri.stop(id, 20).await,
            "remove container" => cri.remove(id).await,
            "stop sandbox" => cri.stop_pod(pod_id).await,
            "remove sandbox" => cri.remove_pod(pod_id).await,
            "reopen log of" => {
                let request = ReopenContainerLogRequest { container_id: id.to_owned() };
                cri.reopen_container_log(request).await.map(drop)
            }
            "attach to" | "close stdin of" | "detach from" => self.attach(id).await.map_err(as_status),
            "forward to" => self.forward(pod_id).await.map_err(as_status),
            "exec in" if step == "kill" => match cri.exec_for(id, LASTING, 1).await {
                Err(status) if status.code() == Code::DeadlineExceeded => Ok(()),
                other => other.map(drop),
            },
            "exec in" if step == "start" => cri.exec(id, LASTING).await.map(drop),
            "exec in" => cri.exec(id, &["true"]).await.map(drop),
            "update container" => self.update(id, MEMORY.1).await,
            "update sandbox" => {
                let request =
                    UpdatePod { pod_sandbox_id: pod_id.to_owned(), resources: Some(resources(MEMORY.0)) };
                cri.call::<_, ()>("RuntimeService", "UpdatePodSandboxResources", request).await
            }
            other => panic!("how is {other:?} used?"),
        }
    }

    /// A client that looks on until it has seen something, ends its input and leaves.
    async fn attach(&self, id: &str) -> Result {
        let cri = self.node.cri();
        let url = cri.attach_url(id, Streams::ALL).await?;
        let mut client = Remote::open(&Dialer::on(self.node.machine()), &url, SPDY, Streams::ALL).await?;
        let seen = AtomicBool::new(false);
        // Not cut off in the middle of a command, which would be killed.
        let print = async {
            while !seen.load(Ordering::Relaxed) {
                cri.shell(id, "echo seen > /proc/1/fd/1").await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let look = async {
            let waits = |client: &Remote| client.heard().stdout.is_empty() && client.heard().error.is_empty();
            while waits(&client) && client.read().await? {}
            seen.store(true, Ordering::Relaxed);
            if client.heard().error.is_empty() { Ok(()) } else { client.heard().code().map(drop) }
        };
        let (printed, looked) = tokio::join!(print, look);
        looked.and(printed)?;
        client.input().close().await
    }

    /// A client that is connected to a port of the pod.
    async fn forward(&self, pod_id: &str) -> Result {
        let machine = self.node.machine();
        let pid = self.node.cri().pause_pid(pod_id).await?;
        let listener = listen_in_network_of(machine, pid, "127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let url = self.node.cri().forward_url(pod_id, &[port]).await?;
        let tunnel = Tunnel::open(&Dialer::on(machine), &url, SPDY_FORWARD, &[port]).await?;
        let mut forwarded = tunnel.connect(port).await?;
        tokio::select! {
            accepted = listener.accept() => {
                // Until the client hears something, the server may still be about to connect it.
                accepted?.0.write_all(b"x").await?;
                forwarded.read_exact(1).await.map(drop)
            }
            complaint = forwarded.complaint() => bail!("{}", complaint?),
        }
    }

    async fn update(&self, id: &str, memory: i64) -> std::result::Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources(memory)),
            ..Default::default()
        };
        self.node.cri().update_container_resources(request).await.map(drop)
    }

    /// The memory limit that the server tells, and the one that is in force.
    async fn memory(&self, id: &str) -> Result<(i64, i64)> {
        let cri = self.node.cri();
        let told = cri.container(id).await?.resources.and_then(|it| it.linux).context("resources")?;
        let file =
            "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
        Ok((told.memory_limit_in_bytes, cri.shell(id, file).await?.parse()?))
    }

    /// The same once more, as a caller does who has heard of a failure or of nothing: now it goes well.
    async fn again(&self, (verb, step): Point, pod_id: &str, id: &str) -> Result {
        let cri = self.node.cri();
        match verb {
            "run sandbox" => {
                let there = cri.all_pods().await?;
                let got = cri.run_pod(&self.pod).await?;
                ensure!(there.is_empty() || (there.len() == 1 && there[0].id == got), "{there:?}, not {got}");
                ensure!(cri.pod(&got).await?.state() == PodSandboxState::SandboxReady);
            }
            "create container" => {
                let there = cri.all_containers().await?;
                let got = cri.create(pod_id, &self.container(), &self.pod).await?;
                ensure!(there.is_empty() || (there.len() == 1 && there[0].id == got), "{there:?}, not {got}");
                cri.start(&got).await?;
            }
            "start container" => self.start_again(step, pod_id, id).await?,
            "stop container" | "end container" => {
                self.act((verb, step), pod_id, id).await?;
                let ended = cri.container(id).await?;
                let code = if step == "kill" { 137 } else { 0 };
                ensure!(
                    (ended.state(), ended.exit_code) == (ContainerState::ContainerExited, code),
                    "{ended:?}"
                );
            }
            "update container" => {
                let settles = async {
                    while let (told, real) = self.memory(id).await?
                        && told != real
                    {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                    Ok::<_, anyhow::Error>(())
                };
                tokio::time::timeout(patience(30), settles).await.context("half an update")??;
                self.act((verb, step), pod_id, id).await?;
                ensure!(self.memory(id).await? == (MEMORY.1, MEMORY.1));
                self.update(id, MEMORY.0).await?;
            }
            "exec in" => self.act((verb, "process"), pod_id, id).await?,
            _ => self.act((verb, step), pod_id, id).await?,
        }
        match verb {
            "remove container" => ensure!(code_of(&cri.container(id).await) == Code::NotFound),
            "remove sandbox" => ensure!(cri.all_pods().await?.is_empty()),
            "stop sandbox" => ensure!(cri.pod(pod_id).await?.state() == PodSandboxState::SandboxNotready),
            _ => {}
        }
        Ok(())
    }

    /// A start that has failed leaves an ended container, which is replaced; one that has not is told of now.
    async fn start_again(&self, step: &str, pod_id: &str, id: &str) -> Result {
        let cri = self.node.cri();
        let mut id = id.to_owned();
        let there = cri.container(&id).await?;
        if there.state() == ContainerState::ContainerExited {
            ensure!(there.reason == "StartError", "{there:?}");
            cri.remove(&id).await?;
            id = cri.create(pod_id, &self.container(), &self.pod).await?;
        }
        match cri.start(&id).await {
            // Whether the answer got through cannot be known by a server that dies right after it.
            Err(status) if step == "heard" && status.code() == Code::FailedPrecondition => {}
            started => started?,
        }
        cri.shell(&id, "true").await?;
        Ok(())
    }

    /// Makes place for the next step as a kubelet does, and proves that nothing is left of this one.
    async fn clear(&self, verb: &str) -> Result {
        let cri = self.node.cri();
        if ends_pod(verb) {
            for pod in cri.all_pods().await? {
                cri.stop_pod(&pod.id).await?;
                cri.remove_pod(&pod.id).await?;
            }
        } else if !keeps_container(verb) {
            for container in cri.all_containers().await? {
                cri.remove(&container.id).await?;
            }
        }
        self.settled().await
    }

    /// Waits until the machine is as it was before the first step.
    async fn settled(&self) -> Result {
        let deadline = tokio::time::Instant::now() + patience(60);
        loop {
            let mut left = Snapshot::take(&self.node).await?.since(&self.before);
            // The server keeps those of the groups that it measures, from its first look at them until they are gone.
            left.retain(|it| !it.starts_with("descriptor /sys/fs/cgroup/"));
            if left.is_empty() {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < deadline, "left behind:\n  {}", left.join("\n  "));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Takes down what there is when no step of the verb is under way.
    async fn begin(&mut self, verb: &str) -> Result {
        for pod in self.node.cri().all_pods().await? {
            self.node.cri().remove_pod(&pod.id).await?;
        }
        match need(verb) {
            _ if ends_pod(verb) => {}
            need if keeps_container(verb) => drop(self.prepare(need).await?),
            _ => drop(self.pod().await?),
        }
        self.before = Snapshot::take(&self.node).await?;
        Ok(())
    }

    /// The step fails, or that undoing which follows the failure of its cause.
    async fn fail(&mut self, point: Point, undoing: Option<Point>) -> Result {
        let (pod_id, id) = self.prepare(need(point.0)).await?;
        let lines: Vec<_> =
            [Some(point), undoing].into_iter().flatten().map(|point| (point, "fail")).collect();
        self.arm(&lines)?;
        let outcome = self.act(point, &pod_id, &id).await;
        self.spent().await?;
        match outcome {
            Ok(()) => ensure!(UNHEARD.contains(&point), "nobody heard of it"),
            Err(status) => {
                let text = status.message();
                let named = text.starts_with(point.0) && text.contains(&format!(": {}: injected", point.1));
                ensure!(named && !UNHEARD.contains(&point), "{status:?}");
            }
        }
        if undoing.is_some() && matches!(point.0, "run sandbox" | "create container") {
            self.settled().await.context("without anybody's help")?;
        }
        self.again(point, &pod_id, &id).await.context("again")?;
        self.clear(point.0).await
    }

    /// The daemon is killed before or after the step, or in that undoing which follows its failure.
    async fn kill(&mut self, point: Point, undoing: Option<Point>, strike: &str) -> Result {
        let (pod_id, id) = self.prepare(need(point.0)).await?;
        match undoing {
            None => self.arm(&[(point, strike)])?,
            Some(undoing) => self.arm(&[(point, "fail"), (undoing, strike)])?,
        }
        // It may end after the answer.
        drop(self.act(point, &pod_id, &id).await);
        self.spent().await?;
        self.node.died().await?;
        self.node.restart().await?;
        self.again(point, &pod_id, &id).await.context("again")?;
        self.clear(point.0).await
    }

    /// The next daemon's recovery fails, or it is killed as well.
    async fn recover(&mut self, cause: Point, how: &str, point: Point, strike: &str) -> Result {
        let (pod_id, id) = self.prepare(need(cause.0)).await?;
        self.arm(&[(cause, how)])?;
        drop(self.act(cause, &pod_id, &id).await);
        self.node.died().await?;
        self.arm(&[(point, strike)])?;
        let started = self.node.restart().await;
        self.spent().await?;
        ensure!(started.is_ok() == (strike == "fail"), "{started:?}");
        if started.is_err() {
            self.node.restart().await?;
        }
        self.again(cause, &pod_id, &id).await.context("again")?;
        self.clear(cause.0).await
    }

    /// Strikes every step of a verb in every way.
    async fn strike_all(&mut self, verb: &'static str) -> Result {
        self.begin(verb).await?;
        let steps = LIFE.iter().find(|(of, _)| *of == verb).context("a verb of a life")?.1;
        for step in steps {
            let point = (verb, *step);
            self.fail(point, None).await.with_context(|| format!("fail at {verb}: {step}"))?;
            for strike in ["kill", "kill-after"] {
                let struck = self.kill(point, None, strike).await;
                struck.with_context(|| format!("{strike} at {verb}: {step}"))?;
            }
        }
        Ok(())
    }

    /// No step was passed that is not written down here.
    async fn finish(self) -> Result {
        let undoing = UNDOING.iter().map(|(_, verb)| verb);
        let recovering = RECOVERING.iter().map(|(_, _, verb)| verb);
        let known: BTreeSet<String> = names(LIFE.iter().chain(undoing).chain(recovering)).collect();
        let passed = std::fs::read_to_string(self.file("passed"))?;
        let new: BTreeSet<&str> =
            passed.lines().filter(|line| !known.contains(*line) && !line.starts_with("sweep/")).collect();
        ensure!(new.is_empty(), "steps that are new: {new:?}");
        self.node.finish().await
    }
}

/// What a client is told of a session that fails begins with whose session it is.
fn as_status(error: anyhow::Error) -> Status {
    let text = format!("{error:#}");
    let told = ["attach to ", "forward to "].iter().find_map(|verb| text.find(verb));
    Status::internal(told.and_then(|at| text.get(at..)).unwrap_or(&text))
}

fn resources(memory: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() }
}

fn names<'a>(verbs: impl Iterator<Item = &'a Verb>) -> impl Iterator<Item = String> {
    verbs.flat_map(|(verb, steps)| steps.iter().map(move |step| format!("{verb}/{step}")))
}

/// Whether the program under test has failpoints.
async fn has_failpoints() -> Result<bool> {
    let program = binary_dir()?.join("crimson");
    let grep = tokio::process::Command::new("grep").args(["-q", "CRIMSON_FAILPOINTS"]).arg(program).status();
    Ok(grep.await?.success())
}

async fn strike_all_of(verbs: &[&'static str]) -> Result {
    if !has_failpoints().await? {
        return Ok(());
    }
    let mut ground = Ground::set().await?;
    for verb in verbs {
        ground.strike_all(verb).await?;
    }
    ground.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_passes_through_all_steps_and_no_others() -> Result {
    let ground = Ground::set().await?;
    let armed: Vec<(Point, &str)> = match has_failpoints().await? {
        true => Vec::new(),
        false => {
            LIFE.iter().flat_map(|(verb, steps)| steps.iter().map(|step| ((*verb, *step), "kill"))).collect()
        }
    };
    ground.arm(&armed)?;
    let cri = ground.node.cri();
    let (pod_id, id) = ground.prepare(Need::Running).await?;
    for step in ["process", "kill"] {
        ground.act(("exec in", step), &pod_id, &id).await?;
    }
    for verb in ["update container", "update sandbox", "reopen log of", "attach to", "forward to"] {
        ground.act((verb, ""), &pod_id, &id).await?;
    }
    let other = cri.run(&pod_id, &ContainerSpec::lasting("other", &ground.image), &ground.pod).await?;
    for (step, id) in [("signal", &id), ("kill", &other)] {
        ground.act(("stop container", step), &pod_id, id).await?;
    }
    cri.remove(&id).await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    // Another life, cut short: its removal has everything to do.
    let (pod_id, _) = ground.prepare(Need::Running).await?;
    cri.remove_pod(&pod_id).await?;
    ground.node.assert_nothing_leaked().await?;
    let passed = std::fs::read_to_string(ground.file("passed")).unwrap_or_default();
    let passed: BTreeSet<&str> = passed.lines().filter(|line| !line.starts_with("sweep/")).collect();
    let expected: Vec<String> = names(LIFE.iter()).collect();
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    let none = BTreeSet::new();
    assert_eq!(&passed, if armed.is_empty() { &expected } else { &none });
    ground.node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn running_a_sandbox() -> Result {
    strike_all_of(&["run sandbox"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn making_and_starting_containers() -> Result {
    strike_all_of(&["create container", "start container"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn using_containers() -> Result {
    strike_all_of(&["exec in", "update container", "reopen log of", "update sandbox"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn leading_clients() -> Result {
    strike_all_of(&["attach to", "close stdin of", "detach from", "forward to"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_containers() -> Result {
    strike_all_of(&["stop container", "end container", "remove container"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_a_sandbox() -> Result {
    strike_all_of(&["stop sandbox"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_sandbox() -> Result {
    strike_all_of(&["remove sandbox"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn undoing_what_has_failed() -> Result {
    if !has_failpoints().await? {
        return Ok(());
    }
    let mut ground = Ground::set().await?;
    for (cause, (undo, steps)) in UNDOING {
        ground.begin(cause.0).await?;
        for step in *steps {
            let point = Some((*undo, *step));
            ground.fail(*cause, point).await.with_context(|| format!("fail at {undo}: {step}"))?;
            for strike in ["kill", "kill-after"] {
                let struck = ground.kill(*cause, point, strike).await;
                struck.with_context(|| format!("{strike} at {undo}: {step}"))?;
            }
        }
    }
    ground.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn recovering_what_was_cut_off() -> Result {
    if !has_failpoints().await? {
        return Ok(());
    }
    let mut ground = Ground::set().await?;
    for (cause, how, (verb, steps)) in RECOVERING {
        ground.begin(cause.0).await?;
        for step in *steps {
            for strike in ["fail", "kill", "kill-after"] {
                let struck = ground.recover(*cause, how, (verb, step), strike).await;
                struck.with_context(|| format!("{strike} at {verb}: {step} after {cause:?}"))?;
            }
        }
    }
    ground.finish().await
}
