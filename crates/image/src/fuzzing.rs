//! What the fuzzer of `fuzz/` calls, with the promises that hold for every input; not part of the library.
//!
//! Exists in tests and under `cfg(fuzzing)` only. The tests replay everything that the fuzzer has found worth keeping
//! (`fuzz/corpus`) and everything that once broke a promise (`fuzz/regressions`).

mod entries;
mod sandbox;

use std::fs;
use std::path::Path;

use crate::manifest::Document;
use crate::reference::Reference;
use sandbox::Sandbox;

/// One kind of input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its directories in `fuzz`.
    pub name: &'static str,
    /// Takes one input; panics when a promise does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "reference", run: reference },
    Target { name: "manifest", run: manifest },
    Target { name: "hosts", run: hosts },
    Target { name: "recipe", run: recipe },
    Target { name: "tar", run: tar },
    Target { name: "layer", run: layer },
];

/// What is displayed is read as the same again.
fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(reference) = Reference::parse(text) else { return };
    let shown = reference.to_string();
    match Reference::parse(&shown) {
        Ok(again) => assert_eq!(reference, again, "{shown:?}"),
        Err(error) => assert!(shown.is_empty(), "{shown:?} is refused: {error}"),
    }
    assert!(!reference.registry().is_empty() && !reference.repository().is_empty(), "{shown:?}");
}

/// Every document is an image, an index or an error, and no sum of sizes overflows.
fn manifest(input: &[u8]) {
    if let Ok(Document::Image(manifest)) = Document::parse(input) {
        manifest.size();
    }
    drop(crate::store::parse_config(input));
}

/// Whatever a hosts file holds, the registry's endpoints come out or an error does.
fn hosts(input: &[u8]) {
    let directory = Sandbox::directory("hosts");
    let path = directory.join("registry.example");
    let written = fs::create_dir_all(&path).and_then(|()| fs::write(path.join("hosts.toml"), input));
    assert!(written.is_ok(), "{}: {written:?}", path.display());
    if let Ok(endpoints) = crate::hosts::endpoints("registry.example", Some(&directory)) {
        assert!(!endpoints.is_empty());
    }
    drop(fs::remove_dir_all(directory));
}

/// A recipe is read without a tree.
fn recipe(input: &[u8]) {
    drop(crate::recipe::parse(input));
}

/// The input is an archive, but for the checksums of its headers, which no fuzzer would get right.
fn tar(input: &[u8]) {
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(entries::BLOCK).filter(|block| entries::looks_like_header(block)) {
        entries::seal(block);
    }
    Sandbox::new("tar").unpack(&archive);
}

/// The input chooses entries whose names, links and types meet.
fn layer(input: &[u8]) {
    Sandbox::new("layer").unpack(&entries::archive(input));
}

/// Runs a target with every file beneath `directory`, and says how many there were.
pub fn replay(target: Target, directory: &Path) -> std::io::Result<usize> {
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        files => files?,
    };
    let mut count = 0;
    for file in files {
        (target.run)(&fs::read(file?.path())?);
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_before_breaks_no_promise() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        for target in TARGETS {
            let seeds = replay(target, &fuzz.join("corpus").join(target.name)).unwrap();
            assert!(seeds > 0, "{} has no seeds", target.name);
            replay(target, &fuzz.join("regressions").join(target.name)).unwrap();
        }
    }

    #[test]
    fn an_archive_that_changes_what_is_beside_it_is_noticed() {
        let sandbox = Sandbox::new("noticed");
        sandbox.check();
        fs::write(sandbox.path().join("outside/file"), "changed").unwrap();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sandbox.check())).is_err());
    }
}
