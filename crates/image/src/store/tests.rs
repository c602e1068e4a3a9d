mod damage;
mod file_system;
mod full;
mod model;
mod power;
mod recorded_disk;

use std::fs;

use tempfile::TempDir;
use types::{ErrorKind, Kind};

use super::format::LayerFile;
use super::*;
use crate::hash::digest_of;
use crate::unpack::Unpacked;

struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("images")
    }

    fn open(&self) -> Arc<Store> {
        Store::open(&self.root(), vec!["*pinned*".to_owned()]).unwrap()
    }

    fn tree(&self) -> Vec<String> {
        tree_of(&self.root())
    }
}

/// Every file and directory, relative to `root`.
fn tree_of(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            found.push(entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// A layer with a file named as it is, and some more; the same every time.
fn archive(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_entry_type(kind);
        builder.append_data(&mut header, path, content).unwrap();
    };
    let seed = name.bytes().fold(7_usize, |seed, byte| (seed * 31 + usize::from(byte)) % 9973);
    add(name, tar::EntryType::Regular, &[1; 5000]);
    add(&format!("dir-{name}"), tar::EntryType::Directory, b"");
    for number in 0..seed % 7 {
        let content: Vec<u8> =
            (0..seed * (number + 1) % 60_000).map(|at| ((at * seed) >> 4).to_le_bytes()[0]).collect();
        add(&format!("dir-{name}/file-{number}"), tar::EntryType::Regular, &content);
    }
    add(&format!("{name}-empty"), tar::EntryType::Regular, b"");
    builder.into_inner().unwrap()
}

fn diff_id(name: &str) -> Digest {
    digest_of(&archive(name))
}

/// Stores an image whose layers hold one file each, named as the layer.
fn store_image(store: &Arc<Store>, reference: &str, layers: &[&str]) -> ImageId {
    try_to_store(store, reference, layers, &|| Ok(())).unwrap()
}

fn try_to_store(
    store: &Arc<Store>,
    reference: &str,
    layers: &[&str],
    wanted: &Wanted<'_>,
) -> Result<ImageId, ImageError> {
    let reference = Reference::parse(reference).unwrap();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| diff_id(layer)).collect();
    let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": ids}}).to_string().into_bytes();
    let manifest = format!("manifest of {reference} with {layers:?}").into_bytes();
    let ingest = store.ingest().unwrap();
    let mut pins = Vec::new();
    for (position, (name, diff_id)) in layers.iter().zip(&diff_ids).enumerate() {
        pins.push(
            store.pin_layer(diff_id).unwrap_or_else(|| store_layer(store, &ingest, position, name, diff_id)),
        );
    }
    let layer = |diff_id: &Digest| Layer {
        diff_id: diff_id.clone(),
        digest: diff_id.clone(),
        size: 10,
        media_type: String::new(),
    };
    let image = NewImage {
        reference,
        target: digest_of(&manifest),
        manifest: digest_of(&manifest),
        config: digest_of(&config),
        layers: diff_ids.iter().map(layer).collect(),
        size: 10,
        blobs: vec![(digest_of(&manifest), manifest), (digest_of(&config), config)],
    };
    store.commit_image(image, &ingest, wanted)
}

fn store_layer(store: &Arc<Store>, ingest: &Ingest, position: usize, name: &str, diff_id: &Digest) -> Pin {
    let layer = ingest.layer(position).unwrap();
    let target = layer.target().unwrap();
    let (unpacked, _) = crate::unpack::unpack(archive(name).as_slice(), target).unwrap();
    store.commit_layer(layer, diff_id, unpacked).unwrap()
}

fn tags(store: &Store, id: &ImageId) -> Vec<String> {
    store.index().resolve(id.0.as_str()).map(|image| image.repo_tags.clone()).unwrap_or_default()
}

#[test]
fn images_survive_a_restart_and_removal_leaves_nothing() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let empty = (fixture.tree(), store.usage());
    let a = store_image(&store, "a:1", &["base", "top-a"]);
    let b = store_image(&store, "pinned/b:1", &["base", "top-b"]);
    let usage = store.usage();
    assert!(usage.used_bytes >= empty.1.used_bytes + 3 * 5000);
    drop(store);

    let store = fixture.open();
    let reopened = store.usage();
    assert_eq!((reopened.used_bytes, reopened.inodes_used), (usage.used_bytes, usage.inodes_used));
    let found = store.index().resolve("a:1").unwrap();
    assert_eq!((&found.id, found.repo_tags.as_slice()), (&a, &["docker.io/library/a:1".to_owned()][..]));
    assert!(!found.pinned && store.index().resolve("pinned/b:1").unwrap().pinned);

    store.remove(a.0.as_str()).unwrap();
    assert!(store.index().resolve("a:1").is_none());
    store.remove("a:1").unwrap();
    assert_eq!(store.index().images().len(), 1, "an image of shared layers stays whole");
    store.lease("c", &b).unwrap();
    store.release("c").unwrap();
    store.remove("pinned/b:1").unwrap();
    assert_eq!(fixture.tree(), empty.0);
    assert_eq!(
        (store.usage().used_bytes, store.usage().inodes_used),
        (empty.1.used_bytes, empty.1.inodes_used)
    );
}

#[test]
fn usage_is_what_du_counts() {
    let fixture = Fixture::new();
    let store = fixture.open();
    store_image(&store, "a:1", &["base", "top-a"]);
    let inodes = fixture.tree().len() as u64 + 1;
    let bytes: u64 = fixture.tree().iter().map(|name| layout::bytes_of(&fixture.root().join(name))).sum();
    let bytes = bytes + layout::bytes_of(&fixture.root());
    assert_eq!((store.usage().used_bytes, store.usage().inodes_used), (bytes, inodes));
}

#[test]
fn a_tag_names_the_image_pulled_last() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let old = store_image(&store, "app:1", &["old"]);
    let new = store_image(&store, "app:1", &["new"]);
    for store in [store, fixture.open()] {
        assert!(tags(&store, &old).is_empty());
        let dangling = store.index().resolve(old.0.as_str()).unwrap();
        assert_eq!(dangling.repo_digests.len(), 1);
        assert_eq!(store.index().resolve(&dangling.repo_digests[0]).unwrap().id, old);
        assert_eq!(store.index().resolve("app:1").unwrap().id, new);
    }
}

#[test]
fn names_add_up_on_one_image() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let id = store_image(&store, "a:1", &["x"]);
    let second = Reference::parse("r.example/b:2").unwrap();
    assert!(store.add_name(&id, &second, &digest_of(b"m"), &|| Ok(())).unwrap());
    assert_eq!(tags(&store, &id), ["docker.io/library/a:1", "r.example/b:2"]);
    assert!(!store.add_name(&ImageId(digest_of(b"?")), &second, &digest_of(b"m"), &|| Ok(())).unwrap());
    store.remove("r.example/b:2").unwrap();
    assert!(store.index().images().is_empty(), "one tag removes the image with all its tags");
}

#[test]
fn a_leased_image_keeps_its_layers_until_released() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let empty = fixture.tree();
    let id = store_image(&store, "a:1", &["base", "top", "base"]);
    let rootfs = store.lease("container-1", &id).unwrap();
    let names: Vec<bool> =
        ["base", "top"].iter().zip(&rootfs.layers).map(|(n, l)| l.join(n).is_file()).collect();
    assert_eq!((rootfs.layers.len(), names), (2, vec![true, true]), "topmost first, each once");
    store.remove("a:1").unwrap();
    assert!(store.index().images().is_empty());
    drop(store);

    let store = fixture.open();
    assert_eq!(store.leases(), ["container-1"]);
    assert_eq!(crate::leases_on_disk(&store.layout.root).unwrap(), ["container-1"]);
    let again = store.lease("container-1", &id).unwrap();
    assert_eq!((again.layers, again.chain_id), (rootfs.layers.clone(), rootfs.chain_id));
    let other = store.lease("container-2", &id).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::NotFound);
    assert!(rootfs.layers[0].join("base").is_file());
    store.release("container-1").unwrap();
    store.release("container-1").unwrap();
    assert_eq!(fixture.tree(), empty);
}

#[test]
fn an_image_that_is_not_wanted_any_more_never_appears() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let old = store_image(&store, "app:1", &["old"]);
    let before = fixture.tree();
    let unwanted = || Err(ImageError::Closed);
    assert!(try_to_store(&store, "app:1", &["new"], &unwanted).is_err());
    let second = Reference::parse("b:1").unwrap();
    assert!(store.add_name(&old, &second, &digest_of(b"m"), &unwanted).is_err());
    store.collect_garbage();
    assert_eq!(fixture.tree(), before);
    assert_eq!(tags(&store, &old), ["docker.io/library/app:1"]);
}

#[test]
fn a_pinned_layer_outlives_the_image_that_had_it() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let id = store_image(&store, "a:1", &["shared"]);
    let layer = diff_id("shared");
    let pin = store.pin_layer(&layer).unwrap();
    store.remove(id.0.as_str()).unwrap();
    assert!(store.pin_layer(&layer).is_some());
    drop(pin);
    store.collect_garbage();
    assert!(store.pin_layer(&layer).is_none());
}

#[test]
fn an_image_without_layers_has_a_lower_directory_all_the_same() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let id = store_image(&store, "scratch:1", &[]);
    let rootfs = store.lease("c", &id).unwrap();
    assert!(rootfs.layers.len() == 1 && rootfs.layers[0].is_dir());
}

#[test]
fn owners_are_plain_names() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let id = store_image(&store, "a:1", &["x"]);
    for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a b", &"x".repeat(200)] {
        assert_eq!(store.lease(bad, &id).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad:?}");
    }
}

#[test]
fn what_an_interruption_left_is_gone_after_opening() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let empty = fixture.tree();
    let kept = store_image(&store, "kept:1", &["kept"]);
    let whole = fixture.tree();
    drop(store);

    let root = fixture.root();
    fs::create_dir_all(root.join("ingest/pull-0/layer-0/fs/etc")).unwrap();
    fs::write(root.join("ingest/pull-0/layer-0/fs/etc/x"), "x").unwrap();
    fs::create_dir_all(root.join("ingest/trash-1/fs")).unwrap();
    fs::create_dir_all(root.join("layers/aaaaaaaaaaaa/fs")).unwrap();
    fs::create_dir_all(root.join("layers/bbbbbbbbbbbb/fs")).unwrap();
    let unreferenced = LayerFile::new(&digest_of(b"unreferenced"), Unpacked::default());
    fs::write(root.join("layers/bbbbbbbbbbbb/layer.json"), format::to_json(&unreferenced).unwrap()).unwrap();
    fs::write(root.join("blobs/sha256").join(digest_of(b"blob").hex()), "blob").unwrap();
    fs::write(root.join("leases/power-loss"), "").unwrap();
    fs::write(root.join("records").join(format!("{}.json", "0".repeat(64))), "{\"version\":1").unwrap();

    let store = fixture.open();
    assert_eq!(fixture.tree(), whole);
    store.remove(kept.0.as_str()).unwrap();
    assert_eq!(fixture.tree(), empty);
}

#[test]
fn an_image_that_lost_a_part_is_not_listed() {
    for part in ["layers", "blobs/sha256"] {
        let fixture = Fixture::new();
        let store = fixture.open();
        let empty = fixture.tree();
        store_image(&store, "a:1", &["x"]);
        drop(store);
        let first = fs::read_dir(fixture.root().join(part)).unwrap().next().unwrap().unwrap().path();
        if first.is_dir() {
            fs::remove_dir_all(&first).unwrap()
        } else {
            fs::write(&first, "damaged").unwrap()
        }
        let store = fixture.open();
        assert!(store.index().images().is_empty(), "{part}");
        assert_eq!(fixture.tree(), empty, "{part}");
    }
}

#[test]
fn layers_whose_names_begin_alike_get_longer_names() {
    let mut state = State::default();
    let name = state.layer_name(&digest_of(b"a"));
    assert_eq!(name.len(), layout::LAYER_NAME_LEN);
    state.layers.insert(
        digest_of(b"b"),
        StoredLayer { directory: name.clone(), unpacked: Unpacked::default(), pins: 0, is_suspect: false },
    );
    let longer = state.layer_name(&digest_of(b"a"));
    assert!(longer.len() == name.len() + 1 && longer.starts_with(&name));
}

#[test]
fn other_patterns_of_images_to_keep_count_at_once() {
    let fixture = Fixture::new();
    let store = fixture.open();
    store_image(&store, "a:1", &["base"]);
    store_image(&store, "pinned/b:1", &["top"]);
    store.pin_by(vec!["*/a:1".to_owned()]);
    let pinned = |name| store.index().resolve(name).unwrap().pinned;
    assert!(pinned("a:1") && !pinned("pinned/b:1"));
}
