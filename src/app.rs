//! The daemon as a whole: builds the drivers, brings the pods back, serves, and ends.
//!
//! Order of the start: take the state directory (one daemon per directory), listen, find out what the host has, open the
//! stores, serve, recover. Version and ImageFsInfo answer from the moment of serving; what needs the pods waits for the
//! recovery. Order of the end: accept nothing new, let calls and operations finish, leave containers running.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::Server;

use crate::config::{CgroupDriver, Config, Loaded, Source};
use crate::health::Health;
use crate::listener::{ListenError, Listener};
use crate::logging::Logging;
use crate::pod::{Drivers, Kernel, Layout, Pods, Settings, StepError};
use crate::reload::{Live, Reloader};
use crate::service::{self, Parts, Readiness};
use crate::shutdown::{self, Drained, Shutdown};
use crate::{drivers, facts, handlers, notify};

/// The file in the durable directory that remembers the cgroup driver.
const CGROUP_DRIVER: &str = "cgroup-driver";
/// Where network namespaces are bound, so that node agents find them.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// Why the daemon cannot start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The socket or the state directory cannot be had.
    #[error("listening")]
    Listen(#[from] ListenError),
    /// A directory cannot be prepared.
    #[error("preparing {}", .0.display())]
    Directory(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The image store cannot be opened.
    #[error("opening the image store")]
    Images(#[source] image::ImageError),
    /// The network driver cannot be set up.
    #[error("setting up the network driver")]
    Network(#[source] cni::CniError),
    /// The cgroups of this host cannot be used.
    #[error("setting up cgroups")]
    Cgroups(#[source] cgroup::CgroupError),
    /// The monitor's program is missing.
    #[error("finding the monitor")]
    Monitor(#[source] crate::config::ProgramError),
    /// Pods of an earlier run cannot be brought back.
    #[error("recovering pods")]
    Recover(#[source] StepError),
    /// Signals or the socket cannot be used by the runtime.
    #[error("starting the server")]
    Start(#[source] io::Error),
    /// The server failed.
    #[error("serving")]
    Serve(#[source] tonic::transport::Error),
}

/// What the daemon is started with.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub loaded: Loaded,
    /// Where it was read from, and is read from again.
    pub source: Source,
    /// The log of the process.
    pub logging: Logging,
    /// The socket that systemd has handed over.
    pub inherited: Option<UnixListener>,
}

/// Runs the daemon until it is asked to stop.
///
/// # Errors
/// When it cannot start, or serving fails.
pub async fn run(start: Start) -> Result<(), AppError> {
    let Start { loaded, source, logging, inherited } = start;
    let config = &loaded.config;
    let shutdown = Shutdown::new();
    shutdown.listen().map_err(AppError::Start)?;
    // From here on a request to reload waits rather than ending the process, which is what the signal does by itself.
    let reloads = shutdown::reload_requests().map_err(AppError::Start)?;
    let layout = Layout::new(config.root.clone(), config.state.clone());
    let listener = Listener::open(&config.socket, &config.state, inherited)?;
    // Held to the very end: the listener goes when serving ends, and operations write after that.
    let _lock = listener.state_lock();
    prepare(&layout)?;
    let reloading = |live| Reloader::new(source, loaded.clone(), logging, live).serve(reloads);
    let ended = serve(config, &layout, &shutdown, listener, reloading).await;
    leave(&layout);
    tracing::info!("stopped");
    ended
}

async fn serve<R>(
    config: &Config,
    layout: &Layout,
    shutdown: &Shutdown,
    listener: Listener,
    reloading: impl FnOnce(Arc<Live>) -> R,
) -> Result<(), AppError>
where
    R: Future<Output = ()> + Send + 'static,
{
    let (socket, inherited) = (listener.path().unwrap_or(config.socket.clone()), listener.is_inherited());
    let incoming = listener.into_incoming().map_err(AppError::Start)?;
    let (ready, readiness) = watch::channel(Readiness::Recovering);
    let (parts, live) = build(config, layout.clone(), shutdown, readiness).await?;
    let (pods, images) = (parts.pods.clone(), parts.images.clone());
    let stop = shutdown.token();
    let server = Server::builder()
        .add_routes(service::routes(parts))
        .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
    let server = tokio::spawn(server);
    let health = Arc::new(Health { socket: socket.clone(), inherited, pods: pods.clone() });
    let check = move || Arc::clone(&health).check();
    shutdown.spawn(notify::keep_watchdog(shutdown.token(), check));
    shutdown.spawn(forget_failed(Arc::clone(&pods.drivers().cgroups)));
    recover(&socket, &pods, &ready).await?;
    // Not before: the end of a reload tells systemd that the server is ready. Not waited for at the end.
    let reloads = tokio::spawn(reloading(Arc::clone(&live)));
    let limit = || live.config.borrow().limits.shutdown_timeout;
    let served = serve_out(server, shutdown, limit).await;
    reloads.abort();
    let limit = limit();
    pods.drain(limit).await;
    if tokio::time::timeout(limit, images.shutdown()).await.is_err() {
        tracing::warn!("pulls were cut off");
    }
    if let Drained::Leaving(tasks) = shutdown.drain(Duration::from_secs(1)).await {
        tracing::warn!(tasks, "tasks were cut off");
    }
    served
}

type Serving = tokio::task::JoinHandle<Result<(), tonic::transport::Error>>;

/// Waits until the server has ended: within `limit` of being asked to, or by itself. It hears of the request too, so it may
/// be first to end in either case, and what follows serving follows in both.
async fn serve_out(
    mut server: Serving,
    shutdown: &Shutdown,
    limit: impl Fn() -> Duration,
) -> Result<(), AppError> {
    // Waiting for either loses nothing: the server goes on as a task of its own.
    let ended = tokio::select! {
        ended = &mut server => Some(ended),
        () = shutdown.requested() => None,
    };
    notify::stopping();
    match ended {
        Some(ended) => flatten(ended),
        None => tokio::time::timeout(limit(), server).await.map_or(Ok(()), flatten),
    }
}

async fn recover(socket: &Path, pods: &Pods, ready: &watch::Sender<Readiness>) -> Result<(), AppError> {
    let found = pods.recover().await.map_err(AppError::Recover)?;
    ready.send_replace(Readiness::Ready);
    notify::ready(&format!("serving on {}", socket.display()));
    tracing::info!(
        sandboxes = found.sandboxes,
        containers = found.containers,
        undone = found.undone,
        broken = found.broken,
        path = %socket.display(),
        "ready"
    );
    Ok(())
}

/// Has systemd forget scopes that failed while this server was away. That it cannot be reached is no reason not to serve.
async fn forget_failed(cgroups: Arc<dyn cgroup::CgroupDriver>) {
    match cgroups.forget_failed().await {
        Ok(0) => {}
        Ok(units) => tracing::info!(units, "failed scopes forgotten"),
        Err(error) => {
            let error = types::error::chain(&error);
            tracing::warn!(error, "pods may fail to start or be cleaned up incompletely while this lasts");
        }
    }
}

/// Without pods the host is left as it was found; with pods everything stays for the next start.
fn leave(layout: &Layout) {
    if !has_pods(layout)
        && let Err(error) = sys::mount::unmount(layout.state())
    {
        tracing::debug!(error = types::error::chain(&error), "the state directory stays mounted");
    }
}

/// Whether records of pods exist, or may exist.
fn has_pods(layout: &Layout) -> bool {
    !std::fs::read_dir(layout.records()).is_ok_and(|mut records| records.next().is_none())
}

fn flatten(
    ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> Result<(), AppError> {
    match ended {
        Ok(result) => result.map_err(AppError::Serve),
        Err(error) => Err(AppError::Start(io::Error::other(error))),
    }
}

/// Makes the directories; the state directory becomes a private mount of its own, so that what is mounted beneath it
/// travels nowhere.
fn prepare(layout: &Layout) -> Result<(), AppError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: Box<dyn std::error::Error + Send + Sync>| AppError::Directory(path, error)
    };
    for (path, mode) in [(layout.root(), 0o711), (layout.state(), 0o700)] {
        sys::atomic::create_dir_all(path, mode).map_err(|error| failed(path)(error.into()))?;
    }
    sys::mount::private_self_bind(layout.state()).map_err(|error| failed(layout.state())(error.into()))?;
    for path in [layout.pods(), layout.bundles(), layout.layers(), layout.records()] {
        sys::atomic::create_dir_all(&path, 0o711).map_err(|error| failed(&path)(error.into()))?;
    }
    let pause = layout.pause_rootfs();
    make_pause_rootfs(&pause).map_err(|error| failed(&pause)(error.into()))
}

/// The root file system of pause containers: the embedded program and the mount points that the OCI runtime needs.
fn make_pause_rootfs(rootfs: &Path) -> Result<(), sys::FileError> {
    for dir in ["", "proc", "dev", "dev/pts", "dev/shm", "dev/mqueue", "sys", "etc"] {
        sys::atomic::create_dir_all(&rootfs.join(dir), 0o755)?;
    }
    sys::atomic::write(&rootfs.join("pause"), sys::pause::BINARY, 0o555)
}

async fn build(
    config: &Config,
    layout: Layout,
    shutdown: &Shutdown,
    readiness: watch::Receiver<Readiness>,
) -> Result<(Parts, Arc<Live>), AppError> {
    let cgroups = open_cgroups(config, &layout)?;
    let systemd = cgroups.kind() == cgroup::DriverKind::Systemd;
    let (probed, place) = (config.clone(), layout.clone());
    let found = tokio::task::spawn_blocking(move || handlers::find(&probed, &place, systemd));
    let images = image::Images::open(drivers::images(config)).await.map_err(AppError::Images)?;
    let network =
        cni::Cni::open(drivers::network(config), shutdown.token()).await.map_err(AppError::Network)?;
    let network = Arc::new(network);
    let handlers = found.await.map_err(|error| AppError::Start(io::Error::other(error)))?;
    let monitor = config.monitor.locate().map_err(AppError::Monitor)?;
    let monitors = monitor_api::ProcessMonitors { binary: monitor, state_dir: layout.state().to_owned() };
    let described = watch::Sender::new(Arc::new(drivers::describe(config, &handlers)));
    let settings = Settings {
        facts: facts::gather(cgroup::detect().map_err(AppError::Cgroups)?),
        netns_dir: PathBuf::from(NETNS_DIR),
        ..Settings::at(layout)
    };
    let drivers = Drivers {
        images: Arc::new(images.clone()),
        network: Arc::<cni::Cni>::clone(&network),
        cgroups,
        monitors: Arc::new(monitors),
        host: Arc::new(Kernel),
    };
    let pods = Pods::new(drivers, drivers::settings(config, handlers, settings));
    let parts =
        Parts { pods: pods.clone(), images: images.clone(), readiness, config: described.subscribe() };
    let config = watch::Sender::new(Arc::new(config.clone()));
    Ok((parts, Arc::new(Live { pods, images, network, systemd, described, config })))
}

/// The driver that a server of this configuration has used, or would use; nothing is written.
pub(crate) fn cgroups_in_use(config: &Config) -> Result<Arc<dyn cgroup::CgroupDriver>, cgroup::CgroupError> {
    let remembered = std::fs::read_to_string(config.root.join(CGROUP_DRIVER)).ok();
    let remembered = remembered.and_then(|text| text.trim().parse().ok());
    let kind = remembered.or(wanted_driver(config)).unwrap_or_else(cgroup::DriverKind::detect);
    cgroup::open(kind, Path::new(cgroup::DEFAULT_ROOT))
}

fn wanted_driver(config: &Config) -> Option<cgroup::DriverKind> {
    match config.cgroup_driver {
        CgroupDriver::Auto => None,
        CgroupDriver::Systemd => Some(cgroup::DriverKind::Systemd),
        CgroupDriver::Cgroupfs => Some(cgroup::DriverKind::Cgroupfs),
    }
}

/// The driver that the configuration names or the host suggests, unless pods of an earlier run need another one.
fn open_cgroups(config: &Config, layout: &Layout) -> Result<Arc<dyn cgroup::CgroupDriver>, AppError> {
    let file = layout.root().join(CGROUP_DRIVER);
    let kind = cgroup::settle(&file, wanted_driver(config), has_pods(layout), cgroup::DriverKind::detect)
        .map_err(AppError::Cgroups)?;
    tracing::info!(driver = %kind, "cgroup driver");
    cgroup::open(kind, Path::new(cgroup::DEFAULT_ROOT)).map_err(AppError::Cgroups)
}
