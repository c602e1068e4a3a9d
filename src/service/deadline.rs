//! The deadline that a client sends with its call.
//!
//! tonic answers a call whose time is over with Cancelled. To kubelet that is another failure than DeadlineExceeded, and
//! which of the two a client gets would depend on whose clock is ahead. So the deadline is kept here as well, a moment
//! before tonic's.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// A service whose calls end at their deadline.
#[derive(Debug, Clone)]
pub(super) struct Deadline<S>(pub(super) S);

impl<S: NamedService> NamedService for Deadline<S> {
    const NAME: &'static str = S::NAME;
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Begins now: tonic begins its own when this returns.
        let over = limit(request.headers()).map(tokio::time::sleep);
        let answer = self.0.call(request);
        let Some(over) = over else { return Box::pin(answer) };
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = over => Ok(Status::deadline_exceeded("the call took longer than its deadline").into_http()),
            }
        })
    }
}

/// The time that a call has: up to eight digits and a unit.
fn limit(headers: &HeaderMap<http::HeaderValue>) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn headers(timeout: &str) -> HeaderMap<http::HeaderValue> {
        HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), timeout.parse().unwrap())])
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("999500u", Some(Duration::from_micros(999_500))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("100000000n", None),
            ("5", None),
            ("S", None),
            ("-1S", None),
            ("1s", None),
            ("", None),
        ] {
            assert_eq!(limit(&headers(text)), expected, "{text:?}");
        }
        assert_eq!(limit(&HeaderMap::new()), None);
    }

    /// Answers after a second.
    #[derive(Debug, Clone)]
    struct Slow;

    impl Service<Request<Body>> for Slow {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Answer<Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Status::unknown("slow").into_http())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_time_is_over_has_exceeded_its_deadline() {
        for (timeout, code) in [(Some("1m"), "4"), (Some("2S"), "2"), (Some("nonsense"), "2"), (None, "2")] {
            let mut request = Request::new(Body::empty());
            *request.headers_mut() = timeout.map(headers).unwrap_or_default();
            let answer = Deadline(Slow).call(request).await.unwrap();
            assert_eq!(answer.headers()["grpc-status"], code, "{timeout:?}");
        }
    }
}
