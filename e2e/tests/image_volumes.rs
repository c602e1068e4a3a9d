//! Images mounted in containers beside their own.

use std::path::Path;

use e2e::cri::{
    ContainerConfig, ContainerStatusRequest, CreateContainerResponse, IdMapping, NamespaceMode,
    PodSandboxConfig, UserNamespace,
};
use e2e::{ContainerSpec, ImageBuilder, Layer, Media, Node, PodSpec, Registry, Result, code_of};
use prost::Message;
use tonic::{Code, Status};

/// A mount with the fields that are newer than the client crate.
#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    readonly: bool,
    #[prost(int32, tag = "5")]
    propagation: i32,
    #[prost(bool, tag = "8")]
    recursive_read_only: bool,
    #[prost(message, optional, tag = "9")]
    image: Option<Image>,
    #[prost(string, tag = "10")]
    image_sub_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(string, tag = "18")]
    user_specified_image: String,
    #[prost(string, tag = "20")]
    image_ref: String,
}

/// The part of a container's configuration and of its status that such mounts are in; the numbers differ.
#[derive(Clone, PartialEq, prost::Message)]
struct ConfigMounts {
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusMounts {
    #[prost(message, repeated, tag = "14")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<StatusMounts>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    /// A [`ContainerConfig`] followed by [`ConfigMounts`]: one message to whoever reads it.
    #[prost(bytes = "vec", tag = "2")]
    config: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

/// An image at a path, whole.
fn mount(container_path: &str, image: &str) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        readonly: true,
        image: Some(Image { image: image.to_owned(), ..Image::default() }),
        ..Mount::default()
    }
}

/// A directory of an image at a path.
fn part(container_path: &str, image: &str, sub_path: &str) -> Mount {
    Mount { image_sub_path: sub_path.to_owned(), ..mount(container_path, image) }
}

/// A node with one running pod, the image that containers run, and one for volumes.
struct Stage {
    node: Node,
    _registry: Registry,
    image: String,
    /// Two layers, the upper one deleting and replacing what the lower one has.
    data: String,
    /// The reference that gave `data`.
    data_name: String,
    pod: PodSpec,
    pod_id: String,
}

impl Stage {
    async fn set() -> Result<Self> {
        let (node, registry) = Node::boot_with_registry().await?;
        let cri = node.cri();
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
        let image = cri.pull(&pushed.reference).await?;
        let pushed = registry.push(data(), "data", "1").await?;
        let data = cri.pull(&pushed.reference).await?;
        let pod = node.pod("stage");
        let pod_id = cri.run_pod(&pod).await?;
        Ok(Self { node, _registry: registry, image, data, data_name: pushed.reference, pod, pod_id })
    }

    async fn create(&self, name: &str, mounts: Vec<Mount>) -> std::result::Result<String, Status> {
        self.create_from(ContainerSpec::lasting(name, &self.image), mounts).await
    }

    async fn create_from(
        &self,
        spec: ContainerSpec,
        mounts: Vec<Mount>,
    ) -> std::result::Result<String, Status> {
        let ContainerConfig { log_path, .. } = &spec.config;
        let log = Path::new(&self.pod.config.log_directory).join(log_path);
        std::fs::create_dir_all(log.parent().unwrap_or(&log))?;
        let mut config = spec.config.encode_to_vec();
        config.extend(ConfigMounts { mounts }.encode_to_vec());
        let sandbox_config = Some(self.pod.config.clone());
        let request = CreateRequest { pod_sandbox_id: self.pod_id.clone(), config, sandbox_config };
        let created: CreateContainerResponse =
            self.node.cri().call("RuntimeService", "CreateContainer", request).await?;
        Ok(created.container_id)
    }

    async fn run(&self, name: &str, mounts: Vec<Mount>) -> Result<String> {
        let id = self.create(name, mounts).await?;
        self.node.cri().start(&id).await?;
        Ok(id)
    }

    /// The mounts in a container's status.
    async fn mounts_of(&self, id: &str) -> Result<Vec<Mount>> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer: StatusResponse =
            self.node.cri().call("RuntimeService", "ContainerStatus", request).await?;
        Ok(answer.status.unwrap_or_default().mounts)
    }

    async fn shell(&self, id: &str, line: &str) -> Result<String> {
        self.node.cri().shell(id, line).await
    }

    async fn finish(self) -> Result {
        self.node.finish().await
    }
}

fn data() -> ImageBuilder {
    let lower = Layer::new()
        .dir("etc", 0o755)
        .file("etc/kept", 0o644, b"kept")
        .file("etc/deleted", 0o644, b"deleted")
        .file("etc/changed", 0o644, b"old")
        .dir("opaque", 0o755)
        .file("opaque/below", 0o644, b"below")
        .dir("inner", 0o755);
    let upper = Layer::new()
        .dir("etc", 0o755)
        .whiteout("etc", "deleted")
        .file("etc/changed", 0o644, b"new")
        .dir("etc/deep", 0o755)
        .file("etc/deep/note", 0o644, b"deep")
        .dir("opaque", 0o755)
        .opaque("opaque")
        .symlink("absolute", "/etc/deep")
        .symlink("climbing", "../../../etc/deep")
        .symlink("dangling", "/nowhere");
    ImageBuilder::new(Media::Oci).layer(lower).layer(upper)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_seen_with_all_its_layers_and_cannot_be_changed() -> Result {
    let stage = Stage::set().await?;
    let host = stage.node.dir().join("volume");
    std::fs::create_dir_all(host.join("place"))?;
    std::fs::write(host.join("of-host"), "of the host")?;
    let on_host = stage.node.machine().mountinfo()?.lines().count();
    let recursively = Mount { recursive_read_only: true, propagation: 1, ..mount("/again", &stage.data) };
    let spec = ContainerSpec::lasting("many", &stage.image)
        .with_mount(&host, "/data/inner", true)
        .with_mount(&host, "/host", false);
    let mounts = vec![
        mount("/host/place", &stage.data),
        mount("/data", &stage.data),
        mount("/own", &stage.image),
        recursively,
    ];
    let id = stage.create_from(spec, mounts).await?;
    stage.node.cri().start(&id).await?;
    assert_eq!(stage.node.machine().mountinfo()?.lines().count(), on_host, "nothing is mounted on the host");

    for place in ["/data", "/again", "/host/place"] {
        let seen = stage.shell(&id, &format!("cd {place}; cat etc/kept etc/changed; ls etc opaque")).await?;
        assert_eq!(seen, "keptnewetc:\nchanged\ndeep\nkept\n\nopaque:", "{place}");
        for line in
            ["touch new", "rm etc/kept", "chmod 700 etc", "mkdir opaque/x", "dd if=/dev/null of=etc/kept"]
        {
            let tried = stage.shell(&id, &format!("cd {place}; {line} 2>&1 || true")).await?;
            assert!(tried.contains("Read-only file system"), "{place}: {line}: {tried}");
        }
    }
    assert_eq!(stage.shell(&id, "cat /data/inner/of-host").await?, "of the host", "a mount inside an image");
    assert_eq!(stage.shell(&id, "/own/bin/busybox echo runs").await?, "runs");
    assert_eq!(
        stage.shell(&id, "touch /own/bin/x 2>&1 || true").await?,
        "touch: /own/bin/x: Read-only file system"
    );
    stage.shell(&id, "touch /bin/x").await?;
    assert_eq!(stage.shell(&id, "ls /own/bin/x 2>/dev/null || echo apart").await?, "apart");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_an_image_is_found_inside_it() -> Result {
    let stage = Stage::set().await?;
    let places = ["etc/deep", "/etc/deep", "./etc//deep/", "absolute", "climbing", "/climbing/."];
    let at = |n: usize| format!("/vol/{n}");
    let mut mounts: Vec<_> =
        places.iter().enumerate().map(|(n, sub_path)| part(&at(n), &stage.data, sub_path)).collect();
    mounts.push(part("/whole", &stage.data, "."));
    mounts.push(part("/own", &stage.image, "www"));
    let id = stage.run("parts", mounts).await?;
    for (n, sub_path) in places.iter().enumerate() {
        let place = at(n);
        assert_eq!(
            stage.shell(&id, &format!("ls {place}; cat {place}/note")).await?,
            "note\ndeep",
            "{sub_path}"
        );
        let tried = stage.shell(&id, &format!("touch {place}/new 2>&1 || true")).await?;
        assert!(tried.contains("Read-only file system"), "{sub_path}: {tried}");
    }
    assert_eq!(stage.shell(&id, "cat /whole/etc/deep/note").await?, "deep");
    assert_eq!(stage.shell(&id, "cat /own/index.html").await?, "hello from crimson");
    let tried = stage.shell(&id, "touch /own/new 2>&1 || true").await?;
    assert!(tried.contains("Read-only file system"), "of one layer: {tried}");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_is_refused_and_leaves_nothing() -> Result {
    let stage = Stage::set().await?;
    let data = stage.data.as_str();
    let whole = || mount("/vol", data);
    let table = [
        (mount("/vol", "127.0.0.1:5000/absent:1"), Code::NotFound, "absent"),
        (part("/vol", data, "missing"), Code::InvalidArgument, "does not exist"),
        (part("/vol", data, "etc/missing/x"), Code::InvalidArgument, "does not exist"),
        (part("/vol", data, "dangling"), Code::InvalidArgument, "does not exist"),
        (part("/vol", data, "etc/kept"), Code::InvalidArgument, "is not a directory"),
        (part("/vol", data, "../etc"), Code::InvalidArgument, ".."),
        (part("/vol", data, "/etc/../../etc"), Code::InvalidArgument, ".."),
        (Mount { readonly: false, ..whole() }, Code::InvalidArgument, "read-only"),
        (Mount { host_path: "/srv".to_owned(), ..whole() }, Code::InvalidArgument, "host path"),
        (Mount { propagation: 2, ..whole() }, Code::InvalidArgument, "travel"),
    ];
    for (n, (bad, code, text)) in table.into_iter().enumerate() {
        // One that is good stands before it, and has to be undone.
        let reply = stage.create(&format!("bad-{n}"), vec![mount("/good", data), bad.clone()]).await;
        let message = reply.as_ref().map_or_else(|status| status.message().to_owned(), Clone::clone);
        assert_eq!(code_of(&reply), code, "{bad:?}: {message}");
        assert!(message.starts_with("ImageVolumeMountFailed: ") && message.contains(text), "{message}");
    }
    assert_eq!(stage.node.cri().all_containers().await?, []);
    stage.node.cri().forget_image(data).await?;
    let store = stage.node.machine().path(&stage.node.root().join("images/leases"));
    assert_eq!(std::fs::read_dir(store)?.count(), 0, "nothing holds an image");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_outlives_its_image_and_the_daemon() -> Result {
    let mut stage = Stage::set().await?;
    let mounts = vec![mount("/by/tag", &stage.data_name), part("/by/id", &stage.data, "etc/deep")];
    let id = stage.create("kept", mounts).await?;
    let listed = stage.mounts_of(&id).await?;
    let by_tag = Image {
        image: stage.data.clone(),
        user_specified_image: stage.data_name.clone(),
        image_ref: stage.data.clone(),
    };
    let by_id = Image { user_specified_image: stage.data.clone(), ..by_tag.clone() };
    let expected = [
        Mount { image: Some(by_tag), ..mount("/by/tag", "") },
        Mount { image: Some(by_id), ..part("/by/id", "", "etc/deep") },
    ];
    assert_eq!(listed, expected, "kubelet finds the image by its id");

    stage.node.kill9().await?;
    stage.node.restart().await?;
    stage.node.cri().forget_image(&stage.data).await?;
    assert_eq!(stage.node.cri().image(&stage.data).await?, None);
    stage.node.cri().start(&id).await?;
    let line = "cat /by/tag/etc/changed /by/id/note";
    assert_eq!(stage.shell(&id, line).await?, "newdeep");
    stage.node.kill9().await?;
    stage.node.restart().await?;
    assert_eq!(stage.shell(&id, line).await?, "newdeep");
    assert_eq!(stage.mounts_of(&id).await?, expected);

    let later = stage.create("later", vec![mount("/vol", &stage.data)]).await;
    assert_eq!(
        code_of(&later),
        Code::NotFound,
        "what a container still uses is no image that can be asked for"
    );
    stage.node.cri().remove(&id).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_user_namespace_an_image_belongs_to_the_pods_root() -> Result {
    let mut stage = Stage::set().await?;
    let maps = || vec![IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    stage.pod = stage.node.pod("mapped");
    stage.pod.namespace_options().expect("it has some").userns_options =
        Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: maps(), gids: maps() });
    stage.pod_id = stage.node.cri().run_pod(&stage.pod).await?;
    let mounts = vec![
        mount("/data", &stage.data),
        mount("/one", &stage.image),
        part("/deep", &stage.data, "etc/deep"),
    ];
    let id = stage.run("mapped", mounts).await?;
    for path in ["/data", "/data/etc/kept", "/data/etc/changed", "/deep/note", "/one/bin/busybox"] {
        assert_eq!(stage.shell(&id, &format!("stat -c %u:%g {path}")).await?, "0:0", "{path}");
    }
    for path in ["/data/new", "/one/new", "/deep/new"] {
        assert_ne!(stage.node.cri().exec(&id, &["touch", path]).await?.exit_code, 0, "{path}");
    }
    stage.finish().await
}
