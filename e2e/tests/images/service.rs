//! The image service against a real registry.

use e2e::cri::{ImageFilter, ImageFsInfoRequest, ImageSpec, ListImagesRequest};
use e2e::{
    ContainerSpec, ImageBuilder, Layer, Media, Node, Options, PASSWORD, Registry, Result, USER, code_of,
    prefix_of,
};
use serde_json::json;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_found_by_every_name_and_removed() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "team/busybox", "1.0").await?;

    let id = cri.pull(&pushed.reference).await?;
    let hex = pushed.config_digest.trim_start_matches("sha256:");
    assert!(id.ends_with(hex), "the id {id} is the digest of the config, {hex}");
    assert_eq!(cri.pull(&pushed.reference).await?, id, "a second pull finds the same image");
    assert_eq!(cri.pull(&pushed.by_digest()).await?, id, "a pull by digest finds the same image");

    for name in [&pushed.reference, &pushed.by_digest(), &id, &hex.to_owned(), &prefix_of(hex)] {
        let image = cri.image(name).await?.unwrap_or_else(|| panic!("no image {name}"));
        assert_eq!(image.id, id, "found by {name}");
        assert!(image.size > 500_000, "busybox is larger than {}", image.size);
        assert_eq!(image.repo_tags, std::slice::from_ref(&pushed.reference));
        assert_eq!(image.repo_digests, [pushed.by_digest()]);
    }
    assert_eq!(cri.all_images().await?.len(), 1);
    let filtered = |name: &str| ListImagesRequest {
        filter: Some(ImageFilter { image: Some(ImageSpec { image: name.to_owned(), ..Default::default() }) }),
    };
    assert_eq!(cri.list_images(filtered(&pushed.reference)).await?.images.len(), 1);
    assert_eq!(cri.list_images(filtered("127.0.0.1:5000/other:1")).await?.images.len(), 0);

    cri.forget_image(&pushed.reference).await?;
    assert_eq!(cri.image(&pushed.reference).await?, None);
    assert_eq!(cri.all_images().await?, []);
    cri.forget_image(&pushed.reference).await?;
    cri.forget_image(&id).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_formats_and_their_indexes_are_understood() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    for (media, name) in [(Media::Oci, "oci"), (Media::Docker, "docker")] {
        let plain = registry.push(ImageBuilder::busybox(media)?, name, "plain").await?;
        let indexed = registry.push(ImageBuilder::busybox(media)?.indexed(), name, "indexed").await?;
        let id = cri.pull(&plain.reference).await?;
        assert_eq!(cri.pull(&indexed.reference).await?, id, "the index of {name} leads to the same image");
        let image = cri.image(&id).await?.expect("the image is there");
        assert!(
            image.repo_tags.contains(&plain.reference) && image.repo_tags.contains(&indexed.reference),
            "{image:?}"
        );
        assert!(image.repo_digests.contains(&indexed.by_digest()), "{image:?}");
        cri.forget_image(&plain.reference).await?;
        assert_eq!(
            cri.image(&indexed.reference).await?,
            None,
            "removing one name of {name} removes the image"
        );
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_laid_over_each_other_as_written() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let lower = Layer::new()
        .dir("data", 0o755)
        .file("data/kept", 0o640, b"kept")
        .file("data/dropped", 0o644, b"dropped")
        .file("data/changed", 0o644, b"old")
        .dir("hidden", 0o755)
        .file("hidden/below", 0o644, b"below")
        .owned_file("data/owned", 0o4755, (1000, 2000), b"owned")
        .hard_link("data/linked", "data/kept");
    let upper = Layer::new()
        .whiteout("data", "dropped")
        .file("data/changed", 0o600, b"new")
        .opaque("hidden")
        .file("hidden/above", 0o644, b"above")
        .symlink("data/pointer", "/data/kept");
    let image = ImageBuilder::busybox(Media::Oci)?.layer(lower).layer(upper);
    let image = registry.push(image, "layers", "1").await?;
    let image = cri.pull(&image.reference).await?;
    let pod = node.pod("layers");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.run(&pod_id, &ContainerSpec::lasting("look", &image), &pod).await?;

    assert_eq!(cri.shell(&id, "cd /data && echo *").await?, "changed kept linked owned pointer");
    assert_eq!(cri.shell(&id, "cd /hidden && echo *").await?, "above");
    assert_eq!(cri.shell(&id, "cat /data/changed /data/pointer").await?, "newkept");
    assert_eq!(cri.shell(&id, "stat -c '%u:%g %a' /data/owned").await?, "1000:2000 4755");
    assert_eq!(cri.shell(&id, "stat -c '%h %a' /data/kept").await?, "2 640");
    assert_eq!(cri.shell(&id, "stat -c '%a' /tmp /root").await?, "1777\n700");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_config_fills_what_the_container_leaves_open() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let image = ImageBuilder::busybox(Media::Docker)?
        .config("Entrypoint", json!(["sh", "-c"]))
        .config("Cmd", json!(["echo $GREETING from $(pwd) as $(id -u):$(id -g)"]))
        .config("Env", json!(["PATH=/bin", "GREETING=hello"]))
        .config("WorkingDir", json!("/www"))
        .config("User", json!("web"));
    let image = registry.push(image, "configured", "1").await?;
    let id = cri.pull(&image.reference).await?;
    let listed = cri.image(&id).await?.expect("the image is there");
    assert_eq!(
        (listed.username.as_str(), listed.uid),
        ("web", None),
        "the kubelet checks runAsNonRoot by this"
    );

    let pod = node.pod("configured");
    let pod_id = cri.run_pod(&pod).await?;
    let plain = cri.run(&pod_id, &ContainerSpec::new("plain", &id, &[]), &pod).await?;
    let mut other = ContainerSpec::new("other", &id, &[]).with_env("GREETING", "bye");
    other.config.args = vec!["echo $GREETING $0".to_owned(), "x".to_owned()];
    let other = cri.run(&pod_id, &other, &pod).await?;
    for container in [&plain, &other] {
        node.exited(container).await?;
    }
    let line = |text: &str| [("stdout".to_owned(), "F".to_owned(), text.to_owned())];
    assert_eq!(node.container_log("configured", "plain/0.log")?, line("hello from /www as 1000:1000"));
    assert_eq!(node.container_log("configured", "other/0.log")?, line("bye x"));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn https_with_a_password_works_and_a_wrong_one_is_told_apart() -> Result {
    let machine = std::sync::Arc::new(e2e::Machine::boot().await?);
    let mut registry = Registry::start(&machine).await?;
    registry.start_secure().await?;
    let node = Node::start(Options { machine: Some(machine), ..Options::default() }).await?;
    registry.describe_to(&node.registry_config_dir())?;
    let cri = node.cri();
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "private/busybox", "1").await?;
    let reference = pushed.reference.replace(registry.host(), registry.secure_host());

    let stranger = cri.pull(&reference).await;
    let impostor = cri.pull_as(&reference, USER, "guess").await;
    for refused in [stranger, impostor] {
        assert!(matches!(code_of(&refused), Code::Unauthenticated | Code::PermissionDenied), "{refused:?}");
        let message = refused.unwrap_err().message().to_owned();
        assert!(message.contains(&reference) && !message.contains("guess"), "{message}");
    }
    assert_eq!(cri.all_images().await?, []);
    let id = cri.pull_as(&reference, USER, PASSWORD).await?;
    assert_eq!(cri.image(&reference).await?.expect("pulled").id, id);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pulled_is_named() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    registry.push(ImageBuilder::busybox(Media::Oci)?, "there", "1").await?;
    for name in ["there:2", "nowhere:1"] {
        let reference = format!("{}/{name}", registry.host());
        let missing = cri.pull(&reference).await;
        assert_eq!(code_of(&missing), Code::NotFound, "{missing:?}");
        assert!(missing.unwrap_err().message().contains(&reference));
        assert_eq!(cri.image(&reference).await?, None, "an unknown image is no error to ask for");
    }
    for malformed in
        ["", "127.0.0.1:5000/UPPER/case", "with space", "127.0.0.1:5000/x@sha256:12", "x:/y", "../x"]
    {
        let refused = cri.pull(malformed).await;
        assert_eq!(code_of(&refused), Code::InvalidArgument, "{malformed:?}: {refused:?}");
        assert!(refused.unwrap_err().message().contains(malformed), "the message names {malformed:?}");
    }
    let unreachable = cri.pull("127.0.0.1:9/busybox:1").await;
    let message = unreachable.expect_err("nobody listens there").message().to_owned();
    assert!(message.starts_with("RegistryUnavailable"), "the kubelet matches this prefix: {message}");
    assert_eq!(cri.all_images().await?, []);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_or_missing_blob_leaves_nothing_behind() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let salted = |salt: &str| -> Result<ImageBuilder> {
        Ok(ImageBuilder::busybox(Media::Oci)?.layer(Layer::new().file(
            "salt",
            0o644,
            salt.repeat(5000).as_bytes(),
        )))
    };
    let bad_layer = registry.push(salted("a")?, "bad-layer", "1").await?;
    registry.corrupt(bad_layer.layer_digests.last().expect("layers"))?;
    let bad_config = registry.push(salted("b")?, "bad-config", "1").await?;
    registry.corrupt(&bad_config.config_digest)?;
    let lost_layer = registry.push(salted("c")?, "lost-layer", "1").await?;
    registry.lose(lost_layer.layer_digests.last().expect("layers"))?;

    for (image, digest) in [
        (&bad_layer, bad_layer.layer_digests.last().expect("layers")),
        (&bad_config, &bad_config.config_digest),
        (&lost_layer, lost_layer.layer_digests.last().expect("layers")),
    ] {
        let refused = cri.pull(&image.reference).await;
        assert_ne!(code_of(&refused), Code::Ok, "{} was accepted", image.reference);
        let message = refused.unwrap_err().message().to_owned();
        assert!(message.contains(digest.as_str()) || message.contains(&image.reference), "{message}");
        assert_eq!(cri.image(&image.reference).await?, None);
    }
    assert_eq!(cri.all_images().await?, []);
    let good = registry.push(salted("d")?, "good", "1").await?;
    cri.pull(&good.reference).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tar_entries_never_reach_outside() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let outside = node.dir().join("outside");
    std::fs::create_dir(&outside)?;
    let target = outside.display().to_string();
    let climbing = format!("{}{target}/climbed", "../".repeat(12));
    let hostile = [
        ("dots", Layer::new().file(&climbing, 0o644, b"evil")),
        ("absolute", Layer::new().file(&format!("{target}/absolute"), 0o644, b"evil")),
        ("link", Layer::new().symlink("way", &target).file("way/followed", 0o644, b"evil")),
        ("hard", Layer::new().hard_link("passwd", "../../../../../../etc/hostname")),
    ];
    for (name, layer) in hostile {
        let image = ImageBuilder::busybox(Media::Oci)?.layer(layer);
        let image = registry.push(image, &format!("hostile/{name}"), "1").await?;
        // An absolute name or a link is read as beneath the image's root, a climbing one is refused; none gets out.
        let reply = cri.pull(&image.reference).await;
        assert_eq!(std::fs::read_dir(&outside)?.count(), 0, "{name} got out");
        if matches!(name, "dots" | "hard") {
            let status = reply.expect_err("a climbing name is refused");
            assert!(
                status.message().contains(".."),
                "{name}: the message names the entry: {}",
                status.message()
            );
            assert_eq!(status.code(), Code::InvalidArgument, "{name}: {}", status.message());
            assert_eq!(cri.image(&image.reference).await?, None);
        }
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_and_freed() -> Result {
    let (node, registry) =
        Node::start_with_registry(Options { root_mib: Some(12), ..Options::default() }).await?;
    let cri = node.cri();
    let free = |node: &Node| -> Result<u64> {
        let stat = rustix::fs::statvfs(node.machine().path(&node.root()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    };
    let before = free(&node)?;
    let noise: Vec<u8> =
        (0_u32..24 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let large = Layer::new().file("large", 0o644, &noise);
    let large = registry.push(ImageBuilder::busybox(Media::Oci)?.layer(large), "large", "1").await?;
    let refused = cri.pull(&large.reference).await;
    assert_eq!(code_of(&refused), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(cri.all_images().await?, []);
    assert!(before.saturating_sub(free(&node)?) < 64 << 10, "{} of {before} bytes are free", free(&node)?);

    let small = registry.push(ImageBuilder::busybox(Media::Oci)?, "small", "1").await?;
    cri.pull(&small.reference).await?;
    cri.forget_image(&small.reference).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_side_by_side_agree() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let image = registry.push(ImageBuilder::busybox(Media::Oci)?, "shared", "1").await?;
    let together = |calls: Vec<tokio::task::JoinHandle<Result<String>>>| async {
        let mut replies = Vec::new();
        for call in calls {
            replies.push(call.await??);
        }
        Ok::<_, anyhow::Error>(replies)
    };
    let pulls = (0..8).map(|_| {
        let (cri, name) = (cri.clone(), image.reference.clone());
        tokio::spawn(async move { Ok(cri.pull(&name).await?) })
    });
    let ids = together(pulls.collect()).await?;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(cri.all_images().await?.len(), 1);
    let removals = (0..8).map(|_| {
        let (cri, name) = (cri.clone(), image.reference.clone());
        tokio::spawn(async move { Ok(cri.forget_image(&name).await.map(|()| String::new())?) })
    });
    together(removals.collect()).await?;
    assert_eq!(cri.all_images().await?, []);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_file_system_is_one_that_can_be_asked_for_space() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let used = || async {
        let info = cri.image_fs_info(ImageFsInfoRequest {}).await?;
        let first = info.image_filesystems.into_iter().next().expect("a file system");
        let mountpoint = first.fs_id.expect("an id").mountpoint;
        rustix::fs::statvfs(node.machine().path(std::path::Path::new(&mountpoint)))?;
        assert!(first.timestamp > 0);
        Ok::<_, anyhow::Error>(first.used_bytes.map_or(0, |it| it.value))
    };
    let before = used().await?;
    let image = registry.push(ImageBuilder::busybox(Media::Oci)?, "sized", "1").await?;
    cri.pull(&image.reference).await?;
    let grown = async {
        while used().await? < before + 500_000 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(e2e::patience(30), grown).await??;
    node.finish().await
}
