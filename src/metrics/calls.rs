//! Counts calls: a layer around the gRPC services.
//!
//! A call begins with its request and ends with its last byte: a stream is in progress until its trailers are sent. Its code
//! is read where gRPC puts it, in the headers of an answer that has failed at once and in the trailers of every other. A call
//! whose client left before is `Canceled`.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http_body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Bytes, Service};
use tonic::{Code, Status};
use tower_layer::Layer;

use super::methods;

/// Upper bounds in seconds: lists take about a millisecond, starts a hundred, pulls minutes.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0];

type ByMethod = [(&'static str, &'static str); 1];
type ByCode = [(&'static str, &'static str); 2];

/// The names of codes, by their numbers, as Kubernetes' own components have them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Counts the calls of the service that it is laid around. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Calls(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// What has been called so far; methods that nobody calls have no series.
    methods: HashMap<&'static str, OnceLock<Arc<Method>>>,
    families: Families,
}

#[derive(Debug)]
struct Families {
    ended: Family<ByCode, Counter>,
    in_progress: Family<ByMethod, Gauge>,
    seconds: Family<ByMethod, Histogram, NewHistogram>,
}

/// Makes the histogram of one method.
#[derive(Debug, Clone, Copy)]
struct NewHistogram;

impl prometheus_client::metrics::family::MetricConstructor<Histogram> for NewHistogram {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// One method's series, found without a lock.
#[derive(Debug)]
struct Method {
    name: &'static str,
    ended: [OnceLock<Counter>; CODES.len()],
    in_progress: Gauge,
    seconds: Histogram,
}

impl Calls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Families {
            seconds: Family::new_with_constructor(NewHistogram),
            ended: Family::default(),
            in_progress: Family::default(),
        };
        registry.register("rpc", "Calls that have ended", families.ended.clone());
        registry.register("rpc_in_progress", "Calls that have not ended", families.in_progress.clone());
        registry.register_with_unit(
            "rpc_duration",
            "From a call's request to the last byte of its answer",
            Unit::Seconds,
            families.seconds.clone(),
        );
        let names = methods::METHODS.into_iter().chain([methods::OTHER]);
        let methods = names.map(|name| (name, OnceLock::new())).collect();
        Self(Arc::new(Counts { methods, families }))
    }

    /// How many calls are in progress, one method's left out.
    #[must_use]
    pub fn in_progress_but(&self, method: &str) -> i64 {
        let known = self.0.methods.values().filter_map(OnceLock::get);
        known.filter(|it| it.name != method).map(|it| it.in_progress.get()).sum()
    }

    fn begin(&self, path: &str) -> Call {
        let method = self.0.method(methods::of(path));
        if let Some(method) = &method {
            method.in_progress.inc();
        }
        Call { counts: Arc::clone(&self.0), method, begun: Instant::now(), code: Code::Cancelled }
    }
}

impl Counts {
    fn method(&self, name: &'static str) -> Option<Arc<Method>> {
        let method = self.methods.get(name)?;
        Some(Arc::clone(method.get_or_init(|| Arc::new(self.families.method(name)))))
    }
}

impl Families {
    fn method(&self, name: &'static str) -> Method {
        let labels = [("method", name)];
        Method {
            name,
            ended: [const { OnceLock::new() }; CODES.len()],
            in_progress: self.in_progress.get_or_create_owned(&labels),
            seconds: self.seconds.get_or_create_owned(&labels),
        }
    }
}

/// A call in progress; it ends when this goes.
#[derive(Debug)]
struct Call {
    counts: Arc<Counts>,
    method: Option<Arc<Method>>,
    begun: Instant,
    code: Code,
}

impl Call {
    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(method) = &self.method else { return };
        method.in_progress.dec();
        method.seconds.observe(self.begun.elapsed().as_secs_f64());
        let number = usize::try_from(i32::from(self.code)).unwrap_or_default();
        if let (Some(ended), Some(code)) = (method.ended.get(number), CODES.get(number)) {
            let labels = || [("method", method.name), ("code", code)];
            ended.get_or_init(|| self.counts.families.ended.get_or_create_owned(&labels())).inc();
        }
    }
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted { calls: self.clone(), service }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    calls: Calls,
    service: S,
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.calls.begin(request.uri().path());
        let answer = self.service.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(answer) => Ok(watch(call, answer)),
                Err(error) => {
                    call.end(Code::Unknown);
                    Err(error)
                }
            }
        })
    }
}

/// Ends the call now when the answer's headers say how it ended, else with the answer's body.
fn watch(call: Call, answer: Response<Body>) -> Response<Body> {
    match code_in(answer.headers()) {
        Some(code) => {
            call.end(code);
            answer
        }
        None => answer.map(|body| Body::new(Watched { body, call: Some(call) })),
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// A body with whose end a call ends.
#[derive(Debug)]
struct Watched {
    body: Body,
    call: Option<Call>,
}

impl Watched {
    fn end(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) =
                    frame.trailers_ref().map(|trailers| code_in(trailers).unwrap_or(Code::Unknown))
                {
                    self.end(code);
                }
            }
            Some(Err(status)) => self.end(status.code()),
            // An answer without trailers is none in gRPC.
            None => self.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
