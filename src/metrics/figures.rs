//! Writes metrics whose values somebody else keeps.

use std::fmt::{Debug, Error};

use ::image::RateCounts;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use types::DurationCounts;

/// What one metric is called and means.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) name: &'a str,
    pub(super) help: &'a str,
    pub(super) unit: Option<&'a Unit>,
}

impl<'a> About<'a> {
    pub(super) fn new(name: &'a str, help: &'a str) -> Self {
        Self { name, help, unit: None }
    }

    pub(super) fn seconds(name: &'a str, help: &'a str) -> Self {
        Self { name, help, unit: Some(&Unit::Seconds) }
    }

    pub(super) fn bytes(name: &'a str, help: &'a str) -> Self {
        Self { name, help, unit: Some(&Unit::Bytes) }
    }
}

/// Writes one metric after the other.
#[derive(Debug)]
pub(super) struct Figures<'a>(pub(super) DescriptorEncoder<'a>);

impl Figures<'_> {
    /// A value that may fall.
    pub(super) fn gauge(&mut self, about: About<'_>, value: impl EncodeGaugeValue) -> Result<(), Error> {
        let help = sentence(about.help);
        self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// The same where it could be found out; otherwise there is no such metric this time.
    pub(super) fn known(
        &mut self,
        about: About<'_>,
        value: Option<impl EncodeGaugeValue>,
    ) -> Result<(), Error> {
        value.map_or(Ok(()), |value| self.gauge(about, value))
    }

    /// The same for each of several label sets.
    pub(super) fn gauges<S: EncodeLabelSet>(
        &mut self,
        about: About<'_>,
        values: impl IntoIterator<Item = (S, impl EncodeGaugeValue)>,
    ) -> Result<(), Error> {
        let help = sentence(about.help);
        let mut metric = self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Gauge)?;
        for (labels, value) in values {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A value that only grows; its name gets `_total` appended.
    pub(super) fn counter(&mut self, about: About<'_>, value: impl EncodeCounterValue) -> Result<(), Error> {
        let help = sentence(about.help);
        let mut metric = self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// The same for each of several label sets.
    pub(super) fn counters<S: EncodeLabelSet>(
        &mut self,
        about: About<'_>,
        values: impl IntoIterator<Item = (S, impl EncodeCounterValue)>,
    ) -> Result<(), Error> {
        let help = sentence(about.help);
        let mut metric = self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Counter)?;
        for (labels, value) in values {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    /// How often something took how long.
    pub(super) fn duration(&mut self, about: About<'_>, counts: &DurationCounts) -> Result<(), Error> {
        let help = sentence(about.help);
        let metric = self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Histogram)?;
        encode(metric, counts)
    }

    /// How often something was how fast.
    pub(super) fn rates(&mut self, about: About<'_>, counts: &RateCounts) -> Result<(), Error> {
        let help = sentence(about.help);
        let mut metric = self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Histogram)?;
        let total = counts.buckets.iter().map(|(_, count)| count).sum();
        metric.encode_histogram::<NoLabelSet>(counts.sum as f64, total, &counts.buckets, None)
    }

    /// The same for each of several label sets.
    pub(super) fn durations<S: EncodeLabelSet>(
        &mut self,
        about: About<'_>,
        values: impl IntoIterator<Item = (S, DurationCounts)>,
    ) -> Result<(), Error> {
        let help = sentence(about.help);
        let mut metric = self.0.encode_descriptor(about.name, &help, about.unit, MetricType::Histogram)?;
        for (labels, counts) in values {
            encode(metric.encode_family(&labels)?, &counts)?;
        }
        Ok(())
    }
}

fn encode(mut metric: MetricEncoder<'_>, counts: &DurationCounts) -> Result<(), Error> {
    metric.encode_histogram::<NoLabelSet>(counts.sum.as_secs_f64(), counts.total(), &counts.buckets, None)
}

/// With the full stop that registered metrics get from the library.
fn sentence(help: &str) -> String {
    format!("{help}.")
}
