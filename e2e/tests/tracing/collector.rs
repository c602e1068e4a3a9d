//! An OpenTelemetry collector that keeps what it is sent, and what a test reads of it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;

use e2e::{Machine, Result, patience};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: i32,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Ids of the spans that it refers to.
    pub(crate) links: Vec<String>,
    pub(crate) failure: Option<String>,
    pub(crate) state: String,
    /// Attributes of the process that it comes from.
    pub(crate) resource: BTreeMap<String, String>,
    /// Everything about it as text.
    pub(crate) all: String,
}

impl Span {
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        other.begun <= self.begun && self.ended <= other.ended
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn map(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |it: &KeyValue| it.value.as_ref().and_then(|it| it.value.as_ref()).map(text);
    attributes.iter().map(|it| (it.key.clone(), value(it).unwrap_or_default())).collect()
}

fn span(it: &otlp::Span, resource: &BTreeMap<String, String>) -> Span {
    let status = it.status.clone().unwrap_or_default();
    Span {
        trace: hex(&it.trace_id),
        id: hex(&it.span_id),
        parent: hex(&it.parent_span_id),
        name: it.name.clone(),
        kind: it.kind,
        begun: it.start_time_unix_nano,
        ended: it.end_time_unix_nano,
        attributes: map(&it.attributes),
        links: it.links.iter().map(|link| hex(&link.span_id)).collect(),
        failure: (status.code() == otlp::status::StatusCode::Error).then_some(status.message),
        state: it.trace_state.clone(),
        resource: resource.clone(),
        all: format!("{it:?}"),
    }
}

/// The collector; it ends with the test.
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    seen: watch::Receiver<Vec<Span>>,
}

struct Keeping(Arc<watch::Sender<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Keeping {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> std::result::Result<Response<ExportTraceServiceResponse>, Status> {
        let sent = request.into_inner().resource_spans;
        self.0.send_modify(|seen| {
            for part in sent {
                let resource = part.resource.map(|it| map(&it.attributes)).unwrap_or_default();
                seen.extend(part.scope_spans.iter().flat_map(|it| &it.spans).map(|it| span(it, &resource)));
            }
        });
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A socket on the machine that takes connections and never answers.
pub(crate) async fn silent(machine: &Machine) -> Result<TcpListener> {
    let bound = machine.in_network(|| TcpListener::bind("127.0.0.1:0")).await?;
    Ok(bound?)
}

impl Collector {
    pub(crate) async fn start(machine: &Machine) -> Result<Self> {
        let listener = silent(machine).await?;
        let endpoint = listener.local_addr()?.to_string();
        listener.set_nonblocking(true)?;
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
        let (sender, seen) = watch::channel(Vec::new());
        let service = TraceServiceServer::new(Keeping(Arc::new(sender)));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Ok(Self { endpoint, seen })
    }

    /// All that has arrived so far.
    pub(crate) fn all(&self) -> Vec<Span> {
        self.seen.borrow().clone()
    }

    /// Waits until the span of a call to `method` in this trace has arrived; gives it and all others of the trace.
    pub(crate) async fn call(&self, trace: &str, method: &str) -> Result<(Span, Vec<Span>)> {
        let mut seen = self.seen.clone();
        let is_it = |span: &Span| {
            span.trace == trace && span.attributes.get("rpc.method").is_some_and(|it| it == method)
        };
        let arrived = seen.wait_for(|seen| seen.iter().any(is_it));
        let spans = tokio::time::timeout(patience(30), arrived).await??.clone();
        let call = spans.iter().find(|span| is_it(span)).cloned();
        let call = call.ok_or_else(|| anyhow::anyhow!("it has been there"))?;
        let others = spans.into_iter().filter(|span| span.trace == trace && span.id != call.id).collect();
        Ok((call, others))
    }
}
