//! Spans of traces, as opposed to the lines of the log.
//!
//! A span that is meant for traces has [`TARGET`] as its target: `tracing::info_span!(target: types::spans::TARGET, …)`. By
//! it the log leaves these spans out, and the exporter takes them and nothing else. Where nothing is exported their
//! callsites are off, so that they cost one load and no allocation.
//!
//! A span's fields leave the machine. They name objects and figures, never what a user keeps secret: credentials,
//! environments, the arguments of commands.

/// The target of all spans that are exported. No module has a path that begins with it.
pub const TARGET: &str = "spans";

/// The field in which a span says why what it stands for has failed. It is there from the beginning, empty, and recorded only by
/// failures.
pub const FAILURE: &str = "otel.status_description";
