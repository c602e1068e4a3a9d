//! Traces for an OpenTelemetry collector, sent as OTLP over gRPC.
//!
//! ```text
//! callsite ─▶ layer of the log's subscriber ─▶ queue ─▶ one task ─▶ collector
//!             (spans of types::spans only)     (bounded)
//! ```
//!
//! Promises: where no endpoint is configured nothing of this exists, and the spans' callsites are off. Where one is, no call ever
//! waits for the collector: a span that finds the queue full is lost, and so is one that cannot be delivered within a few
//! attempts. What is lost is counted, and the log tells it, at most once a minute. The end of the server waits for the
//! collector [`FLUSH_LIMIT`] at most.
//!
//! Which traces are recorded is decided where a call comes in (`service::trace`); what has no part in one of them is not.

mod delivery;
mod queue;
mod resource;
mod sampling;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use self::delivery::Delivery;
use self::queue::{Lost, Queue};
pub use self::sampling::Sampling;

use crate::config::Tracing;

/// Spans that wait for delivery at most: some megabytes.
const QUEUE_SPANS: usize = 4096;
/// How long the end of the server waits for the last spans to be delivered.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// How long connecting to the collector may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Why there are no traces although they are configured.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// The file with the collector's roots.
    #[error("reading {}", .0.display())]
    Ca(PathBuf, #[source] std::io::Error),
    /// The collector's address or roots cannot be used.
    #[error("using tracing.endpoint {0:?}")]
    Endpoint(String, #[source] tonic::transport::Error),
}

/// The end of the way at which spans come in.
#[derive(Debug, Clone)]
pub struct Spans(SdkTracer);

/// The end of the way at which they leave.
#[derive(Debug)]
pub struct Export(Delivery);

/// The task that delivers.
#[derive(Debug)]
pub struct Exporting {
    end: CancellationToken,
    task: JoinHandle<()>,
}

/// Prepares the way; nothing is connected yet.
///
/// # Errors
/// When the endpoint or its roots cannot be used.
pub fn open(config: &Tracing) -> Result<(Spans, Export), TracingError> {
    let endpoint = endpoint(config)?;
    let resource = resource::of_this_server();
    let (spans, queue, lost) = way(resource.clone(), QUEUE_SPANS);
    Ok((spans, Export(Delivery::new(endpoint, &resource, queue, lost))))
}

/// The way as far as the queue, which holds so many spans.
fn way(resource: Resource, length: usize) -> (Spans, mpsc::Receiver<SpanData>, Arc<Lost>) {
    let (sender, spans) = mpsc::channel(length);
    let lost = Arc::new(Lost::default());
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Queue::new(sender, Arc::clone(&lost)))
        .with_sampler(sampling::Decided)
        .with_resource(resource)
        .build();
    (Spans(provider.tracer("crimson")), spans, lost)
}

fn endpoint(config: &Tracing) -> Result<Endpoint, TracingError> {
    let unusable = |error| TracingError::Endpoint(config.endpoint.clone(), error);
    let endpoint = Endpoint::from_shared(config.endpoint.clone()).map_err(unusable)?;
    let endpoint = endpoint.connect_timeout(CONNECT_LIMIT).timeout(delivery::EXPORT_LIMIT);
    if !config.endpoint.starts_with("https:") {
        return Ok(endpoint);
    }
    let tls = ClientTlsConfig::new();
    let tls = match &config.tls_ca {
        None => tls.with_native_roots(),
        Some(path) => {
            let pem = std::fs::read(path).map_err(|error| TracingError::Ca(path.clone(), error))?;
            tls.ca_certificate(Certificate::from_pem(pem))
        }
    };
    endpoint.tls_config(tls).map_err(unusable)
}

impl Spans {
    /// The layer of a subscriber by which spans come in. It sees nothing else, and no other layer has to know of it.
    pub fn layer<S>(self) -> impl Layer<S> + Send + Sync
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(types::spans::TARGET, LevelFilter::INFO))
    }
}

impl Export {
    /// Delivers from now on.
    #[must_use]
    pub fn start(self) -> Exporting {
        let end = CancellationToken::new();
        Exporting { end: end.clone(), task: tokio::spawn(self.0.run(end)) }
    }
}

impl Exporting {
    /// Delivers what is there, within [`FLUSH_LIMIT`], and ends.
    pub async fn finish(mut self) {
        self.end.cancel();
        if tokio::time::timeout(FLUSH_LIMIT, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

/// Spans for a test that looks at them.
#[cfg(test)]
pub(crate) fn kept() -> (Spans, mpsc::Receiver<SpanData>) {
    let (spans, queue, _) = way(resource::of_this_server(), QUEUE_SPANS);
    (spans, queue)
}

#[cfg(test)]
mod tests;
