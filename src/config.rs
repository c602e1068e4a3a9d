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
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub mod docs;
pub mod file;
mod problem;
mod programs;
mod read;
mod resolve;
pub mod table;
mod ulimit;
pub mod values;

pub use file::ConfigFile;
pub use problem::{ConfigError, Place, Problem};
pub use programs::ProgramError;
pub use table::Change;
pub use ulimit::Ulimit;
pub use values::{CgroupDriver, Format, HandlerName, ImageVolumes, Level};

use table::Table as _;

use crate::pod::HandlerRules;

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
    /// Sessions of exec, attach and port-forward.
    pub streaming: Streaming,
    /// What confines containers, and which devices they get.
    pub security: Security,
    /// The server's own metrics.
    pub metrics: Metrics,
    /// Where spans go; nowhere without.
    pub tracing: Option<Tracing>,
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
    /// Limits that the processes of containers begin with.
    pub default_ulimits: Vec<Ulimit>,
}

/// One OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Its program.
    pub path: PathBuf,
    /// How pods of it differ from others.
    pub rules: HandlerRules,
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
    /// Layers downloaded at the same time, over all images; at least 1.
    pub max_parallel_downloads: usize,
    /// How long nothing may come of a registry.
    pub progress_timeout: Duration,
    /// Files with credentials for pulls that bring none.
    pub auth_files: Vec<PathBuf>,
    /// What becomes of volumes that images declare.
    pub volumes: ImageVolumes,
}

/// Sessions of exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    /// Host and port to listen on.
    pub address: String,
    /// How long a session may be silent.
    pub idle_timeout: Duration,
    /// How long a client may take to open its streams.
    pub creation_timeout: Duration,
    /// Files for TLS; plain HTTP without.
    pub tls: Option<StreamingTls>,
}

/// The files of a server with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamingTls {
    /// Its certificate, with those that lead to its root.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// Roots of the certificates that clients have to show, if they have to.
    pub client_ca: Option<PathBuf>,
}

/// What confines containers, and which devices they get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Profile of requests that name none; empty for none.
    pub unset_seccomp_profile: String,
    /// Directories of CDI descriptions, the least important first.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Whether devices belong to the user and group of the request.
    pub device_ownership: bool,
    /// Categories from which pods' pairs are chosen.
    pub selinux_categories: u32,
}

/// The server's own metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Where to serve them beside the socket; of this machine, unless the configuration allows another.
    pub address: Option<SocketAddr>,
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// URL of the collector.
    pub endpoint: String,
    /// Of a million calls that come without a trace, how many begin one.
    pub sampling_rate_per_million: u32,
    /// Roots of the collector's certificate; those of the system without.
    pub tls_ca: Option<PathBuf>,
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
    /// How long a mount source may take to answer.
    pub mount_source_timeout: Duration,
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
    let (merged, config) = read_layers(source)?;
    Ok(Loaded { config, written: complete(merged) })
}

/// Reads all layers again for a daemon that runs by `running`. Gives what it can run by from now on, in which keys that
/// only a restart can change are as they were, and all keys that are different from before.
///
/// # Errors
/// Everything that is wrong in any layer or with the whole, keys that wait for a restart included.
pub fn load_again(source: &Source, running: &ConfigFile) -> Result<(Loaded, Vec<Change>), ConfigError> {
    let (merged, _) = read_layers(source)?;
    let mut written = complete(merged);
    let mut changes = Vec::new();
    running.compare(&written, "", &mut changes);
    written.keep_until_restart(running);
    let mut problems = Vec::new();
    let config = resolve::resolve(&written, &read::Origins::default(), &mut problems);
    if problems.is_empty() { Ok((Loaded { config, written }, changes)) } else { Err(ConfigError(problems)) }
}

/// The state directory that `file` and its drop-ins name, as far as they can be read; else the default.
#[must_use]
pub fn state_dir(file: Option<PathBuf>) -> PathBuf {
    let mut layers = read::Layers::new();
    layers.add_files(file.as_deref().unwrap_or(Path::new(DEFAULT_FILE)), file.is_some());
    layers.merged.state().into_path()
}

fn complete(merged: ConfigFile) -> ConfigFile {
    let mut written = ConfigFile::defaults();
    written.overlay(merged);
    written
}

fn read_layers(source: &Source) -> Result<(ConfigFile, Config), ConfigError> {
    let mut layers = read::Layers::new();
    let file = source.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    layers.add_files(file, source.file.is_some());
    layers.merged.overlay(source.flags.clone());
    for (key, flag) in &source.flag_names {
        layers.origins.set(key, Place::Flag(flag));
    }
    let read::Layers { merged, origins, mut problems } = layers;
    let config = resolve::resolve(&merged, &origins, &mut problems);
    if problems.is_empty() { Ok((merged, config)) } else { Err(ConfigError(problems)) }
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
    fn a_second_reading_changes_what_can_be_changed_and_names_all() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let source = Source { file: Some(file.clone()), ..flags("cni.conf_dir = '/flag'", &[]) };
        let handler = |name| format!("[runtime.handlers.{name}]\npath = '/{name}'\n");
        std::fs::write(&file, format!("root = '/a/b'\n[log]\nlevel = 'warn'\n{}", handler("a"))).unwrap();
        let first = load(&source).unwrap();

        let (same, changes) = load_again(&source, &first.written).unwrap();
        assert_eq!((same.written, changes), (first.written.clone(), Vec::new()));

        let text = "root = '/c/d'\n[log]\nlevel = 'debug'\n[cni]\nconf_dir = '/file'\n";
        std::fs::write(&file, format!("{text}{}", handler("b"))).unwrap();
        let (next, changes) = load_again(&source, &first.written).unwrap();
        assert_eq!(next.config.root, Path::new("/a/b"));
        assert_eq!(next.config.log.level, Level::Debug);
        assert_eq!(next.config.cni.conf_dir, Path::new("/flag"), "flags still win");
        let names: Vec<_> = changes.iter().map(|it| (it.key.as_str(), it.needs_restart)).collect();
        let expected = [
            ("root", true),
            ("log.level", false),
            ("runtime.handlers.a", false),
            ("runtime.handlers.b", false),
        ];
        assert_eq!(names, expected);
        // What waits for a restart waits at the next reading, too.
        let (_, changes) = load_again(&source, &next.written).unwrap();
        assert_eq!(changes.len(), 1);

        std::fs::write(&file, "state = '/run'").unwrap();
        assert!(load_again(&source, &first.written).is_err(), "also what waits for a restart must be valid");
    }

    #[test]
    fn a_problem_with_a_flag_names_the_flag() {
        let source = flags("state = '/run'", &[("state", "--state")]);
        let error = load_text("", source).unwrap_err().to_string();
        assert!(error.starts_with("--state: state: "), "{error}");
    }
}
