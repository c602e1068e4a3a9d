//! The driver in force, written down: groups that exist were made by one driver, and only that one finds them again.

use std::io::ErrorKind;
use std::path::Path;

use crate::driver::DriverKind;
use crate::error::CgroupError;

/// Decides on the driver and writes it to `file`. `wanted` is what the administrator asked for, if anything; `in_use` says
/// whether pods of an earlier run exist. Without a wish existing pods decide, and without pods `detected` does.
///
/// # Errors
/// [`CgroupError::DriverInForce`] when pods exist and were made with another driver than the wanted one,
/// [`CgroupError::Persisted`] when the file cannot be read or written.
pub fn settle(
    file: &Path,
    wanted: Option<DriverKind>,
    in_use: bool,
    detected: impl FnOnce() -> DriverKind,
) -> Result<DriverKind, CgroupError> {
    let persisted = match read(file) {
        Err(_) if !in_use => None,
        read => read?,
    };
    let chosen = match (persisted.filter(|_| in_use), wanted) {
        (Some(persisted), Some(wanted)) if persisted != wanted => {
            return Err(CgroupError::DriverInForce { persisted, wanted, file: file.to_owned() });
        }
        (Some(persisted), _) => persisted,
        (None, Some(wanted)) => wanted,
        (None, None) => detected(),
    };
    if persisted != Some(chosen) {
        write(file, chosen)?;
    }
    Ok(chosen)
}

fn read(file: &Path) -> Result<Option<DriverKind>, CgroupError> {
    match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map(Some).map_err(|error| failed("read", file, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", file, error)),
    }
}

fn write(file: &Path, kind: DriverKind) -> Result<(), CgroupError> {
    sys::atomic::write(file, format!("{kind}\n").as_bytes(), 0o644)
        .map_err(|error| failed("write", file, error))
}

fn failed(
    action: &'static str,
    file: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CgroupError {
    CgroupError::Persisted { action, path: file.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use types::{ErrorKind, Kind};

    use super::*;
    use DriverKind::{Cgroupfs, Systemd};

    #[test]
    fn pods_keep_their_driver_and_without_pods_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cgroup-driver");
        let choose = |wanted, in_use, host| settle(&file, wanted, in_use, || host);
        assert_eq!(choose(None, false, Systemd).unwrap(), Systemd);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "systemd\n");
        assert_eq!(choose(None, true, Cgroupfs).unwrap(), Systemd, "pods outweigh what is detected");
        let error = choose(Some(Cgroupfs), true, Systemd).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        for part in
            ["from systemd to cgroupfs", "--cgroup-driver systemd", "remove all pods", "cgroup-driver"]
        {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        assert_eq!(choose(Some(Systemd), true, Cgroupfs).unwrap(), Systemd);
        assert_eq!(choose(Some(Cgroupfs), false, Systemd).unwrap(), Cgroupfs);
        assert_eq!(choose(None, true, Systemd).unwrap(), Cgroupfs);
        assert_eq!(choose(None, false, Systemd).unwrap(), Systemd);
    }

    /// As after an upgrade from a server that wrote nothing down.
    #[test]
    fn pods_without_a_record_follow_the_wish() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cgroup-driver");
        assert_eq!(settle(&file, Some(Cgroupfs), true, || Systemd).unwrap(), Cgroupfs);
        assert_eq!(settle(&file, None, true, || Systemd).unwrap(), Cgroupfs);
    }

    #[test]
    fn a_file_that_says_nothing_sensible_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cgroup-driver");
        std::fs::write(&file, "upstart").unwrap();
        let error = settle(&file, None, true, || Systemd).unwrap_err();
        assert!(types::error::chain(&error).contains("upstart"), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "upstart");
        assert_eq!(settle(&file, None, false, || Systemd).unwrap(), Systemd, "nobody depends on it");
    }
}
