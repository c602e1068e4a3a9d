//! Images that containers have as volumes: what is held for how long, what the monitor is told, what is refused.

use monitor_api::ImageMount;

use super::super::faults::Strike;
use super::*;

const DATA: &str = "example.test/data:1";

/// A node that has a second image, with two layers: a directory, a file and links are in them.
fn node() -> (Node, PathBuf) {
    let node = Node::new();
    let dir = node.dir.path().join("data");
    for path in ["upper/etc/deep", "lower/etc"] {
        std::fs::create_dir_all(dir.join(path)).unwrap();
    }
    std::fs::write(dir.join("lower/etc/motd"), "").unwrap();
    for (link, target) in [("inside", "/etc/deep"), ("climbing", "../../../../etc/deep"), ("dangling", "/no")]
    {
        std::os::unix::fs::symlink(target, dir.join("upper").join(link)).unwrap();
    }
    let config = image::ImageSource::resolve(&*node.images, IMAGE).unwrap().config.clone();
    node.images.add(DATA, (*config).clone(), vec![dir.join("upper"), dir.join("lower")]).unwrap();
    (node, dir)
}

fn leases(node: &Node) -> Vec<String> {
    image::ImageSource::leases(&*node.images)
}

async fn create(pods: &Pods, mounts: Vec<v1::Mount>) -> Result<ContainerId, Arc<PodError>> {
    let sandbox_id = pods.run_sandbox(sandbox("web")).await?;
    pods.create_container(sandbox_id.as_str(), container_with("app", mounts)).await
}

#[tokio::test]
async fn images_are_held_from_create_to_remove_and_mounted_by_the_monitor() {
    let (node, dir) = node();
    let pods = node.recovered().await;
    let mounts = vec![
        image_mount("/data", DATA, ""),
        image_mount("/own", IMAGE, ""),
        image_mount("/etc/x", DATA, "/etc/./deep"),
    ];
    let id = create(&pods, mounts).await.unwrap();
    assert_eq!(
        leases(&node),
        [id.to_string(), format!("{id}.0"), format!("{id}.1")],
        "one lease for each image"
    );
    let data = image::ImageSource::resolve(&*node.images, DATA).unwrap();
    node.images.remove(&data.id);
    drop(pods);

    let pods = node.recovered().await;
    let seen = pods.container(id.as_str()).unwrap();
    assert_eq!(seen.image_volumes.len(), 3);
    assert!(seen.image_volumes[0].image == data.id && seen.image_volumes[2].image == data.id);
    pods.start_container(id.as_str()).await.unwrap();
    let made = node.monitors.request(&id).unwrap();
    let layers = vec![dir.join("upper"), dir.join("lower")];
    let place = |n: usize| seen.bundle.join("images").join(n.to_string());
    let whole = ImageMount { target: place(0), layers: layers.clone(), sub_path: PathBuf::new() };
    assert_eq!(made.images[0], whole);
    assert_eq!(made.images[2], ImageMount { target: place(2), layers, sub_path: "etc/deep".into() });
    let spec: serde_json::Value =
        serde_json::from_slice(&std::fs::read(seen.bundle.join("config.json")).unwrap()).unwrap();
    let bound = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/etc/x");
    assert_eq!(bound.unwrap()["source"], place(2).to_str().unwrap());

    pods.remove_sandbox(seen.sandbox.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_and_leaves_nothing() {
    let (node, _) = node();
    let pods = node.recovered().await;
    for (mount, kind, text) in [
        (image_mount("/d", "example.test/no:1", ""), ErrorKind::NotFound, "not found"),
        (image_mount("/d", DATA, "missing"), ErrorKind::InvalidArgument, "does not exist"),
        (image_mount("/d", DATA, "etc/motd"), ErrorKind::InvalidArgument, "is not a directory"),
        (image_mount("/d", DATA, "etc/motd/x"), ErrorKind::InvalidArgument, "does not exist"),
        (image_mount("/d", DATA, "dangling"), ErrorKind::InvalidArgument, "does not exist"),
    ] {
        let error = create(&pods, vec![image_mount("/first", DATA, "etc"), mount]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let message = error.to_string();
        assert!(message.starts_with("ImageVolumeMountFailed: ") && message.contains(text), "{message}");
        assert_eq!(leases(&node), Vec::<String>::new());
    }
    for path in ["inside", "climbing", "etc/../etc"] {
        let refused = path.contains("..");
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: path.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..v1::ImageSpec::default() }),
            mounts: vec![image_mount("/d", DATA, path)],
            ..v1::ContainerConfig::default()
        };
        assert_eq!(ContainerRequest::parse(config).is_err(), refused, "{path}");
    }
    create(&pods, vec![image_mount("/a", DATA, "inside"), image_mount("/b", DATA, "climbing")])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_creation_that_was_cut_off_or_failed_gives_its_leases_back() {
    let (node, dir) = node();
    let pods = node.recovered().await;
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    pods.shared.faults.strike(("create container", "image volumes"), Strike::KillAfter);
    let mounts = vec![image_mount("/a", IMAGE, ""), image_mount("/b", DATA, "")];
    let creating = pods.create_container(sandbox_id.as_str(), container_with("app", mounts.clone()));
    tokio::select! {
        _ = creating => panic!("the step was not reached"),
        () = pods.shared.faults.ended.notified() => {}
    }
    assert_eq!(leases(&node).len(), 3);
    drop(pods);
    let pods = node.recovered().await;
    assert_eq!(leases(&node), Vec::<String>::new());

    std::fs::remove_dir_all(dir).unwrap();
    let wanted = container_with("other", mounts);
    let error = pods.create_container(sandbox_id.as_str(), wanted).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().starts_with("ImageVolumeMountFailed: image"), "{error}");
    assert_eq!(leases(&node), Vec::<String>::new());
}

#[tokio::test]
async fn a_lease_of_a_volume_without_its_container_is_a_stray() {
    let (node, _) = node();
    let pods = node.recovered().await;
    let id = create(&pods, vec![image_mount("/a", DATA, "")]).await.unwrap();
    assert_eq!(pods.strays().await.unwrap(), []);
    let data = image::ImageSource::resolve(&*node.images, DATA).unwrap();
    let nobody = format!("{}.0", ContainerId::from_random([7; 32]));
    image::ImageSource::lease(&*node.images, &nobody, &data.id).await.unwrap();
    let strays = pods.strays().await.unwrap();
    assert_eq!(strays.len(), 1, "{strays:?}");
    drop(pods);
    node.recovered().await;
    assert_eq!(leases(&node), [id.to_string(), format!("{id}.0")]);
}
