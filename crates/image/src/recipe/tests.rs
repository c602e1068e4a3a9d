use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::unpack::{Target, UnpackError, unpack};

/// Unpacks into a layer's directory as the store lays it out.
fn unpacked(archive: &[u8]) -> Result<TempDir, UnpackError> {
    let layer = tempfile::tempdir().unwrap();
    fs::create_dir(layer.path().join("fs")).unwrap();
    let recipe = fs::File::create(layer.path().join(FILE)).unwrap();
    unpack(archive, Target { root: root(&layer), recipe: Some(recipe) })?;
    Ok(layer)
}

fn root(layer: &TempDir) -> OwnedFd {
    fs::File::open(layer.path().join("fs")).unwrap().into()
}

fn made_again(layer: &TempDir) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut read(layer.path(), root(layer))?, &mut bytes)?;
    Ok(bytes)
}

fn check(archive: &[u8]) -> TempDir {
    let layer = unpacked(archive).unwrap_or_else(|error| panic!("{}", types::error::chain(&error)));
    let again = made_again(&layer).unwrap();
    assert!(again == archive, "{} bytes became {}", archive.len(), again.len());
    let (needed, brought) = parse(&fs::read(layer.path().join(FILE)).unwrap()).unwrap();
    assert!(needed + brought >= archive.len() as u64);
    layer
}

fn gnu_tar(directory: &TempDir, arguments: &[&str]) -> Vec<u8> {
    let output =
        Command::new("tar").args(arguments).args(["-cf", "-", "-C"]).arg(directory.path()).arg(".").output();
    output.unwrap().stdout
}

#[derive(Debug, Clone)]
enum Made {
    File(usize),
    Holes,
    Directory,
    DirectoryWithData,
    Symlink(String),
    HardLink(String),
    Fifo,
    Global,
}

fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, made: &Made, seed: u8) {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o640);
    header.set_mtime(u64::from(seed));
    header.set_uid(0);
    header.set_gid(0);
    let mut data = Vec::new();
    let link = |header: &mut tar::Header, kind, target: &str| {
        header.set_entry_type(kind);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    };
    match made {
        Made::File(len) => {
            header.set_entry_type(EntryType::Regular);
            data = (0..=u8::MAX).cycle().take(*len).map(|at| at.wrapping_mul(seed)).collect();
        }
        Made::Holes => {
            let records: [(&str, &[u8]); 3] = [
                ("GNU.sparse.size", b"300000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", b"4096,5,200000,6"),
            ];
            builder.append_pax_extensions(records).unwrap();
            header.set_entry_type(EntryType::Regular);
            data = vec![seed; 11];
        }
        Made::Directory | Made::DirectoryWithData => {
            header.set_entry_type(EntryType::Directory);
            data = vec![seed; if matches!(made, Made::Directory) { 0 } else { 700 }];
        }
        Made::Symlink(target) => link(&mut header, EntryType::Symlink, target),
        Made::HardLink(target) => link(&mut header, EntryType::Link, target),
        Made::Fifo => header.set_entry_type(EntryType::Fifo),
        Made::Global => {
            header.set_entry_type(EntryType::XGlobalHeader);
            data = b"14 comment=abc\n".to_vec();
            data[0..2].copy_from_slice(b"15");
        }
    }
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data.as_slice()).unwrap();
}

fn archive(entries: &[(String, Made, u8)], tail: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, made, seed) in entries {
        add(&mut builder, name, made, *seed);
    }
    let mut bytes = builder.into_inner().unwrap();
    bytes.extend(std::iter::repeat_n(7, tail));
    bytes
}

fn name() -> impl Strategy<Value = String> {
    // Few names, so that they meet; links among the directories, so that names lead to the same file.
    prop::sample::select(vec![
        "a",
        "b",
        "d",
        "d/a",
        "d/b",
        "d/d/a",
        "l",
        "l/a",
        "l/b",
        "l/d/a",
        "d/.wh.a",
        ".wh.d",
        "l/.wh..wh..opq",
    ])
    .prop_map(str::to_owned)
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => prop_oneof![0_usize..4, 500_usize..1500].prop_map(Made::File),
        1 => Just(Made::Holes),
        1 => Just(Made::Directory),
        1 => Just(Made::DirectoryWithData),
        2 => prop::sample::select(vec!["d", "../d", "/d/d", "a"]).prop_map(|to| Made::Symlink(to.to_owned())),
        2 => name().prop_map(Made::HardLink),
        1 => Just(Made::Fifo),
        1 => Just(Made::Global),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever entries replace, and by whatever names they reach it, the archive comes back as it was.
    #[test]
    fn every_archive_that_unpacks_can_be_made_again(
        entries in prop::collection::vec((name(), made(), 1_u8..), 1..24),
        tail in 0_usize..3000,
    ) {
        let mut good = entries;
        // What cannot be unpacked (a link to nothing, a file used as a directory) is left out.
        if unpacked(&archive(&good, 0)).is_err() {
            let mut kept = Vec::new();
            for entry in good {
                kept.push(entry);
                if unpacked(&archive(&kept, 0)).is_err() {
                    kept.pop();
                }
            }
            good = kept;
        }
        check(&archive(&good, tail));
    }

    #[test]
    fn damaged_recipes_are_refused_without_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let layer = check(&archive(&replacing(), 100));
        let mut recipe = fs::read(layer.path().join(FILE)).unwrap();
        for (at, value) in damage {
            let at = at.index(recipe.len());
            recipe[at] = value;
        }
        drop(parse(&recipe));
        fs::write(layer.path().join(FILE), &recipe).unwrap();
        drop(made_again(&layer));
        recipe.truncate(cut.index(recipe.len()));
        prop_assert!(parse(&recipe).is_err(), "a recipe that was cut");
    }
}

/// Each file is replaced in another way.
fn replacing() -> Vec<(String, Made, u8)> {
    let entry = |name: &str, made, seed| (name.to_owned(), made, seed);
    vec![
        entry("d/a", Made::File(900), 3),
        entry("l", Made::Symlink("d".to_owned()), 1),
        entry("b", Made::HardLink("d/a".to_owned()), 1),
        entry("l/a", Made::File(700_000), 5),
        entry("b", Made::Holes, 9),
        entry("b", Made::Symlink("a".to_owned()), 1),
        entry("d/d/a", Made::File(0), 1),
        entry("l", Made::File(5), 1),
        entry("d", Made::File(6), 1),
    ]
}

#[test]
fn replaced_files_are_kept_in_the_recipe() {
    let layer = check(&archive(&replacing(), 0));
    assert!(layer.path().join("fs/d").is_file(), "nothing of the first files is in the tree");
}

#[test]
fn every_dialect_of_gnu_tar_comes_back() {
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name);
    let long = "n".repeat(180);
    fs::create_dir_all(path("sub/empty")).unwrap();
    fs::write(path("sub/file"), vec![5; 70_000]).unwrap();
    fs::write(path(&long), b"long").unwrap();
    fs::hard_link(path("sub/file"), path("second")).unwrap();
    symlink("sub/file", path("link")).unwrap();
    let holes = fs::File::create(path("holes")).unwrap();
    for block in 0..30_u64 {
        holes.write_all_at(b"data", block * 100_000).unwrap();
    }
    holes.set_len(4_000_000).unwrap();
    for arguments in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--xattrs"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--blocking-factor=200"],
    ] {
        let archive = gnu_tar(&source, arguments);
        assert!(archive.len() > 70_000, "{arguments:?}");
        check(&archive);
    }
}

#[test]
fn a_tree_that_changed_is_noticed() {
    let original = archive(&[("d/a".to_owned(), Made::File(3000), 3)], 0);
    type Change = fn(&std::path::Path);
    let changes: [(Change, &str); 5] = [
        (|file| fs::remove_file(file).unwrap(), "is missing"),
        (|file| fs::write(file, "short").unwrap(), "has another length"),
        (
            |file| {
                fs::rename(file, file.with_file_name("b")).unwrap();
                symlink("b", file).unwrap();
            },
            "is no file any more",
        ),
        (
            |file| {
                fs::rename(file.parent().unwrap(), file.parent().unwrap().with_file_name("e")).unwrap();
                symlink("e", file.parent().unwrap()).unwrap();
            },
            "is not where it was put",
        ),
        (
            |file| {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            },
            "is no file any more",
        ),
    ];
    for (change, expected) in changes {
        let layer = check(&original);
        change(&layer.path().join("fs/d/a"));
        let error = made_again(&layer).unwrap_err();
        assert_eq!(error.to_string(), format!("file \"d/a\" of the layer {expected}"));
    }
    let layer = check(&original);
    fs::remove_file(layer.path().join(FILE)).unwrap();
    assert!(matches!(read(layer.path(), root(&layer)), Err(RecipeError::Missing(_))));
}

#[test]
fn endless_padding_takes_little_room() {
    let mut bytes = archive(&[("a".to_owned(), Made::File(10), 1)], 0);
    bytes.resize(40 << 20, 0);
    let layer = check(&bytes);
    assert!(fs::metadata(layer.path().join(FILE)).unwrap().len() < 40_000);
}
