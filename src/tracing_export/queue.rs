//! The queue between those who end spans and the task that delivers them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::mpsc;

/// Spans that were lost and that nobody has told of yet.
#[derive(Debug, Default)]
pub(super) struct Lost(AtomicU64);

impl Lost {
    pub(super) fn add(&self, spans: usize) {
        self.0.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many, of which somebody is going to tell.
    pub(super) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// Takes ended spans and never waits.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    lost: Arc<Lost>,
}

impl Queue {
    pub(super) fn new(spans: mpsc::Sender<SpanData>, lost: Arc<Lost>) -> Self {
        Self { spans, lost }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.lost.add(1);
        }
    }

    /// Delivery has its own end: see `Exporting::finish`.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
