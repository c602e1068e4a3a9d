//! The W3C trace context that a call brings in its metadata. Whatever is not one is as none: a call never fails by it.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tonic::codegen::http::{HeaderMap, HeaderValue};

/// `version "-" trace-id "-" parent-id "-" flags`, all hexadecimal.
const LENGTH: usize = 55;
/// Bytes of `tracestate` that are passed on; more is none.
const STATE_BYTES: usize = 8 << 10;

/// The caller's span.
pub(super) fn of(headers: &HeaderMap<HeaderValue>) -> Option<SpanContext> {
    let mut parents = headers.get_all("traceparent").iter();
    let parent = parents.next().filter(|_| parents.next().is_none())?;
    let (trace, span, flags) = parse(parent.to_str().ok()?)?;
    let context = SpanContext::new(trace, span, flags, true, state(headers).unwrap_or_default());
    context.is_valid().then_some(context)
}

/// A version to come may have more after the flags, and begins as this one does.
fn parse(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let mut fields = known.split('-');
    let mut field = |length: usize| fields.next().filter(|field| field.len() == length && is_hex(field));
    let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let ends_well = if version == "00" { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    if version == "ff" || !ends_well {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    Some((TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What tracing systems on the way have left; it may come in several parts.
fn state(headers: &HeaderMap<HeaderValue>) -> Option<TraceState> {
    let parts: Result<Vec<&str>, _> = headers.get_all("tracestate").iter().map(HeaderValue::to_str).collect();
    let state = parts.ok()?.join(",");
    state.parse().ok().filter(|_| state.len() <= STATE_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(fields: &[(&'static str, &[u8])]) -> HeaderMap<HeaderValue> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn parent(text: &str) -> Option<SpanContext> {
        of(&headers(&[("traceparent", text.as_bytes())]))
    }

    #[test]
    fn a_context_names_trace_span_and_decision() {
        let context = parent(GOOD).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        assert!(context.is_sampled() && context.is_remote());
        assert!(!parent(&GOOD.replace("-01", "-00")).unwrap().is_sampled());
        assert!(parent(&GOOD.replace("-01", "-ff")).unwrap().is_sampled(), "other flags mean nothing here");
        assert!(parent(&GOOD.replacen("00-", "cc-", 1)).is_some(), "a version to come");
        assert!(parent(&format!("{}-more", GOOD.replacen("00-", "cc-", 1))).is_some());
    }

    #[test]
    fn what_is_no_context_is_none() {
        for bad in [
            "",
            "-",
            "---",
            "00",
            GOOD.strip_prefix('0').unwrap(),
            GOOD.strip_suffix('1').unwrap(),
            &format!("{GOOD}-"),
            &format!("{GOOD}-more"),
            &format!("{GOOD}0"),
            &format!("{}0", GOOD.replacen("00-", "cc-", 1)),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.replacen("00-", "+0-", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace('b', "g"),
            &GOOD.replace('-', "_"),
            &format!("{GOOD},{GOOD}"),
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent(bad), None, "{bad:?}");
        }
        let twice = headers(&[("traceparent", GOOD.as_bytes()), ("traceparent", GOOD.as_bytes())]);
        assert_eq!(of(&twice), None);
        assert_eq!(of(&HeaderMap::new()), None);
    }

    #[test]
    fn the_state_goes_with_the_context_and_a_bad_one_without() {
        let state = |parts: &[&[u8]]| {
            let mut fields: Vec<(&'static str, &[u8])> = vec![("traceparent", GOOD.as_bytes())];
            fields.extend(parts.iter().map(|part| ("tracestate", *part)));
            of(&headers(&fields)).unwrap().trace_state().header()
        };
        assert_eq!(state(&[b"a=1,b=2", b"c=3"]), "a=1,b=2,c=3");
        for bad in [&b"nonsense"[..], b"a=\xff", "a".repeat(STATE_BYTES + 1).as_bytes()] {
            assert_eq!(state(&[bad]), "", "{bad:?}");
        }
    }

    proptest! {
        /// Whatever bytes a header can have, and whatever is nearly a context.
        #[test]
        fn no_header_is_an_error(
            wild in prop::collection::vec(prop_oneof![Just(b'\t'), 32_u8..=126, 128_u8..=255], 0..80),
            at in 0..LENGTH, byte in 32_u8..=126, state in "[ -~]{0,64}",
        ) {
            of(&headers(&[("traceparent", &wild), ("tracestate", state.as_bytes())]));
            let mut near = GOOD.as_bytes().to_vec();
            near[at] = byte;
            let found = of(&headers(&[("traceparent", &near), ("tracestate", &wild)]));
            if let Some(context) = found {
                prop_assert!(context.is_valid());
                let hex = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                prop_assert!(hex || byte == b'-');
            }
        }
    }
}
