//! systemd's manager, over one D-Bus connection of our own.
//!
//! [`SystemdBus`] connects when it is first needed and keeps the connection. Every operation ends within a bound. One that
//! is cut off because the bus or systemd went away (stopped, restarted, re-executed) begins again on a new connection until
//! that bound, so each operation is made to be repeated. A job is waited for by the signal of its end.
//!
//! While nothing answers, only the first operation waits that long, so that many that are done for the same pods do not add
//! up: the following ones try once and briefly, until one succeeds or a while has passed.
//!
//! systemd's own socket, which needs no bus, is not asked: systemd names itself there by a name that zbus takes for a fault
//! and panics about (measured with zbus 5.19 and systemd 257).

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use systemd_zbus::Mode;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::CgroupError;
use crate::property::Property;

mod jobs;
mod live;

use live::{Live, Trouble};

/// How long one operation may take, connecting and repeating included.
pub const BUS_LIMIT: Duration = Duration::from_secs(5);
/// First and longest pause before an operation is repeated.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));

/// A place where systemd's manager can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A message bus, by its D-Bus address.
    Bus(String),
    /// A socket on which a manager itself listens, without a bus in between.
    Peer(PathBuf),
}

/// For so long after an operation that nobody answered the next ones are in a hurry, and take this part of the limit.
const SILENCE: (Duration, u32) = (Duration::from_secs(30), 10);

/// systemd's manager. Cheap to make: nothing is connected before the first operation.
#[derive(Debug)]
pub struct SystemdBus {
    endpoint: Endpoint,
    limit: Duration,
    live: Mutex<Option<Arc<Live>>>,
    /// When an operation last failed because nothing answered, if none has succeeded since.
    silent: SyncMutex<Option<Instant>>,
}

impl SystemdBus {
    /// The manager of this host.
    #[must_use]
    pub fn system() -> Self {
        let bus = std::env::var("DBUS_SYSTEM_BUS_ADDRESS")
            .unwrap_or_else(|_| "unix:path=/run/dbus/system_bus_socket".to_owned());
        Self::at(Endpoint::Bus(bus), BUS_LIMIT)
    }

    /// The manager that answers there; each operation takes at most `limit`.
    #[must_use]
    pub fn at(endpoint: Endpoint, limit: Duration) -> Self {
        Self { endpoint, limit, live: Mutex::new(None), silent: SyncMutex::new(None) }
    }

    /// Stops the unit and forgets that it failed. When this returns its job has ended. A missing unit is a success.
    ///
    /// # Errors
    /// [`CgroupError::Bus`] when systemd cannot be reached or refuses, [`CgroupError::Job`] when the unit did not stop.
    pub async fn stop(&self, unit: &str) -> Result<(), CgroupError> {
        self.run("stop", unit, |live| async move {
            let ended = live.job(unit, live.manager().stop_unit(unit, Mode::Replace)).await?;
            match ended.as_deref() {
                None | Some("done") => live.reset_failed(unit).await,
                Some(result) => Err(Trouble::Job(result.to_owned())),
            }
        })
        .await
    }

    /// Forgets every unit whose name matches `pattern` (a shell pattern) and that has failed, or has ended and that systemd keeps
    /// the name of; says how many there were. A systemd that reads its units anew makes the cgroups of such names again.
    ///
    /// # Errors
    /// As for [`SystemdBus::stop`]; one that does not take the call any more is none.
    pub async fn forget_ended(&self, pattern: &str) -> Result<usize, CgroupError> {
        self.run("look for ended units", pattern, |live| async move {
            let ended = live.ended(pattern).await?;
            for unit in &ended.failed {
                live.reset_failed(unit).await?;
            }
            for unit in &ended.inactive {
                // A job, even one with nothing to do, makes systemd look whether somebody still needs the unit.
                live.job(unit, live.manager().stop_unit(unit, Mode::Replace)).await?;
            }
            Ok(ended.failed.len() + ended.inactive.len())
        })
        .await
    }

    /// Sets properties of a unit until it is gone or the host restarts.
    ///
    /// # Errors
    /// [`CgroupError::Bus`] when systemd cannot be reached, does not know the unit or refuses.
    pub async fn set_properties(&self, unit: &str, properties: &[Property]) -> Result<(), CgroupError> {
        self.run("set properties of", unit, |live| async move {
            let properties: Vec<_> = properties.iter().map(|p| (p.name, p.value.to_variant())).collect();
            live.manager().set_unit_properties(unit, true, &properties).await.map_err(Trouble::from)
        })
        .await
    }

    /// The limits that systemd holds of a scope.
    ///
    /// # Errors
    /// [`CgroupError::Bus`] when systemd cannot be reached or does not know the unit.
    pub async fn limits(&self, scope: &str) -> Result<Vec<Property>, CgroupError> {
        self.run("look at", scope, |live| async move { live.limits(scope).await }).await
    }

    /// Repeats `operation` on new connections until it succeeds, fails for good, or the time is up.
    async fn run<T, F>(
        &self,
        action: &'static str,
        unit: &str,
        operation: impl Fn(Arc<Live>) -> F,
    ) -> Result<T, CgroupError>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let limit = self.patience();
        let deadline = Instant::now() + limit;
        let mut pause = RETRY.0;
        let mut last = None;
        loop {
            let attempt = async { operation(self.live().await?).await };
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Err(Trouble::Lost(error))) if Instant::now() + pause < deadline => last = Some(error),
                Ok(answer) => {
                    self.note(!matches!(answer, Err(Trouble::Lost(_))));
                    return answer.map_err(|trouble| trouble.into_error(action, unit));
                }
                Err(_) => {
                    self.note(false);
                    // Whoever does not answer now may never do so on this connection.
                    self.live.lock().await.take();
                    return Err(CgroupError::no_answer(action, unit, limit, last));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// How long the next operation may take.
    fn patience(&self) -> Duration {
        let silent = *self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let hurry = silent.is_some_and(|since| since.elapsed() < SILENCE.0);
        if hurry { self.limit / SILENCE.1 } else { self.limit }
    }

    fn note(&self, answered: bool) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        *silent = if answered { None } else { silent.or_else(|| Some(Instant::now())) };
    }

    /// The connection in use, or a new one.
    async fn live(&self) -> Result<Arc<Live>, Trouble> {
        let mut kept = self.live.lock().await;
        if let Some(live) = kept.as_ref().filter(|live| live.is_usable()) {
            return Ok(Arc::clone(live));
        }
        *kept = None;
        let live = Live::connect(&self.endpoint).await?;
        tracing::debug!(endpoint = ?self.endpoint, "connected to systemd");
        Ok(Arc::clone(kept.insert(Arc::new(live))))
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
