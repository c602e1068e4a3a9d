//! The configuration in force.
//!
//! Two types: [`file::ConfigFile`] is what was written, with every key optional; [`Config`] is what it means, valid as
//! a whole, and the only one that the rest of the daemon sees. [`load`] makes the second from all layers of the first,
//! and either succeeds or reports everything that is wrong, each with file, line and key.
//!
//! ```text
//! defaults ◁ config.toml ◁ config.toml.d/*.toml by name ◁ flags     ◁ later wins; tables merge, lists are replaced
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub mod docs;
pub mod file;
mod problem;
mod programs;
mod read;
mod resolve;
pub mod table;
pub mod values;

pub use file::ConfigFile;
pub use problem::{ConfigError, Place, Problem};
pub use programs::ProgramError;
pub use values::{CgroupDriver, Format, HandlerName, Level};

use table::Table as _;

/// The file that is read when no other is named.
pub const DEFAULT_FILE: &str = "/etc/crimson/config.toml";

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of what outlives a reboot.
    pub root: PathBuf,
    /// Directory of what a reboot may take away.
    pub state: PathBuf,
    /// Socket of the CRI services.
    pub socket: PathBuf,
    /// What is logged.
    pub log: Log,
    /// The network of pods.
    pub cni: Cni,
    /// Who creates cgroups; `Auto` is decided when the daemon starts.
    pub cgroup_driver: CgroupDriver,
    /// The OCI runtimes.
    pub runtime: Runtime,
    /// Images and registries.
    pub image: Image,
    /// The monitor process.
    pub monitor: Monitor,
    /// Limits and deadlines.
    pub limits: Limits,
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// How much.
    pub level: Level,
    /// In which form.
    pub format: Format,
}

/// The network of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cni {
    /// Directory of network configurations.
    pub conf_dir: PathBuf,
    /// Directories of plugins; at least one.
    pub bin_dirs: Vec<PathBuf>,
    /// How long one plugin may take.
    pub timeout: Duration,
}

/// The OCI runtimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Handler of pods that name none; without it the first one that works. It is one of [`Runtime::candidates`].
    pub default: Option<HandlerName>,
    /// The configured handlers; none means those found on PATH.
    pub handlers: BTreeMap<HandlerName, Handler>,
}

/// One OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Its program.
    pub path: PathBuf,
}

/// Images and registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Directory of registry configurations.
    pub registry_config_dir: PathBuf,
    /// Image of the pause process; without it the built-in program.
    pub pause_image: Option<String>,
    /// Images that garbage collection leaves alone, `*` standing for any run of characters.
    pub pinned: Vec<String>,
    /// Layers fetched at the same time for one image; at least 1.
    pub max_parallel_downloads: usize,
}

/// The monitor process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// Its program, when configured; see [`Monitor::locate`].
    pub path: Option<PathBuf>,
}

/// Limits and deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes kept of each output stream of ExecSync.
    pub exec_sync_output_bytes: usize,
    /// How long an OCI runtime may take to create a container.
    pub create_timeout: Duration,
    /// How long calls in progress may take when the server stops.
    pub shutdown_timeout: Duration,
}

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file named by the flag, which must exist; without it [`DEFAULT_FILE`], which may be missing.
    pub file: Option<PathBuf>,
    /// The keys that flags set.
    pub flags: ConfigFile,
    /// The flag that set each of these keys, by the key's full name.
    pub flag_names: Vec<(String, &'static str)>,
}

/// A configuration in both forms.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// All layers merged, every key present, as it could be written to a file.
    pub written: ConfigFile,
}

/// Reads all layers, and makes of them the configuration in force.
///
/// # Errors
/// Everything that is wrong in any layer or with the whole.
pub fn load(source: &Source) -> Result<Loaded, ConfigError> {
    let mut layers = read::Layers::new();
    let file = source.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    layers.add_files(file, source.file.is_some());
    layers.merged.overlay(source.flags.clone());
    for (key, flag) in &source.flag_names {
        layers.origins.set(key, Place::Flag(flag));
    }
    let read::Layers { merged, origins, mut problems } = layers;
    let config = resolve::resolve(&merged, &origins, &mut problems);
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    let mut written = ConfigFile::defaults();
    written.overlay(merged);
    Ok(Loaded { config, written })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str, names: &[(&str, &'static str)]) -> Source {
        let names = names.iter().map(|(key, flag)| ((*key).to_owned(), *flag)).collect();
        Source { file: None, flags: toml::from_str(text).unwrap(), flag_names: names }
    }

    fn load_text(text: &str, mut source: Source) -> Result<Loaded, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        source.file = Some(file);
        load(&source)
    }

    #[test]
    fn flags_win_over_files_and_files_over_defaults() {
        let text = "root = '/a/b'\nstate = '/s/b'\n[log]\nlevel = 'error'\n[runtime.handlers.runc]\npath = '/runc'\n";
        let source = flags("root = '/c/d'\n[runtime.handlers.kata]\npath = '/kata'", &[("root", "--root")]);
        let config = load_text(text, source).unwrap().config;
        assert_eq!(config.root, Path::new("/c/d"));
        assert_eq!(config.state, Path::new("/s/b"));
        assert_eq!(config.log, Log { level: Level::Error, format: Format::Text });
        let names: Vec<_> = config.runtime.handlers.keys().map(HandlerName::as_str).collect();
        assert_eq!(names, ["kata", "runc"]);
        assert_eq!(config.cni.conf_dir, Path::new("/etc/cni/net.d"));
    }

    #[test]
    fn what_is_dumped_reads_back_as_the_same() {
        let text = "[image]\npinned = ['*pause*']\n[runtime]\ndefault = 'runc'\n[runtime.handlers.runc]\npath = '/runc'\n";
        let first = load_text(text, Source::default()).unwrap().written;
        let second = load_text(&toml::to_string(&first).unwrap(), Source::default()).unwrap().written;
        assert_eq!(first, second);
    }

    #[test]
    fn a_problem_with_a_flag_names_the_flag() {
        let source = flags("state = '/run'", &[("state", "--state")]);
        let error = load_text("", source).unwrap_err().to_string();
        assert!(error.starts_with("--state: state: "), "{error}");
    }
}
