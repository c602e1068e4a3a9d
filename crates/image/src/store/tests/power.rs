//! Power cuts. A store works on a disk that remembers its writes; then the disk is put together again as it may have been at
//! many a moment of that work, and everything that the store lists there must be what its digests say.
//!
//! What was flushed is on the disk. Of what was written since, all is there, or nothing, or any part, the last write torn:
//! drives keep a cache and write it in the order they like.
//!
//! `CRIMSON_POWER_CUTS` and `CRIMSON_POWER_SEED` choose how many and which.

use std::collections::BTreeSet;
use std::path::Path;

use super::file_system::{mount, new_file_system, unmount};
use super::recorded_disk::{Event, RecordedDisk};
use super::*;
use crate::store::damage::damage_on_disk;

const DISK_BYTES: u64 = 40 << 20;
const CUTS: u64 = 30;
const STEPS: u64 = 40;
const LAYERS: [&str; 8] = ["base", "libs", "tools", "app", "config", "data", "more", "last"];
const REFERENCES: [&str; 5] = ["a:1", "b:1", "b:2", "pinned/c:1", "d:1"];
const SECTOR: usize = 512;

/// Images with their tags, as pairs, and each image once without.
type Listed = BTreeSet<(ImageId, Option<String>)>;

/// Chance that can be repeated.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }

    fn of(&mut self, choices: &[&'static str]) -> &'static str {
        choices[self.below(choices.len())]
    }
}

/// What the store had announced when the disk had been asked this much.
struct Announced {
    position: usize,
    listed: Listed,
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn after_a_power_cut_every_listed_image_is_whole() {
    let seed = setting("CRIMSON_POWER_SEED", 1);
    let directory = tempfile::tempdir().unwrap();
    let (cuts, directory) = (setting("CRIMSON_POWER_CUTS", CUTS), directory.path());
    let problems = sys::mount::on_private_thread(|| try_cuts(directory, cuts, seed)).unwrap();
    assert!(
        problems.is_empty(),
        "seed {seed}: of {cuts} power cuts {} did harm:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

fn try_cuts(directory: &Path, cuts: u64, seed: u64) -> Vec<String> {
    sys::mount::tmpfs(directory, 1 << 30, 0o700).unwrap();
    let mut chance = Chance(seed);
    let empty = new_file_system(&directory.join("image"), DISK_BYTES);
    let (events, announced) = record_work(directory, empty.clone(), &mut chance);
    println!("{} events, {} announcements", events.len(), announced.len());
    let mut moments: Vec<usize> = (0..cuts).map(|_| chance.below(events.len() + 1)).collect();
    moments.sort_unstable();
    let mut disk = ReplayedDisk { content: empty, events: &events, flushed: 0 };
    let mut problems = Vec::new();
    for moment in moments {
        let content = disk.cut_at(moment, &mut chance);
        if let Err(problem) = examine(directory, &content, moment, &announced) {
            problems.push(format!("cut at event {moment} of {}: {problem}", events.len()));
        }
    }
    problems
}

/// What a store did to a disk, and what it had said when.
fn record_work(directory: &Path, empty: Vec<u8>, chance: &mut Chance) -> (Vec<Event>, Vec<Announced>) {
    let (served, mounted) = (directory.join("served"), directory.join("mounted"));
    fs::create_dir(&served).unwrap();
    fs::create_dir(&mounted).unwrap();
    let disk = RecordedDisk::serve(empty, &served);
    mount(&disk.file(), &mounted);
    let root = mounted.join("images");
    let mut store = Store::open(&root, Vec::new()).unwrap();
    let mut announced = vec![Announced { position: 0, listed: Listed::new() }];
    for step in 0..STEPS {
        work(&mut store, &root, step, chance);
        announced.push(Announced { position: disk.position(), listed: listed(&store) });
    }
    let events = disk.events();
    drop(store);
    unmount(&mounted);
    unmount(&served);
    (events, announced)
}

/// One thing that happens to a store.
fn work(store: &mut Arc<Store>, root: &Path, step: u64, chance: &mut Chance) {
    let some_image = store.index().images().first().map(|image| image.id.clone());
    match (chance.below(20), some_image) {
        (0, _) => {
            *store = Store::open(root, Vec::new()).unwrap();
        }
        (1, _) => {
            let unwanted = || Err(ImageError::Closed);
            try_to_store(store, "unwanted:1", &[chance.of(&LAYERS)], &unwanted).unwrap_err();
        }
        (2..=4, Some(id)) => store.remove(id.0.as_str()).unwrap(),
        (5, Some(id)) => drop(store.lease(&format!("owner-{step}"), &id).unwrap()),
        (6, _) => store.leases().iter().for_each(|owner| store.release(owner).unwrap()),
        (7, Some(id)) => {
            let reference = Reference::parse(chance.of(&REFERENCES)).unwrap();
            assert!(store.add_name(&id, &reference, &digest_of(b"target"), &|| Ok(())).unwrap());
        }
        _ => {
            let count = 1 + chance.below(4);
            let layers: Vec<&str> = (0..count).map(|_| chance.of(&LAYERS)).collect();
            store_image(store, chance.of(&REFERENCES), &layers);
        }
    }
}

fn listed(store: &Store) -> Listed {
    let index = store.index();
    let names = |image: &Arc<ImageRecord>| {
        let tags = image.repo_tags.iter().cloned().map(Some).chain([None]);
        tags.map(|tag| (image.id.clone(), tag)).collect::<Vec<_>>()
    };
    index.images().iter().flat_map(names).collect()
}

/// The disk at a moment of the past; moments come in order.
struct ReplayedDisk<'a> {
    /// With every event before `flushed`.
    content: Vec<u8>,
    events: &'a [Event],
    flushed: usize,
}

impl ReplayedDisk<'_> {
    /// What a power cut before the event at `moment` may leave.
    fn cut_at(&mut self, moment: usize, chance: &mut Chance) -> Vec<u8> {
        let (past, _) = self.events.split_at(moment);
        let flushed = past.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let flushed = flushed.max(self.flushed);
        for event in &past[self.flushed..flushed] {
            apply(&mut self.content, event, usize::MAX);
        }
        self.flushed = flushed;
        let mut content = self.content.clone();
        let in_cache = &past[flushed..];
        let (keeps_all, keeps_none) = (chance.one_in(4), chance.one_in(4));
        for (position, event) in in_cache.iter().enumerate() {
            let is_last = position + 1 == in_cache.len();
            let is_kept = keeps_all || (!keeps_none && chance.one_in(2));
            let torn = if is_last && chance.one_in(2) { chance.below(16) * SECTOR } else { usize::MAX };
            if is_kept {
                apply(&mut content, event, torn);
            }
        }
        content
    }
}

fn apply(content: &mut [u8], event: &Event, most: usize) {
    if let Event::Write { offset, bytes } = event {
        let bytes = &bytes[..bytes.len().min(most)];
        content[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
}

fn examine(directory: &Path, content: &[u8], moment: usize, announced: &[Announced]) -> Result<(), String> {
    let (image, mounted) = (directory.join("image"), directory.join("mounted"));
    fs::write(&image, content).unwrap();
    mount(&image, &mounted);
    let outcome = examine_store(&mounted.join("images"), moment, announced);
    unmount(&mounted);
    fs::remove_file(&image).unwrap();
    outcome
}

fn examine_store(root: &Path, moment: usize, announced: &[Announced]) -> Result<(), String> {
    let damaged = damage_on_disk(root).map_err(|error| error.to_string())?;
    let faults: Vec<String> =
        damaged.iter().flat_map(|image| image.faults.iter().map(ToString::to_string)).collect();
    if !faults.is_empty() {
        return Err(format!("damaged: {}", faults.join("; ")));
    }
    let store = Store::open(root, Vec::new()).map_err(|error| types::error::chain(&error))?;
    compare(&listed(&store), moment, announced)?;
    check_that_nothing_is_in_the_way(&store, root)
}

/// What was announced before the cut is there; of what was under way either the old is there or the new.
fn compare(listed: &Listed, moment: usize, announced: &[Announced]) -> Result<(), String> {
    let next = announced.partition_point(|announced| announced.position <= moment);
    let before = &announced[next - 1].listed;
    let after = announced.get(next).map_or(before, |announced| &announced.listed);
    if let Some(lost) = before.intersection(after).find(|name| !listed.contains(*name)) {
        return Err(format!("{lost:?} was announced and is lost"));
    }
    if let Some(strange) = listed.iter().find(|name| !before.contains(*name) && !after.contains(*name)) {
        return Err(format!("{strange:?} should not be there"));
    }
    let tags: Vec<&String> = listed.iter().filter_map(|(_, tag)| tag.as_ref()).collect();
    let distinct: BTreeSet<&&String> = tags.iter().collect();
    if distinct.len() < tags.len() { Err(format!("a tag names two images: {tags:?}")) } else { Ok(()) }
}

/// The store goes on by itself: whatever the cut left, images can be stored, and all can be removed without a rest.
fn check_that_nothing_is_in_the_way(store: &Arc<Store>, root: &Path) -> Result<(), String> {
    let id = store_image(store, "again:1", &LAYERS);
    let damaged = damage_on_disk(root).map_err(|error| error.to_string())?;
    if let Some(image) = damaged.first() {
        return Err(format!("stored after the cut and damaged: {:?}", image.faults));
    }
    store.remove(id.0.as_str()).map_err(|error| types::error::chain(&error))?;
    for (id, _) in listed(store) {
        store.remove(id.0.as_str()).map_err(|error| types::error::chain(&error))?;
    }
    store.leases().iter().for_each(|owner| store.release(owner).unwrap());
    let rest: Vec<String> = tree_of(root).into_iter().filter(|name| name.matches('/').count() >= 1).collect();
    let rest: Vec<String> = rest.into_iter().filter(|name| name != "blobs/sha256").collect();
    if rest.is_empty() { Ok(()) } else { Err(format!("left behind: {rest:?}")) }
}
