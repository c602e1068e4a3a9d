//! Which traces are recorded.
//!
//! A caller that brings a trace context has decided: sampled or not, it holds for everything done for it. Calls without one begin
//! traces of their own at the configured rate. Both are decided before there is a span ([`Sampling`]), so a call that is not
//! traced costs no more than a look at its headers. What belongs to no traced call is never recorded ([`Decided`]).

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

const MILLION: u64 = 1_000_000;

/// How many of the calls without a trace begin one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    per_million: u32,
}

impl Sampling {
    /// So many of a million.
    #[must_use]
    pub fn per_million(per_million: u32) -> Self {
        Self { per_million }
    }

    /// Whether this one does.
    #[must_use]
    pub fn begins_trace(self) -> bool {
        // The hash of nothing under new keys is as random as any number here has to be.
        self.per_million > 0 && RandomState::new().build_hasher().finish() % MILLION < self.per_million.into()
    }
}

/// Records what belongs to a sampled trace, and calls: for those that are not to be recorded there is no span at all.
#[derive(Debug, Clone)]
pub(super) struct Decided;

impl ShouldSample for Decided {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        kind: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let parent = parent.map(|context| context.span().span_context().clone()).filter(|it| it.is_valid());
        let wanted = parent.as_ref().map_or(*kind == SpanKind::Server, |parent| parent.is_sampled());
        SamplingResult {
            decision: if wanted { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            trace_state: parent.map_or(TraceState::NONE, |parent| parent.trace_state().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_calls_begin_traces_as_configured() {
        let begun = |rate| (0..10_000).filter(|_| Sampling::per_million(rate).begins_trace()).count();
        assert_eq!(begun(0), 0);
        assert_eq!(begun(1_000_000), 10_000);
        // Ten standard deviations to either side.
        assert!((4500..5500).contains(&begun(500_000)));
    }
}
