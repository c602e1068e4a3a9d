//! Whatever happens to a store, it lists what a model of it lists, accounts what is on the disk, and keeps nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

const LAYERS: [&str; 6] = ["base", "libs", "tools", "app", "config", "data"];
const REFERENCES: [&str; 4] = ["a:1", "b:1", "b:2", "r.example/c:1"];
const OWNERS: [&str; 3] = ["one", "two", "three"];

#[derive(Debug, Clone)]
enum Act {
    Pull(usize, Vec<usize>),
    Abandon(usize, Vec<usize>),
    Remove(usize),
    RemoveById(usize),
    Name(usize, usize),
    Lease(usize, usize),
    Release(usize),
    /// The process ends and another opens the store, with a pull under way or without.
    Reopen {
        in_pull: bool,
    },
}

/// What the store should have.
#[derive(Debug, Default)]
struct Model {
    images: BTreeMap<ImageId, (BTreeSet<String>, BTreeSet<&'static str>)>,
    leases: BTreeMap<&'static str, BTreeSet<&'static str>>,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let layers = || prop::collection::vec(0..LAYERS.len(), 0..4);
    let act = prop_oneof![
        6 => (0..REFERENCES.len(), layers()).prop_map(|(name, layers)| Act::Pull(name, layers)),
        1 => (0..REFERENCES.len(), layers()).prop_map(|(name, layers)| Act::Abandon(name, layers)),
        2 => (0..REFERENCES.len()).prop_map(Act::Remove),
        2 => any::<usize>().prop_map(Act::RemoveById),
        2 => (any::<usize>(), 0..REFERENCES.len()).prop_map(|(image, name)| Act::Name(image, name)),
        3 => (0..OWNERS.len(), any::<usize>()).prop_map(|(owner, image)| Act::Lease(owner, image)),
        3 => (0..OWNERS.len()).prop_map(Act::Release),
        1 => any::<bool>().prop_map(|in_pull| Act::Reopen { in_pull }),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_what_its_model_says(acts in acts()) {
        let fixture = Fixture::new();
        let mut store = fixture.open();
        let empty = fixture.tree();
        let mut model = Model::default();
        for act in acts {
            let shown = format!("{act:?}");
            perform(&fixture, &mut store, &mut model, act);
            model.compare(&store, &fixture, &shown)?;
        }
        for owner in OWNERS {
            store.release(owner).unwrap();
        }
        for id in model.images.keys() {
            store.remove(id.0.as_str()).unwrap();
        }
        prop_assert_eq!(fixture.tree(), empty);
    }
}

fn perform(fixture: &Fixture, store: &mut Arc<Store>, model: &mut Model, act: Act) {
    let ids: Vec<ImageId> = model.images.keys().cloned().collect();
    let some = |number: usize| ids.get(number % ids.len().max(1)).cloned();
    match act {
        Act::Pull(name, layers) => {
            let layers: Vec<&'static str> = layers.into_iter().map(|layer| LAYERS[layer]).collect();
            let id = store_image(store, REFERENCES[name], &layers);
            model.take_tag(name);
            let (tags, known) = model.images.entry(id).or_default();
            tags.insert(full(name));
            known.extend(layers);
        }
        Act::Abandon(name, layers) => {
            let layers: Vec<&str> = layers.into_iter().map(|layer| LAYERS[layer]).collect();
            try_to_store(store, REFERENCES[name], &layers, &|| Err(ImageError::Closed)).unwrap_err();
            store.collect_garbage();
        }
        Act::Remove(name) => {
            store.remove(REFERENCES[name]).unwrap();
            model.images.retain(|_, (tags, _)| !tags.contains(&full(name)));
        }
        Act::RemoveById(number) => {
            let Some(id) = some(number) else { return };
            store.remove(id.0.as_str()).unwrap();
            model.images.remove(&id);
        }
        Act::Name(number, name) => {
            let Some(id) = some(number) else { return };
            let reference = Reference::parse(REFERENCES[name]).unwrap();
            assert!(store.add_name(&id, &reference, &digest_of(b"target"), &|| Ok(())).unwrap());
            model.take_tag(name);
            model.images.get_mut(&id).unwrap().0.insert(full(name));
        }
        Act::Lease(owner, number) => {
            let Some(id) = some(number) else { return };
            let rootfs = store.lease(OWNERS[owner], &id).unwrap();
            assert!(rootfs.layers.iter().all(|layer| layer.is_dir()));
            model.leases.insert(OWNERS[owner], model.images[&id].1.clone());
        }
        Act::Release(owner) => {
            store.release(OWNERS[owner]).unwrap();
            model.leases.remove(OWNERS[owner]);
        }
        Act::Reopen { in_pull } => {
            if in_pull {
                let ingest = store.ingest().unwrap();
                drop(store_layer(store, &ingest, 0, "unfinished", &diff_id("unfinished")));
                std::mem::forget(ingest);
            }
            *store = fixture.open();
        }
    }
}

fn full(name: usize) -> String {
    Reference::parse(REFERENCES[name]).unwrap().repo_tag().unwrap()
}

impl Model {
    fn take_tag(&mut self, name: usize) {
        for (tags, _) in self.images.values_mut() {
            tags.remove(&full(name));
        }
    }

    fn compare(&self, store: &Store, fixture: &Fixture, after: &str) -> Result<(), TestCaseError> {
        let index = store.index();
        let listed: BTreeMap<ImageId, BTreeSet<String>> = index
            .images()
            .iter()
            .map(|image| (image.id.clone(), image.repo_tags.iter().cloned().collect()))
            .collect();
        let expected: BTreeMap<ImageId, BTreeSet<String>> =
            self.images.iter().map(|(id, (tags, _))| (id.clone(), tags.clone())).collect();
        prop_assert_eq!(listed, expected, "after {}", after);

        let needed: BTreeSet<Digest> = self.needed().iter().map(|layer| diff_id(layer)).collect();
        let kept: BTreeSet<Digest> = store.state().layers.keys().cloned().collect();
        prop_assert_eq!(kept, needed, "after {}", after);
        prop_assert_eq!(fs::read_dir(&store.layout.layers).unwrap().count(), store.state().layers.len());
        prop_assert_eq!(fs::read_dir(&store.layout.ingest).unwrap().count(), 0, "after {}", after);

        let (bytes, inodes) = walked(&fixture.root());
        let usage = store.usage();
        prop_assert_eq!(usage.inodes_used, inodes, "after {}", after);
        prop_assert!(
            usage.used_bytes.abs_diff(bytes) * 100 <= bytes,
            "{} of {} after {}",
            usage.used_bytes,
            bytes,
            after
        );
        Ok(())
    }

    fn needed(&self) -> BTreeSet<&'static str> {
        let of_images = self.images.values().flat_map(|(_, layers)| layers);
        of_images.chain(self.leases.values().flatten()).copied().collect()
    }
}

/// What `du` counts.
fn walked(root: &Path) -> (u64, u64) {
    let mut paths = tree_of(root);
    paths.push(String::new());
    let metadata = paths.iter().map(|path| fs::symlink_metadata(root.join(path)).unwrap());
    let inodes: BTreeMap<u64, u64> =
        metadata.map(|metadata| (metadata.ino(), metadata.blocks() * 512)).collect();
    (inodes.values().sum(), inodes.len() as u64)
}
