//! Calls that end in every way a gRPC call can, read back from the text that Prometheus gets.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};

use tonic::codegen::http::HeaderValue;

use super::*;

/// What the service does with a call, by the last part of its path.
#[derive(Debug, Clone)]
struct Scripted;

/// Frames one after the other; nothing for ever when `hangs`.
#[derive(Debug)]
struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    hangs: bool,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.frames.pop_front() {
            None if self.hangs => Poll::Pending,
            frame => Poll::Ready(frame.map(Ok)),
        }
    }
}

fn data() -> Frame<Bytes> {
    Frame::data(Bytes::from_static(b"message"))
}

fn trailers(code: Option<&'static str>) -> Frame<Bytes> {
    let code = code.map(|code| (Status::GRPC_STATUS, HeaderValue::from_static(code)));
    Frame::trailers(HeaderMap::from_iter(code))
}

fn answer(frames: impl IntoIterator<Item = Frame<Bytes>>, hangs: bool) -> Response<Body> {
    Response::new(Body::new(Frames { frames: frames.into_iter().collect(), hangs }))
}

impl Service<Request<()>> for Scripted {
    type Response = Response<Body>;
    type Error = &'static str;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, &'static str>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let script = request.headers()["script"].to_str().unwrap().to_owned();
        Box::pin(async move {
            match script.as_str() {
                "header" => Ok(Status::not_found("no such pod").into_http()),
                "trailer" => Ok(answer([data(), trailers(Some("0"))], false)),
                "failing stream" => Ok(answer([data(), data(), trailers(Some("8"))], false)),
                "strange code" => Ok(answer([trailers(Some("99"))], false)),
                "no code" => Ok(answer([data(), trailers(None)], false)),
                "no trailers" => Ok(answer([data()], false)),
                "endless stream" => Ok(answer([data()], true)),
                "hangs" => pending().await,
                _ => Err("broken"),
            }
        })
    }
}

/// A service, and what was counted of it.
struct Server {
    registry: Registry,
    service: Counted<Scripted>,
}

impl Server {
    fn new() -> Self {
        let mut registry = Registry::default();
        let service = Calls::register(&mut registry).layer(Scripted);
        Self { registry, service }
    }

    fn begin(
        &mut self,
        method: &str,
        script: &str,
    ) -> impl Future<Output = Result<Response<Body>, &'static str>> + use<> {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let request = Request::builder().uri(path).header("script", script).body(()).unwrap();
        self.service.call(request)
    }

    /// Performs the call and reads its answer as hyper does: until trailers or the end.
    async fn call(&mut self, method: &str, script: &str) {
        let Ok(answer) = self.begin(method, script).await else { return };
        let mut body = answer.into_body();
        while let Some(Ok(frame)) = next(&mut body).await {
            if frame.is_trailers() {
                break;
            }
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    fn value(&self, series: &str) -> Option<f64> {
        let text = self.text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(line.parse().unwrap())
    }

    fn ended(&self, method: &str, code: &str) -> Option<f64> {
        self.value(&format!("rpc_total{{method=\"{method}\",code=\"{code}\"}}"))
    }

    fn in_progress(&self, method: &str) -> Option<f64> {
        self.value(&format!("rpc_in_progress{{method=\"{method}\"}}"))
    }
}

async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
    poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut *body), context)).await
}

#[tokio::test]
async fn the_code_is_found_where_it_is() {
    let scripts = [
        ("header", "NotFound"),
        ("trailer", "OK"),
        ("failing stream", "ResourceExhausted"),
        ("strange code", "Unknown"),
        ("no code", "Unknown"),
        ("no trailers", "Unknown"),
        ("error", "Unknown"),
    ];
    for (script, code) in scripts {
        let mut server = Server::new();
        server.call("PodSandboxStatus", script).await;
        server.call("PodSandboxStatus", script).await;
        assert_eq!(server.ended("PodSandboxStatus", code), Some(2.0), "{script}: {}", server.text());
        assert_eq!(server.in_progress("PodSandboxStatus"), Some(0.0), "{script}");
        let measured = server.value("rpc_duration_seconds_count{method=\"PodSandboxStatus\"}");
        assert_eq!(measured, Some(2.0), "{script}");
    }
}

#[tokio::test]
async fn a_stream_is_in_progress_until_its_trailers() {
    let mut server = Server::new();
    let mut body = server.begin("StreamContainers", "failing stream").await.unwrap().into_body();
    for _ in 0..2 {
        assert!(next(&mut body).await.unwrap().unwrap().is_data());
        assert_eq!(server.in_progress("StreamContainers"), Some(1.0));
    }
    assert!(next(&mut body).await.unwrap().unwrap().is_trailers());
    assert_eq!(server.in_progress("StreamContainers"), Some(0.0));
    drop(body);
    assert_eq!(server.ended("StreamContainers", "ResourceExhausted"), Some(1.0));
    assert_eq!(server.ended("StreamContainers", "Canceled"), None);
}

#[tokio::test]
async fn who_leaves_before_the_end_has_canceled() {
    let mut server = Server::new();
    let mut body = server.begin("GetContainerEvents", "endless stream").await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    assert_eq!(server.in_progress("GetContainerEvents"), Some(1.0));
    drop(body);
    assert_eq!(server.in_progress("GetContainerEvents"), Some(0.0));
    assert_eq!(server.ended("GetContainerEvents", "Canceled"), Some(1.0));

    let mut hung = Box::pin(server.begin("RunPodSandbox", "hangs"));
    poll_fn(|context| Poll::Ready(hung.as_mut().poll(context).is_pending())).await;
    assert_eq!(server.in_progress("RunPodSandbox"), Some(1.0));
    drop(hung);
    assert_eq!(server.in_progress("RunPodSandbox"), Some(0.0));
    assert_eq!(server.ended("RunPodSandbox", "Canceled"), Some(1.0));
}

#[tokio::test]
async fn what_clients_make_up_makes_no_series() {
    let mut server = Server::new();
    server.call("Version", "trailer").await;
    let known = server.text().lines().count();
    for number in 0..50 {
        server.call(&format!("Invented{number}"), "header").await;
    }
    let more = server.text().lines().count() - known;
    assert_eq!(server.ended("other", "NotFound"), Some(50.0));
    // One method's counter, gauge, sum, count and buckets with the one above all.
    assert_eq!(more, 4 + SECONDS.len() + 1);
}

#[test]
fn codes_are_named_by_their_numbers() {
    let named = |code| CODES[usize::try_from(i32::from(code)).unwrap()];
    assert_eq!(named(Code::DeadlineExceeded), "DeadlineExceeded");
    assert_eq!(named(Code::Unimplemented), "Unimplemented");
    assert_eq!(named(Code::Unauthenticated), "Unauthenticated");
    assert_eq!(named(Code::Cancelled), "Canceled");
}
