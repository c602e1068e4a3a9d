//! Between the domain's words and the wire's: the only place where both meet.

pub mod container;
pub mod image;
pub mod sandbox;
pub mod stats;

use serde::Serialize;

/// A value of a verbose answer's `info` map: JSON text, which crictl shows inline.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{:?}", error.to_string()))
}

/// Whether `labels` has every pair of `selector`.
pub(super) fn selects(
    selector: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
