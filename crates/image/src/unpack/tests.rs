use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tar::EntryType;
use tempfile::TempDir;

use super::*;

/// Builds archives, also such as no honest program writes.
struct Builder(tar::Builder<Vec<u8>>);

impl Builder {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn raw(mut self, name: &[u8], change: impl FnOnce(&mut tar::Header), data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000);
        header.set_entry_type(EntryType::Regular);
        header.set_uid(0);
        header.set_gid(0);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(name.as_bytes(), |_| {}, data)
    }

    fn directory(self, name: &str) -> Self {
        self.raw(
            name.as_bytes(),
            |header| {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
            },
            b"",
        )
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.raw(
            name.as_bytes(),
            |header| {
                header.set_entry_type(kind);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            },
            b"",
        )
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    /// Unpacks into `sandbox/root`.
    fn unpack(self) -> (TempDir, PathBuf, Result<Unpacked, UnpackError>) {
        let sandbox = tempfile::tempdir().unwrap();
        let root = sandbox.path().join("root");
        fs::create_dir(&root).unwrap();
        let fd = OwnedFd::from(fs::File::open(&root).unwrap());
        let bytes = self.build();
        let result = unpack(bytes.as_slice(), fd).map(|(unpacked, _)| unpacked);
        (sandbox, root, result)
    }

    fn unpack_well(self) -> (TempDir, PathBuf, Unpacked) {
        let (sandbox, root, result) = self.unpack();
        let unpacked = result.unwrap_or_else(|error| panic!("{}", types::error::chain(&error)));
        let fd = fs::File::open(&root).unwrap();
        let (bytes, inodes) = node::measure(std::os::fd::AsFd::as_fd(&fd)).unwrap();
        assert_eq!((unpacked.bytes, unpacked.inodes), (bytes, inodes), "what was added up is what is there");
        (sandbox, root, unpacked)
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(len);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn device(header: &mut tar::Header, kind: EntryType, major: u32, minor: u32) {
    header.set_entry_type(kind);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
}

#[test]
fn metadata_arrives_as_the_archive_has_it() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\n\0\0\0";
    let (_sandbox, root, unpacked) = Builder::new()
        .raw(
            b"./",
            |h| {
                h.set_entry_type(EntryType::Directory);
                h.set_mode(0o711);
            },
            b"",
        )
        .raw(
            b"dir/",
            |h| {
                h.set_entry_type(EntryType::Directory);
                h.set_mode(0o1777);
                h.set_gid(5);
            },
            b"",
        )
        .raw(
            b"dir/setuid",
            |h| {
                h.set_mode(0o4755);
                h.set_uid(1000);
                h.set_gid(1001);
            },
            b"x",
        )
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("mtime", b"5.25"),
            ("SCHILY.xattr.user.a", b"1\n2"),
        ])
        .file("dir/capable", b"yy")
        .raw(b"dir/null", |h| device(h, EntryType::Char, 1, 3), b"")
        .raw(b"dir/loop", |h| device(h, EntryType::Block, 7, 0), b"")
        .raw(
            b"dir/fifo",
            |h| {
                h.set_entry_type(EntryType::Fifo);
                h.set_mode(0o600);
            },
            b"",
        )
        .symlink("dir/link", "/absolute/target")
        .hard_link("dir/second", "dir/setuid")
        .raw(b"dir/\xff\xfe", |_| {}, b"")
        .unpack_well();
    let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!((meta("").mode() & 0o7777, meta("").mtime()), (0o711, 1_000_000));
    assert_eq!((meta("dir").mode() & 0o7777, meta("dir").gid(), meta("dir").mtime()), (0o1777, 5, 1_000_000));
    let setuid = meta("dir/setuid");
    assert_eq!((setuid.mode() & 0o7777, setuid.uid(), setuid.gid()), (0o4755, 1000, 1001));
    assert_eq!((meta("dir/second").ino(), setuid.nlink()), (setuid.ino(), 2));
    let capable = meta("dir/capable");
    assert_eq!((capable.mtime(), capable.mtime_nsec()), (5, 250_000_000));
    assert_eq!(xattr(&root.join("dir/capable"), "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr(&root.join("dir/capable"), "user.a").as_deref(), Some(&b"1\n2"[..]));
    assert_eq!(meta("dir/null").rdev(), rustix::fs::makedev(1, 3));
    assert!(meta("dir/loop").file_type().is_block_device() && meta("dir/fifo").file_type().is_fifo());
    assert_eq!(fs::read_link(root.join("dir/link")).unwrap(), Path::new("/absolute/target"));
    assert_eq!(meta("dir/link").mtime(), 1_000_000);
    assert!(root.join(std::ffi::OsStr::from_bytes(b"dir/\xff\xfe")).try_exists().unwrap());
    assert!(!unpacked.opaque_root);
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let (sandbox, root, _) = Builder::new()
        .file("a", b"old")
        .file("a", b"new")
        .directory("b")
        .file("b/child", b"")
        .file("b", b"file")
        .file("c", b"file")
        .directory("c")
        .file("c/child", b"")
        .symlink("d", "../outside")
        .file("d", b"not through the link")
        .directory("e")
        .file("e/kept", b"")
        .directory("e")
        .file("f", b"1")
        .hard_link("f", "f")
        .file("g", b"1")
        .file("h", b"2")
        .hard_link("h", "g")
        .unpack_well();
    let read = |name: &str| fs::read(root.join(name)).unwrap();
    assert_eq!((read("a"), read("b"), read("c/child")), (b"new".to_vec(), b"file".to_vec(), vec![]));
    assert_eq!(
        (read("d"), read("f"), read("h")),
        (b"not through the link".to_vec(), b"1".to_vec(), b"1".to_vec())
    );
    assert!(root.join("e/kept").try_exists().unwrap());
    assert!(!sandbox.path().join("outside").try_exists().unwrap());
}

#[test]
fn whiteouts_hide_lower_layers_and_never_their_own() {
    let (_sandbox, root, unpacked) = Builder::new()
        .file("dir/.wh.gone", b"")
        .file("dir/.wh.replaced-file", b"")
        .file("dir/replaced-file", b"x")
        .directory("dir/replaced-dir-before")
        .file("dir/.wh.replaced-dir-before", b"")
        .file("dir/.wh.replaced-dir-after", b"")
        .directory("dir/replaced-dir-after")
        .file("dir/.wh.implied", b"")
        .file("dir/implied/child", b"")
        .file("dir/own", b"x")
        .file("dir/.wh.own", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"")
        .file("dir/.wh..wh.plnk", b"")
        .unpack_well();
    let at = |name: &str| root.join("dir").join(name);
    assert!(is_whiteout(&at("gone")));
    assert_eq!(fs::read(at("replaced-file")).unwrap(), b"x");
    assert_eq!(fs::read(at("own")).unwrap(), b"x");
    for name in ["replaced-dir-before", "replaced-dir-after", "implied"] {
        assert!(at(name).is_dir() && is_opaque(&at(name)), "{name}");
    }
    assert!(at("implied/child").is_file());
    assert!(is_opaque(&root.join("opaque")) && !is_opaque(&root.join("dir")));
    let names: Vec<_> = fs::read_dir(root.join("dir")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.as_bytes().starts_with(b".wh.")), "{names:?}");
    assert!(!unpacked.opaque_root);
    let (_sandbox, _, unpacked) = Builder::new().file(".wh..wh..opq", b"").unpack_well();
    assert!(unpacked.opaque_root);
}

#[test]
fn parents_that_the_archive_does_not_hold_are_made() {
    let (_sandbox, root, _) = Builder::new()
        .file("a/b/c", b"")
        .symlink("lib", "usr/lib")
        .file("lib/so", b"through a dangling link")
        .symlink("abs", "/var/data")
        .file("abs/x/y", b"")
        .unpack_well();
    for name in ["a", "a/b", "usr/lib", "var/data/x"] {
        let meta = fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o755, 0, 0), "{name}");
    }
    assert!(root.join("usr/lib/so").is_file() && root.join("var/data/x/y").is_file());
}

#[test]
fn long_names_and_absolute_names() {
    let long = format!("{}/{}/{}", "a".repeat(200), "b".repeat(200), "c".repeat(255));
    let mut builder = Builder::new();
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o600);
    builder.0.append_data(&mut header, &long, &b""[..]).unwrap();
    let (_sandbox, root, _) = builder.file("/etc/absolute", b"").file("./x/../y", b"").unpack_well();
    for name in [long.as_str(), "etc/absolute", "y"] {
        assert!(root.join(name).is_file(), "{name}");
    }
}

#[test]
fn overlays_own_attributes_cannot_come_from_an_archive() {
    let (_sandbox, root, _) = Builder::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/secret"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.mine", b"1"),
        ])
        .directory("dir")
        .unpack_well();
    assert_eq!(xattr(&root.join("dir"), "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&root.join("dir"), "user.overlay.opaque"), None);
    assert_eq!(xattr(&root.join("dir"), "trusted.mine").as_deref(), Some(&b"1"[..]));
}

#[test]
fn sparse_files_take_only_what_they_hold() {
    let source = tempfile::tempdir().unwrap();
    let file = fs::File::create(source.path().join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 50_000_000).unwrap();
    let output = std::process::Command::new("tar")
        .args(["--sparse", "--format=posix", "-cf", "-", "-C"])
        .arg(source.path())
        .arg("holes")
        .output()
        .unwrap();
    let target = tempfile::tempdir().unwrap();
    let fd = OwnedFd::from(fs::File::open(target.path()).unwrap());
    unpack(output.stdout.as_slice(), fd).unwrap();
    let meta = fs::metadata(target.path().join("holes")).unwrap();
    assert_eq!(meta.len(), 50_000_003);
    assert!(meta.blocks() * 512 < 1_000_000, "{} blocks", meta.blocks());
    assert_eq!(
        fs::read(target.path().join("holes")).unwrap(),
        fs::read(source.path().join("holes")).unwrap()
    );
}

#[test]
fn hostile_archives_are_refused_by_entry_and_reach_nothing_outside() {
    type Check = fn(&EntryError) -> bool;
    let deep = "a/".repeat(40) + "x";
    let cases: Vec<(&str, Builder, Check)> = vec![
        ("../up", Builder::new().file("../up", b"x"), |e| matches!(e, EntryError::Outside)),
        ("a/../../up", Builder::new().file("a/../../up", b"x"), |e| matches!(e, EntryError::Outside)),
        ("link", Builder::new().hard_link("link", "../sentinel"), |e| {
            matches!(e, EntryError::LinkOutside(_))
        }),
        ("link", Builder::new().hard_link("link", "/etc/passwd"), |e| {
            matches!(e, EntryError::LinkTarget { .. })
        }),
        ("out/link", Builder::new().symlink("out", "..").hard_link("out/link", "out/sentinel"), |e| {
            matches!(e, EntryError::LinkTarget { .. })
        }),
        ("file/child", Builder::new().file("file", b"").file("file/child", b""), |e| {
            matches!(e, EntryError::NotADirectory)
        }),
        ("a/x", Builder::new().symlink("a", "b").symlink("b", "a").file("a/x", b""), |e| {
            matches!(e, EntryError::Io { .. })
        }),
        (".wh.", Builder::new().file(".wh.", b""), |e| matches!(e, EntryError::Name(_))),
        ("a/.wh...", Builder::new().file("a/.wh...", b""), |e| matches!(e, EntryError::Name(_))),
        (".", Builder::new().file(".", b""), |e| matches!(e, EntryError::Name(_))),
        ("a\0b", Builder::new().pax(&[("path", b"a\0b")]).file("x", b""), |e| {
            matches!(e, EntryError::Name(_))
        }),
        ("dir", Builder::new().directory("dir").hard_link("again", "").file(&deep, b""), |e| {
            matches!(e, EntryError::Name(_))
        }),
    ];
    for (entry, builder, expected) in cases {
        let (sandbox, root, result) = builder.unpack();
        let error = result.expect_err(entry);
        let UnpackError::Entry { entry: named, problem } = &error else {
            panic!("{error} must name its entry")
        };
        assert!(expected(problem), "{entry}: {problem:?}");
        assert!(named == entry || entry == "dir", "{named} is not {entry}");
        let outside: Vec<_> = fs::read_dir(sandbox.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(outside, [root], "{entry}");
    }
}

#[test]
fn what_a_layer_may_take_is_bounded() {
    let long = "n".repeat(90);
    let refused = |limit: u64, builder: Builder| {
        let root = tempfile::tempdir().unwrap();
        let bytes = builder.build();
        let fd = OwnedFd::from(fs::File::open(root.path()).unwrap());
        let error = unpack_within(limit, bytes.as_slice(), fd).expect_err("it must be refused");
        assert!(error.is_of_content(), "{}", types::error::chain(&error));
        types::error::chain(&error)
    };
    // One large file is refused before it is written, many small ones when they have become too much.
    let error = refused(10_000, Builder::new().file("small", b"x").file("large", &[0; 12_000]));
    assert!(error.starts_with("entry \"large\": the layer unpacks to more"), "{error}");
    let many = (0..30).fold(Builder::new(), |builder, at| builder.file(&format!("{at}{long}"), b""));
    assert!(refused(10_000, many).contains("more than 200 times its blob"));
    let value = vec![b'v'; 70_000];
    let large = Builder::new().pax(&[("SCHILY.xattr.user.large", &value)]).file("file", b"");
    assert!(refused(1 << 30, large).contains("entry \"file\": the layer has an extended attribute"));
    let names: Vec<String> = (0..300).map(|at| format!("SCHILY.xattr.user.{at}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"v"[..])).collect();
    assert!(refused(1 << 30, Builder::new().pax(&records).file("file", b"")).contains("too many extended"));
    assert_eq!((limit(0), limit(100 << 20)), (1 << 30, 20_000 << 20));
}

#[test]
fn a_file_larger_than_the_free_space_is_refused_before_it_is_written() {
    let mut header = tar::Header::new_gnu();
    header.set_path("vast").unwrap();
    header.set_size(1 << 60);
    header.set_cksum();
    let root = tempfile::tempdir().unwrap();
    let fd = OwnedFd::from(fs::File::open(root.path()).unwrap());
    let error = unpack_within(u64::MAX, &header.as_bytes()[..], fd).expect_err("there is no such disk");
    assert_eq!(error.io().map(io::Error::kind), Some(io::ErrorKind::StorageFull), "{error}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn links_that_point_outside_stay_inside() {
    let name = format!("crimson-unpack-{}", std::process::id());
    for target in ["/tmp", "../../../../../../../tmp", "/proc/self/root/tmp"] {
        let (_sandbox, root, result) =
            Builder::new().symlink("exit", target).file(&format!("exit/{name}"), b"x").unpack();
        result.unwrap_or_else(|error| panic!("{target}: {}", types::error::chain(&error)));
        assert!(!Path::new("/tmp").join(&name).try_exists().unwrap(), "{target}");
        assert!(root.join("tmp").is_dir() || root.join("proc").is_dir(), "{target}");
    }
}

#[test]
fn a_chain_of_links_cannot_dig_beyond_what_can_be_removed() {
    let step = "d/".repeat(40);
    let mut builder = Builder::new().directory(&step).symlink("l0", step.trim_end_matches('/'));
    for level in 0..30 {
        let (here, next) = (format!("l{level}"), format!("l{}", level + 1));
        builder = builder
            .file(&format!("{here}/{step}x"), b"")
            .symlink(&next, &format!("{here}/{}", step.trim_end_matches('/')));
    }
    let (_sandbox, _root, result) = builder.unpack();
    assert!(matches!(result, Err(UnpackError::Entry { .. })), "{result:?}");
}

#[test]
fn links_already_in_the_way_are_not_followed_at_the_end_of_a_name() {
    let sandbox = tempfile::tempdir().unwrap();
    let root = sandbox.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(sandbox.path().join("sentinel"), "safe").unwrap();
    symlink("../sentinel", root.join("file")).unwrap();
    let archive = Builder::new().raw(b"file", |h| h.set_mode(0o777), b"overwritten").build();
    unpack(archive.as_slice(), OwnedFd::from(fs::File::open(&root).unwrap())).unwrap();
    assert_eq!(fs::read(sandbox.path().join("sentinel")).unwrap(), b"safe");
    let mode = fs::metadata(sandbox.path().join("sentinel")).unwrap().permissions().mode();
    assert_ne!(mode & 0o777, 0o777);
}
