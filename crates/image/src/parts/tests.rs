use std::time::{Duration, Instant};

use super::*;
use crate::hash::digest_of;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = entries(directory)
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The same again and again until it is so: what another test is just starting may have a part, with its lock, for another moment.
fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "somebody has the part");
        std::thread::yield_now();
    }
}

#[test]
fn what_was_written_is_found_by_the_next_process() {
    let root = tempfile::tempdir().unwrap();
    let digest = digest_of(b"blob");
    let parts = Parts::open(root.path());
    assert!(parts.is_empty());
    let part = parts.take(&digest, 10, 0).unwrap();
    part.append(b"abc").unwrap();
    part.append(b"de").unwrap();
    assert_eq!((part.found(), part.len(), parts.bytes()), (0, 5, 5));
    assert!(parts.take(&digest, 10, 0).is_none(), "one pull has it at a time");
    drop(part);

    let parts = Parts::open(root.path());
    assert!(!parts.is_empty());
    let part = until(|| parts.take(&digest, 10, 0));
    assert_eq!((part.found(), parts.bytes()), (5, 5));
    assert_eq!(part.read(1).unwrap(), "bcde");
    assert_eq!(part.read(5).unwrap(), "");
    part.remove();
    assert!(parts.is_empty());
    assert_eq!(parts.bytes(), 0);
}

#[test]
fn what_cannot_be_a_beginning_is_emptied() {
    let root = tempfile::tempdir().unwrap();
    let digest = digest_of(b"blob");
    let parts = Parts::open(root.path());
    parts.take(&digest, 10, 0).unwrap().append(b"longer than it may be").unwrap();
    let part = until(|| parts.take(&digest, 10, 0));
    assert_eq!((part.found(), part.len(), parts.bytes()), (0, 0, 0));
}

#[test]
fn parts_of_another_boot_are_removed() {
    let root = tempfile::tempdir().unwrap();
    let other = root.path().join(DIRECTORY).join("0b0b0b0b-0000-0000-0000-000000000000");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("ab".repeat(32)), "part").unwrap();
    let parts = Parts::open(root.path());
    assert_eq!(parts.bytes(), 0);
    assert_eq!(names(&root.path().join(DIRECTORY)), [boot_id().unwrap()]);
}

#[test]
fn layers_are_marked_while_their_pull_lasts() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (digest_of(b"1"), digest_of(b"2"));
    let parts = Parts::open(root.path());
    parts.mark(&one);
    parts.mark(&two);
    parts.unmark(&two);
    assert_eq!(unpacked_layers(root.path()), HashSet::from([one.clone()]));
    parts.take(&two, 1, 0).unwrap();
    until(|| {
        parts.sweep();
        (names(parts.directory.as_ref().unwrap()) == [format!("{}.layer", one.hex())]).then_some(())
    });
    parts.unmark(&one);
    parts.unmark(&one);
    assert!(parts.is_empty());
}

#[test]
fn a_part_in_use_is_not_swept() {
    let root = tempfile::tempdir().unwrap();
    let parts = Parts::open(root.path());
    let part = parts.take(&digest_of(b"1"), 5, 0).unwrap();
    parts.sweep();
    part.append(b"x").unwrap();
    assert!(!parts.is_empty());
}

#[test]
fn without_room_or_directory_there_are_no_parts() {
    let root = tempfile::tempdir().unwrap();
    let parts = Parts::open(root.path());
    assert!(parts.take(&digest_of(b"1"), 5, u64::MAX).is_none());
    fs::write(root.path().join("file"), "").unwrap();
    let nowhere = Parts::open(&root.path().join("file"));
    assert!(nowhere.take(&digest_of(b"1"), 5, 0).is_none() && nowhere.is_empty());
    nowhere.mark(&digest_of(b"1"));
    nowhere.sweep();
}
