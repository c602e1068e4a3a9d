//! Requests that can not be served: each gets a typed code and a message that names the object, and leaves nothing.

use e2e::cri::{
    CreateContainerRequest, ExecSyncRequest, Int64Value, Mount, PodSandboxConfig, PodSandboxMetadata,
    ReopenContainerLogRequest, RunPodSandboxRequest, SecurityProfile, security_profile::ProfileType,
};
use e2e::{ContainerSpec, ImageBuilder, Media, Node, Options, Result, code_of};
use tonic::{Code, Status};

/// Checks that a call was refused with one of some codes and that the message names something.
#[track_caller]
fn refused<T: std::fmt::Debug>(reply: std::result::Result<T, Status>, codes: &[Code], named: &str) {
    if let Some(complaint) = complaint_about(reply, codes, named) {
        panic!("{complaint}");
    }
}

/// What is wrong with the way in which a call was answered that had to be refused.
fn complaint_about<T: std::fmt::Debug>(
    reply: std::result::Result<T, Status>,
    codes: &[Code],
    named: &str,
) -> Option<String> {
    match reply {
        Ok(reply) => Some(format!("the call about {named} must be refused: {reply:?}")),
        Err(status) if !codes.contains(&status.code()) => {
            Some(format!("{:?} is not in {codes:?}: {}", status.code(), status.message()))
        }
        Err(status) if !status.message().contains(named) => {
            Some(format!("{named:?} is not named: {}", status.message()))
        }
        Err(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    let id = "0123456789abcdef".repeat(4);
    let not_found = [Code::NotFound];
    refused(cri.pod(&id).await, &not_found, &id);
    refused(cri.container(&id).await, &not_found, &id);
    refused(cri.start(&id).await, &not_found, &id);
    refused(cri.exec(&id, &["true"]).await, &not_found, &id);
    let reopen = ReopenContainerLogRequest { container_id: id.clone() };
    refused(cri.reopen_container_log(reopen).await, &not_found, &id);
    let request = CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(ContainerSpec::new("x", "busybox", &["true"]).config),
        sandbox_config: Some(node.pod("x").config),
    };
    refused(cri.create_container(request).await, &not_found, &id);

    // What is gone need not be stopped or removed: these succeed, since the kubelet repeats them.
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    cri.stop(&id, 0).await?;
    cri.remove(&id).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_ids() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    for reply in [cri.pod("").await.map(drop), cri.container("").await.map(drop), cri.start("").await] {
        assert!(matches!(code_of(&reply), Code::InvalidArgument | Code::NotFound), "{reply:?}");
    }
    let exec = cri.exec_sync(ExecSyncRequest::default()).await;
    assert!(matches!(code_of(&exec), Code::InvalidArgument | Code::NotFound), "{exec:?}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_without_metadata() -> Result {
    let node = Node::boot().await?;
    let cri = node.cri();
    let run = |config: Option<PodSandboxConfig>| {
        let cri = cri.clone();
        async move { cri.run_pod_sandbox(RunPodSandboxRequest { config, runtime_handler: String::new() }).await }
    };
    let with = |change: fn(&mut PodSandboxMetadata)| {
        let mut config = node.pod("incomplete").config;
        change(config.metadata.as_mut().expect("metadata"));
        Some(config)
    };
    let invalid = [Code::InvalidArgument];
    refused(run(None).await, &invalid, "config");
    refused(
        run(Some(PodSandboxConfig { metadata: None, ..node.pod("incomplete").config })).await,
        &invalid,
        "metadata",
    );
    refused(run(with(|it| it.name.clear())).await, &invalid, "name");
    refused(run(with(|it| it.namespace.clear())).await, &invalid, "namespace");
    refused(run(with(|it| it.uid.clear())).await, &invalid, "uid");
    let mut no_hostname = node.pod("nameless");
    no_hostname.config.hostname = "x".repeat(65);
    refused(cri.run_pod(&no_hostname).await, &invalid, "hostname");
    assert_eq!(cri.all_pods().await?, []);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_broken_runtimes() -> Result {
    // Handlers that are named replace those found on PATH, so the ones of this host are named beside the ghost.
    let mut args = vec!["--runtime".to_owned(), "ghost=/no/such/runtime".to_owned()];
    for program in ["/usr/bin/crun", "/usr/sbin/runc", "/usr/bin/runc"] {
        if std::fs::metadata(program).is_ok() {
            args.extend([
                "--runtime".to_owned(),
                format!("{}={program}", program.replace('/', "-").trim_start_matches('-')),
            ]);
        }
    }
    let (node, registry) = Node::start_with_registry(Options { args, ..Options::default() }).await?;
    let cri = node.cri();
    let mut unknown = node.pod("unknown");
    unknown.handler = "nobody-knows".to_owned();
    refused(cri.run_pod(&unknown).await, &[Code::InvalidArgument, Code::NotFound], "nobody-knows");
    let mut ghost = node.pod("ghost");
    ghost.handler = "ghost".to_owned();
    let reply = cri.run_pod(&ghost).await;
    // Either the pod is refused at once, or its first container is.
    match reply {
        Err(_) => {
            refused(reply, &[Code::FailedPrecondition, Code::NotFound, Code::Unavailable], "/no/such/runtime")
        }
        Ok(pod_id) => {
            let image = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
            let image = cri.pull(&image.reference).await?;
            let reply = cri.run(&pod_id, &ContainerSpec::lasting("c", &image), &ghost).await;
            refused(
                reply,
                &[Code::FailedPrecondition, Code::NotFound, Code::Unavailable],
                "/no/such/runtime",
            );
        }
    }
    // The default runtime is not concerned.
    cri.run_pod(&node.pod("fine")).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_can_not_be_made() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let image = cri.pull(&pushed.reference).await?;
    let pod = node.pod("picky");
    let pod_id = cri.run_pod(&pod).await?;
    let good = || ContainerSpec::lasting("c", &image);
    let mount = |container: &str, host: &str| {
        let mut spec = good();
        spec.config.mounts.push(Mount {
            container_path: container.to_owned(),
            host_path: host.to_owned(),
            ..Default::default()
        });
        spec
    };
    // A missing directory is made, as other runtimes do; beneath a file there can be none.
    let absent = node.dir().join("config.toml/below").display().to_string();
    let broken = |change: fn(&mut ContainerSpec)| {
        let mut spec = good();
        change(&mut spec);
        spec
    };
    let invalid = Code::InvalidArgument;
    let unpulled = format!("{}/unpulled:1", registry.host());
    let cases = [
        (ContainerSpec::lasting("c", &unpulled), vec![Code::NotFound], unpulled.as_str()),
        (broken(|it| it.config.metadata = None), vec![invalid], "metadata"),
        (broken(|it| it.config.metadata.as_mut().expect("metadata").name.clear()), vec![invalid], "name"),
        (broken(|it| it.config.image = None), vec![invalid], "image"),
        (mount("/v", &absent), vec![Code::NotFound, invalid, Code::FailedPrecondition], absent.as_str()),
        (mount("", "/tmp"), vec![invalid], "container_path"),
        (mount("/v", "relative/path"), vec![invalid], "relative/path"),
        (
            good().secured(|it| it.run_as_username = "nobody-here".to_owned()),
            vec![invalid, Code::NotFound],
            "nobody-here",
        ),
        (good().secured(|it| it.run_as_group = Some(Int64Value { value: 7 })), vec![invalid], "group"),
        (
            good().secured(|it| {
                it.seccomp = Some(SecurityProfile {
                    profile_type: ProfileType::Localhost.into(),
                    localhost_ref: "/no/such/profile.json".to_owned(),
                });
            }),
            vec![Code::NotFound, invalid, Code::FailedPrecondition],
            "/no/such/profile.json",
        ),
        (
            good().secured(|it| {
                it.capabilities = Some(e2e::cri::Capability {
                    add_capabilities: vec!["NO_SUCH_POWER".to_owned()],
                    ..Default::default()
                });
            }),
            vec![invalid],
            "NO_SUCH_POWER",
        ),
    ];
    let mut complaints = Vec::new();
    for (spec, codes, named) in cases {
        complaints.extend(complaint_about(cri.create(&pod_id, &spec, &pod).await, &codes, named));
        assert_eq!(cri.all_containers().await?, [], "nothing half-made after the refusal about {named}");
    }
    let request =
        CreateContainerRequest { pod_sandbox_id: pod_id.clone(), config: None, sandbox_config: None };
    refused(cri.create_container(request).await, &[invalid], "config");

    // The name was never taken, so a good container gets it.
    let id = cri.run(&pod_id, &good(), &pod).await?;
    cri.shell(&id, "true").await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_in_a_stopped_pod() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let image = cri.pull(&pushed.reference).await?;
    let pod = node.pod("stopped");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.create(&pod_id, &ContainerSpec::lasting("early", &image), &pod).await?;
    cri.stop_pod(&pod_id).await?;
    let reply = cri.create(&pod_id, &ContainerSpec::lasting("late", &image), &pod).await;
    refused(reply, &[Code::FailedPrecondition], "stopped");
    assert_ne!(code_of(&cri.start(&id).await), Code::Ok, "its pod has stopped");
    node.finish().await
}

/// A plugin that fails makes the pod fail with the plugin's own words, and what it had set up is undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_fails() -> Result {
    let node = Node::start(Options { without_network: true, ..Options::default() }).await?;
    let cri = node.cri();
    let list = serde_json::json!({
        "cniVersion": "1.0.0", "name": "broken",
        "plugins": [
            { "type": "bridge", "bridge": node.network().bridge, "isGateway": true,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": format!("{}0/24", node.network().prefix) }]],
                        "dataDir": node.network().leases } },
            { "type": "no-such-plugin" },
        ],
    });
    std::fs::write(node.network().conf_dir.join("10-broken.conflist"), list.to_string())?;
    let reply = retry_until_configured(&node).await;
    refused(
        reply,
        &[Code::Internal, Code::FailedPrecondition, Code::NotFound, Code::Unavailable],
        "no-such-plugin",
    );
    assert_eq!(cri.all_pods().await?.iter().filter(|it| it.state == 0).count(), 0, "no pod is ready");
    node.finish().await
}

/// Runs a pod until the daemon has seen the conf list that was just written: before that it says there is none.
async fn retry_until_configured(node: &Node) -> std::result::Result<String, Status> {
    let deadline = tokio::time::Instant::now() + e2e::patience(30);
    for attempt in 0.. {
        let reply = node.cri().run_pod(&node.pod("unlucky").attempt(attempt)).await;
        let configured =
            reply.as_ref().map_or_else(|status| status.message().contains("no-such-plugin"), |_| true);
        if configured || tokio::time::Instant::now() > deadline {
            return reply;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    unreachable!("the loop above returns")
}
