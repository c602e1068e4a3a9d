//! What has to be tried out or asked: OCI runtimes, mounts, the disks in question, the monitor, the server.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cgroup::DriverKind;
use rustix::fs::StatVfsMountFlags;

use crate::config::Config;
use crate::{app, listener};

/// How long one OCI runtime may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Debug, Clone)]
pub struct Tried {
    /// The OCI runtimes, the preferred one first.
    pub runtimes: Vec<TriedRuntime>,
    /// The default one, where one is configured.
    pub default_runtime: Option<String>,
    /// Whether an overlay can be mounted in the root directory; none when that may not be tried.
    pub overlay: Option<Result<(), String>>,
    /// Whether the ids of one can be mapped.
    pub idmap: Option<Result<(), String>>,
    /// The disk of the root directory.
    pub root: Storage,
    /// The disk of the state directory.
    pub state: Storage,
    /// The monitor's program and what it prints as its version.
    pub monitor: Result<(PathBuf, String), String>,
    /// What the configuration directory of networks holds.
    pub network: cni::Survey,
    /// The cgroup driver that pods of an earlier run have.
    pub kept_driver: Option<DriverKind>,
    /// The process of the server.
    pub server: Option<u32>,
}

/// One OCI runtime.
#[derive(Debug, Clone, Default)]
pub struct TriedRuntime {
    /// Its handler.
    pub name: String,
    /// Its program.
    pub path: PathBuf,
    /// What it prints as its version.
    pub version: String,
    /// What it says that it can do.
    pub features: runtime::Features,
    /// Why it cannot be used here, as far as that was tried.
    pub broken: Option<String>,
    /// Whether it has made a container.
    pub tried: bool,
}

/// A file system, where a directory is or will be.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// What it is called.
    pub kind: String,
    /// Its size.
    pub bytes: u64,
    /// What is left for programs that are not privileged.
    pub free_bytes: u64,
    /// How many files there can be; 0 where that is not fixed.
    pub inodes: u64,
    /// How many more there can be.
    pub free_inodes: u64,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Whether no program can be run from it.
    pub no_exec: bool,
    /// Whether it counts by project.
    pub project_quota: bool,
    /// The last change of the directory, in seconds since 1970.
    pub modified: i64,
    /// When it was looked at.
    pub now: i64,
}

impl Tried {
    /// Tries it on this host.
    #[must_use]
    pub fn on(config: &Config) -> Self {
        let is_root = rustix::process::geteuid().is_root();
        let place = existing(&config.root);
        Self {
            runtimes: runtimes(config, is_root),
            default_runtime: config.runtime.default.as_ref().map(|name| name.as_str().to_owned()),
            overlay: is_root.then(|| try_overlay(place)),
            idmap: is_root
                .then(|| sys::mount::probe_idmap(place).map_err(|error| types::error::chain(&error))),
            root: Storage::of(place),
            state: Storage::of(existing(&config.state)),
            monitor: monitor(config),
            network: cni::survey(&config.cni.conf_dir, &config.cni.bin_dirs),
            kept_driver: app::kept_driver(config),
            server: listener::daemon_on(&config.state).unwrap_or_default(),
        }
    }
}

/// The directory, or the nearest above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.try_exists().unwrap_or(false)).unwrap_or(Path::new("/"))
}

fn runtimes(config: &Config, is_root: bool) -> Vec<TriedRuntime> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let systemd = app::driver_in_use(config) == DriverKind::Systemd;
    let scratch = Scratch::beside(&config.state);
    let candidates = config.runtime.candidates(&search);
    let asked =
        candidates.into_iter().map(|(name, path)| ask(name, path, systemd, scratch.dir(is_root))).collect();
    if is_root && systemd {
        forget_scopes(config);
    }
    asked
}

/// Nothing is left of what was tried: systemd may remember its scopes. Where it cannot, it is told to by the next server.
fn forget_scopes(config: &Config) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    if let Ok(cgroups) = app::cgroups_in_use(config) {
        runtime.block_on(cgroups.forget_ended()).ok();
    }
}

fn ask(name: String, path: PathBuf, systemd_cgroup: bool, scratch: Option<&Path>) -> TriedRuntime {
    let root = scratch.unwrap_or(Path::new("/nonexistent")).join("root");
    let runtime = runtime::RuntimeCommand { path: path.clone(), root, systemd_cgroup };
    let version = runtime::probe::version(&runtime);
    let features = runtime::probe::features(&runtime).unwrap_or_default();
    let broken = match (&version, scratch) {
        (Err(error), _) => Some(types::error::chain(error)),
        (Ok(_), None) => None,
        (Ok(_), Some(scratch)) => {
            runtime::probe::probe(&runtime, scratch, LIMIT).err().map(|error| types::error::chain(&error))
        }
    };
    TriedRuntime {
        name,
        path,
        version: version.unwrap_or_default(),
        features,
        broken,
        tried: scratch.is_some(),
    }
}

/// A directory beside the state directory, on the same disk, so that a server's own trials are not disturbed.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(state: &Path) -> Self {
        let beside = state.parent().map_or(Path::new("/"), existing);
        Self(beside.join(format!(".crimson-doctor-{}", std::process::id())))
    }

    /// The directory, made when it is first wanted.
    fn dir(&self, is_wanted: bool) -> Option<&Path> {
        let made = is_wanted && sys::atomic::create_dir_all(&self.0, 0o700).is_ok();
        made.then_some(self.0.as_path())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whatever could not be removed is found by its name.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn try_overlay(place: &Path) -> Result<(), String> {
    let scratch = Scratch(place.join(format!(".crimson-doctor-{}", std::process::id())));
    let at = |name: &str| scratch.0.join(name);
    for name in ["lower", "upper", "work"] {
        sys::atomic::create_dir_all(&at(name), 0o700).map_err(|error| types::error::chain(&error))?;
    }
    let overlay = sys::mount::Overlay {
        lowers: vec![at("lower")],
        upper: Some(at("upper")),
        work: Some(at("work")),
        ..sys::mount::Overlay::default()
    };
    sys::overlay_view::open(&overlay).map(drop).map_err(|error| types::error::chain(&error))
}

/// The first line that it prints for `--version`, which is a question as to an OCI runtime.
fn monitor(config: &Config) -> Result<(PathBuf, String), String> {
    let path = config.monitor.locate().map_err(|error| types::error::chain(&error))?;
    let command = runtime::RuntimeCommand { path: path.clone(), root: PathBuf::new(), systemd_cgroup: false };
    Ok((path, runtime::probe::version(&command).unwrap_or_default()))
}

impl Storage {
    fn of(path: &Path) -> Self {
        let usage = sys::disk::usage(path).ok();
        let flags = rustix::fs::statvfs(path).map(|stat| stat.f_flag).unwrap_or(StatVfsMountFlags::empty());
        let mount = mount_of(path);
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self {
            kind: mount.as_ref().map_or_else(|| "an unknown file system".to_owned(), |mount| mount.0.clone()),
            bytes: usage.map_or(0, |usage| usage.total_bytes),
            free_bytes: usage.map_or(0, |usage| usage.available_bytes),
            inodes: usage.map_or(0, |usage| usage.total_inodes),
            free_inodes: usage.map_or(0, |usage| usage.free_inodes),
            read_only: flags.contains(StatVfsMountFlags::RDONLY),
            no_exec: flags.contains(StatVfsMountFlags::NOEXEC),
            project_quota: mount.is_some_and(|mount| mount.1),
            modified: std::fs::metadata(path).map_or(0, |data| data.mtime()),
            now: i64::try_from(seconds(SystemTime::now())).unwrap_or(i64::MAX),
        }
    }
}

/// Type of the file system that holds `path`, and whether it counts by project: the last mounted of the deepest above it.
fn mount_of(path: &Path) -> Option<(String, bool)> {
    let path = path.canonicalize().ok()?;
    let table = sys::mount::list().ok()?;
    let above = table.into_iter().filter(|entry| path.starts_with(&entry.mount_point));
    let mount = above.max_by_key(|entry| entry.mount_point.as_os_str().len())?;
    let quota = mount.options.split(',').any(|option| matches!(option, "prjquota" | "pquota"));
    Some((mount.fstype, quota))
}
