use std::sync::Mutex;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::{Request, Response, Status};
use tracing::subscriber::set_default;
use tracing_subscriber::layer::SubscriberExt as _;
use types::spans::TARGET;

use super::*;

fn call(name: &str) -> tracing::Span {
    tracing::info_span!(target: TARGET, parent: None, "rpc", otel.name = name, otel.kind = "server")
}

fn subscriber(spans: Spans) -> impl tracing::Subscriber + Send + Sync {
    tracing_subscriber::registry().with(spans.layer())
}

#[test]
fn what_belongs_to_no_call_is_not_recorded() {
    let (spans, mut queue) = kept();
    let _subscriber = set_default(subscriber(spans));
    tracing::info_span!(target: TARGET, "stray").in_scope(|| {
        tracing::info_span!(target: TARGET, "stray's").in_scope(|| {});
    });
    tracing::error_span!("of a library").in_scope(|| tracing::error!("an event"));
    assert!(queue.try_recv().is_err());
    call("call").in_scope(|| {
        tracing::info_span!(target: TARGET, "step").in_scope(|| tracing::warn!("an event"));
    });
    let (step, call) = (queue.try_recv().unwrap(), queue.try_recv().unwrap());
    assert_eq!((step.name.as_ref(), call.name.as_ref()), ("step", "call"));
    assert_eq!(step.parent_span_id, call.span_context.span_id());
    assert!(step.events.is_empty(), "what is logged stays in the log");
    let keys: Vec<_> = step.attributes.iter().chain(&call.attributes).map(|it| it.key.as_str()).collect();
    assert_eq!(keys, [""; 0], "nothing is told that nobody has said");
}

#[test]
fn a_full_queue_loses_spans_and_counts_them() {
    let (spans, mut queue, lost) = way(resource::of_this_server(), 2);
    let _subscriber = set_default(subscriber(spans));
    for name in ["a", "b", "c", "d", "e"] {
        drop(call(name));
    }
    assert_eq!((lost.take(), lost.take()), (3, 0));
    assert_eq!(queue.try_recv().unwrap().name, "a");
}

/// Answers with what it has been given, last first, and then well.
struct Collector {
    refusals: Arc<Mutex<Vec<Status>>>,
    taken: mpsc::Sender<Vec<String>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(refusal) = self.refusals.lock().unwrap().pop() {
            return Err(refusal);
        }
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|it| it.scope_spans);
        let names = spans.flat_map(|scope| scope.spans).map(|span| span.name).collect();
        self.taken.send(names).await.unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector(refusals: Arc<Mutex<Vec<Status>>>) -> (String, mpsc::Receiver<Vec<String>>) {
    let (taken, seen) = mpsc::channel(16);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming =
        tokio_stream::wrappers::TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
    let service = TraceServiceServer::new(Collector { refusals, taken });
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    (endpoint, seen)
}

fn config(endpoint: String) -> Tracing {
    Tracing { endpoint, sampling_rate_per_million: 0, tls_ca: None }
}

#[tokio::test]
async fn what_is_left_at_the_end_is_delivered() {
    let (endpoint, mut seen) = collector(Arc::default()).await;
    let (spans, export) = open(&config(endpoint)).unwrap();
    let exporting = export.start();
    {
        let _subscriber = set_default(subscriber(spans));
        drop(call("a"));
        drop(call("b"));
    }
    // As a server ends, but without its limit.
    let Exporting { end, task } = exporting;
    end.cancel();
    task.await.unwrap();
    let mut names = Vec::new();
    while let Ok(batch) = seen.try_recv() {
        names.extend(batch);
    }
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let refusals = vec![Status::invalid_argument("what is this"), Status::unavailable("busy")];
    let refusals = Arc::new(Mutex::new(refusals));
    let (endpoint, mut seen) = collector(Arc::clone(&refusals)).await;
    let (spans, export) = open(&config(endpoint)).unwrap();
    let exporting = export.start();
    let subscriber = set_default(subscriber(spans));
    drop(call("kept from the busy, lost to the refusing"));
    while !refusals.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(call("taken"));
    drop(subscriber);
    assert_eq!(seen.recv().await.unwrap(), ["taken"]);
    exporting.finish().await;
}

/// Nothing listens: the end is not held up, nor are those who end spans.
#[tokio::test]
async fn nobody_waits_for_a_dead_collector() {
    let (spans, export) = open(&config("http://127.0.0.1:1".to_owned())).unwrap();
    let exporting = export.start();
    {
        let _subscriber = set_default(subscriber(spans));
        (0..2 * QUEUE_SPANS).for_each(|_| drop(call("lost")));
    }
    let begun = std::time::Instant::now();
    exporting.finish().await;
    // With all of its pauses the delivery would take a minute.
    assert!(begun.elapsed() < FLUSH_LIMIT * 15, "{:?}", begun.elapsed());
}

#[test]
fn an_endpoint_with_tls_needs_roots_that_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let tls_ca = Some(directory.path().join("missing.pem"));
    let config = Tracing { tls_ca, ..config("https://collector.test:4317".to_owned()) };
    assert!(matches!(open(&config), Err(TracingError::Ca(..))));
}
