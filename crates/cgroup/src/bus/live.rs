//! One connection to systemd's manager, from its beginning to its loss.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use systemd_zbus::ManagerProxy;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::names::{BusName, UniqueName};
use zbus::proxy::CacheProperties;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream, fdo};

use super::Endpoint;
use super::jobs::{Ended, Jobs};
use crate::error::{BusFault, CgroupError};
use crate::property::{LIMITING, Property, PropertyValue};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SCOPE: &str = "org.freedesktop.systemd1.Scope";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// What the bus answers in systemd's place while that is away, or says when it goes away itself.
const AWAY: [&str; 8] = [
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.NoServer",
    "org.freedesktop.DBus.Error.Timeout",
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.DBus.Error.LimitsExceeded",
];

/// Why an operation did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The bus or systemd went away: it may succeed on another connection.
    Lost(Box<zbus::Error>),
    /// systemd does not know the unit.
    NoUnit(Box<zbus::Error>),
    /// systemd will not.
    Refused(Box<zbus::Error>),
    /// The job has ended, but not well.
    Job(String),
}

impl Trouble {
    pub(super) fn into_error(self, action: &'static str, unit: &str) -> CgroupError {
        let unit = unit.to_owned();
        let bus = |fault, source| CgroupError::Bus { fault, action, unit: unit.clone(), source };
        match self {
            Self::Lost(source) => bus(BusFault::Unreachable, source),
            Self::NoUnit(source) => bus(BusFault::NoUnit, source),
            Self::Refused(source) => bus(BusFault::Refused, source),
            Self::Job(result) => CgroupError::Job { action, unit, result },
        }
    }
}

impl From<zbus::Error> for Trouble {
    fn from(error: zbus::Error) -> Self {
        match &error {
            zbus::Error::MethodError(name, ..) if name.as_str() == NO_SUCH_UNIT => {
                Self::NoUnit(Box::new(error))
            }
            zbus::Error::MethodError(name, ..) if !AWAY.contains(&name.as_str()) => {
                Self::Refused(Box::new(error))
            }
            _ => Self::Lost(Box::new(error)),
        }
    }
}

impl From<fdo::Error> for Trouble {
    fn from(error: fdo::Error) -> Self {
        Self::Lost(Box::new(error.into()))
    }
}

/// A connection on which systemd has been found.
#[derive(Debug)]
pub(super) struct Live {
    manager: ManagerProxy<'static>,
    jobs: Arc<Jobs>,
    listener: JoinHandle<()>,
}

impl Live {
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self, Trouble> {
        let connection = open(endpoint).await?;
        let messages = MessageStream::from(&connection);
        let systemd = match endpoint {
            Endpoint::Bus(_) => Some(listen(&connection).await?),
            Endpoint::Peer(_) => None,
        };
        let builder = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        let manager = builder.build().await?;
        match manager.subscribe().await.map_err(Trouble::from) {
            // That somebody has subscribed for this connection before is no trouble.
            Ok(()) | Err(Trouble::Refused(_)) => {}
            Err(trouble) => return Err(trouble),
        }
        let jobs = Arc::new(Jobs::default());
        let listener = tokio::spawn(hear(messages, systemd, Arc::clone(&jobs)));
        Ok(Self { manager, jobs, listener })
    }

    pub(super) fn manager(&self) -> &ManagerProxy<'static> {
        &self.manager
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Calls what begins a job of `unit` and waits for the job's end. None when there is no such unit.
    pub(super) async fn job(
        &self,
        unit: &str,
        begin: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<Option<String>, Trouble> {
        let waiter = self.jobs.wait_for(unit);
        match begin.await.map_err(Trouble::from) {
            Ok(job) => waiter.result_of(&job).await.map(Some).ok_or_else(lost),
            Err(Trouble::NoUnit(_)) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Forgets that the unit failed; it may be that it never did, or is gone.
    pub(super) async fn reset_failed(&self, unit: &str) -> Result<(), Trouble> {
        match self.manager.reset_failed_unit(unit).await.map_err(Trouble::from) {
            Ok(()) | Err(Trouble::NoUnit(_)) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// What limits a scope.
    pub(super) async fn limits(&self, scope: &str) -> Result<Vec<Property>, Trouble> {
        let unit = self.manager.get_unit(scope).await?;
        let connection = self.manager.inner().connection();
        let reply =
            connection.call_method(Some(SYSTEMD), &unit, Some(PROPERTIES), "GetAll", &(SCOPE,)).await?;
        let all: HashMap<String, OwnedValue> = reply.body().deserialize()?;
        let value = |name: &str| PropertyValue::of_variant(all.get(name)?);
        Ok(LIMITING.iter().filter_map(|&name| Some(Property { name, value: value(name)? })).collect())
    }

    /// The units that have ended, by a pattern of their names.
    pub(super) async fn ended(&self, pattern: &str) -> Result<EndedUnits, Trouble> {
        // The generated call knows load states only, while systemd takes any state.
        let states_and_patterns = (vec!["failed", "inactive"], vec![pattern]);
        let reply = self.manager.inner().call_method("ListUnitsByPatterns", &states_and_patterns).await?;
        let rows: Vec<Unit> = reply.body().deserialize()?;
        // One that is about to start is inactive, too, but has a job.
        let at_rest = rows.into_iter().filter(|row| row.7 == 0).map(|row| (row.3 == "failed", row.0));
        let (failed, inactive): (Vec<_>, Vec<_>) = at_rest.partition(|(failed, _)| *failed);
        let names = |units: Vec<(bool, String)>| units.into_iter().map(|(_, name)| name).collect();
        Ok(EndedUnits { failed: names(failed), inactive: names(inactive) })
    }
}

/// Units that systemd still knows though nothing of them runs.
#[derive(Debug)]
pub(super) struct EndedUnits {
    pub(super) failed: Vec<String>,
    pub(super) inactive: Vec<String>,
}

/// A unit as systemd lists it: its name comes first, its active state fourth, the number of its job eighth.
type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl Drop for Live {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn lost() -> Trouble {
    let source = io::Error::new(io::ErrorKind::ConnectionAborted, "systemd or the bus went away");
    Trouble::Lost(Box::new(source.into()))
}

async fn open(endpoint: &Endpoint) -> Result<Connection, Trouble> {
    let connection = match endpoint {
        Endpoint::Bus(address) => Builder::address(address.as_str())?.build().await?,
        Endpoint::Peer(path) => {
            let stream = UnixStream::connect(path).await.map_err(zbus::Error::from)?;
            Builder::unix_stream(stream).p2p().build().await?
        }
    };
    Ok(connection)
}

/// Has the bus tell of ended jobs and of systemd's coming and going; says under which name systemd sends.
async fn listen(connection: &Connection) -> Result<String, Trouble> {
    let bus = fdo::DBusProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let jobs = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(SYSTEMD)?
        .interface(MANAGER)?
        .member("JobRemoved")?
        .build();
    let owners = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender("org.freedesktop.DBus")?
        .member("NameOwnerChanged")?
        .arg(0, SYSTEMD)?
        .build();
    bus.add_match_rule(jobs).await?;
    bus.add_match_rule(owners).await?;
    let name = BusName::try_from(SYSTEMD).map_err(zbus::Error::from)?;
    Ok(bus.get_name_owner(name).await?.to_string())
}

/// Passes ended jobs on until the connection or systemd is gone. `systemd` is its unique name on a bus.
async fn hear(mut messages: MessageStream, systemd: Option<String>, jobs: Arc<Jobs>) {
    while let Some(Ok(message)) = messages.next().await {
        match what(&message, systemd.as_deref()) {
            Some(Heard::Ended(unit, ended)) => jobs.ended(&unit, &ended),
            Some(Heard::SystemdLeft) => break,
            None => {}
        }
    }
    jobs.close();
}

enum Heard {
    Ended(String, Ended),
    SystemdLeft,
}

/// What a message says, if it is a signal from systemd, or one from the bus about systemd.
fn what(message: &Message, systemd: Option<&str>) -> Option<Heard> {
    let header = message.header();
    if header.message_type() != Type::Signal {
        return None;
    }
    let sender = header.sender().map(UniqueName::as_str);
    let body = message.body();
    match header.member()?.as_str() {
        "JobRemoved" if sender == systemd || systemd.is_none() => {
            let (_, job, unit, result): (u32, ObjectPath<'_>, String, String) = body.deserialize().ok()?;
            Some(Heard::Ended(unit, Ended { job: job.into(), result }))
        }
        "NameOwnerChanged" if systemd.is_some() && sender == Some("org.freedesktop.DBus") => {
            let (name, _, owner): (String, String, String) = body.deserialize().ok()?;
            (name == SYSTEMD && Some(owner.as_str()) != systemd).then_some(Heard::SystemdLeft)
        }
        _ => None,
    }
}
