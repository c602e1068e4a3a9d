use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use sys::beneath::Root;
use tempfile::TempDir;

use super::*;

struct Sides {
    dir: TempDir,
}

impl Sides {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for side in ["from", "to"] {
            fs::create_dir(dir.path().join(side)).unwrap();
        }
        fs::write(dir.path().join("secret"), "of the host").unwrap();
        Self { dir }
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    fn copy(&self) -> Result<(), CopyError> {
        let open = |path: PathBuf| Root::open(&path).unwrap();
        tree(open(self.from("")).as_fd(), open(self.to("")).as_fd())
    }
}

fn own(path: &Path, uid: u32, gid: u32, mode: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    if !path.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Owner, group, mode and time of last change of content.
fn facts(path: &Path) -> (u32, u32, u32, (i64, i64)) {
    let data = fs::symlink_metadata(path).unwrap();
    (data.uid(), data.gid(), data.mode(), (data.mtime(), data.mtime_nsec()))
}

#[test]
fn a_copy_has_the_same_names_owners_modes_and_times() {
    let sides = Sides::new();
    fs::create_dir_all(sides.from("deep/er")).unwrap();
    fs::write(sides.from("deep/er/file"), "content").unwrap();
    fs::write(sides.from("setuid"), "").unwrap();
    symlink("/etc/passwd", sides.from("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, sides.from("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    own(&sides.from("setuid"), 12, 34, 0o4751);
    own(&sides.from("deep/er"), 1000, 1000, 0o2770);
    own(&sides.from("link"), 7, 8, 0);
    own(&sides.from(""), 33, 33, 0o1777);
    // A time that no copy has by chance.
    let past = rustix::fs::Timespec { tv_sec: 1_600_000_000, tv_nsec: 123_456_789 };
    for path in ["deep/er/file", "deep/er", "setuid", "link", ""] {
        let times = Timestamps { last_access: past, last_modification: past };
        rustix::fs::utimensat(rustix::fs::CWD, sides.from(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    sides.copy().unwrap();
    for path in ["", "deep", "deep/er", "deep/er/file", "setuid", "link", "pipe"] {
        assert_eq!(facts(&sides.from(path)), facts(&sides.to(path)), "{path:?}");
    }
    assert_eq!(fs::read_to_string(sides.to("deep/er/file")).unwrap(), "content");
    assert_eq!(fs::read_link(sides.to("link")).unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn links_are_copied_and_never_followed() {
    let sides = Sides::new();
    fs::create_dir(sides.from("dir")).unwrap();
    symlink("../../secret", sides.from("dir/climbing")).unwrap();
    symlink("/", sides.from("root")).unwrap();
    symlink("root", sides.from("dir/again")).unwrap();
    sides.copy().unwrap();
    for path in ["dir/climbing", "root", "dir/again"] {
        assert!(sides.to(path).is_symlink(), "{path}");
    }
    assert_eq!(fs::read_dir(sides.to("")).unwrap().count(), 2);
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let sides = Sides::new();
    fs::create_dir(sides.from("dir")).unwrap();
    fs::write(sides.from("one"), "x").unwrap();
    fs::hard_link(sides.from("one"), sides.from("dir/two")).unwrap();
    fs::hard_link(sides.from("one"), sides.from("three")).unwrap();
    sides.copy().unwrap();
    let inodes = ["one", "dir/two", "three"].map(|path| fs::metadata(sides.to(path)).unwrap().ino());
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    assert_ne!(inodes[0], fs::metadata(sides.from("one")).unwrap().ino());
}

#[test]
fn holes_stay_holes() {
    let sides = Sides::new();
    let file = File::create(sides.from("sparse")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", 40 << 20).unwrap();
    file.set_len(1 << 40).unwrap();
    drop(file);
    sides.copy().unwrap();
    let (from, to) = (fs::metadata(sides.from("sparse")).unwrap(), fs::metadata(sides.to("sparse")).unwrap());
    assert_eq!(to.len(), 1 << 40);
    assert!(to.blocks() <= from.blocks() + 64, "{} and {} blocks", from.blocks(), to.blocks());
    let mut end = [0; 4];
    File::open(sides.to("sparse")).unwrap().read_exact_at(&mut end, 40 << 20).unwrap();
    assert_eq!(&end, b"end\0");
}

#[test]
fn attributes_go_along_but_for_those_of_the_host() {
    let sides = Sides::new();
    fs::write(sides.from("file"), "x").unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(sides.from("file"), name, value, XattrFlags::empty()).unwrap();
    };
    // As `setcap cap_net_raw+ep` writes it.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    own(&sides.from("file"), 1000, 1000, 0o755);
    set("security.capability", &capability);
    set("trusted.kept", b"yes");
    set("trusted.overlay.redirect", b"/elsewhere");
    sides.copy().unwrap();
    let get = |name: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(sides.to("file"), name, &mut value);
        length.map(|length| value[..length].to_vec())
    };
    assert_eq!(get("security.capability").unwrap(), capability);
    assert_eq!(get("trusted.kept").unwrap(), b"yes");
    assert_eq!(get("trusted.overlay.redirect"), Err(Errno::NODATA));
}

#[test]
fn a_deep_tree_keeps_few_files_open() {
    let sides = Sides::new();
    let deep = ["d"; 1500].join("/");
    fs::create_dir_all(sides.from(&deep)).unwrap();
    sides.copy().unwrap();
    assert!(sides.to(&deep).is_dir());
}

#[test]
fn a_copy_that_fails_names_the_file() {
    let sides = Sides::new();
    fs::create_dir(sides.from("dir")).unwrap();
    fs::write(sides.from("dir/taken"), "").unwrap();
    fs::create_dir(sides.to("dir")).unwrap();
    let error = sides.copy().unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), ("making \"dir\"", ErrorKind::Internal));
}
