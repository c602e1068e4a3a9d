//! What the network driver tells of its plugins.

use std::fmt::Error;
use std::sync::Arc;

use cni::{Cni, OperationFigures};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::figures::{About, Figures};

/// Reads the driver's own figures.
#[derive(Debug)]
pub(super) struct OfNetworks(pub(super) Arc<Cni>);

impl Collector for OfNetworks {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        write(&mut Figures(encoder), &self.0.operations())
    }
}

pub(super) fn write(to: &mut Figures<'_>, operations: &[OperationFigures]) -> Result<(), Error> {
    let ended = operations.iter().flat_map(|it| {
        let results = [("success", it.ok), ("failure", it.failed), ("timeout", it.timed_out)];
        results.map(|(result, count)| ([("op", it.verb), ("result", result)], count))
    });
    let about = About::new(
        "cni_operations",
        "Network operations that have ended, each over the whole list of plugins",
    );
    to.counters(about, ended)?;
    let now = operations.iter().map(|it| ([("op", it.verb)], it.in_flight));
    to.gauges(About::new("cni_operations_in_progress", "Network operations that have not ended"), now)?;
    let taken = operations.iter().map(|it| ([("op", it.verb)], it.durations.clone()));
    to.durations(
        About::seconds(
            "cni_operation_duration",
            "How long network operations took that began to run plugins",
        ),
        taken,
    )
}
