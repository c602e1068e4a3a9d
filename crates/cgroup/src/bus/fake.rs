//! systemd's manager on a private socket, as far as this crate speaks to it, and as ill-behaved as a test wants it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue};
use zbus::{Connection, Guid, fdo, interface};

use super::Endpoint;

const PATH: &str = "/org/freedesktop/systemd1";
/// Every unit is shown there.
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/any";

/// How the manager treats the next calls of StopUnit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mood {
    #[default]
    Well,
    /// The job's end is told before the call returns.
    EndsFirst,
    /// The job ends so.
    EndsAs(&'static str),
    /// The job never ends.
    Stuck,
    /// The call is never answered.
    Mute,
    /// The call is refused.
    Refuses,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) mood: Mood,
    pub(super) units: BTreeSet<String>,
    pub(super) failed: BTreeSet<String>,
    pub(super) inactive: BTreeSet<String>,
    /// Inactive still, with a job.
    pub(super) starting: BTreeSet<String>,
    pub(super) calls: Vec<String>,
    pub(super) connections: usize,
    pub(super) memory_max: u64,
    pub(super) allowed_cpus: Vec<u8>,
    open: Vec<Connection>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct FakeSystemd {
    _dir: tempfile::TempDir,
    pub(super) socket: PathBuf,
    state: Arc<Mutex<State>>,
    serving: Option<JoinHandle<()>>,
}

impl FakeSystemd {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("private");
        let mut fake = Self { _dir: dir, socket, state: Arc::default(), serving: None };
        fake.start();
        fake
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::Peer(self.socket.clone())
    }

    pub(super) fn start(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let state = Arc::clone(&self.state);
        self.serving = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let manager = Manager(Arc::clone(&state));
                let builder = Builder::unix_stream(stream).server(Guid::generate()).unwrap().p2p();
                let builder =
                    builder.serve_at(PATH, manager).unwrap().serve_at(UNIT_PATH, Scope(Arc::clone(&state)));
                // Who is in a hurry may have gone in the middle of the greeting.
                let Ok(connection) = builder.unwrap().build().await else { continue };
                let mut state = state.lock().unwrap();
                state.connections += 1;
                state.open.push(connection);
            }
        }));
    }

    /// As when systemd is re-executed: every connection is cut, and nobody listens until [`FakeSystemd::start`].
    pub(super) async fn stop(&mut self) {
        self.serving.take().unwrap().abort();
        std::fs::remove_file(&self.socket).unwrap();
        let open = std::mem::take(&mut self.state().open);
        for connection in open {
            connection.close().await.unwrap();
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeSystemd {
    fn drop(&mut self) {
        self.serving.take().inspect(JoinHandle::abort);
    }
}

struct Manager(Arc<Mutex<State>>);

struct Scope(Arc<Mutex<State>>);

#[interface(name = "org.freedesktop.systemd1.Scope")]
impl Scope {
    #[zbus(property)]
    fn memory_max(&self) -> u64 {
        self.0.lock().unwrap().memory_max
    }

    #[zbus(property, name = "AllowedCPUs")]
    fn allowed_cpus(&self) -> Vec<u8> {
        self.0.lock().unwrap().allowed_cpus.clone()
    }

    /// A property that is no limit and of no type that limits have.
    #[zbus(property)]
    fn slice(&self) -> String {
        "a.slice".to_owned()
    }
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchUnit(String),
    UnitMasked(String),
}

impl Manager {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn subscribe(&self) -> fdo::Result<()> {
        Ok(())
    }

    async fn stop_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        let (mood, number) = {
            let mut state = self.state();
            state.calls.push(format!("stop {name} {mode}"));
            if !state.units.contains(&name) {
                return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")));
            }
            if !matches!(state.mood, Mood::Stuck | Mood::Mute | Mood::Refuses) {
                state.units.remove(&name);
            }
            (state.mood, u32::try_from(state.calls.len()).unwrap())
        };
        let path = |number: u32| ObjectPath::try_from(format!("{PATH}/job/{number}")).unwrap();
        // Another job of the same unit ends, and the same job number of another unit: neither is meant.
        Self::job_removed(&emitter, 9000, path(9000), &name, "canceled").await?;
        Self::job_removed(&emitter, number, path(number), "other.scope", "failed").await?;
        let end = async |result| Self::job_removed(&emitter, number, path(number), &name, result).await;
        match mood {
            Mood::EndsFirst => end("done").await?,
            Mood::Mute => std::future::pending().await,
            Mood::Refuses => return Err(Refusal::UnitMasked("it is masked".to_owned())),
            Mood::Stuck => {}
            Mood::Well | Mood::EndsAs(_) => {
                let (emitter, name) = (emitter.to_owned(), name.clone());
                let result = if let Mood::EndsAs(result) = mood { result } else { "done" };
                tokio::spawn(async move {
                    Self::job_removed(&emitter, number, path(number), &name, result).await.unwrap();
                });
            }
        }
        Ok(path(number).into())
    }

    async fn get_unit(&self, name: String) -> Result<OwnedObjectPath, Refusal> {
        let known = self.state().units.contains(&name);
        let path = || ObjectPath::try_from(UNIT_PATH).unwrap().into();
        if known { Ok(path()) } else { Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded."))) }
    }

    async fn reset_failed_unit(&self, name: String) -> Result<(), Refusal> {
        let mut state = self.state();
        state.calls.push(format!("reset {name}"));
        if state.failed.remove(&name) { Ok(()) } else { Err(Refusal::NoSuchUnit(name)) }
    }

    async fn set_unit_properties(
        &self,
        name: String,
        runtime: bool,
        properties: Vec<(String, OwnedValue)>,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        if !state.units.contains(&name) {
            return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")));
        }
        for (property, value) in properties {
            let signature = value.value_signature().to_string();
            state.calls.push(format!("set {name} {runtime} {property} {signature}"));
        }
        Ok(())
    }

    async fn list_units_by_patterns(&self, states: Vec<String>, patterns: Vec<String>) -> Vec<Listed> {
        let mut state = self.state();
        state.calls.push(format!("list {states:?} {patterns:?}"));
        let none = || OwnedObjectPath::try_from("/").unwrap();
        let row = |name: &String, active: &str, job: u32| {
            let text = || name.clone();
            (text(), text(), text(), active.to_owned(), text(), text(), none(), job, text(), none())
        };
        let failed = state.failed.iter().map(|name| row(name, "failed", 0));
        let starting = state.starting.iter().map(|name| row(name, "inactive", 7));
        failed.chain(starting).chain(state.inactive.iter().map(|name| row(name, "inactive", 0))).collect()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}
