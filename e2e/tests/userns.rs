//! Pods with a user namespace of their own: whose their files are, inside and on the host, and what that costs.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use e2e::cri::{
    Capability, IdMapping, Int64Value, MountPropagation, NamespaceMode, NamespaceOption, StatusRequest,
    UserNamespace,
};
use e2e::{
    ContainerSpec, ImageBuilder, Layer, Media, Node, Options, PodSpec, Registry, Result, code_of, patience,
};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

const LENGTH: u32 = 65_536;

/// Ids from 0 on, which are `host_id` on the host.
fn ids(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: LENGTH }]
}

fn maps(host_id: u32) -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(host_id), gids: ids(host_id) }
}

/// A pod whose root is `host_id` on the host.
fn mapped(mut pod: PodSpec, host_id: u32) -> PodSpec {
    options(&mut pod).userns_options = Some(maps(host_id));
    pod
}

fn options(pod: &mut PodSpec) -> &mut NamespaceOption {
    pod.namespace_options().expect("it has some")
}

fn own(pod: &mut PodSpec) -> &mut UserNamespace {
    options(pod).userns_options.as_mut().expect("it is mapped")
}

/// A container with a volume whose owners are mapped.
fn with_mapped(mut spec: ContainerSpec, source: &Path, path: &str, host_id: u32) -> ContainerSpec {
    spec = spec.with_mount(source, path, false);
    let mount = spec.config.mounts.last_mut().expect("just pushed");
    (mount.uid_mappings, mount.gid_mappings) = (ids(host_id), ids(host_id));
    spec
}

/// The image: a file of another user in each of two layers, and a declared volume.
fn image() -> Result<ImageBuilder> {
    let layer = Layer::new()
        .dir("data", 0o755)
        .owned_file("data/owned", 0o640, (5, 6), b"of five")
        .dir("vol", 0o755)
        .owned_file("vol/begun", 0o644, (7, 8), b"begun");
    Ok(ImageBuilder::busybox(Media::Oci)?.layer(layer).config("Volumes", json!({ "/vol": {} })))
}

async fn node_with_image(options: Options) -> Result<(Node, Registry, String)> {
    let (node, registry) = Node::start_with_registry(options).await?;
    let pushed = registry.push(image()?, "mapped", "1").await?;
    let image = node.cri().pull(&pushed.reference).await?;
    Ok((node, registry, image))
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let seen = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok((seen.uid(), seen.gid()))
}

/// Every regular file beneath a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => found.extend(files(&entry.path())?),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    Ok(found)
}

fn upper(node: &Node, container: &str) -> PathBuf {
    node.root().join("containers").join(container).join("upper")
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_the_pods_own_inside_and_nothing_is_copied() -> Result {
    let (node, _registry, image) = node_with_image(Options::default()).await?;
    let cri = node.cri();
    let host = node.dir().join("volume");
    std::fs::create_dir(&host)?;
    std::fs::write(host.join("file"), "of the host")?;
    chown(host.join("file"), Some(9), Some(10))?;

    let pod = mapped(node.pod("mapped"), 200_000);
    let pod_id = cri.run_pod(&pod).await?;
    let spec = with_mapped(ContainerSpec::lasting("c", &image), &host, "/volume", 200_000);
    let spec = with_mapped(spec, &host.join("file"), "/one/file", 200_000).with_mount(&host, "/plain", false);
    let id = cri.create(&pod_id, &spec, &pod).await?;
    let mounts = node.machine().mountinfo()?.lines().count();
    cri.start(&id).await?;
    assert_eq!(node.machine().mountinfo()?.lines().count(), mounts, "nothing is mounted on the host");

    for file in ["uid_map", "gid_map"] {
        let map = cri.shell(&id, &format!("cat /proc/self/{file}")).await?;
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"], "{file}");
    }
    for (path, expected) in [
        ("/", "0:0"),
        ("/bin/busybox", "0:0"),
        ("/data/owned", "5:6"),
        ("/vol/begun", "7:8"),
        ("/volume", "0:0"),
        ("/volume/file", "9:10"),
        ("/one/file", "9:10"),
        ("/plain/file", "65534:65534"),
        ("/etc/hosts", "0:0"),
        ("/etc/resolv.conf", "0:0"),
        ("/etc/hostname", "0:0"),
        ("/dev/shm", "0:0"),
    ] {
        assert_eq!(cri.shell(&id, &format!("stat -c %u:%g {path}")).await?, expected, "{path}");
    }
    let written = files(&upper(&node, &id))?;
    let bytes = written.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
    assert_eq!(bytes, 0, "{written:?}");

    let line = "echo x > /new && echo x > /volume/new && echo x > /vol/new && echo x > /dev/shm/new && chmod 600 /data/owned && chown 11:12 /new";
    cri.shell(&id, line).await?;
    assert_ne!(cri.exec(&id, &["touch", "/plain/new"]).await?.exit_code, 0, "it is somebody else's");
    assert_eq!(owner(&upper(&node, &id).join("new"))?, (200_011, 200_012));
    assert_eq!(owner(&upper(&node, &id).join("data/owned"))?, (200_005, 200_006), "copied up by the change");
    assert_eq!(owner(&host.join("new"))?, (0, 0), "on disk a mapped volume has the ids of the pod");
    assert_eq!(owner(&node.root().join("containers").join(&id).join("volumes/0/new"))?, (0, 0));
    let process = node.machine().path(Path::new(&format!("/proc/{}", cri.container_pid(&id).await?)));
    assert_eq!(owner(&process)?, (200_000, 200_000));
    cri.remove_pod(&pod_id).await?;
    assert_eq!(owner(&host.join("file"))?, (9, 10));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_root_rules_its_namespaces_and_nothing_else() -> Result {
    let (node, _registry, image) = node_with_image(Options::default()).await?;
    let cri = node.cri();
    let pod = mapped(node.pod("ruler"), 300_000);
    let pod_id = cri.run_pod(&pod).await?;
    let spec = ContainerSpec::lasting("c", &image).secured(|context| {
        let add_capabilities = ["NET_ADMIN", "SYS_ADMIN"].map(str::to_owned).into();
        context.capabilities = Some(Capability { add_capabilities, ..Default::default() });
        context.seccomp = None;
    });
    let id = cri.run(&pod_id, &spec, &pod).await?;
    // Only the owner of the network namespace may do this.
    cri.shell(&id, "ip addr add 10.99.0.1/32 dev lo && ping -c 1 -W 60 10.99.0.1 >/dev/null").await?;
    cri.shell(&id, "hostname other && test $(hostname) = other").await?;
    for line in
        ["mknod /null c 1 3", "echo 1 > /proc/sys/kernel/panic", "mount -t tmpfs none /sys/fs/cgroup/x"]
    {
        assert_ne!(cri.exec(&id, &["sh", "-c", line]).await?.exit_code, 0, "{line}");
    }
    let range = cri.shell(&id, "cat /proc/sys/net/ipv4/ping_group_range").await?;
    assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["0", "65535"]);
    node.finish().await
}

/// A pod's root may not take an option away from a mount of the host, also not by the way.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_only_keeps_the_options_of_its_mount() -> Result {
    let (node, _registry, image) = node_with_image(Options::default()).await?;
    let cri = node.cri();
    let strict = node.dir().join("strict");
    std::fs::create_dir(&strict)?;
    let place = strict.display().to_string();
    node.machine().output("mount", &["-t", "tmpfs", "-o", "nosuid,nodev,noexec", "none", &place]).await?;
    let pod = mapped(node.pod("strict"), 460_000);
    let pod_id = cri.run_pod(&pod).await?;
    let spec = with_mapped(ContainerSpec::lasting("c", &image), &strict, "/mapped", 460_000);
    let mut spec = spec.with_mount(&strict, "/plain", true).secured(|context| context.readonly_rootfs = true);
    spec.config.mounts[0].readonly = true;
    let id = cri.run(&pod_id, &spec, &pod).await?;
    for path in ["/mapped", "/plain", "/etc/hosts"] {
        let options = cri.shell(&id, &format!("grep ' {path} ' /proc/self/mounts | cut -d' ' -f4")).await?;
        assert!(options.split(',').any(|option| option == "ro"), "{path}: {options}");
        assert!(path.starts_with("/etc") || options.contains("nosuid,nodev,noexec"), "{path}: {options}");
    }
    cri.remove_pod(&pod_id).await?;
    node.machine().output("umount", &[&place]).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_nodes_network_can_have_one() -> Result {
    let (node, _registry, image) = node_with_image(Options::default()).await?;
    let cri = node.cri();
    let pod = mapped(node.pod("hosted").on_host_network(), 450_000);
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("c", &image), &pod).await?;
    let map = cri.shell(&id, "cat /proc/self/uid_map; stat -c %u /data/owned").await?;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "450000", "65536", "5"]);
    assert_ne!(cri.exec(&id, &["ip", "addr", "add", "10.99.0.2/32", "dev", "lo"]).await?.exit_code, 0);
    let network = "readlink /proc/self/ns/net";
    let nodes = node.machine().output("readlink", &["/proc/self/ns/net"]).await?;
    assert_eq!(cri.shell(&id, network).await?, nodes.trim());
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_belong_to_the_process_also_those_of_commands() -> Result {
    let (node, _registry, image) = node_with_image(Options::default()).await?;
    let cri = node.cri();
    let pod = mapped(node.pod("streams"), 400_000);
    let pod_id = cri.run_pod(&pod).await?;
    for (name, user) in [("root", 0), ("other", 1234)] {
        let spec = ContainerSpec::shell(name, &image, "echo by name > /dev/stdout; exec sleep 7301");
        let spec = spec.secured(|context| context.run_as_user = Some(Int64Value { value: user }));
        let id = cri.run(&pod_id, &spec, &pod).await?;
        let command = ["sh", "-c", "echo out > /proc/self/fd/1; echo err > /proc/self/fd/2; id -u"];
        let answer = cri.exec(&id, &command).await?;
        assert_eq!(String::from_utf8(answer.stdout)?, format!("out\n{user}\n"), "{name}");
        assert_eq!(String::from_utf8(answer.stderr)?, "err\n", "{name}");
        let log = format!("{name}/0.log");
        let heard = async {
            while node.container_log("streams", &log)?.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            node.container_log("streams", &log)
        };
        let lines = tokio::time::timeout(patience(30), heard).await??;
        assert_eq!((lines[0].0.as_str(), lines[0].2.as_str()), ("stdout", "by name"), "{name}: {lines:?}");
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_other_maps_live_side_by_side_and_outlive_the_daemon() -> Result {
    let (mut node, _registry, image) = node_with_image(Options::default()).await?;
    let mut pods = Vec::new();
    for (name, host_id) in [("one", 500_000), ("two", 600_000)] {
        let pod = mapped(node.pod(name), host_id);
        let id = node.cri().run_pod(&pod).await?;
        let container = node.cri().run(&id, &ContainerSpec::lasting("c", &image), &pod).await?;
        let made = node.cri().create(&id, &ContainerSpec::lasting("later", &image), &pod).await?;
        pods.push((pod, id, container, made, host_id));
    }
    node.kill9().await?;
    node.restart().await?;
    let cri = node.cri();
    for (pod, id, container, made, host_id) in &pods {
        cri.start(made).await?;
        let new = cri.run(id, &ContainerSpec::lasting("new", &image), pod).await?;
        for container in [container, made, &new] {
            let map = cri.shell(container, "cat /proc/self/uid_map; stat -c %u /data/owned").await?;
            let host_id = host_id.to_string();
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &host_id, "65536", "5"]);
        }
        let user = "readlink /proc/self/ns/user";
        assert_eq!(cri.shell(container, user).await?, cri.shell(&new, user).await?, "one namespace for all");
    }
    cri.stop_pod(&pods[0].1).await?;
    cri.shell(&pods[1].2, "true").await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_name_and_leaves_nothing() -> Result {
    let (node, _registry, image) = node_with_image(Options::default()).await?;
    let cri = node.cri();
    let features = cri.status(StatusRequest { verbose: false }).await?.runtime_handlers;
    let default = features.iter().find(|handler| handler.name.is_empty()).context("a default handler")?;
    ensure!(default.features.as_ref().is_some_and(|features| features.user_namespaces), "{features:?}");

    type Change = fn(&mut PodSpec);
    let pods: [(&str, Change); 5] = [
        ("host pids", |pod| options(pod).pid = NamespaceMode::Node.into()),
        ("host IPC", |pod| options(pod).ipc = NamespaceMode::Node.into()),
        ("two maps", |pod| own(pod).gids.extend(ids(1 << 20))),
        ("no root", |pod| own(pod).uids[0].container_id = 1),
        ("per container", |pod| own(pod).mode = NamespaceMode::Container.into()),
    ];
    for (name, change) in pods {
        let mut pod = mapped(node.pod("refused"), 700_000);
        change(&mut pod);
        let reply = cri.run_pod(&pod).await;
        assert_eq!(code_of(&reply), Code::InvalidArgument, "{name}: {reply:?}");
        let message = reply.expect_err("refused").message().to_owned();
        assert!(message.contains("userns_options"), "{name}: {message}");
    }
    assert_eq!(cri.all_pods().await?, []);

    let pod = mapped(node.pod("real"), 700_000);
    let pod_id = cri.run_pod(&pod).await?;
    let plain = || ContainerSpec::lasting("c", &image);
    let with = |change: fn(&mut NamespaceOption)| {
        plain().secured(|context| change(context.namespace_options.get_or_insert_default()))
    };
    let mut shared = plain().with_mount(node.dir(), "/d", false);
    shared.config.mounts[0].propagation = MountPropagation::PropagationBidirectional.into();
    for (name, spec) in [
        ("other maps", with(|options| options.userns_options = Some(maps(1 << 20)))),
        (
            "the node's",
            with(|options| {
                options.userns_options =
                    Some(UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() });
            }),
        ),
        ("the node's pids", with(|options| options.pid = NamespaceMode::Node.into())),
        (
            "a user beyond",
            plain().secured(|context| {
                context.run_as_user = Some(Int64Value { value: i64::from(LENGTH) });
            }),
        ),
        ("other maps of a volume", with_mapped(plain(), node.dir(), "/d", 1 << 20)),
        ("mounts to the host", shared),
    ] {
        let reply = cri.create(&pod_id, &spec, &pod).await;
        assert_eq!(code_of(&reply), Code::InvalidArgument, "{name}: {reply:?}");
    }
    // Which file systems can be mapped is the kernel's to know, so this one shows when it is started.
    let proc = cri.create(&pod_id, &with_mapped(plain(), Path::new("/proc"), "/p", 700_000), &pod).await?;
    let failed = cri.start(&proc).await.expect_err("proc has no owners to map");
    assert!(failed.message().contains("map the ids of /proc"), "{failed:?}");
    cri.remove(&proc).await?;
    assert_eq!(cri.all_containers().await?, []);
    node.finish().await
}

/// The namespaces are made in the step that has always been there, so the daemon may die anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_at_any_step_leaves_nothing_of_it() -> Result {
    let points = TempDir::new()?;
    let env = vec![("CRIMSON_FAILPOINTS".to_owned(), points.path().display().to_string())];
    let (mut node, _registry, image) = node_with_image(Options { env, ..Options::default() }).await?;
    let pod = mapped(node.pod("struck"), 800_000);
    let spec = || with_mapped(ContainerSpec::lasting("c", &image), points.path(), "/v", 800_000);
    for (point, strikes) in [
        ("run sandbox/netns", &["fail", "kill", "kill-after"][..]),
        ("run sandbox/pause create", &["kill-after"]),
        ("create container/layer", &["kill-after"]),
        ("start container/OCI create", &["fail", "kill-after"]),
    ] {
        for &strike in strikes {
            std::fs::write(points.path().join("armed"), format!("{point}={strike}\n"))?;
            let cri = node.cri();
            let life = async {
                let id = cri.run_pod(&pod).await?;
                let container = cri.create(&id, &spec(), &pod).await?;
                cri.start(&container).await
            };
            ensure!(life.await.is_err(), "{point}={strike} was not heard of");
            if strike != "fail" {
                node.died().await?;
                node.restart().await?;
            }
            let cri = node.cri();
            let id = cri.run_pod(&pod).await?;
            for left in cri.all_containers().await? {
                cri.remove(&left.id).await?;
            }
            let container = cri.run(&id, &spec(), &pod).await?;
            let owner = cri.shell(&container, "stat -c %u:%g /data/owned /v").await?;
            assert_eq!(owner.split_whitespace().collect::<Vec<_>>(), ["5:6", "0:0"], "{point}={strike}");
            cri.remove_pod(&id).await?;
            node.assert_nothing_leaked().await.with_context(|| format!("{point}={strike}"))?;
        }
    }
    node.finish().await
}
