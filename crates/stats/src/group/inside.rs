//! The groups in a group.

use rustix::fs::{Dir, FileType};

use super::Directory;

/// Groups in a group that are looked at; a container that makes more is not counted whole.
const MANY: usize = 256;

/// Those at any depth in a hierarchy's directory, opened one after the other.
pub(super) fn of(directory: &Directory) -> impl Iterator<Item = Directory> + use<> {
    let mut waiting = directly(directory);
    let next = move || {
        let next = waiting.pop()?;
        waiting.extend(directly(&next));
        Some(next)
    };
    std::iter::from_fn(next).take(MANY)
}

/// Most groups have none in them, which is known without looking at all the files there are.
fn directly(directory: &Directory) -> Vec<Directory> {
    let alone = rustix::fs::fstat(&directory.fd).is_ok_and(|stat| stat.st_nlink <= 2);
    if alone {
        return Vec::new();
    }
    let entries = directory.readable().and_then(Dir::new).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type() == FileType::Directory);
    let names = directories.map(|entry| entry.file_name().to_owned());
    names
        .filter(|name| !name.to_bytes().starts_with(b"."))
        .filter_map(|name| directory.inner(&name))
        .collect()
}
