//! Archives of images: what is saved can be loaded by others and by us, what is loaded is not trusted.

#![allow(clippy::unwrap_used, reason = "tests")]

mod builder;
mod hostile;

use builder::{Fixture, Layer, Layout, config, digest, gzip, hex};
use image::{ArchiveFormat, ImageError, Platform};
use serde_json::{Value, json};

const CONTAINERD: &str = "io.containerd.image.name";
const OCI: &str = "org.opencontainers.image.ref.name";

fn layers() -> [Vec<u8>; 2] {
    let lower =
        Layer::new().file("etc/name", b"lower").file("bin/sh", &[7; 200_000]).file("bin/sh", &[8; 90_000]);
    let upper = Layer::new().file("etc/.wh.name", b"").file("x", b"x").hard_link("y", "x").symlink("z", "/x");
    [lower.build(), upper.build()]
}

fn layout_of(name: Option<(&str, &str)>) -> Layout {
    let [lower, upper] = layers();
    let mut layout = Layout::new();
    let image = layout.image(&[&lower, &upper], gzip);
    layout.add(image, name);
    layout
}

#[test]
fn what_is_saved_and_loaded_again_keeps_its_digests() {
    let (first, second) = (Fixture::new(), Fixture::new());
    let name = "registry.example/app:1";
    let loaded = first.load(layout_of(Some((CONTAINERD, name))).tar()).unwrap();
    assert_eq!(loaded[0].1, [name]);
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let saved = first.save(&[name], format).unwrap();
        assert!(saved == first.save(&[name], format).unwrap(), "the same bytes at each save");
        assert_eq!(second.load(saved.clone()).unwrap(), loaded);
        let (ours, theirs) = (first.images.resolve(name).unwrap(), second.images.resolve(name).unwrap());
        let diff_ids = |image: &image::ImageRecord| {
            image.layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(diff_ids(&ours), layers().map(|layer| digest(&layer)));
        assert_eq!((&ours.id, diff_ids(&ours)), (&theirs.id, diff_ids(&theirs)));
        assert!(second.save(&[name], format).unwrap() == saved, "{format:?}: the second save");
        let again = Fixture::new();
        again.load(second.save(&[name], ArchiveFormat::Oci).unwrap()).unwrap();
        let manifest = &again.images.resolve(name).unwrap().manifest;
        assert_eq!(*manifest, theirs.manifest, "{format:?}");
        second.runtime.block_on(second.images.remove(name)).unwrap();
    }
}

#[test]
fn a_layout_in_a_directory_is_what_is_in_the_archive() {
    let (first, second) = (Fixture::new(), Fixture::new());
    first.load(layout_of(Some((OCI, "example.com/app:2"))).tar()).unwrap();
    let target = first.directory.path().join("layout");
    let names = ["example.com/app:2".to_owned()];
    first.runtime.block_on(first.images.save_to_directory(&names, &target)).unwrap();
    let again = first.runtime.block_on(first.images.save_to_directory(&names, &target));
    assert!(again.is_err() && target.join("index.json").is_file(), "a full directory stays as it is");
    assert_eq!(second.load_path(&target).unwrap()[0].1, names);
    let archive = first.save(&["example.com/app:2"], ArchiveFormat::Oci).unwrap();
    let mut archive = tar::Archive::new(archive.as_slice());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        assert!(std::fs::read(target.join(entry.path().unwrap())).unwrap() == bytes);
    }
    let index: Value = serde_json::from_slice(&std::fs::read(target.join("index.json")).unwrap()).unwrap();
    let annotations = &index["manifests"][0]["annotations"];
    assert_eq!(
        (annotations[OCI].as_str(), annotations[CONTAINERD].as_str()),
        (Some(&*names[0]), Some(&*names[0]))
    );
}

#[test]
fn several_images_share_their_layers_and_keep_their_names() {
    let [lower, upper] = layers();
    let mut layout = Layout::new();
    let (one, two) = (layout.image(&[&lower, &upper], gzip), layout.image(&[&lower], gzip));
    layout.add(one.clone(), Some((CONTAINERD, "example.com/one:1")));
    layout.add(one, Some((OCI, "one:latest"))).add(two, Some((OCI, "v2")));
    let first = Fixture::new();
    let loaded = first.load(layout.tar()).unwrap();
    assert_eq!(loaded[0].1, ["example.com/one:1", "docker.io/library/one:latest"]);
    let nameless = &loaded[1].1[0];
    assert!(nameless.starts_with("localhost/loaded@sha256:"), "a tag alone is no name: {nameless}");
    first.runtime.block_on(first.images.tag(nameless, "example.com/two")).unwrap();
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let second = Fixture::new();
        let saved = first.save(&["one", "example.com/two", loaded[0].0.0.hex()], format).unwrap();
        let mut names: Vec<String> =
            second.load(saved).unwrap().into_iter().flat_map(|(_, names)| names).collect();
        names.sort();
        assert_eq!(names, ["docker.io/library/one:latest", "example.com/one:1", "example.com/two:latest"]);
        assert_eq!(second.images.list().len(), 2);
    }
}

#[test]
fn of_an_index_this_machines_image_is_taken() {
    let [lower, upper] = layers();
    let mut layout = Layout::new();
    let (mut ours, mut theirs) = (layout.image(&[&lower], gzip), layout.image(&[&upper], gzip));
    let expected = ours["digest"].as_str().unwrap().to_owned();
    ours["platform"] = json!({"os": "linux", "architecture": Platform::host().architecture});
    theirs["platform"] = json!({"os": "linux", "architecture": "mips"});
    let index = layout.index(&[theirs.clone(), ours.clone()]);
    let target = index["digest"].as_str().unwrap().to_owned();
    layout.add(index, Some((CONTAINERD, "example.com/many:1")));
    let fixture = Fixture::new();
    fixture.load(gzip(&layout.tar())).unwrap();
    let image = fixture.images.resolve("example.com/many:1").unwrap();
    assert_eq!(image.manifest.to_string(), expected);
    assert_eq!(image.repo_digests, [format!("example.com/many@{target}")]);
    // Side by side in the layout itself, too; what is only for others is refused.
    let mut flat = Layout::new();
    flat.image(&[&lower], gzip);
    flat.image(&[&upper], gzip);
    flat.add(theirs.clone(), None);
    assert!(matches!(Fixture::new().load(flat.tar()), Err(ImageError::NoPlatform { .. })));
    flat.add(ours, None);
    assert_eq!(Fixture::new().load(zstd::encode_all(&*flat.tar(), 1).unwrap()).unwrap().len(), 1);
}

#[test]
fn older_archives_of_docker_are_read() {
    let [lower, upper] = layers();
    let config = config(&[&lower, &upper, &lower], "legacy");
    let config_name = format!("{}.json", hex(&digest(&config)));
    let manifest = json!([{
        "Config": config_name, "RepoTags": ["busybox:1", "example.com/b:2"],
        "Layers": ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"],
    }]);
    let archive = Layer::new()
        .file("aa/layer.tar", &lower)
        .file("aa/VERSION", b"1.0")
        .file("bb/layer.tar", &gzip(&upper))
        .symlink("cc/layer.tar", "../aa/layer.tar")
        .file(&config_name, &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", b"{}");
    let fixture = Fixture::new();
    let loaded = fixture.load(archive.build()).unwrap();
    assert_eq!(loaded[0].0.0.to_string(), digest(&config));
    assert_eq!(loaded[0].1, ["docker.io/library/busybox:1", "example.com/b:2"]);
    assert_eq!(fixture.images.resolve("busybox:1").unwrap().layers.len(), 3);
}

#[test]
fn a_tag_moves_and_must_be_one() {
    let fixture = Fixture::new();
    let [lower, upper] = layers();
    let mut layout = Layout::new();
    let (one, two) = (layout.image(&[&lower], gzip), layout.image(&[&upper], gzip));
    layout
        .add(one, Some((CONTAINERD, "example.com/one:1")))
        .add(two, Some((CONTAINERD, "example.com/two:1")));
    fixture.load(layout.tar()).unwrap();
    let tag = |image: &str, name: &str| fixture.runtime.block_on(fixture.images.tag(image, name));
    tag("example.com/one:1", "moving").unwrap();
    tag("example.com/two:1", "moving").unwrap();
    let moved = fixture.images.resolve("moving").unwrap();
    assert_eq!(moved.repo_tags, ["docker.io/library/moving:latest", "example.com/two:1"]);
    assert_eq!(fixture.images.resolve("example.com/one:1").unwrap().repo_tags, ["example.com/one:1"]);
    assert!(matches!(tag("nothing", "x"), Err(ImageError::Unknown(_))));
    assert!(matches!(tag("moving", "Not A Name"), Err(ImageError::Reference { .. })));
    let by_digest = format!("example.com/one@{}", digest(b""));
    assert!(matches!(tag("moving", &by_digest), Err(ImageError::Unsupported { .. })));
}

#[test]
fn a_damaged_layer_is_not_handed_on() {
    let fixture = Fixture::new();
    let name = "example.com/app:1";
    fixture.load(layout_of(Some((CONTAINERD, name))).tar()).unwrap();
    let file = fixture.tree().into_iter().find(|path| path.ends_with("fs/bin/sh")).unwrap();
    std::fs::write(file, [9; 90_000]).unwrap();
    let target = fixture.directory.path().join("layout");
    let saved = fixture.runtime.block_on(fixture.images.save_to_directory(&[name.to_owned()], &target));
    assert!(matches!(saved, Err(ImageError::Corrupt { .. })), "{saved:?}");
    assert!(!target.try_exists().unwrap(), "nothing of it is left");
    assert!(matches!(fixture.save(&["nothing"], ArchiveFormat::Oci), Err(ImageError::Unknown(_))));
}
