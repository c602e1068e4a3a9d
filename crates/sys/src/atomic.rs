//! Files that are whole or absent, whatever happens in between, and directory trees made and removed safely.
//!
//! A write goes to a temporary file beside the target, is synced, renamed over the target, and the directory is synced. A
//! crash can leave a temporary file behind: [`is_temporary`] knows it by name, readers of a directory skip it, and
//! [`sweep`] removes it at start.
//!
//! [`remove_tree`] trusts nothing below the path it is given: it works by descriptor, never follows a symbolic link, never
//! enters another mount, and needs a bounded number of descriptors and stack however deep a container made the tree.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::FileError;

mod tree;

pub use tree::remove_tree;

const TEMPORARY_SUFFIX: &str = ".crimson-tmp";

/// Writes `bytes` to `path` so that every reader, also after a crash, finds the old content or the new.
///
/// # Errors
/// [`FileError`] with the step that failed; the old content stands and no temporary file is left.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_beside(path)?;
    let written = write_synced(&temporary, bytes, mode).and_then(|()| {
        rustix::fs::rename(&temporary, path).map_err(|e| FileError::new("rename into place", path, e))
    });
    if written.is_err() {
        rustix::fs::unlink(&temporary).ok();
    }
    written.and_then(|()| sync_directory(parent_of(path)))
}

/// Removes the file at `path` for good. A missing file is a success.
///
/// # Errors
/// [`FileError`] when the file is there and stays.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match rustix::fs::unlink(path) {
        Ok(()) => sync_directory(parent_of(path)),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(FileError::new("remove", path, error)),
    }
}

/// Makes the directory and every missing parent, each with exactly `mode` whatever the umask, durably. What exists keeps
/// its mode.
///
/// # Errors
/// [`FileError`] when a component cannot be made or is not a directory.
pub fn create_dir_all(path: &Path, mode: u32) -> Result<(), FileError> {
    let missing = missing_components(path)?;
    for directory in &missing {
        create_dir(directory, mode)?;
    }
    // From the innermost outwards: the first sync makes the journal write them all, the others find nothing to do.
    missing.iter().rev().try_for_each(|directory| sync_directory(parent_of(directory)))
}

/// Whether a directory entry is what a crashed [`write()`] left behind.
#[must_use]
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(TEMPORARY_SUFFIX.as_bytes())
}

/// Removes what crashed writes left in `directory`; to be called when nothing writes there. A missing directory is a
/// success.
///
/// # Errors
/// [`FileError`] when the directory cannot be read or a leftover cannot be removed.
pub fn sweep(directory: &Path) -> Result<(), FileError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::new("read directory", directory, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| FileError::new("read directory", directory, e))?;
        if is_temporary(&entry.file_name()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes what happened in a directory (names made, renamed, removed) durable.
///
/// # Errors
/// [`FileError`] when the directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> Result<(), FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty())
        .and_then(rustix::fs::fsync)
        .map_err(|e| FileError::new("sync directory", directory, e))
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| FileError::new("create", path, e))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(|e| FileError::new("write", path, e))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
        .map_err(|e| FileError::new("set mode of", path, e))?;
    file.sync_all().map_err(|e| FileError::new("sync", path, e))
}

fn temporary_beside(path: &Path) -> Result<PathBuf, FileError> {
    let name = path.file_name().ok_or_else(|| FileError::new("write", path, Errno::ISDIR))?;
    let mut temporary = std::ffi::OsString::from(".");
    // The kernel's limit is 255 bytes for the whole name.
    temporary.push(OsStr::from_bytes(name.as_bytes().get(..180).unwrap_or(name.as_bytes())));
    temporary.push(format!(".{:016x}", u64::from_ne_bytes(crate::random::bytes())));
    temporary.push(TEMPORARY_SUFFIX);
    Ok(parent_of(path).join(temporary))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// The components that have to be made, outermost first.
fn missing_components(path: &Path) -> Result<Vec<&Path>, FileError> {
    let mut missing = Vec::new();
    for directory in path.ancestors().filter(|directory| !directory.as_os_str().is_empty()) {
        match rustix::fs::stat(directory) {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => break,
            Ok(_) => return Err(FileError::new("create directory", directory, Errno::NOTDIR)),
            Err(Errno::NOENT) => missing.push(directory),
            Err(error) => return Err(FileError::new("create directory", directory, error)),
        }
    }
    missing.reverse();
    Ok(missing)
}

/// Somebody else may have made it in the meantime; then it keeps the mode it was given there.
fn create_dir(directory: &Path, mode: u32) -> Result<(), FileError> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::mkdir(directory, mode) {
        Ok(()) => rustix::fs::chmodat(CWD, directory, mode, AtFlags::empty())
            .map_err(|e| FileError::new("set mode of", directory, e)),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(FileError::new("create directory", directory, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn write_replaces_content_and_mode_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write(&path, b"old", 0o600).unwrap();
        write(&path, b"new", 0o644).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), mode_of(&path)), (b"new".to_vec(), 0o644));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir_all(path.join("by a directory")).unwrap();
        let error = write(&path, b"new", 0o600).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("absent/record"), b"", 0o600).is_err());
    }

    #[test]
    fn names_as_long_as_the_kernel_allows_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("n".repeat(255)), b"x", 0o600).unwrap();
    }

    #[test]
    fn readers_never_see_a_torn_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write(&path, &[0; 4096], 0o600).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| (0..30_u8).for_each(|n| write(&path, &[n; 4096], 0o600).unwrap()));
            for _ in 0..300 {
                let seen = std::fs::read(&path).unwrap();
                assert!(seen.len() == 4096 && seen.iter().all(|b| *b == seen[0]));
            }
        });
    }

    #[test]
    fn removing_what_is_missing_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("never was")).unwrap();
        remove(&dir.path().join("no/such/parent")).unwrap();
        let path = dir.path().join("record");
        write(&path, b"x", 0o600).unwrap();
        remove(&path).unwrap();
        assert!(!path.try_exists().unwrap());
    }

    #[test]
    fn directories_get_the_mode_asked_for_and_existing_ones_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let path = dir.path().join("a/b");
        create_dir_all(&path, 0o777).unwrap();
        create_dir_all(&path, 0o700).unwrap();
        assert_eq!(
            (mode_of(&path), mode_of(path.parent().unwrap()), mode_of(dir.path())),
            (0o777, 0o777, 0o711)
        );
        write(&dir.path().join("file"), b"", 0o600).unwrap();
        assert!(create_dir_all(&dir.path().join("file/below"), 0o700).is_err());
    }

    #[test]
    fn sweep_removes_only_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("record"), b"x", 0o600).unwrap();
        std::fs::write(temporary_beside(&dir.path().join("record")).unwrap(), b"torn").unwrap();
        sweep(dir.path()).unwrap();
        sweep(&dir.path().join("missing")).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["record"]);
    }
}
