//! What the store keeps, and what it does when that is damaged.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use e2e::cri::ImageFsInfoRequest;
use e2e::{ContainerSpec, ImageBuilder, Layer, Media, Node, Options, PushedImage, Registry, Result};

async fn push(registry: &Registry, name: &str, tag: &str, salt: &str) -> Result<PushedImage> {
    let layer = Layer::new().dir("salt", 0o755).file("salt/file", 0o644, salt.repeat(20_000).as_bytes());
    registry.push(ImageBuilder::busybox(Media::Oci)?.layer(layer), name, tag).await
}

async fn check_images(node: &Node, flags: &[&str]) -> Result<Output> {
    let mut check = node.daemon_command("check --images")?;
    check.args(flags).arg("--root").arg(node.root()).arg("--state").arg(node.state());
    check.arg("--registry-config-dir").arg(node.registry_config_dir());
    Ok(check.output().await?)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The files of this name in all layers.
fn in_layers(node: &Node, name: &str) -> Result<Vec<PathBuf>> {
    let layers = node.machine().path(&node.root().join("images/layers"));
    let mut found = Vec::new();
    for layer in std::fs::read_dir(layers)? {
        let path = layer?.path().join(name);
        if path.symlink_metadata().is_ok() {
            found.push(path);
        }
    }
    Ok(found)
}

/// What `du` counts.
fn walked(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.symlink_metadata()?;
    let mut sum = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            sum += walked(&entry?.path())?;
        }
    }
    Ok(sum)
}

async fn accounted(node: &Node) -> Result<u64> {
    let info = node.cri().image_fs_info(ImageFsInfoRequest {}).await?;
    let first = info.image_filesystems.into_iter().next().expect("a file system");
    Ok(first.used_bytes.map_or(0, |it| it.value))
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_fetched_again_under_running_containers() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let image = push(&registry, "damaged", "1", "a").await?;
    let id = node.cri().pull(&image.reference).await?;
    let pod = node.pod("damaged");
    let pod_id = node.cri().run_pod(&pod).await?;
    let old = node.cri().run(&pod_id, &ContainerSpec::lasting("old", &id), &pod).await?;
    let clean = check_images(&node, &[]).await?;
    assert!(clean.status.success() && text(&clean) == "clean\n", "{}", text(&clean));

    let [file] = &in_layers(&node, "fs/salt/file")?[..] else { panic!("one layer has the file") };
    std::fs::write(file, "damaged")?;
    let found = check_images(&node, &[]).await?;
    let told = text(&found);
    assert!(
        found.status.code() == Some(1) && told.contains(&image.reference) && told.contains("layer sha256:"),
        "{told}"
    );
    let refused = check_images(&node, &["--repair"]).await?;
    assert!(
        refused.status.code() == Some(2) && text(&refused).contains("stop the server"),
        "{}",
        text(&refused)
    );

    node.stop().await?;
    let repaired = check_images(&node, &["--repair"]).await?;
    assert!(
        repaired.status.success() && text(&repaired).starts_with("repaired: image "),
        "{}",
        text(&repaired)
    );
    assert_eq!(text(&check_images(&node, &[]).await?), "clean\n");
    node.restart().await?;
    let cri = node.cri();
    let listed = cri.image(&image.reference).await?.expect("the image has its name");
    assert_eq!((listed.id.as_str(), &listed.repo_digests[..]), (id.as_str(), &[image.by_digest()][..]));
    assert_eq!(cri.shell(&old, "ls /salt && cat /www/index.html").await?, "file\nhello from crimson");
    let new = cri.run(&pod_id, &ContainerSpec::lasting("new", &id), &pod).await?;
    assert_eq!(cri.shell(&new, "wc -c </salt/file").await?, "20000");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_gone_leaves_damage_as_it_was() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let image = push(&registry, "lost", "1", "b").await?;
    let id = node.cri().pull(&image.reference).await?;
    let [file] = &in_layers(&node, "fs/salt/file")?[..] else { panic!("one layer has the file") };
    std::fs::write(file, "damaged")?;
    node.stop().await?;
    registry.lose(image.layer_digests.last().expect("layers"))?;
    let left = check_images(&node, &["--repair", "--json"]).await?;
    assert_eq!(left.status.code(), Some(1), "{}", text(&left));
    let report: serde_json::Value = serde_json::from_slice(&left.stdout)?;
    assert_eq!(report["findings"][0]["repaired"], false);
    assert_eq!(report["findings"][0]["id"], id.as_str());
    node.restart().await?;
    assert_eq!(node.cri().image(&image.reference).await?.expect("still listed").id, id);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_deleted_comes_back_with_the_next_pull() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let image = push(&registry, "emptied", "1", "c").await?;
    let id = node.cri().pull(&image.reference).await?;
    let pod = node.pod("emptied");
    let pod_id = node.cri().run_pod(&pod).await?;
    let empty_layers = |node: &Node| -> Result {
        for layer in in_layers(node, "fs")? {
            std::fs::remove_dir_all(layer)?;
        }
        Ok(())
    };
    // A pull of a known image is not content with what it finds.
    empty_layers(&node)?;
    assert_eq!(node.cri().pull(&image.reference).await?, id);
    node.cri().run(&pod_id, &ContainerSpec::lasting("first", &id), &pod).await?;
    // A container cannot be made, and the kubelet learns that it has to pull.
    empty_layers(&node)?;
    let refused = node.cri().create(&pod_id, &ContainerSpec::lasting("second", &id), &pod).await;
    let message = refused.expect_err("an image without files").message().to_owned();
    assert!(message.contains("has to be pulled again"), "{message}");
    assert_eq!(node.cri().image(&image.reference).await?, None);
    assert_eq!(node.cri().pull(&image.reference).await?, id);
    // Nor does a start list it.
    empty_layers(&node)?;
    node.kill9().await?;
    node.restart().await?;
    assert_eq!(node.cri().all_images().await?, []);
    assert_eq!(node.cri().pull(&image.reference).await?, id);
    let third = node.cri().run(&pod_id, &ContainerSpec::lasting("third", &id), &pod).await?;
    assert_eq!(node.cri().shell(&third, "wc -c </salt/file").await?, "20000");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_equal_the_disk_after_many_cycles() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let root = node.machine().path(&node.root().join("images"));
    let mut images = Vec::new();
    for (name, salt) in [("one", "1"), ("two", "2"), ("three", "3")] {
        images.push(push(&registry, name, "1", salt).await?);
    }
    for round in 0..12 {
        let image = &images[round % images.len()];
        let cri = node.cri();
        cri.pull(&image.reference).await?;
        if round % 2 == 1 {
            cri.forget_image(&images[(round / 2) % images.len()].reference).await?;
        }
        if round == 6 {
            node.kill9().await?;
            node.restart().await?;
        }
        let (accounted, walked) = (accounted(&node).await?, walked(&root)?);
        assert!(
            accounted.abs_diff(walked) * 100 <= walked,
            "round {round}: {accounted} bytes, du says {walked}"
        );
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_on_and_the_old_image_keeps_its_digest() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let old = push(&registry, "app", "1", "old").await?;
    let old_id = cri.pull(&old.reference).await?;
    let new = push(&registry, "app", "1", "new").await?;
    let new_id = cri.pull(&new.reference).await?;
    assert_ne!(old_id, new_id);
    let named = |image: Option<e2e::cri::Image>| image.map(|it| (it.id, it.repo_tags, it.repo_digests));
    let (old, new) = (old.by_digest(), (new_id, vec![new.reference.clone()], vec![new.by_digest()]));
    assert_eq!(named(cri.image(&old_id).await?), Some((old_id.clone(), vec![], vec![old.clone()])));
    assert_eq!(named(cri.image(&old).await?).map(|it| it.0), Some(old_id.clone()));
    assert_eq!(named(cri.image(&new.1[0]).await?), Some(new.clone()));
    cri.forget_image(&old_id).await?;
    assert_eq!(named(cri.image(&new.1[0]).await?), Some(new));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_by_every_name_at_once_succeed_and_spare_running_containers() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let cri = node.cri();
    let image = push(&registry, "used", "1", "d").await?;
    let other = push(&registry, "used", "2", "d").await?;
    let id = cri.pull(&image.reference).await?;
    assert_eq!(cri.pull(&other.reference).await?, id);
    let pod = node.pod("used");
    let pod_id = cri.run_pod(&pod).await?;
    let container = cri.run(&pod_id, &ContainerSpec::lasting("runs", &id), &pod).await?;
    let before = accounted(&node).await?;
    let names = [&image.reference, &other.reference, &id, &image.by_digest(), &other.by_digest()];
    let removals: Vec<_> = names
        .iter()
        .cycle()
        .take(15)
        .map(|&name| {
            let (cri, name) = (cri.clone(), name.clone());
            tokio::spawn(async move { cri.forget_image(&name).await })
        })
        .collect();
    for removal in removals {
        removal.await??;
    }
    assert_eq!(cri.all_images().await?, []);
    assert_eq!(cri.shell(&container, "wc -c </salt/file").await?, "20000");
    let status = cri.container(&container).await?;
    assert_eq!(
        (status.image_id, status.image.map(|it| it.image).unwrap_or_default().is_empty()),
        (id, false)
    );
    assert!(before - accounted(&node).await? < 100_000, "what runs keeps its layers");
    cri.stop(&container, 0).await?;
    cri.remove(&container).await?;
    assert!(before - accounted(&node).await? > 20_000, "nobody needs them any more");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_images_are_reported_and_can_be_removed() -> Result {
    let machine = Arc::new(e2e::Machine::boot().await?);
    let registry = Registry::start(&machine).await?;
    let pause = push(&registry, "pause", "3", "p").await?;
    let pinned = push(&registry, "infra/agent", "1", "i").await?;
    let plain = push(&registry, "plain", "1", "x").await?;
    let config = format!(
        "[image]\npause_image = \"{}\"\npinned = [\"{}/infra/*\"]\n",
        pause.reference,
        registry.host()
    );
    let options = Options { machine: Some(machine), config, ..Options::default() };
    let node = Node::start(options).await?;
    registry.describe_to(&node.registry_config_dir())?;
    let cri = node.cri();
    for (image, is_pinned) in [(&pause, true), (&pinned, true), (&plain, false)] {
        let id = cri.pull(&image.reference).await?;
        assert_eq!(cri.image(&id).await?.expect("pulled").pinned, is_pinned, "{}", image.reference);
    }
    cri.forget_image(&pinned.reference).await?;
    assert_eq!(cri.image(&pinned.reference).await?, None);
    node.finish().await
}
