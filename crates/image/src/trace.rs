//! Spans of a pull, as part of the trace of whoever asked for it; [`types::spans`] says what may stand in them.

use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use types::spans;

use crate::error::ImageError;
use crate::manifest::Descriptor;

/// The pull as a whole.
pub(crate) fn pull(reference: &str) -> Span {
    tracing::info_span!(
        target: spans::TARGET, "pull image", image.r#ref = reference, otel.status_description = Empty,
    )
}

/// A part of it that concerns all of the image.
pub(crate) fn stage(name: &'static str) -> Span {
    tracing::info_span!(target: spans::TARGET, "stage", otel.name = name, otel.status_description = Empty)
}

/// What is done for one layer, or a part of that.
pub(crate) fn layer(name: &'static str, blob: &Descriptor) -> Span {
    tracing::info_span!(
        target: spans::TARGET, "layer", otel.name = name, layer.digest = blob.digest.as_str(), layer.size = blob.size,
        otel.status_description = Empty,
    )
}

/// Does `work` within `span`, which tells its failure.
pub(crate) async fn within<T>(
    span: Span,
    work: impl Future<Output = Result<T, ImageError>>,
) -> Result<T, ImageError> {
    let done = work.instrument(span.clone()).await;
    if let Some(error) = done.as_ref().err().filter(|_| !span.is_disabled()) {
        span.record(spans::FAILURE, types::error::chain(error));
    }
    done
}
