//! The server as such: identity, readiness, the whole method table, socket, configuration, shutdown.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use e2e::cri::{RuntimeConfigRequest, StatusRequest, UpdateRuntimeConfigRequest, VersionRequest};
use e2e::{CgroupDriver, Node, Options, Result, code_of};
use tonic::Code;

/// Every method of CRI v1 in Kubernetes 1.36: service, name, whether it answers with a stream.
const METHODS: [(&str, &str, bool); 41] = [
    ("RuntimeService", "Version", false),
    ("RuntimeService", "RunPodSandbox", false),
    ("RuntimeService", "StopPodSandbox", false),
    ("RuntimeService", "RemovePodSandbox", false),
    ("RuntimeService", "PodSandboxStatus", false),
    ("RuntimeService", "ListPodSandbox", false),
    ("RuntimeService", "StreamPodSandboxes", true),
    ("RuntimeService", "CreateContainer", false),
    ("RuntimeService", "StartContainer", false),
    ("RuntimeService", "StopContainer", false),
    ("RuntimeService", "RemoveContainer", false),
    ("RuntimeService", "ListContainers", false),
    ("RuntimeService", "StreamContainers", true),
    ("RuntimeService", "ContainerStatus", false),
    ("RuntimeService", "UpdateContainerResources", false),
    ("RuntimeService", "ReopenContainerLog", false),
    ("RuntimeService", "ExecSync", false),
    ("RuntimeService", "Exec", false),
    ("RuntimeService", "Attach", false),
    ("RuntimeService", "PortForward", false),
    ("RuntimeService", "ContainerStats", false),
    ("RuntimeService", "ListContainerStats", false),
    ("RuntimeService", "StreamContainerStats", true),
    ("RuntimeService", "PodSandboxStats", false),
    ("RuntimeService", "ListPodSandboxStats", false),
    ("RuntimeService", "StreamPodSandboxStats", true),
    ("RuntimeService", "UpdateRuntimeConfig", false),
    ("RuntimeService", "Status", false),
    ("RuntimeService", "CheckpointContainer", false),
    ("RuntimeService", "GetContainerEvents", true),
    ("RuntimeService", "ListMetricDescriptors", false),
    ("RuntimeService", "ListPodSandboxMetrics", false),
    ("RuntimeService", "StreamPodSandboxMetrics", true),
    ("RuntimeService", "RuntimeConfig", false),
    ("RuntimeService", "UpdatePodSandboxResources", false),
    ("ImageService", "ListImages", false),
    ("ImageService", "StreamImages", true),
    ("ImageService", "ImageStatus", false),
    ("ImageService", "PullImage", false),
    ("ImageService", "RemoveImage", false),
    ("ImageService", "ImageFsInfo", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_who_it_is() -> Result {
    let node = Node::boot().await?;
    let version = node.cri().version(VersionRequest { version: "v1".to_owned() }).await?;
    assert_eq!(version.version, "0.1.0", "the kubelet refuses any other");
    assert_eq!(version.runtime_name, "crimson");
    assert_eq!(version.runtime_api_version, "v1");
    assert_eq!(
        version.runtime_version.split('.').count(),
        3,
        "{} is a semantic version",
        version.runtime_version
    );
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_network_is_ready() -> Result {
    let node = Node::boot().await?;
    let status = node.cri().status(StatusRequest { verbose: true }).await?;
    let conditions = status.status.unwrap_or_default().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|it| it.r#type == kind).expect("the condition is there");
        assert!(condition.status, "{condition:?}");
    }
    let handlers: Vec<&str> = status.runtime_handlers.iter().map(|it| it.name.as_str()).collect();
    assert!(handlers.contains(&""), "the default handler is listed: {handlers:?}");
    let config: serde_json::Value =
        serde_json::from_str(status.info.get("config").expect("info has the config"))?;
    assert!(config.get("sandboxImage").is_some(), "kubeadm reads sandboxImage: {config}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cgroup_driver_is_the_one_asked_for() -> Result {
    let node = Node::boot().await?;
    let linux = node.cri().runtime_config(RuntimeConfigRequest {}).await?.linux.expect("linux is set");
    let asked_for = match CgroupDriver::asked_for() {
        CgroupDriver::Cgroupfs => e2e::cri::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => e2e::cri::CgroupDriver::Systemd,
    };
    assert_eq!(linux.cgroup_driver(), asked_for);
    let cidr = e2e::cri::RuntimeConfig {
        network_config: Some(e2e::cri::NetworkConfig { pod_cidr: "10.1.0.0/24,fd00::/64".to_owned() }),
    };
    node.cri().update_runtime_config(UpdateRuntimeConfigRequest { runtime_config: Some(cidr) }).await?;
    node.cri().update_runtime_config(UpdateRuntimeConfigRequest::default()).await?;
    node.finish().await
}

/// A method that later work fills in says so by name; one that is there answers an empty request with a typed code.
#[tokio::test(flavor = "multi_thread")]
async fn all_41_methods_answer() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    for (service, method, streams) in METHODS {
        let answer = async {
            if streams {
                cri.call_stream::<(), ()>(service, method, ()).await.map(drop)
            } else {
                cri.call::<(), ()>(service, method, ()).await
            }
        };
        // An event stream that is served stays open without a message: that is an answer, too.
        let limit = e2e::patience(if streams { 2 } else { 30 });
        let Ok(reply) = tokio::time::timeout(limit, answer).await else {
            assert!(streams, "{method} does not answer");
            continue;
        };
        let Err(status) = reply else { continue };
        match status.code() {
            Code::Unimplemented => assert!(status.message().contains(method), "{method}: {status:?}"),
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => {}
            other => panic!("{method} answers an empty request with {other:?}: {}", status.message()),
        }
    }
    let nonsense = cri.call::<(), ()>("RuntimeService", "NoSuchMethod", ()).await;
    assert_eq!(code_of(&nonsense), Code::Unimplemented);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_root_alone() -> Result {
    let node = Node::boot().await?;
    let socket = std::fs::metadata(node.socket())?;
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let parent = std::fs::metadata(node.socket().parent().expect("a socket in a directory"))?;
    assert_eq!(parent.permissions().mode() & 0o777, 0o700);
    let state = std::fs::metadata(node.state())?;
    assert_eq!(state.permissions().mode() & 0o777, 0o711, "others may pass, and see nothing");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_file_does_not_keep_the_server_from_starting() -> Result {
    let mut node = Node::boot().await?;
    node.kill9().await?;
    assert!(node.socket().try_exists()?, "the crash left the socket file");
    node.restart().await?;
    node.cri().version(VersionRequest::default()).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_root_is_refused() -> Result {
    let node = Node::boot().await?;
    let mut second = node.daemon_command("serve")?;
    second.arg("--root").arg(node.root()).arg("--state").arg(node.state()).arg("--socket").arg(node.socket());
    second
        .arg("--config")
        .arg(node.dir().join("config.toml"))
        .args(["--cgroup-driver", CgroupDriver::asked_for().flag()]);
    let output = tokio::time::timeout(e2e::patience(30), second.output()).await??;
    assert!(!output.status.success(), "it must not run");
    node.cri().version(VersionRequest::default()).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_configuration_passes_its_own_check() -> Result {
    let node = Node::boot().await?;
    let output = node.daemon_command("config default")?.output().await?;
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.is_empty());
    let path = node.dir().join("default.toml");
    std::fs::write(&path, &output.stdout)?;
    let check = node.daemon_command("config check")?.arg("--config").arg(&path).output().await?;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_its_file_and_key() -> Result {
    let node = Node::boot().await?;
    let path = node.dir().join("wrong.toml");
    for (text, named) in
        [("surprise = true\n", "surprise"), ("root = 7\n", "root"), ("root = \"/x\n", "wrong.toml")]
    {
        std::fs::write(&path, text)?;
        for command in ["config check", "serve"] {
            let mut command = node.daemon_command(command)?;
            command.arg("--config").arg(&path);
            let output = tokio::time::timeout(e2e::patience(30), command.output()).await??;
            let stderr = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            assert!(!output.status.success(), "{text:?} was accepted");
            assert!(stderr.contains("wrong.toml") && stderr.contains(named), "{text:?}: {stderr}");
        }
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_in_overrides_the_file() -> Result {
    let node = Node::boot().await?;
    let path = node.dir().join("with-drop-in.toml");
    std::fs::write(&path, "")?;
    let drop_ins = node.dir().join("with-drop-in.toml.d");
    std::fs::create_dir(&drop_ins)?;
    std::fs::write(drop_ins.join("10-surprise.toml"), "surprise = true\n")?;
    let output = node.daemon_command("config check")?.arg("--config").arg(&path).output().await?;
    let stderr = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && stderr.contains("10-surprise.toml"),
        "the drop-in was read: {stderr}"
    );
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_cni_config_only_host_network_pods_run() -> Result {
    let node = Node::start(Options { without_network: true, ..Options::default() }).await?;
    let cri = node.cri();
    let status = cri.status(StatusRequest::default()).await?.status.unwrap_or_default();
    let network =
        status.conditions.iter().find(|it| it.r#type == "NetworkReady").expect("the condition is there");
    assert!(!network.status && !network.reason.is_empty() && !network.message.is_empty(), "{network:?}");
    let runtime =
        status.conditions.iter().find(|it| it.r#type == "RuntimeReady").expect("the condition is there");
    assert!(runtime.status, "{runtime:?}");

    let refused = cri.run_pod(&node.pod("bridged")).await;
    assert_ne!(code_of(&refused), Code::Ok, "there is no network to give");
    assert_ne!(code_of(&refused), Code::Unknown, "{refused:?}");
    assert_eq!(cri.all_pods().await?, [], "nothing half-made is listed");

    let id = cri.run_pod(&node.pod("hosted").on_host_network()).await?;
    assert_eq!(cri.pod(&id).await?.state(), e2e::cri::PodSandboxState::SandboxReady);
    node.network().enable()?;
    let ready = async {
        loop {
            let status = cri.status(StatusRequest::default()).await?.status.unwrap_or_default();
            if status.conditions.iter().any(|it| it.r#type == "NetworkReady" && it.status) {
                return Ok::<_, tonic::Status>(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(e2e::patience(30), ready).await??;
    let bridged = cri.run_pod(&node.pod("bridged").attempt(1)).await?;
    assert!(cri.pod_ip(&bridged).await?.starts_with(&node.network().prefix));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_running_calls_end() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let image = registry.push(e2e::ImageBuilder::busybox(e2e::Media::Oci)?, "drain", "1").await?;
    let image = cri.pull(&image.reference).await?;
    let pod = node.pod("drain");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &e2e::ContainerSpec::lasting("keeper", &image), &pod).await?;

    let (busy, target) = (cri.clone(), id.clone());
    let call = tokio::spawn(async move {
        busy.exec(&target, &["sh", "-c", "touch /tmp/begun; sleep 1; echo done"]).await
    });
    while cri.exec(&id, &["test", "-e", "/tmp/begun"]).await?.exit_code != 0 {}
    let status = node.stop().await?;
    assert!(status.success(), "{status}");
    let output = call.await??;
    assert_eq!((output.exit_code, output.stdout.as_slice()), (0, b"done\n".as_slice()));

    node.restart().await?;
    assert_eq!(node.cri().container(&id).await?.state(), e2e::cri::ContainerState::ContainerRunning);
    node.finish().await
}
