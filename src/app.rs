//! The daemon as a whole: builds the drivers, brings the pods back, serves, and ends.
//!
//! Order of the start: take the state directory (one daemon per directory), listen, find out what the host has, open the
//! stores, serve, recover. Version and ImageFsInfo answer from the moment of serving; what needs the pods waits for the
//! recovery. Order of the end: accept nothing new, let calls and operations finish, leave containers running.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admin::board::Board;
use crate::admin::{Admin, AdminError};
use crate::config::{CgroupDriver, Config, Loaded, Source};
use crate::health::Health;
use crate::listener::{ListenError, Listener};
use crate::logging::Logging;
use crate::meter::Meter;
use crate::metrics::Metrics;
use crate::pod::{Drivers, Kernel, Layout, Pods, Recovery, SecurityModules, Settings, StepError};
use crate::reload::{Live, Reloader};
use crate::service::{self, Parts, Readiness};
use crate::shutdown::{self, Drained, Shutdown};
use crate::streaming::{Opened, StreamingError};
use crate::tracing_export::{Export, Sampling};
use crate::{drivers, facts, handlers, notify};

/// The file in the durable directory that remembers the cgroup driver.
const CGROUP_DRIVER: &str = "cgroup-driver";
/// The cgroup of monitors, in the one that this server was started in.
const MONITORS_CGROUP: &str = "crimson-monitors";
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
    /// Sessions cannot be served.
    #[error("setting up sessions")]
    Streaming(#[from] StreamingError),
    /// The admin endpoint cannot be served.
    #[error("setting up the admin endpoint")]
    Admin(#[from] AdminError),
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
    /// What delivers spans, where there are any.
    pub export: Option<Export>,
    /// The socket that systemd has handed over.
    pub inherited: Option<UnixListener>,
}

/// Runs the daemon until it is asked to stop.
///
/// # Errors
/// When it cannot start, or serving fails.
pub async fn run(start: Start) -> Result<(), AppError> {
    let Start { loaded, source, logging, export, inherited } = start;
    let exporting = export.map(Export::start);
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
    let board = Board::new(loaded.written.clone(), logging.clone(), Metrics::new(), shutdown.token());
    let board = Arc::new(board);
    let admin = Admin::open(layout.state(), config.metrics.address, Arc::clone(&board))?;
    let reloading = |live| Reloader::new(source, loaded.clone(), logging, live).serve(reloads);
    let ended = serve(config, &layout, &shutdown, listener, &board, reloading).await;
    // To be asked until there is nothing left to tell; its socket is in the directory that is given back.
    drop((admin, board));
    leave(&layout);
    if let Some(exporting) = exporting {
        exporting.finish().await;
    }
    tracing::info!("stopped");
    ended
}

async fn serve<R>(
    config: &Config,
    layout: &Layout,
    shutdown: &Shutdown,
    listener: Listener,
    board: &Board,
    reloading: impl FnOnce(Arc<Live>) -> R,
) -> Result<(), AppError>
where
    R: Future<Output = ()> + Send + 'static,
{
    let (socket, inherited) = (listener.path().unwrap_or(config.socket.clone()), listener.is_inherited());
    let incoming = listener.into_incoming().map_err(AppError::Start)?;
    let (ready, readiness) = watch::channel(Readiness::Recovering);
    let home = MonitorHome::make(config, layout)?;
    let monitors = Arc::clone(&home.monitors);
    let (parts, sessions, live) = build(config, board, layout.clone(), monitors, shutdown, readiness).await?;
    board.recovering(Arc::clone(&live));
    let (pods, images, meter) = (parts.pods.clone(), parts.images.clone(), Arc::clone(&parts.meter));
    let metrics = board.metrics();
    metrics.follow(&pods, &images, &live.network);
    let stop = shutdown.token();
    let server = Server::builder()
        .layer(metrics.calls())
        .add_routes(service::routes(parts))
        .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
    let server = tokio::spawn(server);
    shutdown.spawn(end_events(pods.clone(), shutdown.token()));
    let no_sessions = shutdown.token();
    let sessions = tokio::spawn(sessions.serve(no_sessions.clone()));
    let health = Arc::new(Health { socket: socket.clone(), inherited, pods: pods.clone() });
    let check = move || Arc::clone(&health).check();
    shutdown.spawn(notify::keep_watchdog(shutdown.token(), check));
    shutdown.spawn(forget_ended(Arc::clone(&pods.drivers().cgroups)));
    let recovering = Instant::now();
    board.serving(recover(&socket, &pods, &ready).await?);
    metrics.recovered(recovering.elapsed());
    shutdown.spawn(meter.run(shutdown.token()));
    // Not before: the end of a reload tells systemd that the server is ready. Not waited for at the end.
    let reloads = tokio::spawn(reloading(Arc::clone(&live)));
    let limit = || live.config.borrow().limits.shutdown_timeout;
    let calls = metrics.calls();
    let only_events =
        || pods.events().subscriptions() > 0 && calls.in_progress_but("GetContainerEvents") == 0;
    let served = serve_out(server, shutdown, limit, only_events).await;
    reloads.abort();
    let limit = limit();
    // Told already, unless serving ended by itself. Their commands are killed by tasks that draining waits for.
    no_sessions.cancel();
    if tokio::time::timeout(limit, sessions).await.is_err() {
        tracing::warn!("sessions were cut off");
    }
    pods.drain(limit).await;
    if tokio::time::timeout(limit, images.shutdown()).await.is_err() {
        tracing::warn!("pulls were cut off");
    }
    if let Drained::Leaving(tasks) = shutdown.drain(Duration::from_secs(1)).await {
        tracing::warn!(tasks, "tasks were cut off");
    }
    home.leave();
    served
}

/// Where monitors come from, and their cgroup.
struct MonitorHome {
    monitors: Arc<monitor_api::PlacedMonitors>,
    cgroup: cgroup::Beside,
}

impl MonitorHome {
    /// Monitors without a cgroup of their own are better than none.
    fn make(config: &Config, layout: &Layout) -> Result<Self, AppError> {
        let binary = config.monitor.locate().map_err(AppError::Monitor)?;
        let monitors =
            || monitor_api::ProcessMonitors { binary: binary.clone(), state_dir: layout.state().to_owned() };
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let error = types::error::chain(error);
            tracing::warn!(error, "monitors have no cgroup of their own and stay in the server's");
        };
        let cgroup =
            cgroup::Beside::make(MONITORS_CGROUP).inspect_err(|error| failed(error)).unwrap_or_default();
        let cgroup::Beside { by_thread, by_process } = cgroup.clone();
        let placed = monitors().in_cgroups(by_thread, by_process).or_else(|error| {
            failed(&error);
            monitors().in_cgroups(Vec::new(), Vec::new())
        });
        Ok(Self { monitors: Arc::new(placed.map_err(AppError::Start)?), cgroup })
    }

    /// The last who leaves removes the cgroup; as long as there are pods, that is nobody.
    fn leave(&self) {
        self.monitors.leave();
        if let Err(error) = self.cgroup.remove() {
            tracing::debug!(error = types::error::chain(&error), "the monitors' cgroup stays");
        }
    }
}

type Serving = tokio::task::JoinHandle<Result<(), tonic::transport::Error>>;

/// Waits until the server has ended: within `limit` of being asked to, or by itself. It hears of the request too, so it may
/// be first to end in either case, and what follows serving follows in both.
async fn serve_out(
    mut server: Serving,
    shutdown: &Shutdown,
    limit: impl Fn() -> Duration,
    only_events: impl Fn() -> bool,
) -> Result<(), AppError> {
    // Waiting for either loses nothing: the server goes on as a task of its own.
    let ended = tokio::select! {
        ended = &mut server => Some(ended),
        () = shutdown.requested() => None,
    };
    notify::stopping();
    match ended {
        Some(ended) => flatten(ended),
        None => tokio::select! {
            ended = tokio::time::timeout(limit(), server) => ended.map_or(Ok(()), flatten),
            () = lasts(only_events) => {
                tracing::warn!("clients of container events that do not read them are left behind");
                Ok(())
            }
        },
    }
}

/// Ends the streams of events with the server; their clients hear why.
async fn end_events(pods: Pods, requested: CancellationToken) {
    requested.cancelled().await;
    pods.events().close();
}

/// Waits until something has been so for a second. The stream of a client that does not read cannot be ended from here: its
/// last word waits for room like all before it.
async fn lasts(is_so: impl Fn() -> bool) {
    let mut seen = 0;
    while seen < 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen = if is_so() { seen + 1 } else { 0 };
    }
}

async fn recover(socket: &Path, pods: &Pods, ready: &watch::Sender<Readiness>) -> Result<Recovery, AppError> {
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
    Ok(found)
}

/// Has systemd forget scopes that failed while this server was away, and those of ended probes. That it cannot be reached is no
/// reason not to serve.
pub(crate) async fn forget_ended(cgroups: Arc<dyn cgroup::CgroupDriver>) {
    match cgroups.forget_ended().await {
        Ok(0) => {}
        Ok(units) => tracing::info!(units, "ended scopes forgotten"),
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
    for (path, mode) in [(layout.root(), 0o711), (layout.state(), 0o711)] {
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
    board: &Board,
    layout: Layout,
    monitors: Arc<dyn monitor_api::Monitors>,
    shutdown: &Shutdown,
    readiness: watch::Receiver<Readiness>,
) -> Result<(Parts, Opened, Arc<Live>), AppError> {
    let cgroups = open_cgroups(config, &layout)?;
    let systemd = cgroups.kind() == cgroup::DriverKind::Systemd;
    let (probed, place) = (config.clone(), layout.clone());
    let found = tokio::task::spawn_blocking(move || handlers::find(&probed, &place, systemd));
    let modules = Arc::new(SecurityModules::find());
    let preparing = Arc::clone(&modules);
    // Not waited for: who needs the profile looks for it.
    shutdown.spawn(async move {
        tokio::task::spawn_blocking(move || preparing.prepare()).await.ok();
    });
    let images = image::Images::open(drivers::images(config)).await.map_err(AppError::Images)?;
    let network =
        cni::Cni::open(drivers::network(config), shutdown.token()).await.map_err(AppError::Network)?;
    let network = Arc::new(network);
    let handlers = found.await.map_err(|error| AppError::Start(io::Error::other(error)))?;
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
        monitors,
        host: Arc::new(Kernel),
        confinement: modules,
    };
    let pods = Pods::new(drivers, drivers::settings(config, handlers, settings));
    let meter = Meter::new(pods.clone());
    let sessions = Opened::open(&config.streaming, Arc::new(pods.clone())).await?;
    let streaming = sessions.server.clone();
    let parts = Parts {
        pods: pods.clone(),
        meter,
        images: images.clone(),
        streaming: streaming.clone(),
        readiness,
        sampling: config.tracing.as_ref().map(|it| Sampling::per_million(it.sampling_rate_per_million)),
        config: described.subscribe(),
    };
    let config = watch::Sender::new(Arc::new(config.clone()));
    let written = watch::Sender::new(board.config());
    let live = Live { pods, images, network, streaming, systemd, described, config, written };
    Ok((parts, sessions, Arc::new(live)))
}

/// The driver that a server of this configuration has used, or would use; nothing is written.
pub(crate) fn cgroups_in_use(config: &Config) -> Result<Arc<dyn cgroup::CgroupDriver>, cgroup::CgroupError> {
    cgroup::open(driver_in_use(config), Path::new(cgroup::DEFAULT_ROOT))
}

/// As [`cgroups_in_use`], its kind only.
pub(crate) fn driver_in_use(config: &Config) -> cgroup::DriverKind {
    remembered_driver(config).or(wanted_driver(config)).unwrap_or_else(cgroup::DriverKind::detect)
}

/// The driver that pods of this configuration's server were made with, if there are pods.
pub(crate) fn kept_driver(config: &Config) -> Option<cgroup::DriverKind> {
    let layout = Layout::new(config.root.clone(), config.state.clone());
    let is_in_use = layout.records().try_exists().unwrap_or(false) && has_pods(&layout);
    remembered_driver(config).filter(|_| is_in_use)
}

fn remembered_driver(config: &Config) -> Option<cgroup::DriverKind> {
    let remembered = std::fs::read_to_string(config.root.join(CGROUP_DRIVER)).ok();
    remembered.and_then(|text| text.trim().parse().ok())
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
