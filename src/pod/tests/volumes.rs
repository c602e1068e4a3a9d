//! Volumes that an image declares: what they begin with, where they lie, when there are none, and that they go.

use std::os::unix::fs::MetadataExt;

use super::super::ImageVolumes;
use super::*;

const DB: &str = "example.test/db:1";

/// A node with an image of two layers that declares volumes.
fn node(volumes: &[&str]) -> Node {
    let node = Node::new();
    let dir = node.dir.path().join("db");
    for path in ["upper/data/new", "lower/data/old", "lower/elsewhere", "lower/etc"] {
        std::fs::create_dir_all(dir.join(path)).unwrap();
    }
    std::fs::write(dir.join("lower/data/old/file"), "of the image").unwrap();
    std::fs::write(dir.join("lower/elsewhere/here"), "").unwrap();
    std::fs::write(dir.join("lower/file"), "").unwrap();
    std::os::unix::fs::chown(dir.join("upper/data"), Some(999), Some(998)).unwrap();
    for (link, target) in
        [("inside", "/elsewhere"), ("climbing", "../../../../../elsewhere"), ("dangling", "/no")]
    {
        std::os::unix::fs::symlink(target, dir.join("upper").join(link)).unwrap();
    }
    let mut image = (*image::ImageSource::resolve(&*node.images, IMAGE).unwrap().config).clone();
    let mut config = image.config().clone().unwrap();
    config.set_volumes(Some(volumes.iter().map(|path| (*path).to_owned()).collect()));
    image.set_config(Some(config));
    node.images.add(DB, image, vec![dir.join("upper"), dir.join("lower")]).unwrap();
    node
}

async fn create(pods: &Pods, mounts: Vec<v1::Mount>) -> Result<ContainerId, SharedError> {
    let sandbox_id = pods.run_sandbox(sandbox("web")).await?;
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "db".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: DB.to_owned(), ..v1::ImageSpec::default() }),
        mounts,
        ..v1::ContainerConfig::default()
    };
    pods.create_container(sandbox_id.as_str(), ContainerRequest::parse(config).unwrap()).await
}

/// What is mounted in the container from its own directory: path and directory.
fn mounted(node: &Node, id: &ContainerId) -> Vec<(String, PathBuf)> {
    let bundle = node.dir.path().join("state/containers").join(id.as_str());
    let spec: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    let mounts = spec["mounts"].as_array().unwrap().iter();
    let own = mounts.filter_map(|mount| {
        let source = PathBuf::from(mount["source"].as_str()?);
        Some((mount["destination"].as_str()?.to_owned(), source))
    });
    own.filter(|(_, source)| source.to_string_lossy().contains("/volumes/")).collect()
}

#[tokio::test]
async fn a_volume_begins_as_the_image_has_it_and_goes_with_the_container() {
    let node = node(&["/data", "/empty/one"]);
    let pods = node.recovered().await;
    let id = create(&pods, Vec::new()).await.unwrap();
    let volumes = mounted(&node, &id);
    assert_eq!(volumes.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/data", "/empty/one"]);
    let data = &volumes[0].1;
    assert_eq!(std::fs::read_to_string(data.join("old/file")).unwrap(), "of the image");
    assert!(data.join("new").is_dir());
    let found = std::fs::metadata(data).unwrap();
    assert_eq!((found.uid(), found.gid()), (999, 998));
    assert_eq!(entries(&volumes[1].1), [""; 0]);

    std::fs::write(data.join("written"), "").unwrap();
    drop(pods);
    let pods = node.recovered().await;
    pods.start_container(id.as_str()).await.unwrap();
    assert!(data.join("written").is_file(), "it is made once");
    pods.remove_container(id.as_str()).await.unwrap();
    assert_eq!(entries(&node.dir.path().join("root/containers")), [""; 0]);
}

#[tokio::test]
async fn links_lead_to_places_of_the_image_and_no_further() {
    let node = node(&["/inside", "/climbing", "/dangling"]);
    std::fs::create_dir_all(node.dir.path().join("elsewhere/of-the-host")).unwrap();
    let pods = node.recovered().await;
    let id = create(&pods, Vec::new()).await.unwrap();
    let names = |path: &str| {
        let (_, source) = mounted(&node, &id).into_iter().find(|(mounted, _)| mounted == path).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(source).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("/inside"), ["here"]);
    assert_eq!(names("/climbing"), ["here"]);
    assert!(names("/dangling").is_empty());
}

#[tokio::test]
async fn a_volume_that_cannot_be_one_is_refused_and_nothing_is_left() {
    for (path, named) in [("/file", "/file"), ("/", "root"), ("/a/..", "root")] {
        let node = node(&[path]);
        let pods = node.recovered().await;
        let error = create(&pods, Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path}: {error}");
        assert!(error.to_string().contains(named), "{error}");
        for pod in pods.list() {
            pods.remove_sandbox(pod.sandbox.as_ref().unwrap().id.as_str()).await.unwrap();
        }
        assert_eq!(node.left(), [""; 0]);
    }
}

#[tokio::test]
async fn a_disk_that_is_full_is_told_as_that() {
    let error = StepError::Volume {
        path: "/data".into(),
        source: Box::new(super::super::CopyError::for_test(std::io::ErrorKind::StorageFull.into())),
    };
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
}

#[tokio::test]
async fn volumes_are_made_as_configured_and_not_beneath_a_mount() {
    let below = |node: &Node, id: &ContainerId, path: &str| {
        node.dir.path().join("root/containers").join(id.as_str()).join("upper").join(path)
    };
    for (treatment, volumes, in_layer) in
        [(ImageVolumes::Ignore, 0, false), (ImageVolumes::Mkdir, 0, true), (ImageVolumes::Bind, 1, false)]
    {
        let node = node(&["/data", "/made/here"]);
        let pods = node.recovered().await;
        pods.reconfigure(Settings { image_volumes: treatment, ..(*pods.settings()).clone() });
        let source = node.dir.path().join("of-the-host");
        let mount = v1::Mount {
            container_path: "/data".to_owned(),
            host_path: source.display().to_string(),
            ..v1::Mount::default()
        };
        let id = create(&pods, vec![mount]).await.unwrap();
        assert_eq!(mounted(&node, &id).len(), volumes, "{treatment:?}");
        assert_eq!(below(&node, &id, "made/here").is_dir(), in_layer, "{treatment:?}");
        assert!(!below(&node, &id, "data").try_exists().unwrap(), "{treatment:?}: it is mounted over");
    }
}

#[tokio::test]
async fn volumes_bear_the_label_of_their_container() {
    let contexts = Some(spec::selinux::Contexts::parse(""));
    let confinement = Arc::new(FakeConfinement { contexts, ..FakeConfinement::default() });
    let node = Node { confinement: Arc::clone(&confinement), ..node(&["/data"]) };
    let pods = node.recovered().await;
    let id = create(&pods, vec![]).await.unwrap();
    let [(_, directory)] = &mounted(&node, &id)[..] else { panic!("one volume") };
    let bundle = std::fs::read(pods.layout().bundle(id.as_str()).join("config.json")).unwrap();
    let spec: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
    let label = spec["linux"]["mountLabel"].as_str().unwrap().to_owned();
    assert!(label.contains(":container_file_t:s0:c"), "{label}");
    assert!(confinement.labelled.lock().unwrap().contains(&(directory.clone(), label)));
}
