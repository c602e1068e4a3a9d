//! Labels of files: those at and beneath a path, each by a descriptor.
//!
//! What is relabelled may be changed by running containers at the same time, so no path is looked up twice and no link is
//! followed: each name is opened beneath the directory it was listed in. The top comes last, so that a tree of which it has
//! the label was done to the end.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, openat};
use rustix::io::Errno;

use super::ConfinementError;

const ATTRIBUTE: &str = "security.selinux";

/// Directories of the node whose files must keep their labels, whoever wants them as a volume. What lies beneath may be
/// relabelled, but beneath a file system of the kernel's own.
const NODES_OWN: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
];
/// File systems of the kernel's own, where a label says what may be done to the node.
const KERNELS_OWN: &[&str] = &["/proc", "/sys"];

/// Gives everything at `path` and beneath this label.
pub(super) fn relabel(path: &Path, label: &str) -> Result<(), ConfinementError> {
    if is_protected(path) {
        return Err(ConfinementError::Protected(path.to_owned()));
    }
    let write = |node: BorrowedFd<'_>| write_label(node, label);
    walk(path, &write).map_err(|error| ConfinementError::Relabel(path.to_owned(), error))
}

fn is_protected(path: &Path) -> bool {
    // Links have been followed by whoever checked the mount; this is against the spelling.
    let clean: PathBuf = path.components().collect();
    NODES_OWN.iter().any(|own| clean == Path::new(own))
        || KERNELS_OWN.iter().any(|own| clean.starts_with(own))
}

/// A directory in which the walk is.
struct Level {
    node: OwnedFd,
    names: Dir,
}

/// Visits everything beneath `top`, then `top`.
fn walk(top: &Path, visit: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    let top = openat(CWD, top, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut levels = Vec::new();
    enter(top, &mut levels, visit)?;
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.names.read() else {
            let done = levels.pop();
            done.map_or(Ok(()), |level| visit(level.node.as_fd()))?;
            continue;
        };
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&level.node, entry.file_name(), flags, Mode::empty()) {
            Ok(node) => enter(node, &mut levels, visit)?,
            // Files come and go while we look.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Visits a node, or goes into it if it is a directory.
fn enter(
    node: OwnedFd,
    levels: &mut Vec<Level>,
    visit: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode);
    if kind != FileType::Directory {
        return visit(node.as_fd());
    }
    let names = openat(&node, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    levels.push(Level { node, names: Dir::new(names)? });
    Ok(())
}

/// Writes the label if there is another; file systems that keep none are left as they are.
fn write_label(node: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    // The descriptor is none for reading or writing, so it is named by its path, which leads to the node itself.
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let with_end = CString::new(label)?.into_bytes_with_nul();
    let mut present = vec![0; with_end.len() + 1];
    if let Ok(length) = rustix::fs::getxattr(&path, ATTRIBUTE, &mut present[..])
        && present.get(..length).is_some_and(|present| present == with_end || present == label.as_bytes())
    {
        return Ok(());
    }
    match rustix::fs::setxattr(&path, ATTRIBUTE, &with_end, XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_nodes_own_directories_are_left_alone() {
        for path in ["/", "/etc", "/etc/", "/usr", "//home", "/var/lib", "/proc", "/proc/1", "/sys/fs/cgroup"]
        {
            assert!(is_protected(Path::new(path)), "{path}");
            assert!(matches!(relabel(Path::new(path), "x"), Err(ConfinementError::Protected(_))), "{path}");
        }
        for path in ["/srv/data", "/var/lib/kubelet/pods/1/volumes/a", "/home/me", "/etc/app", "/process"] {
            assert!(!is_protected(Path::new(path)), "{path}");
        }
    }

    /// What a walk visits, in order, by path.
    fn visited(top: &Path) -> Vec<PathBuf> {
        let seen = RefCell::new(Vec::new());
        walk(top, &|node| {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", node.as_raw_fd()))?;
            seen.borrow_mut().push(path);
            Ok(())
        })
        .unwrap();
        seen.into_inner()
    }

    #[test]
    fn all_beneath_is_visited_and_the_top_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap().join("top");
        std::fs::create_dir_all(top.join("a/b/c")).unwrap();
        std::fs::write(top.join("a/b/file"), "").unwrap();
        std::fs::write(dir.path().join("outside"), "").unwrap();
        // A link is labelled itself, and not followed.
        std::os::unix::fs::symlink("/etc", top.join("a/link")).unwrap();
        std::os::unix::fs::symlink("../outside", top.join("out")).unwrap();
        let mut seen = visited(&top);
        assert_eq!(seen.last(), Some(&top));
        seen.sort();
        let expected = ["", "a", "a/b", "a/b/c", "a/b/file", "a/link", "out"];
        let expected: Vec<_> = expected.iter().map(|name| top.join(name)).collect();
        assert_eq!(
            seen,
            expected.iter().map(|path| path.components().collect::<PathBuf>()).collect::<Vec<_>>()
        );
        assert_eq!(visited(&top.join("a/b/file")), [top.join("a/b/file")], "a volume may be one file");
    }

    #[test]
    fn a_file_system_that_keeps_labels_gets_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        match rustix::fs::setxattr(&file, ATTRIBUTE, b"x\0", XattrFlags::empty()) {
            // Without SELinux the kernel lets root write any text there, unless the file system keeps none.
            Err(Errno::OPNOTSUPP | Errno::PERM) => relabel(dir.path(), label).unwrap_or(()),
            written => {
                written.unwrap();
                relabel(dir.path(), label).unwrap();
                for path in [dir.path(), &file] {
                    let mut bytes = [0; 100];
                    let length = rustix::fs::getxattr(path, ATTRIBUTE, &mut bytes[..]).unwrap();
                    assert_eq!(bytes[..length], [label.as_bytes(), b"\0"].concat(), "{}", path.display());
                }
            }
        }
    }
}
