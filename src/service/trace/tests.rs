use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use opentelemetry::Value;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc::Receiver;
use tonic::codegen::http::header::HeaderMap;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::tracing_export::kept;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Takes what it answers from its maker, and starts work that outlives the call.
#[derive(Clone)]
struct Answering(Arc<Mutex<Option<Answer<Infallible>>>>);

impl Service<Request<Body>> for Answering {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Answer<Infallible> {
        self.0.lock().unwrap().take().unwrap()
    }
}

fn traced(
    per_million: Option<u32>,
    answer: impl Future<Output = Response<Body>> + Send + 'static,
) -> Traced<Answering> {
    let answer: Answer<Infallible> = Box::pin(async { Ok(answer.await) });
    Traced {
        service: Answering(Arc::new(Mutex::new(Some(answer)))),
        sampling: per_million.map(Sampling::per_million),
    }
}

fn request(traceparent: Option<&str>) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = "http://node/runtime.v1.RuntimeService/Version".parse().unwrap();
    if let Some(parent) = traceparent {
        request.headers_mut().insert("traceparent", parent.parse().unwrap());
    }
    request
}

fn subscriber() -> (DefaultGuard, Receiver<SpanData>) {
    let (spans, seen) = kept();
    (tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.layer())), seen)
}

/// Trailers that end an answer with this code.
fn ending(code: &str) -> Response<Body> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
    let frames = http_body_util::StreamBody::new(tokio_stream::iter([
        Ok::<_, Status>(http_body::Frame::data(tonic::codegen::Bytes::from_static(b"data"))),
        Ok(http_body::Frame::trailers(trailers)),
    ]));
    Response::new(Body::new(frames))
}

fn attribute(span: &SpanData, key: &str) -> Option<Value> {
    span.attributes.iter().find(|it| it.key.as_str() == key).map(|it| it.value.clone())
}

#[tokio::test]
async fn a_call_is_named_by_its_method_and_part_of_its_callers_trace() {
    let (_guard, mut seen) = subscriber();
    let answer = traced(Some(0), async { ending("0") }).call(request(Some(PARENT))).await.unwrap();
    assert!(seen.try_recv().is_err(), "the answer has not ended");
    answer.into_body().collect().await.unwrap();
    let span = seen.try_recv().unwrap();
    assert_eq!(span.name, "runtime.v1.RuntimeService/Version");
    assert_eq!(span.span_kind, opentelemetry::trace::SpanKind::Server);
    assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert!(span.parent_span_is_remote);
    for (key, value) in [
        ("rpc.system", Value::from("grpc")),
        ("rpc.service", Value::from("runtime.v1.RuntimeService")),
        ("rpc.method", Value::from("Version")),
        ("rpc.grpc.status_code", Value::from(0_i64)),
    ] {
        assert_eq!(attribute(&span, key), Some(value), "{key}");
    }
    assert_eq!(span.status, SpanStatus::Unset);
}

#[tokio::test]
async fn failures_that_are_the_servers_own_are_errors() {
    let (_guard, mut seen) = subscriber();
    for (code, is_error) in [(Code::Internal, true), (Code::NotFound, false), (Code::Unknown, true)] {
        let refused = async move { Status::new(code, "no").into_http() };
        drop(traced(Some(0), refused).call(request(Some(PARENT))).await.unwrap());
        let span = seen.try_recv().unwrap();
        assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(Value::from(i64::from(i32::from(code)))));
        assert_eq!(matches!(span.status, SpanStatus::Error { .. }), is_error, "{code:?}");
    }
}

#[tokio::test]
async fn a_call_ends_when_its_caller_leaves_and_work_for_it_goes_on_in_its_trace() {
    let (_guard, mut seen) = subscriber();
    let cancelled = |span: &SpanData| attribute(span, "rpc.grpc.status_code") == Some(Value::from(1_i64));
    // Before there is an answer.
    let (told, go) = tokio::sync::oneshot::channel::<()>();
    let answer = async move {
        tokio::spawn(
            async move {
                go.await.unwrap();
                drop(tracing::info_span!(target: types::spans::TARGET, "step"));
            }
            .in_current_span(),
        );
        std::future::pending().await
    };
    let mut service = traced(Some(0), answer);
    tokio::select! {
        biased;
        _ = service.call(request(Some(PARENT))) => unreachable!(),
        () = tokio::task::yield_now() => {}
    }
    let call = seen.try_recv().unwrap();
    assert!(cancelled(&call));
    told.send(()).unwrap();
    let step = seen.recv().await.unwrap();
    assert_eq!((step.name.as_ref(), step.parent_span_id), ("step", call.span_context.span_id()));
    // In the middle of one.
    drop(traced(Some(0), async { ending("0") }).call(request(Some(PARENT))).await.unwrap());
    assert!(cancelled(&seen.try_recv().unwrap()));
}

#[tokio::test]
async fn the_callers_decision_holds_and_others_are_sampled() {
    let (_guard, mut seen) = subscriber();
    let unsampled = PARENT.replace("-01", "-00");
    for (per_million, parent, expected) in [
        (None, Some(PARENT), false),
        (None, None, false),
        (Some(0), None, false),
        (Some(0), Some("nonsense"), false),
        (Some(1_000_000), Some("nonsense"), true),
        (Some(1_000_000), None, true),
        (Some(1_000_000), Some(unsampled.as_str()), false),
        (Some(0), Some(PARENT), true),
    ] {
        let answer = async {
            drop(tracing::info_span!(target: types::spans::TARGET, "step"));
            ending("0")
        };
        let answer = traced(per_million, answer).call(request(parent)).await.unwrap();
        answer.into_body().collect().await.unwrap();
        let names: Vec<_> = std::iter::from_fn(|| seen.try_recv().ok()).map(|span| span.name).collect();
        let wanted: &[&str] = if expected { &["step", "runtime.v1.RuntimeService/Version"] } else { &[] };
        assert_eq!(names, wanted, "{per_million:?} {parent:?}");
    }
}
