//! Makes the configuration in force from the merged layers, and checks what no single value can show.
//!
//! Promises: each problem is reported at the place of the key it can be mended at. The result counts only when no layer
//! had a problem.

use std::path::Path;

use super::file::{CniTable, ConfigFile, ImageTable, LimitsTable, LogTable, RuntimeTable};
use super::problem::Problem;
use super::programs::FOUND_ON_PATH;
use super::read::Origins;
use super::values::{AbsolutePath, HandlerName};
use super::{Cni, Config, Handler, Image, Limits, Log, Monitor, Runtime};

/// Longest path of a unix socket: the kernel has 108 bytes, and the last one is zero.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn resolve(file: &ConfigFile, origins: &Origins, problems: &mut Vec<Problem>) -> Config {
    let mut check = Check { origins, problems };
    let config = Config {
        root: file.root().into_path(),
        state: file.state().into_path(),
        socket: file.socket().into_path(),
        log: log(&file.log),
        cni: cni(&file.cni),
        cgroup_driver: file.cgroup.driver(),
        runtime: runtime(&file.runtime, &mut check),
        image: image(&file.image),
        monitor: Monitor { path: file.monitor.path().into_path() },
        limits: limits(&file.limits),
    };
    check.directories(&config.root, &config.state);
    check.socket(&config.socket);
    check.bin_dirs(&config.cni);
    config
}

fn log(table: &LogTable) -> Log {
    Log { level: table.level(), format: table.format() }
}

fn cni(table: &CniTable) -> Cni {
    Cni {
        conf_dir: table.conf_dir().into_path(),
        bin_dirs: table.bin_dirs().into_iter().map(AbsolutePath::into_path).collect(),
        timeout: table.timeout_secs().duration(),
    }
}

fn runtime(table: &RuntimeTable, check: &mut Check<'_>) -> Runtime {
    let mut runtime = Runtime { default: None, handlers: std::collections::BTreeMap::new() };
    for (name, handler) in &table.handlers.0 {
        match &handler.path {
            Some(path) => {
                runtime.handlers.insert(name.clone(), Handler { path: path.clone().into_path() });
            }
            None => check.fail(&format!("runtime.handlers.{}", name.as_str()), "the key path is missing"),
        }
    }
    runtime.default = default_handler(&table.default(), table, check);
    runtime
}

fn default_handler(name: &str, table: &RuntimeTable, check: &mut Check<'_>) -> Option<HandlerName> {
    if name.is_empty() {
        return None;
    }
    let known = if table.handlers.0.is_empty() {
        FOUND_ON_PATH.contains(&name)
    } else {
        table.handlers.0.keys().any(|handler| handler.as_str() == name)
    };
    if !known {
        check.fail("runtime.default", &format!("there is no handler {name:?}"));
    }
    name.parse().ok()
}

fn image(table: &ImageTable) -> Image {
    Image {
        registry_config_dir: table.registry_config_dir().into_path(),
        pause_image: Some(table.pause_image()).filter(|name| !name.is_empty()),
        pinned: table.pinned(),
        max_parallel_downloads: table.max_parallel_downloads().size(),
    }
}

fn limits(table: &LimitsTable) -> Limits {
    Limits {
        exec_sync_output_bytes: table.exec_sync_output_bytes().size(),
        create_timeout: table.create_timeout_secs().duration(),
        shutdown_timeout: table.shutdown_timeout_secs().duration(),
    }
}

/// Collects problems of resolved values.
struct Check<'a> {
    origins: &'a Origins,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn fail(&mut self, key: &str, message: &str) {
        let place = self.origins.of(key);
        self.problems.push(Problem::Value { place, key: key.to_owned(), message: message.to_owned() });
    }

    /// Both directories are mounted over, swept and chmodded, so neither may be one that others use too.
    fn directories(&mut self, root: &Path, state: &Path) {
        for (key, directory) in [("root", root), ("state", state)] {
            if directory.components().count() < 3 {
                self.fail(key, "must be a directory of crimson's own, not one at the top of the file system");
            }
        }
        if root.starts_with(state) || state.starts_with(root) {
            self.fail("state", "must not be the same as root, inside it, or around it");
        }
    }

    fn socket(&mut self, socket: &Path) {
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            self.fail(
                "socket",
                &format!("is longer than the {SOCKET_PATH_MAX} bytes a socket's path may have"),
            );
        }
        if socket.file_name().is_none() {
            self.fail("socket", "is the root directory");
        }
    }

    fn bin_dirs(&mut self, cni: &Cni) {
        if cni.bin_dirs.is_empty() {
            self.fail("cni.bin_dirs", "must name at least one directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        resolve(&toml::from_str(text).unwrap(), &Origins::default(), &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(problems(""), [""; 0]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_at_its_key() {
        let cases = [
            ("state = '/run'", "default: state: must be a directory of crimson's own"),
            ("root = '/'", "default: root: must be a directory of crimson's own"),
            ("root = '/var/x'\nstate = '/var/x/run'", "default: state: must not be the same as root"),
            ("root = '/run/crimson/root'", "default: state: must not be the same as root"),
            ("[cni]\nbin_dirs = []", "default: cni.bin_dirs: must name at least one"),
            ("[runtime]\ndefault = 'kata'", "default: runtime.default: there is no handler \"kata\""),
            (
                "[runtime]\ndefault = 'crun'\nhandlers.runc.path = '/r'",
                "default: runtime.default: there is no handler",
            ),
            ("[runtime.handlers.kata]", "default: runtime.handlers.kata: the key path is missing"),
        ];
        for (text, expected) in cases {
            let found = problems(text);
            assert!(found.iter().any(|problem| problem.starts_with(expected)), "{text:?} gives {found:?}");
        }
        let long = format!("socket = '/{}'", "x".repeat(SOCKET_PATH_MAX));
        assert!(problems(&long)[0].contains("longer than the 107 bytes"));
    }

    #[test]
    fn the_default_handler_may_be_one_that_is_found_on_path() {
        assert_eq!(problems("[runtime]\ndefault = 'runc'"), [""; 0]);
        assert_eq!(problems("[runtime]\ndefault = 'kata'\nhandlers.kata.path = '/k'"), [""; 0]);
    }
}
