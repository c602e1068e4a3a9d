//! What all spans say of the process that they come from.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};

/// This server on this machine. What `OTEL_RESOURCE_ATTRIBUTES` says comes on top, such as `k8s.node.name`, which nothing here
/// knows: a node may be called other than its host.
pub(super) fn of_this_server() -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Resource::builder_empty()
        .with_attribute(KeyValue::new("host.name", host))
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())])
        .with_attribute(KeyValue::new("service.name", "crimson"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_and_its_host_are_named() {
        let resource = of_this_server();
        let value = |key: &'static str| resource.get(&key.into()).map(|value| value.to_string());
        assert_eq!(value("service.name").as_deref(), Some("crimson"));
        assert_eq!(value("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert!(value("host.name").is_some_and(|name| !name.is_empty()));
    }
}
