//! What the async runtime says of itself, as far as tokio promises to go on saying it.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::figures::{About, Figures};

#[derive(Debug)]
struct AsyncRuntime(RuntimeMetrics);

/// Outside of any runtime there is nothing to register.
pub(super) fn register(registry: &mut Registry) {
    if let Ok(runtime) = Handle::try_current() {
        let collector = Box::new(AsyncRuntime(runtime.metrics()));
        registry.sub_registry_with_prefix("async").register_collector(collector);
    }
}

impl Collector for AsyncRuntime {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Self(runtime) = self;
        let workers = || 0..runtime.num_workers();
        let mut figures = Figures(encoder);
        figures.gauge(About::new("workers", "Threads that run tasks"), runtime.num_workers())?;
        figures.gauge(About::new("alive_tasks", "Tasks that have not ended"), runtime.num_alive_tasks())?;
        let queued = runtime.global_queue_depth();
        figures.gauge(About::new("queued_tasks", "Tasks in the queue that all threads share"), queued)?;
        let busy = |worker| ([("worker", worker)], runtime.worker_total_busy_duration(worker).as_secs_f64());
        let about = About::seconds("worker_busy", "Time in which a thread was not waiting for tasks");
        figures.counters(about, workers().map(busy))?;
        let parks = |worker| ([("worker", worker)], runtime.worker_park_count(worker));
        let about = About::new("worker_parks", "Times that a thread found nothing to do");
        figures.counters(about, workers().map(parks))
    }
}
