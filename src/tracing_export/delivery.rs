//! The task that delivers spans, batch by batch.
//!
//! A batch goes when it is full or a second old. A collector that cannot take it just now is asked again after a pause that
//! grows; after a few attempts the batch is lost and the next one's turn comes, so that a collector that returns gets
//! what is recent.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::queue::Lost;

/// Spans in one message.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long the collector may take for one batch.
pub(super) const EXPORT_LIMIT: Duration = Duration::from_secs(10);
/// Pauses before the second attempt and those that follow.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How often the log tells of lost spans.
const TELL_EVERY: Duration = Duration::from_secs(60);

type Client = TraceServiceClient<Channel>;

/// Everything about it.
pub(super) struct Delivery {
    endpoint: Endpoint,
    resource: ResourceAttributesWithSchema,
    spans: mpsc::Receiver<SpanData>,
    lost: Arc<Lost>,
    told: Option<Instant>,
    /// What the collector said when it last refused.
    refusal: Option<Status>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("endpoint", self.endpoint.uri()).finish_non_exhaustive()
    }
}

impl Delivery {
    pub(super) fn new(
        endpoint: Endpoint,
        resource: &Resource,
        spans: mpsc::Receiver<SpanData>,
        lost: Arc<Lost>,
    ) -> Self {
        Self { endpoint, resource: resource.into(), spans, lost, told: None, refusal: None }
    }

    /// Delivers until `end`, and then what is left.
    pub(super) async fn run(mut self, end: CancellationToken) {
        let mut client = TraceServiceClient::new(self.endpoint.connect_lazy());
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                // Cancel-safe: what has been taken from the queue is in the batch.
                () = fill(&mut self.spans, &mut batch) => {}
            }
            self.deliver(&mut client, std::mem::take(&mut batch), &end).await;
            self.tell(false);
        }
        self.spans.close();
        while !batch.is_empty() || self.spans.recv_many(&mut batch, BATCH).await > 0 {
            self.deliver(&mut client, std::mem::take(&mut batch), &end).await;
        }
        self.tell(true);
    }

    /// One batch, to the collector or to nowhere.
    async fn deliver(&mut self, client: &mut Client, batch: Vec<SpanData>, end: &CancellationToken) {
        let spans = batch.len();
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let mut pauses = PAUSES.iter();
        loop {
            let refusal = match export(client, request.clone()).await {
                Ok(rejected) => return self.lost.add(rejected),
                Err(refusal) => refusal,
            };
            let pause = pauses.next().filter(|_| may_pass(refusal.code()));
            self.refusal = Some(refusal);
            let ended = match pause {
                Some(pause) => end.run_until_cancelled(tokio::time::sleep(*pause)).await.is_none(),
                None => true,
            };
            if ended {
                return self.lost.add(spans);
            }
            self.tell(false);
        }
    }

    /// Has the log tell of lost spans, unless it has just done so.
    fn tell(&mut self, last: bool) {
        if !last && self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        let spans = self.lost.take();
        if spans == 0 {
            return;
        }
        self.told = Some(Instant::now());
        let error = self.refusal.take().map(|refusal| types::error::chain(&refusal));
        tracing::warn!(spans, error, endpoint = %self.endpoint.uri(), "spans were lost on the way to the collector");
    }
}

/// Waits for a span, and then for more.
async fn fill(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    while batch.is_empty() {
        if spans.recv_many(batch, BATCH).await == 0 {
            // Nobody is left who could end a span.
            std::future::pending::<()>().await;
        }
    }
    let more = async {
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            if spans.recv_many(batch, room).await == 0 {
                return;
            }
        }
    };
    // Either way the batch has what came in time.
    tokio::time::timeout(DELAY, more).await.ok();
}

/// Says how many spans the collector has refused of a batch that it took.
async fn export(client: &mut Client, request: ExportTraceServiceRequest) -> Result<usize, Status> {
    let answer = tokio::time::timeout(EXPORT_LIMIT, client.export(request)).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("the collector does not answer"))??;
    let partial = answer.into_inner().partial_success.unwrap_or_default();
    Ok(usize::try_from(partial.rejected_spans).unwrap_or_default())
}

/// Whether the same batch may be taken later, by OTLP's list of codes.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}
