//! Finds the programs that the daemon starts: the monitor, and the OCI runtimes when none is configured.
//!
//! Owns the search order only. Whether a runtime works on this host is tried out when the daemon starts.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{Monitor, Runtime};
use crate::pod::HandlerRules;

/// OCI runtimes that are looked for when none is configured, the preferred one first.
pub(super) const FOUND_ON_PATH: [&str; 2] = ["crun", "runc"];

/// File name of the monitor's program.
const MONITOR: &str = "crimson-monitor";

/// Where the monitor is looked for after the directory of the running program, and `../libexec/crimson` from there.
const LIBEXEC: &str = "/usr/libexec/crimson";

/// A program that cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The monitor is in none of the places where it is looked for.
    #[error("{MONITOR} is in none of {0:?}; set monitor.path")]
    NoMonitor(Vec<PathBuf>),
    /// The configured monitor is not a file.
    #[error("monitor.path: {} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// The running program's own path is unknown.
    #[error("finding the path of the running program")]
    Self_(#[source] std::io::Error),
}

impl Monitor {
    /// The monitor's program: the configured one, else the one beside the running program, else in libexec.
    ///
    /// # Errors
    /// When there is no file in any of these places.
    pub fn locate(&self) -> Result<PathBuf, ProgramError> {
        if let Some(path) = &self.path {
            return if path.is_file() { Ok(path.clone()) } else { Err(ProgramError::NotAFile(path.clone())) };
        }
        let own = std::env::current_exe().map_err(ProgramError::Self_)?;
        locate_beside(&own)
    }
}

fn locate_beside(own: &Path) -> Result<PathBuf, ProgramError> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(directory) = own.parent() {
        places.push(directory.join(MONITOR));
        places.extend(directory.parent().map(|prefix| prefix.join("libexec/crimson").join(MONITOR)));
    }
    places.push(Path::new(LIBEXEC).join(MONITOR));
    match places.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(ProgramError::NoMonitor(places)),
    }
}

impl Runtime {
    /// The handlers to try, as name and program, the preferred one first: the configured ones, or without any those
    /// that are found in the directories of `search_path` (the variable PATH).
    #[must_use]
    pub fn candidates(&self, search_path: &OsStr) -> Vec<(String, PathBuf)> {
        if self.handlers.is_empty() {
            return found_in(search_path);
        }
        let is_default = |name: &str| self.default.as_ref().is_some_and(|default| default.as_str() == name);
        let configured =
            self.handlers.iter().map(|(name, handler)| (name.as_str().to_owned(), handler.path.clone()));
        let (mut first, rest): (Vec<_>, Vec<_>) = configured.partition(|(name, _)| is_default(name));
        first.extend(rest);
        first
    }
}

impl Runtime {
    /// The rules of a handler; those by default for one that is found on PATH.
    #[must_use]
    pub fn rules(&self, name: &str) -> HandlerRules {
        let known = self.handlers.iter().find(|(handler, _)| handler.as_str() == name);
        known.map(|(_, handler)| handler.rules.clone()).unwrap_or_default()
    }
}

fn found_in(search_path: &OsStr) -> Vec<(String, PathBuf)> {
    let program = |name: &str| {
        let mut files = std::env::split_paths(search_path).map(|directory| directory.join(name));
        files.find(|file| file.is_absolute() && file.is_file())
    };
    FOUND_ON_PATH.iter().filter_map(|name| Some(((*name).to_owned(), program(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Handler;
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    #[test]
    fn the_monitor_is_found_beside_the_daemon_before_libexec() {
        let prefix = tempfile::tempdir().unwrap();
        let own = prefix.path().join("bin/crimson");
        let (beside, libexec) = (
            prefix.path().join("bin/crimson-monitor"),
            prefix.path().join("libexec/crimson/crimson-monitor"),
        );
        touch(&libexec);
        assert_eq!(locate_beside(&own).unwrap(), libexec);
        touch(&beside);
        assert_eq!(locate_beside(&own).unwrap(), beside);
    }

    #[test]
    fn a_configured_monitor_that_is_not_there_is_not_replaced() {
        let missing = Monitor { path: Some(PathBuf::from("/nowhere/monitor")) };
        assert!(matches!(missing.locate(), Err(ProgramError::NotAFile(_))));
    }

    #[test]
    fn runtimes_are_found_on_path_in_the_preferred_order() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        for file in [first.join("runc"), second.join("runc"), second.join("crun")] {
            touch(&file);
        }
        let search = std::env::join_paths([&first, &second]).unwrap();
        let runtime = Runtime { default: None, handlers: [].into(), default_ulimits: Vec::new() };
        let expected = [("crun".to_owned(), second.join("crun")), ("runc".to_owned(), first.join("runc"))];
        assert_eq!(runtime.candidates(&search), expected);
        assert_eq!(runtime.candidates(OsStr::new("")), []);
    }

    #[test]
    fn configured_runtimes_come_with_the_default_first() {
        let handler = |name: &str| {
            (name.parse().unwrap(), Handler { path: PathBuf::from("/x"), rules: HandlerRules::default() })
        };
        let handlers = ["a", "b"].map(handler).into();
        let runtime = Runtime { default: Some("b".parse().unwrap()), handlers, default_ulimits: Vec::new() };
        let names: Vec<_> =
            runtime.candidates(OsStr::new("/bin")).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
