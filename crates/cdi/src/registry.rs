//! All devices of the host, read from its directories.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::edits::Edits;
use crate::error::CdiError;
use crate::file::{FileError, SpecFile};

/// The most that is read of a file.
const FILE_LIMIT: u64 = 8 << 20;

/// The devices that were described at one moment.
#[derive(Debug, Default)]
pub struct Registry {
    files: Vec<SpecFile>,
    /// Full name → where it is described.
    devices: BTreeMap<String, Place>,
    /// Files and directories that cannot be used, and why.
    problems: Vec<String>,
}

/// Where a device is described.
#[derive(Debug)]
struct Place {
    directory: usize,
    file: usize,
    device: usize,
    path: PathBuf,
    /// Another file of the same directory that describes it as well.
    rival: Option<PathBuf>,
}

impl Registry {
    /// Reads every `.json` and `.yaml` file in these directories, the least important first. A directory may be missing.
    #[must_use]
    pub fn load(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (rank, directory) in directories.iter().enumerate() {
            match files_of(directory) {
                Ok(paths) => paths.iter().for_each(|path| registry.add(rank, path)),
                Err(error) => registry.problems.push(format!("{}: {error}", directory.display())),
            }
        }
        registry
    }

    fn add(&mut self, directory: usize, path: &Path) {
        let file = match read(path) {
            Ok(file) => file,
            Err(error) => {
                self.problems.push(format!("{}: {}", path.display(), types::error::chain(&error)));
                return;
            }
        };
        for (device, described) in file.devices.iter().enumerate() {
            let name = format!("{}={}", file.kind, described.name);
            let place =
                Place { directory, file: self.files.len(), device, path: path.to_owned(), rival: None };
            match self.devices.get_mut(&name) {
                Some(known) if known.directory == directory => known.rival = Some(path.to_owned()),
                _ => {
                    self.devices.insert(name, place);
                }
            }
        }
        self.files.push(file);
    }

    /// What these devices change, each with what its file brings along for any of its devices.
    ///
    /// # Errors
    /// [`CdiError::Unresolvable`] with every name that is not described, or described twice.
    pub fn resolve(&self, names: &[String]) -> Result<Edits, CdiError> {
        let mut edits = Edits::default();
        let (mut unresolved, mut files) = (Vec::new(), Vec::new());
        for name in names {
            let Some(place) = self.devices.get(name).filter(|place| place.rival.is_none()) else {
                unresolved.push(name.clone());
                continue;
            };
            let Some(file) = self.files.get(place.file) else { continue };
            if !files.contains(&place.file) {
                files.push(place.file);
                edits.add(&file.container_edits);
            }
            if let Some(device) = file.devices.get(place.device) {
                edits.add(&device.container_edits);
            }
        }
        if unresolved.is_empty() {
            return Ok(edits);
        }
        let problems = self.conflicts(&unresolved).chain(self.problems.iter().cloned()).collect();
        Err(CdiError::Unresolvable { names: unresolved, problems })
    }

    fn conflicts(&self, names: &[String]) -> impl Iterator<Item = String> {
        names.iter().filter_map(|name| {
            let place = self.devices.get(name)?;
            let rival = place.rival.as_ref()?;
            Some(format!("{name} is described by both {} and {}", place.path.display(), rival.display()))
        })
    }

    /// Files and directories that cannot be used, each with the reason.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The devices that can be asked for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().filter(|(_, place)| place.rival.is_none()).map(|(name, _)| name.as_str())
    }
}

/// The files of a directory, by name; none if it is missing.
fn files_of(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let named =
            path.extension().and_then(OsStr::to_str).is_some_and(|end| matches!(end, "json" | "yaml"));
        // A link leads to a file or is as good as one that cannot be read; a device or pipe would hold us up.
        let odd = path.metadata().is_ok_and(|found| !found.is_file());
        if named && !odd {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<SpecFile, FileError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    match path.extension().and_then(OsStr::to_str) {
        Some("json") => SpecFile::from_json(&bytes),
        _ => SpecFile::from_yaml(&bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        _dir: tempfile::TempDir,
        etc: PathBuf,
        run: PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
            std::fs::create_dir(&etc).unwrap();
            std::fs::create_dir(&run).unwrap();
            Self { etc, run, _dir: dir }
        }

        fn load(&self) -> Registry {
            Registry::load(&[self.etc.clone(), self.run.clone()])
        }
    }

    /// A file with one device, whose mark is seen in the environment.
    fn device(kind: &str, name: &str, mark: &str) -> String {
        format!(
            "cdiVersion: 0.3.0\nkind: {kind}\ncontainerEdits: {{env: [ALL={mark}]}}\n\
             devices: [{{name: {name}, containerEdits: {{env: [MARK={mark}]}}}}]\n"
        )
    }

    fn write(directory: &Path, name: &str, text: &str) {
        std::fs::write(directory.join(name), text).unwrap();
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_later_directory_wins() {
        let host = Host::new();
        write(&host.etc, "a.yaml", &device("v/c", "d", "etc"));
        assert_eq!(host.load().resolve(&names(&["v/c=d"])).unwrap().env, ["ALL=etc", "MARK=etc"]);
        // Nothing is remembered: the next look sees the other file, whatever the times on both.
        write(&host.run, "a.yaml", &device("v/c", "d", "run"));
        assert_eq!(host.load().resolve(&names(&["v/c=d"])).unwrap().env, ["ALL=run", "MARK=run"]);
        std::fs::remove_file(host.run.join("a.yaml")).unwrap();
        assert_eq!(host.load().resolve(&names(&["v/c=d"])).unwrap().env, ["ALL=etc", "MARK=etc"]);
    }

    #[test]
    fn two_of_one_directory_are_neither_unless_a_later_one_settles_it() {
        let host = Host::new();
        write(&host.etc, "a.yaml", &device("v/c", "d", "a"));
        write(&host.etc, "b.yaml", &device("v/c", "d", "b"));
        let error = host.load().resolve(&names(&["v/c=d"])).unwrap_err().to_string();
        assert!(error.contains("a.yaml") && error.contains("b.yaml"), "{error}");
        write(&host.run, "c.yaml", &device("v/c", "d", "run"));
        assert_eq!(host.load().resolve(&names(&["v/c=d"])).unwrap().env, ["ALL=run", "MARK=run"]);
    }

    #[test]
    fn all_that_is_missing_is_named_with_what_may_be_why() {
        let host = Host::new();
        write(
            &host.etc,
            "good.json",
            r#"{"cdiVersion":"0.3.0","kind":"v/c","devices":[{"name":"d","containerEdits":{"env":["A=b"]}}]}"#,
        );
        write(&host.etc, "broken.yaml", "cdiVersion: [");
        write(&host.etc, "ignored.txt", "cdiVersion: [");
        let registry = host.load();
        assert_eq!(registry.names().collect::<Vec<_>>(), ["v/c=d"]);
        let error = registry.resolve(&names(&["v/c=x", "v/c=d", "w/c=y"])).unwrap_err().to_string();
        assert!(error.starts_with("unresolvable CDI devices v/c=x, w/c=y ("), "{error}");
        assert!(error.contains("broken.yaml") && !error.contains("ignored"), "{error}");
    }

    #[test]
    fn what_a_file_brings_along_comes_once() {
        let host = Host::new();
        let two = "cdiVersion: 0.3.0\nkind: v/c\ncontainerEdits: {env: [ALL=1]}\ndevices:\n\
                   - {name: a, containerEdits: {env: [A=1]}}\n- {name: b, containerEdits: {env: [B=1]}}\n";
        write(&host.etc, "two.yaml", two);
        let edits = host.load().resolve(&names(&["v/c=b", "v/c=a"])).unwrap();
        assert_eq!(edits.env, ["ALL=1", "B=1", "A=1"]);
    }

    #[test]
    fn directories_may_be_missing_and_pipes_hold_nobody_up() {
        let host = Host::new();
        assert!(Registry::load(&[host.etc.join("none")]).problems().is_empty());
        std::fs::create_dir(host.etc.join("dir.yaml")).unwrap();
        assert!(host.load().problems().is_empty());
        write(&host.etc, "a.txt", "");
        std::os::unix::fs::symlink("nowhere", host.etc.join("dangling.yaml")).unwrap();
        assert_eq!(host.load().problems().len(), 1);
    }
}
