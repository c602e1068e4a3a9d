//! Damage found, and layers that are damaged replaced.

use std::os::unix::fs::symlink;

use super::*;
use crate::store::damage::{DamagedImage, Part, damage_on_disk, still_damaged};

type Change = fn(&Path);

fn found(fixture: &Fixture) -> Vec<DamagedImage> {
    damage_on_disk(&fixture.root()).unwrap()
}

fn directory_of(store: &Store, name: &str) -> PathBuf {
    store.layout.layers.join(&store.state().layers[&diff_id(name)].directory)
}

#[test]
fn whole_images_are_not_complained_about() {
    let fixture = Fixture::new();
    assert_eq!(found(&fixture), [], "a store that is not there has no images");
    let store = fixture.open();
    store_image(&store, "a:1", &["base", "top"]);
    store_image(&store, "scratch:1", &[]);
    assert_eq!(found(&fixture), []);
}

#[test]
fn any_change_of_a_file_is_found() {
    let changes: [(&str, Change); 8] = [
        ("fs/base", |path| fs::write(path, [2; 5000]).unwrap()),
        ("fs/base", |path| fs::write(path, []).unwrap()),
        ("fs/base", |path| fs::remove_file(path).unwrap()),
        ("fs/base-empty", |path| fs::remove_file(path).unwrap()),
        ("fs/base", |path| {
            fs::rename(path, path.with_extension("x")).unwrap();
            symlink("base.x", path).unwrap();
        }),
        ("fs/stranger", |path| fs::write(path, "").unwrap()),
        ("fs", |path| fs::remove_dir_all(path).unwrap()),
        ("recipe", |path| fs::remove_file(path).unwrap()),
    ];
    for (path, change) in changes {
        let fixture = Fixture::new();
        let store = fixture.open();
        let id = store_image(&store, "a:1", &["base", "top"]);
        let path = directory_of(&store, "base").join(path);
        change(&path);
        let found = found(&fixture);
        assert_eq!(found.len(), 1, "{path:?}");
        assert_eq!((found[0].id.as_ref(), found[0].layers()), (Some(&id), vec![diff_id("base")]), "{path:?}");
        assert_eq!(found[0].tags, ["docker.io/library/a:1"]);
        assert_eq!(still_damaged(&fixture.root(), &found).unwrap(), found);
        store.remove("a:1").unwrap();
        assert_eq!(still_damaged(&fixture.root(), &found).unwrap(), [], "a server may remove it meanwhile");
    }
}

#[test]
fn blobs_and_records_are_looked_at() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let id = store_image(&store, "a:1", &["base"]);
    fs::write(store.layout.blob(&id.0), "{}").unwrap();
    fs::write(store.layout.records.join("torn.json"), "{").unwrap();
    fs::remove_dir_all(directory_of(&store, "base")).unwrap();
    let mut faults: Vec<Part> =
        found(&fixture).into_iter().flat_map(|image| image.faults).map(|fault| fault.part).collect();
    faults.sort_by_key(|part| format!("{part:?}"));
    assert_eq!(faults, [Part::Blob(id.0), Part::Layer(diff_id("base")), Part::Record]);
}

#[test]
fn a_pull_of_a_known_image_brings_what_was_lost() {
    for lost in ["layers", "fs", "config"] {
        let fixture = Fixture::new();
        let store = fixture.open();
        let id = store_image(&store, "a:1", &["base", "top"]);
        let usage = store.usage();
        match lost {
            "layers" => fs::remove_dir_all(directory_of(&store, "base")).unwrap(),
            "fs" => fs::remove_dir_all(directory_of(&store, "base").join("fs")).unwrap(),
            _ => fs::write(store.layout.blob(&id.0), "").unwrap(),
        }
        let reference = Reference::parse("a:1").unwrap();
        let is_known = store.add_name(&id, &reference, &digest_of(b"m"), &|| Ok(())).unwrap();
        assert!(!is_known, "{lost}: a pull must not be content with it");
        assert_eq!(store_image(&store, "a:1", &["base", "top"]), id);
        assert_eq!(found(&fixture), [], "{lost}");
        assert_eq!(
            (store.usage().used_bytes, store.usage().inodes_used),
            (usage.used_bytes, usage.inodes_used)
        );
    }
}

#[test]
fn a_container_is_not_made_of_an_image_that_lost_a_layer() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let id = store_image(&store, "a:1", &["base", "top"]);
    fs::remove_dir_all(directory_of(&store, "base")).unwrap();
    let refused = store.lease("c", &id).unwrap_err();
    assert!(matches!(&refused, ImageError::Damaged { layer, .. } if *layer == diff_id("base")), "{refused}");
    assert!(store.index().resolve("a:1").is_none(), "who looks for it now finds that it must be pulled");
    let id = store_image(&store, "a:1", &["base", "top"]);
    store.lease("c", &id).unwrap();
}

#[test]
fn a_damaged_layer_is_replaced_and_stays_for_those_who_run_on_it() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let empty = fixture.tree();
    let id = store_image(&store, "a:1", &["base"]);
    store.lease("runs", &id).unwrap();
    let damaged = directory_of(&store, "base").join("fs/base");
    let open = fs::File::open(damaged.parent().unwrap()).unwrap();
    fs::write(&damaged, "damaged").unwrap();

    let suspicion = store.suspect(vec![diff_id("base")]);
    assert!(store.pin_layer(&diff_id("base")).is_none());
    assert!(store.lease("others", &id).is_ok(), "until it is replaced it is better than nothing");
    store.release("others").unwrap();
    store_image(&store, "a:1", &["base"]);
    drop(suspicion);
    assert_eq!(found(&fixture), []);
    assert_eq!(
        fs::read(fixture.root().join("layers").join(directory_of(&store, "base")).join("fs/base"))
            .unwrap()
            .len(),
        5000
    );
    let as_mounted = Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&open).to_string());
    assert_eq!(fs::read(as_mounted.join("base")).unwrap(), b"damaged", "a mount finds its files still");
    let usage = store.usage();
    drop(store);

    let store = fixture.open();
    assert_eq!((store.usage().used_bytes, store.usage().inodes_used), (usage.used_bytes, usage.inodes_used));
    assert_eq!(fs::read(as_mounted.join("base")).unwrap(), b"damaged", "over a restart, too");
    store.release("runs").unwrap();
    assert!(fs::read(as_mounted.join("base")).is_err(), "nobody needs it any more");
    store.remove("a:1").unwrap();
    assert_eq!(fixture.tree(), empty);
}

#[test]
fn a_suspicion_ends_without_harm_when_nothing_better_came() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let before = (store_image(&store, "a:1", &["base"]), fixture.tree());
    drop(store.suspect(vec![diff_id("base"), diff_id("unknown")]));
    assert!(store.pin_layer(&diff_id("base")).is_some());
    assert_eq!((store.index().images()[0].id.clone(), fixture.tree()), before);
}

#[test]
fn what_a_container_runs_on_stays_though_the_store_cannot_read_its_name() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let empty = fixture.tree();
    let id = store_image(&store, "a:1", &["base"]);
    store.lease("runs", &id).unwrap();
    let open = fs::File::open(directory_of(&store, "base").join("fs")).unwrap();
    fs::write(directory_of(&store, "base").join("layer.json"), "").unwrap();
    drop(store);
    let store = fixture.open();
    assert!(store.index().images().is_empty());
    let as_mounted = Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&open).to_string());
    assert_eq!(fs::read(as_mounted.join("base")).unwrap().len(), 5000);
    store.release("runs").unwrap();
    assert_eq!(fixture.tree(), empty);
}

#[test]
fn removal_does_without_the_room_for_a_rename() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let empty = (fixture.tree(), store.usage().used_bytes);
    store_image(&store, "a:1", &["base", "top"]);
    fs::remove_dir(&store.layout.ingest).unwrap();
    store.remove("a:1").unwrap();
    fs::create_dir(&store.layout.ingest).unwrap();
    store.collect_garbage();
    assert_eq!((fixture.tree(), store.usage().used_bytes), empty);
}
