//! The server's own metrics, in the form that Prometheus reads.
//!
//! [`Metrics`] owns one registry. What happens in this program is counted as it happens: calls by [`Calls`], a layer around the
//! gRPC services, and the steps of verbs by [`Verbs`], which the pods tell. What others count already (images, networks, monitors, the
//! process, the async runtime) is read when somebody asks, by collectors. Every metric is described in `docs/metrics.md`, which a
//! test holds to what is rendered.
//!
//! Promises: the number of series does not depend on what clients send. Labels have values from lists in this program: unknown
//! methods share one, and no id, name, image or address is a label.

mod async_runtime;
mod calls;
mod figures;
mod images;
mod methods;
mod networks;
mod pods;
mod process;
#[cfg(test)]
mod tests;
mod verbs;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::image::Images;
use cni::Cni;
use prometheus_client::encoding::text;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use self::calls::{Calls, Counted};
use self::images::OfImages;
use self::networks::OfNetworks;
use self::pods::OfPods;
use self::verbs::Verbs;
use crate::pod::Pods;

/// The media type of what [`Metrics::render`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Begins the name of each metric but those of the process, which have the names they have everywhere.
const PREFIX: &str = "crimson";

/// All metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    calls: Calls,
    verbs: Arc<Verbs>,
    recovery: Seconds,
}

/// A time span that is set once.
type Seconds = Gauge<f64, AtomicU64>;

impl Metrics {
    /// With what this program counts by itself, and the figures of its process. Within an async runtime, with that one's too.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        process::register(&mut registry);
        let ours = registry.sub_registry_with_prefix(PREFIX);
        let about = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }),
            ("arch", std::env::consts::ARCH),
        ];
        ours.register("build", "The program that runs", Info::new(about.to_vec()));
        let calls = Calls::register(ours);
        let verbs = Arc::new(Verbs::register(ours));
        let recovery = Seconds::default();
        let help = "How long this start took to bring back the pods of the one before, or 0 while it does";
        ours.register_with_unit("recovery_duration", help, Unit::Seconds, recovery.clone());
        async_runtime::register(ours);
        Self { registry: Arc::new(Mutex::new(registry)), calls, verbs, recovery }
    }

    /// Also measures the verbs of these pods, and tells at each reading what they, images and networks count. Once for a process.
    pub fn follow(&self, pods: &Pods, images: &Images, networks: &Arc<Cni>) {
        pods.observe(Arc::<Verbs>::clone(&self.verbs));
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = registry.sub_registry_with_prefix(PREFIX);
        ours.register_collector(Box::new(OfPods(pods.clone())));
        ours.register_collector(Box::new(OfImages(images.clone())));
        ours.register_collector(Box::new(OfNetworks(Arc::clone(networks))));
    }

    /// The layer that counts the calls of a server.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// The pods of an earlier start are back.
    pub fn recovered(&self, taken: Duration) {
        self.recovery.set(taken.as_secs_f64());
    }

    /// All of them as text of [`CONTENT_TYPE`]. Waits for no disk but `/proc` and for no pod; one reader at a time.
    #[must_use]
    pub fn render(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::with_capacity(64 << 10);
        if text::encode(&mut text, &registry).is_err() {
            // Writing into a string cannot fail; a collector that gave up leaves the text unfinished, which readers refuse.
            tracing::warn!("metrics could not be written down");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
