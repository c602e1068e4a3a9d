//! One span for each call, as part of the caller's trace where the call brings one.
//!
//! The span begins when the call comes in, and ends when its last answer has left or its caller has; work that goes on for a
//! caller who has left is part of the trace, yet does not keep the call's span open. Names and attributes are those that
//! OpenTelemetry's conventions for RPC demand.

mod parent;

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Status as SpanStatus, TraceContextExt as _};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::tracing_export::Sampling;

/// A service whose calls have spans. Without [`Sampling`] it only hands them on.
#[derive(Debug, Clone)]
pub(super) struct Traced<S> {
    pub(super) service: S,
    pub(super) sampling: Option<Sampling>,
}

impl<S: NamedService> NamedService for Traced<S> {
    const NAME: &'static str = S::NAME;
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S, E> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = E, Future = Answer<E>>,
    E: Send + 'static,
{
    type Response = Response<Body>;
    type Error = E;
    type Future = Answer<E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<E> {
        let Some(span) = self.sampling.and_then(|sampling| span_of(&request, sampling)) else {
            return self.service.call(request);
        };
        let answer = span.in_scope(|| self.service.call(request)).instrument(span.clone());
        let call = Call { span, is_ended: false };
        Box::pin(async move { Ok(call.through(answer.await?)) })
    }
}

/// The span of a call that is to be traced.
fn span_of(request: &Request<Body>, sampling: Sampling) -> Option<Span> {
    let parent = parent::of(request.headers());
    let is_wanted = parent.as_ref().map_or_else(|| sampling.begins_trace(), |parent| parent.is_sampled());
    if !is_wanted {
        return None;
    }
    let name = request.uri().path().trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    let span = tracing::info_span!(
        target: types::spans::TARGET, parent: None, "rpc", otel.name = name, otel.kind = "server", rpc.system = "grpc",
        rpc.service = service, rpc.method = method,
    );
    if let Some(parent) = parent {
        // Fails only where nothing is exported.
        span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).ok();
    }
    Some(span)
}

/// A call whose span ends with it.
struct Call {
    span: Span,
    is_ended: bool,
}

impl Call {
    /// The answer, whose end is the end of the call.
    fn through(mut self, answer: Response<Body>) -> Response<Body> {
        // A failure without an answer has its code in the headers.
        if let Some(code) = code_in(answer.headers()) {
            self.end(code);
            return answer;
        }
        answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(code) = frame.trailers_ref().and_then(code_in) {
                    self.end(code);
                }
                frame
            }))
        })
    }

    /// Ends the span now, whatever else still holds on to it.
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        let context = self.span.context();
        let span = context.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(code))));
        if is_server_fault(code) {
            span.set_status(SpanStatus::error(code.description()));
        }
        span.end();
    }
}

impl Drop for Call {
    /// The caller has left.
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

fn code_in(headers: &HeaderMap<http::HeaderValue>) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Codes that are errors of a server's span; for the others the caller is to blame, or nobody.
fn is_server_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests;
