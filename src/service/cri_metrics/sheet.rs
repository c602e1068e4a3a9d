//! The metrics of one container or pod while they are written down.

use cri_api::v1;
use types::Timestamp;

use super::families::Family;

/// Metrics with the same first labels.
#[derive(Debug)]
pub(super) struct Sheet {
    base: Vec<String>,
    pub(super) metrics: Vec<v1::Metric>,
}

impl Sheet {
    /// `base`: values of [`super::families::BASE`].
    pub(super) fn new(base: Vec<String>) -> Self {
        Self { base, metrics: Vec::new() }
    }

    /// Writes down a value, if there is one.
    pub(super) fn add(&mut self, family: &Family, value: Option<u64>) {
        self.add_to(family, &[], value);
    }

    /// The same for a family with labels of its own.
    pub(super) fn add_to(&mut self, family: &Family, labels: &[&str], value: Option<u64>) {
        if let Some(value) = value {
            self.write(0, family, labels, value);
        }
    }

    /// Writes down a value that was found out at some time before.
    pub(super) fn add_found(&mut self, at: Timestamp, family: &Family, labels: &[&str], value: u64) {
        self.write(at.0, family, labels, value);
    }

    fn write(&mut self, timestamp: i64, family: &Family, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let mut label_values = Vec::with_capacity(self.base.len() + labels.len());
        label_values.extend_from_slice(&self.base);
        label_values.extend(labels.iter().map(|&label| label.to_owned()));
        self.metrics.push(v1::Metric {
            name: family.name.to_owned(),
            timestamp,
            metric_type: family.kind.into(),
            label_values,
            value: Some(v1::UInt64Value { value }),
        });
    }
}
