//! How long verbs on pods take, and where they fail.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::pod::Observer;

/// Upper bounds in seconds of one step: records are written in milliseconds, network plugins and OCI runtimes take tenths.
const STEP_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];
/// Upper bounds in seconds of a whole verb.
const VERB_SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 240.0];

type ByStep = [(&'static str, &'static str); 2];
type ByResult = [(&'static str, &'static str); 2];

/// Measures verbs and their steps.
#[derive(Debug)]
pub(super) struct Verbs {
    steps: Family<ByStep, Histogram, Buckets>,
    failed_steps: Family<ByStep, Counter>,
    verbs: Family<ByResult, Histogram, Buckets>,
}

/// Makes the histograms of a family.
#[derive(Debug, Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl Verbs {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let verbs = Self {
            steps: Family::new_with_constructor(Buckets(&STEP_SECONDS)),
            failed_steps: Family::default(),
            verbs: Family::new_with_constructor(Buckets(&VERB_SECONDS)),
        };
        let help = "How long steps of verbs took, whether they succeeded or not";
        registry.register_with_unit("step_duration", help, Unit::Seconds, verbs.steps.clone());
        registry.register("step_failures", "Steps that have failed", verbs.failed_steps.clone());
        let help = "How long verbs took as a whole, without undoing what failed";
        registry.register_with_unit("verb_duration", help, Unit::Seconds, verbs.verbs.clone());
        verbs
    }
}

impl Observer for Verbs {
    fn step(&self, verb: &'static str, step: &'static str, taken: Duration, succeeded: bool) {
        let labels = [("verb", verb), ("step", step)];
        self.steps.get_or_create(&labels).observe(taken.as_secs_f64());
        if !succeeded {
            self.failed_steps.get_or_create(&labels).inc();
        }
    }

    fn verb(&self, verb: &'static str, taken: Duration, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.verbs.get_or_create(&[("verb", verb), ("result", result)]).observe(taken.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_is_measured_and_counted() {
        let mut registry = Registry::default();
        let verbs = Verbs::register(&mut registry);
        verbs.step("run sandbox", "CNI", Duration::from_millis(300), true);
        verbs.step("run sandbox", "CNI", Duration::from_secs(90), false);
        verbs.verb("run sandbox", Duration::from_secs(90), false);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let step = "{verb=\"run sandbox\",step=\"CNI\"}";
        for line in [
            format!("step_duration_seconds_count{step} 2"),
            format!("step_duration_seconds_sum{step} 90.3"),
            format!("step_failures_total{step} 1"),
            "step_duration_seconds_bucket{le=\"0.5\",verb=\"run sandbox\",step=\"CNI\"} 1".to_owned(),
            "step_duration_seconds_bucket{le=\"60.0\",verb=\"run sandbox\",step=\"CNI\"} 1".to_owned(),
            "verb_duration_seconds_count{verb=\"run sandbox\",result=\"failure\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|has| has == line), "{line} in\n{text}");
        }
    }
}
