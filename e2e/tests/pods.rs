//! Pods: lifecycle, network, names, shared namespaces.

use std::collections::{HashMap, HashSet};

use e2e::cri::{
    ListPodSandboxRequest, NamespaceMode, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};
use e2e::cri::{PodSandboxStatusRequest, PortMapping, Protocol};
use e2e::{CgroupDriver, ContainerSpec, ImageBuilder, Media, Node, Registry, Result, code_of, prefix_of};
use tonic::Code;

/// A node with the test image pulled; gives the image's id, too.
async fn node_with_image() -> Result<(Node, Registry, String)> {
    let (node, registry) = Node::boot_with_registry().await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let image = node.cri().pull(&pushed.reference).await?;
    Ok((node, registry, image))
}

/// A container that serves `/www` on a port.
fn web_server(image: &str, port: u16) -> ContainerSpec {
    ContainerSpec::new("web", image, &["httpd", "-f", "-p", &port.to_string(), "-h", "/www"])
}

/// Fetches a page from a server that may not listen yet.
async fn fetch(node: &Node, url: &str) -> Result<String> {
    let patience = tokio::time::Instant::now() + e2e::patience(60);
    loop {
        match node.fetch(url).await {
            Ok(reply) => return Ok(reply.body),
            Err(error) if tokio::time::Instant::now() > patience => return Err(error),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_from_run_to_remove() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    let pod = node.pod("life");
    let id = cri.run_pod(&pod).await?;
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(cri.run_pod(&pod).await?, id, "a retry gets the result of the first call");

    let status = cri.pod(&id).await?;
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!((&status.labels, &status.annotations), (&pod.config.labels, &pod.config.annotations));
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert!(status.created_at > 1_700_000_000_000_000_000, "nanoseconds: {}", status.created_at);
    let address = cri.pod_ip(&id).await?;
    assert!(address.starts_with(&node.network().prefix), "{address}");

    let verbose = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let info = cri.pod_sandbox_status(verbose).await?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").expect("verbose info"))?;
    assert!(info["pid"].as_u64().is_some_and(|pid| pid > 1), "{info}");

    for _ in 0..2 {
        cri.stop_pod(&id).await?;
        let stopped = cri.pod(&id).await?;
        assert_eq!(stopped.state(), PodSandboxState::SandboxNotready);
        assert_eq!(cri.pod_ip(&id).await?, "", "a stopped pod has no address");
    }
    for _ in 0..2 {
        cri.remove_pod(&id).await?;
        assert_eq!(code_of(&cri.pod(&id).await), Code::NotFound);
        assert_eq!(cri.all_pods().await?, []);
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_running_pod_stops_it_with_its_containers() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let pod = node.pod("forced");
    let id = cri.run_pod(&pod).await?;
    let container = cri.run(&id, &ContainerSpec::lasting("keeper", &image), &pod).await?;
    cri.remove_pod(&id).await?;
    assert_eq!(code_of(&cri.pod(&id).await), Code::NotFound);
    assert_eq!(code_of(&cri.container(&container).await), Code::NotFound);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_pods_of_their_own() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    let first = cri.run_pod(&node.pod("again")).await?;
    cri.stop_pod(&first).await?;
    let second = cri.run_pod(&node.pod("again").attempt(1)).await?;
    assert_ne!(first, second);
    let pods = cri.all_pods().await?;
    let attempts: HashSet<u32> =
        pods.iter().filter_map(|pod| pod.metadata.as_ref()).map(|it| it.attempt).collect();
    assert_eq!(attempts, HashSet::from([0, 1]));
    let created: HashMap<&str, i64> = pods.iter().map(|pod| (pod.id.as_str(), pod.created_at)).collect();
    assert!(created[second.as_str()] > created[first.as_str()]);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_every_field_at_once() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let mut pod = node.pod(name);
        pod.config.labels.insert("app".to_owned(), if name == "three" { "b" } else { "a" }.to_owned());
        ids.push(cri.run_pod(&pod).await?);
    }
    cri.stop_pod(&ids[1]).await?;
    let list = |filter: PodSandboxFilter| {
        let cri = cri.clone();
        async move {
            let items = cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.items;
            Ok::<HashSet<String>, tonic::Status>(items.into_iter().map(|pod| pod.id).collect())
        }
    };
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
    let set = |picked: &[usize]| picked.iter().map(|&n| ids[n].clone()).collect::<HashSet<String>>();

    assert_eq!(list(PodSandboxFilter::default()).await?, set(&[0, 1, 2]));
    let ready = PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..Default::default() };
    assert_eq!(list(ready).await?, set(&[0, 2]));
    assert_eq!(
        list(PodSandboxFilter { label_selector: label("a"), ..Default::default() }).await?,
        set(&[0, 1])
    );
    assert_eq!(list(PodSandboxFilter { id: prefix_of(&ids[2]), ..Default::default() }).await?, set(&[2]));
    let all = PodSandboxFilter {
        id: ids[0].clone(),
        state: state(PodSandboxState::SandboxNotready),
        label_selector: label("a"),
    };
    assert_eq!(list(all).await?, HashSet::new());
    assert_eq!(list(PodSandboxFilter { id: "f".repeat(64), ..Default::default() }).await?, HashSet::new());
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_pod_asked_for_many_times_at_once_is_one_pod() -> Result {
    let node = Node::boot().await?;
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let (cri, pod) = (node.cri(), node.pod("once"));
            tokio::spawn(async move { cri.run_pod(&pod).await })
        })
        .collect();
    let mut ids = HashSet::new();
    for call in calls {
        ids.insert(call.await??);
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(node.cri().all_pods().await?.len(), 1);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_started_side_by_side_get_addresses_of_their_own() -> Result {
    let node = Node::boot().await?;
    let calls: Vec<_> = (0..8)
        .map(|n| {
            let (cri, pod) = (node.cri(), node.pod(&format!("side{n}")));
            tokio::spawn(async move {
                let id = cri.run_pod(&pod).await?;
                cri.pod_ip(&id).await
            })
        })
        .collect();
    let mut addresses = HashSet::new();
    for call in calls {
        addresses.insert(call.await??);
    }
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_is_completed_by_the_server() -> Result {
    let node = Node::boot().await?;
    let (cri, pod) = (node.cri(), node.pod("abandoned"));
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(5), cri.run_pod(&pod)).await;
    assert!(given_up.is_err(), "a pod in 5 ms: then this test needs a shorter time");
    let id = cri.run_pod(&pod).await?;
    assert_eq!(cri.all_pods().await?.len(), 1);
    assert_eq!(cri.pod(&id).await?.state(), PodSandboxState::SandboxReady);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_reach_the_container() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let pod = node.pod("named");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("look", &image), &pod).await?;
    assert_eq!(cri.shell(&id, "hostname").await?, "named");
    assert_eq!(cri.shell(&id, "cat /etc/hostname").await?, "named");
    let resolv = cri.shell(&id, "cat /etc/resolv.conf").await?;
    let lines: HashSet<&str> = resolv.lines().collect();
    for line in ["nameserver 192.0.2.53", "search e2e.svc.cluster.local", "options ndots:5"] {
        assert!(lines.contains(line), "{resolv}");
    }
    let hosts = cri.shell(&id, "cat /etc/hosts").await?;
    assert!(hosts.contains("127.0.0.1"), "{hosts}");
    let address = cri.pod_ip(&pod_id).await?;
    assert!(cri.shell(&id, "ip -o -4 address show eth0").await?.contains(&address));
    assert_eq!(cri.shell(&id, "df -m /dev/shm | tail -1 | sed 's/  */ /g' | cut -d' ' -f2").await?, "64");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_and_the_host_reaches_them() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let (server, client) = (node.pod("server"), node.pod("client"));
    let server_id = cri.run_pod(&server).await?;
    cri.run(&server_id, &web_server(&image, 80), &server).await?;
    let address = cri.pod_ip(&server_id).await?;
    assert_eq!(fetch(&node, &format!("http://{address}/")).await?, "hello from crimson\n");

    let client_id = cri.run_pod(&client).await?;
    let asker = cri.run(&client_id, &ContainerSpec::lasting("asker", &image), &client).await?;
    assert_eq!(cri.shell(&asker, &format!("wget -qO- http://{address}/")).await?, "hello from crimson");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_leads_to_the_pod_until_it_is_stopped() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let mut pod = node.pod("ported").with_port(18080, 8080);
    // A mapping without host port only documents the container's.
    pod.config.port_mappings.push(PortMapping {
        protocol: Protocol::Udp.into(),
        container_port: 53,
        ..Default::default()
    });
    let id = cri.run_pod(&pod).await?;
    cri.run(&id, &web_server(&image, 8080), &pod).await?;
    for url in ["http://198.51.100.2:18080/", "http://127.0.0.1:18080/"] {
        assert_eq!(fetch(&node, url).await?, "hello from crimson\n", "{url}");
    }
    cri.stop_pod(&id).await?;
    node.fetch("http://198.51.100.2:18080/").await.expect_err("nobody listens any more");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_network_pod_is_in_the_network_of_the_host() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let pod = node.pod("hosted").on_host_network();
    let pod_id = cri.run_pod(&pod).await?;
    let mut look = ContainerSpec::lasting("look", &image);
    if let Some(options) = look.config.linux.as_mut().and_then(|it| it.security_context.as_mut()) {
        options.namespace_options.as_mut().expect("options").network = NamespaceMode::Node.into();
    }
    let id = cri.run(&pod_id, &look, &pod).await?;
    assert!(cri.shell(&id, "ip -o link").await?.contains("uplink0"));
    let host_name = node.machine().output("hostname", &[]).await?;
    assert_eq!(cri.shell(&id, "hostname").await?, host_name.trim());
    let options = cri.pod(&pod_id).await?.linux.and_then(|it| it.namespaces).and_then(|it| it.options);
    assert_eq!(options.expect("namespaces are reported").network(), NamespaceMode::Node);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_what_they_should() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let pod = node.pod("shared");
    let pod_id = cri.run_pod(&pod).await?;
    let first = cri.run(&pod_id, &ContainerSpec::lasting("first", &image), &pod).await?;
    let second = cri.run(&pod_id, &ContainerSpec::lasting("second", &image), &pod).await?;
    for (namespace, same) in [("net", true), ("ipc", true), ("uts", true), ("mnt", false), ("pid", false)] {
        let line = format!("readlink /proc/self/ns/{namespace}");
        let equal = cri.shell(&first, &line).await? == cri.shell(&second, &line).await?;
        assert_eq!(equal, same, "{namespace}");
    }
    cri.shell(&first, "echo through memory > /dev/shm/note").await?;
    assert_eq!(cri.shell(&second, "cat /dev/shm/note").await?, "through memory");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_share_its_process_ids() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let mut pod = node.pod("pids");
    pod.namespace_options().expect("options").pid = NamespaceMode::Pod.into();
    let pod_id = cri.run_pod(&pod).await?;
    let shared = |name: &str| {
        ContainerSpec::lasting(name, &image)
            .secured(|it| it.namespace_options.as_mut().expect("options").pid = NamespaceMode::Pod.into())
    };
    let first = cri.run(&pod_id, &shared("first"), &pod).await?;
    let second = cri.run(&pod_id, &shared("second"), &pod).await?;
    let line = "readlink /proc/self/ns/pid";
    assert_eq!(cri.shell(&first, line).await?, cri.shell(&second, line).await?);
    let one = cri.shell(&first, "cat /proc/1/comm").await?;
    assert!(one.contains("pause"), "process 1 is the pod's pause process, not {one}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_are_set_in_the_pod_only() -> Result {
    let (node, _registry, image) = node_with_image().await?;
    let cri = node.cri();
    let mut pod = node.pod("tuned");
    let linux = pod.config.linux.as_mut().expect("linux");
    linux.sysctls = HashMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())]);
    let with_kernel = !kernel_sysctls_are_readonly();
    if with_kernel {
        linux.sysctls.insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    } else {
        println!(
            "without kernel.*: crun writes through the node's /proc/sys/kernel, which is read-only here"
        );
    }
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("look", &image), &pod).await?;
    assert_eq!(cri.shell(&id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await?, "77");
    if with_kernel {
        assert_eq!(cri.shell(&id, "cat /proc/sys/kernel/shm_rmid_forced").await?, "1");
    }
    assert_ne!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?.trim(), "77");
    node.finish().await
}

/// A node that shares its kernel shows these settings read-only, and of the runtimes crun alone needs to write there.
fn kernel_sysctls_are_readonly() -> bool {
    let flags = rustix::fs::statvfs("/proc/sys/kernel").map(|it| it.f_flag);
    let readonly = flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    readonly && std::env::var("CRIMSON_E2E_RUNTIME").as_deref() == Ok("crun")
}

/// The pause process dying is the pod dying: the server notices by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_pause_process_dies_is_not_ready() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    let id = cri.run_pod(&node.pod("fragile")).await?;
    let pid = cri.pause_pid(&id).await?;
    node.machine().output("kill", &["-KILL", &pid.to_string()]).await?;
    let noticed = async {
        while cri.pod(&id).await?.state() == PodSandboxState::SandboxReady {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(e2e::patience(30), noticed).await??;
    node.finish().await
}

/// What a monitor takes is charged neither to the server nor to the pod, so a pod's limit neither counts nor strikes it.
#[tokio::test(flavor = "multi_thread")]
async fn monitors_are_in_a_cgroup_of_their_own() -> Result {
    let (mut node, _registry, image) = node_with_image().await?;
    let pod = node.pod("hungry");
    let pod_id = node.cri().run_pod(&pod).await?;
    let monitor = node.monitors()?;
    let group = accounting_group(&node, monitor[0])?;
    assert!(group.ends_with("/crimson-monitors"), "{group}");
    let server = std::fs::read_to_string(format!("/proc/{}/cgroup", node.pid().expect("it runs")))?;
    assert_eq!(group, format!("{}/crimson-monitors", accounted_in(&server).trim_end_matches('/')));

    let mut spec = ContainerSpec::shell("greedy", &image, "x=0123456789abcdef; while :; do x=$x$x; done");
    let resources = spec.config.linux.as_mut().and_then(|it| it.resources.as_mut()).expect("resources");
    resources.memory_limit_in_bytes = 16 << 20;
    resources.memory_swap_limit_in_bytes = 16 << 20;
    let status = node.run_to_end(&pod_id, &spec, &pod).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    assert!(node.monitors()?.contains(&monitor[0]), "it lives on");

    node.kill9().await?;
    node.restart().await?;
    node.cri().run_pod(&node.pod("later")).await?;
    for monitor in node.monitors()? {
        assert_eq!(accounting_group(&node, monitor)?, group);
    }
    node.finish().await
}

fn accounting_group(node: &Node, pid: u32) -> Result<String> {
    let path = node.machine().path(std::path::Path::new(&format!("/proc/{pid}/cgroup")));
    Ok(accounted_in(&std::fs::read_to_string(path)?))
}

/// The cgroup in which memory counts: with v1 that of its controller.
fn accounted_in(memberships: &str) -> String {
    let lines = || memberships.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of_v1 = lines().find(|(names, _)| names.split(',').any(|name| name == "memory"));
    let found = of_v1.or_else(|| lines().find(|(names, _)| names.is_empty()));
    found.map(|(_, path)| path.to_owned()).unwrap_or_default()
}

/// Whoever of a container is killed for memory, and whoever's limit was the reason, kubelet is told so.
#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_of_a_child_of_a_group_and_of_the_pod_is_told() -> Result {
    const GREED: &str = "sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'";
    let (node, _registry, image) = node_with_image().await?;
    let pod = node.pod("oom");
    let pod_id = node.cri().run_pod(&pod).await?;

    let child = limited(&image, "child", &format!("{GREED}; exit 3"), false);
    let status = node.run_to_end(&pod_id, &child, &pod).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "OOMKilled"), "{status:?}");

    let pause = node.cri().pause_pid(&pod_id).await?;
    let memberships = node.machine().path(std::path::Path::new(&format!("/proc/{pause}/cgroup")));
    let (hierarchy, limit) =
        if kernel_has_v2_only() { ("", "memory.max") } else { ("memory", "memory.limit_in_bytes") };
    if hierarchy.is_empty() {
        let group = limited(&image, "group", &format!("{GREED}; exit 4"), true);
        let status = node.run_to_end(&pod_id, &group, &pod).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    }

    let of_pause = accounted_in(&std::fs::read_to_string(memberships)?);
    let of_pod = std::path::Path::new(&of_pause).parent().expect("a pod's cgroup is not the root");
    let root = std::path::Path::new("/sys/fs/cgroup").join(hierarchy);
    // As kubelet sets it for a pod whose containers have limits.
    std::fs::write(root.join(of_pod.strip_prefix("/")?).join(limit), (24 << 20).to_string())?;
    let unlimited = ContainerSpec::shell("unlimited", &image, &format!("{GREED}; exit 5"));
    let status = node.run_to_end(&pod_id, &unlimited, &pod).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (5, "OOMKilled"), "{status:?}");
    node.finish().await
}

/// systemd removes a scope with its last process, whether or not the monitor has had time to look at it.
#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_told_though_the_cgroup_is_gone_already() -> Result {
    if CgroupDriver::asked_for() != CgroupDriver::Systemd || !kernel_has_v2_only() {
        println!(
            "not here: nobody but systemd removes a cgroup, and only with cgroup v2 those above count its kills"
        );
        return Ok(());
    }
    let (node, _registry, image) = node_with_image().await?;
    let pod = node.pod("late");
    let pod_id = node.cri().run_pod(&pod).await?;
    let script = "while [ ! -e /go ]; do sleep 0.1; done; x=0123456789abcdef; while :; do x=$x$x; done";
    let id = node.cri().run(&pod_id, &limited(&image, "late", script, true), &pod).await?;
    let process = format!("/proc/{}", node.cri().container_pid(&id).await?);
    let process = node.machine().path(std::path::Path::new(&process));
    let memberships = std::fs::read_to_string(process.join("cgroup"))?;
    let group =
        std::path::Path::new("/sys/fs/cgroup").join(accounted_in(&memberships).trim_start_matches('/'));

    let monitor = node.monitors()?[0].to_string();
    node.machine().output("kill", &["-STOP", &monitor]).await?;
    std::fs::write(process.join("root/go"), "")?;
    let removed = async {
        while group.try_exists()? {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let removed = tokio::time::timeout(e2e::patience(30), removed).await;
    node.machine().output("kill", &["-CONT", &monitor]).await?;
    removed??;
    let status = node.exited(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    node.finish().await
}

/// A container with little memory; `as_group`, it lives and dies as one.
fn limited(image: &str, name: &str, script: &str, as_group: bool) -> ContainerSpec {
    let mut spec = ContainerSpec::shell(name, image, script);
    if let Some(resources) = spec.config.linux.as_mut().and_then(|it| it.resources.as_mut()) {
        resources.memory_limit_in_bytes = 16 << 20;
        resources.memory_swap_limit_in_bytes = 16 << 20;
        if as_group {
            resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
    }
    spec
}

fn kernel_has_v2_only() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").is_file()
}
