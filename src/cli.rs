//! The command line: what can be asked of the program `crimson`, and the flags that override the configuration.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::values::{AbsolutePath, HandlerFlag, OptionalPath};
use crate::config::{CgroupDriver, ConfigFile, Format, Level, Source};
use crate::logging::Filter;

/// A Kubernetes CRI server.
#[derive(Debug, Parser)]
#[command(name = "crimson", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one value in the life of the program")]
pub enum Command {
    /// Serve the CRI on a unix socket until SIGTERM.
    Serve(SourceArgs),
    /// Have the running server read its configuration again, and wait until it is in force.
    Reload(ReloadArgs),
    /// Show what the running server is doing, and what is stuck.
    Status(StatusArgs),
    /// Show how much the running server logs, or change it until the next reload or restart.
    LogLevel(LogLevelArgs),
    /// Show what exists of pods that are not on record, and records that cannot be read.
    Check(CheckArgs),
    /// Show what this host offers to pods, what is missing, and how to mend it.
    Doctor(DoctorArgs),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version,
    /// Print a script that completes this command line in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a page of the manual, for `man -l -`.
    Man {
        /// The page.
        #[arg(default_value = "crimson")]
        page: Page,
    },
}

/// A page of the manual.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Page {
    /// crimson(8), the program.
    Crimson,
    /// crimson-config.toml(5), the configuration.
    #[value(name = "crimson-config.toml")]
    Config,
}

/// What can be done with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a file with every key at its default.
    Default,
    /// Read the configuration as `serve` would, and print every problem.
    Check(SourceArgs),
    /// Print the configuration in force, all files and flags taken together.
    Dump(SourceArgs),
}

/// How to check, and which server's things.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// Remove what is found, or with --images fetch it again. The server must be stopped; pods may go on.
    #[arg(long)]
    pub repair: bool,
    /// Compare every file of every stored image with the image's digests instead.
    #[arg(long)]
    pub images: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the server's things are.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// What to look at, and how to show it.
#[derive(Debug, Clone, Default, Args)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The configuration of the server that is to run here.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Which server is to reload.
#[derive(Debug, Clone, Default, Args)]
pub struct ReloadArgs {
    /// File that names the server's state directory, instead of /etc/crimson/config.toml.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["state", "pid"])]
    pub config: Option<PathBuf>,
    /// The server's state directory.
    #[arg(long, value_name = "DIR", conflicts_with = "pid")]
    pub state: Option<AbsolutePath>,
    /// The server's process, whatever the configuration says by now.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// What to show of the running server.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Print JSON as the server sends it.
    #[arg(long)]
    pub json: bool,
    /// Show each pod with its containers, too.
    #[arg(long)]
    pub pods: bool,
    /// Show it again every so many seconds until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watch: Option<u64>,
    /// Seconds after which a step counts as stuck.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub stuck_after: u64,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// How much is to be logged.
#[derive(Debug, Clone, Args)]
pub struct LogLevelArgs {
    /// error, warn, info, debug or trace, and then other levels for parts of the program, as in info,crimson::pod=debug. It is shown
    /// when none is given.
    #[arg(value_name = "LEVEL")]
    pub level: Option<Filter>,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Which server is asked.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerArgs {
    /// File that names the server's state directory, instead of /etc/crimson/config.toml.
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    pub config: Option<PathBuf>,
    /// The server's state directory.
    #[arg(long, value_name = "DIR")]
    pub state: Option<AbsolutePath>,
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// File to read instead of /etc/crimson/config.toml; FILE.d/*.toml are read after it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The keys to override.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// Flags that override keys of the configuration.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Flags that override the configuration")]
pub struct Overrides {
    /// Directory of what outlives a reboot.
    #[arg(long, value_name = "DIR")]
    root: Option<AbsolutePath>,
    /// Directory of what a reboot may take away.
    #[arg(long, value_name = "DIR")]
    state: Option<AbsolutePath>,
    /// Socket to listen on.
    #[arg(long, value_name = "PATH")]
    socket: Option<AbsolutePath>,
    /// Directory of network configurations.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<AbsolutePath>,
    /// Directory of network plugins; give it once for each.
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Vec<AbsolutePath>,
    /// Who creates cgroups.
    #[arg(long, value_name = "DRIVER")]
    cgroup_driver: Option<CgroupDriver>,
    /// A runtime handler and its OCI runtime; give it once for each.
    #[arg(long, value_name = "NAME=PATH")]
    runtime: Vec<HandlerFlag>,
    /// Directory of registry configurations.
    #[arg(long, value_name = "DIR")]
    registry_config_dir: Option<AbsolutePath>,
    /// Program of the monitor.
    #[arg(long, value_name = "PATH")]
    monitor: Option<OptionalPath>,
    /// Image of the pause process instead of the built-in program.
    #[arg(long, value_name = "IMAGE")]
    pause_image: Option<String>,
    /// How much to log.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<Level>,
    /// In which form to log.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
}

impl From<SourceArgs> for Source {
    fn from(args: SourceArgs) -> Self {
        let (flags, flag_names) = args.overrides.into_layer();
        Self { file: args.config, flags, flag_names }
    }
}

impl Overrides {
    /// The flags as a layer of the configuration, and the flag of each key that is set.
    fn into_layer(self) -> (ConfigFile, Vec<(String, &'static str)>) {
        let mut layer = Layer::default();
        let file = &mut layer.file;
        let set = &mut layer.names;
        put(&mut file.root, self.root, set, "root", "--root");
        put(&mut file.state, self.state, set, "state", "--state");
        put(&mut file.socket, self.socket, set, "socket", "--socket");
        put(&mut file.cni.conf_dir, self.cni_conf_dir, set, "cni.conf_dir", "--cni-conf-dir");
        let bin_dirs = Some(self.cni_bin_dir).filter(|dirs| !dirs.is_empty());
        put(&mut file.cni.bin_dirs, bin_dirs, set, "cni.bin_dirs", "--cni-bin-dir");
        put(&mut file.cgroup.driver, self.cgroup_driver, set, "cgroup.driver", "--cgroup-driver");
        let registries = &mut file.image.registry_config_dir;
        put(registries, self.registry_config_dir, set, "image.registry_config_dir", "--registry-config-dir");
        put(&mut file.image.pause_image, self.pause_image, set, "image.pause_image", "--pause-image");
        put(&mut file.monitor.path, self.monitor, set, "monitor.path", "--monitor");
        put(&mut file.log.level, self.log_level, set, "log.level", "--log-level");
        put(&mut file.log.format, self.log_format, set, "log.format", "--log-format");
        for handler in self.runtime {
            set.push((format!("runtime.handlers.{}", handler.name.as_str()), "--runtime"));
            file.runtime.set_handler(handler.name, handler.path);
        }
        (layer.file, layer.names)
    }
}

#[derive(Default)]
struct Layer {
    file: ConfigFile,
    names: Vec<(String, &'static str)>,
}

fn put<T>(
    key: &mut Option<T>,
    value: Option<T>,
    set: &mut Vec<(String, &'static str)>,
    name: &str,
    flag: &'static str,
) {
    if value.is_some() {
        *key = value;
        set.push((name.to_owned(), flag));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_reaches_its_key() {
        let line = "crimson serve --root /r/x --state /s/x --socket /s/x/c.sock --cni-conf-dir /c --cni-bin-dir /b1 \
            --cni-bin-dir /b2 --cgroup-driver cgroupfs --runtime runc=/runc --runtime kata=/kata \
            --registry-config-dir /certs --monitor /m --pause-image pause:1 --log-level debug --log-format json";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Serve(args) = cli.command else { panic!("serve is not serve") };
        let source = Source::from(args);
        let expected = "root = '/r/x'\nstate = '/s/x'\nsocket = '/s/x/c.sock'\ncni.conf_dir = '/c'\n\
            cni.bin_dirs = ['/b1', '/b2']\ncgroup.driver = 'cgroupfs'\nruntime.handlers.runc.path = '/runc'\n\
            runtime.handlers.kata.path = '/kata'\nimage.registry_config_dir = '/certs'\nmonitor.path = '/m'\n\
            image.pause_image = 'pause:1'\nlog.level = 'debug'\nlog.format = 'json'\n";
        assert_eq!(source.flags, toml::from_str(expected).unwrap());
        let flags = line.split_whitespace().filter(|word| word.starts_with("--")).count();
        assert_eq!(source.flag_names.len(), flags - 1, "--cni-bin-dir is one key given twice");
    }

    #[test]
    fn bad_flags_are_refused_with_their_name() {
        for (flag, value) in [("--root", "relative"), ("--runtime", "runc"), ("--log-level", "loud")] {
            let error = Cli::try_parse_from(["crimson", "config", "check", flag, value]).unwrap_err();
            assert!(error.to_string().contains(flag), "{error}");
        }
    }
}
