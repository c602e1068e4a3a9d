//! A pod's traffic limits, which Kubernetes keeps in two annotations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::quantity;

/// Annotation that limits traffic into the pod.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation that limits traffic out of the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Below a kilobit and above a petabit per second a limit is a typing error.
const REASONABLE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Kubernetes has no notion of a burst, so it is the most that the plugin's 32-bit field holds, as in containerd.
const BURST_BITS: u64 = u32::MAX as u64;

/// Limits of a pod's traffic. The field names are those of the `bandwidth` capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Bits per second into the pod; 0 is unlimited.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ingress_rate: u64,
    /// Bits that may come at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ingress_burst: u64,
    /// Bits per second out of the pod; 0 is unlimited.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub egress_rate: u64,
    /// Bits that may leave at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub egress_burst: u64,
}

/// A limit that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation} is {value:?}, which is {problem}")]
pub struct BandwidthError {
    /// The annotation's name.
    pub annotation: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong.
    pub problem: &'static str,
}

impl types::Kind for BandwidthError {
    fn kind(&self) -> types::ErrorKind {
        types::ErrorKind::InvalidArgument
    }
}

impl Bandwidth {
    /// Reads the limits out of a pod's annotations; None when it has none.
    ///
    /// # Errors
    /// When an annotation is no Kubernetes quantity, or is below a kilobit or above a petabit per second.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, BandwidthError> {
        let ingress = rate(annotations, INGRESS)?;
        let egress = rate(annotations, EGRESS)?;
        let burst = |rate: Option<u64>| rate.map_or(0, |_| BURST_BITS);
        Ok((ingress.is_some() || egress.is_some()).then(|| Self {
            ingress_rate: ingress.unwrap_or(0),
            ingress_burst: burst(ingress),
            egress_rate: egress.unwrap_or(0),
            egress_burst: burst(egress),
        }))
    }
}

fn rate(
    annotations: &BTreeMap<String, String>,
    annotation: &'static str,
) -> Result<Option<u64>, BandwidthError> {
    let Some(value) = annotations.get(annotation) else {
        return Ok(None);
    };
    let refuse = |problem| BandwidthError { annotation, value: value.clone(), problem };
    let bits = quantity::parse(value).ok_or_else(|| refuse("not a quantity of bits per second"))?;
    if bits < *REASONABLE.start() {
        return Err(refuse("unreasonably small (under 1 kbit/s)"));
    }
    if bits > *REASONABLE.end() {
        return Err(refuse("unreasonably large (over 1 Pbit/s)"));
    }
    Ok(Some(bits))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Bandwidth>, BandwidthError> {
        Bandwidth::from_annotations(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn each_direction_is_read_from_its_annotation() {
        assert_eq!(read(&[("other", "10M")]), Ok(None));
        let both = read(&[(INGRESS, "10M"), (EGRESS, "1Mi")]).unwrap().unwrap();
        assert_eq!((both.ingress_rate, both.egress_rate), (10_000_000, 1_048_576));
        assert_eq!((both.ingress_burst, both.egress_burst), (4_294_967_295, 4_294_967_295));
    }

    #[test]
    fn an_unlimited_direction_is_not_mentioned_to_the_plugin() {
        let one = read(&[(INGRESS, "1k")]).unwrap().unwrap();
        let json = serde_json::to_value(one).unwrap();
        assert_eq!(json, serde_json::json!({"ingressRate": 1000, "ingressBurst": 4_294_967_295_u64}));
    }

    #[test]
    fn limits_that_cannot_be_meant_are_refused_by_name() {
        for bad in ["", "fast", "-1M", "999", "0", "1001T", "2P"] {
            let error = read(&[(EGRESS, bad)]).unwrap_err();
            assert_eq!((error.annotation, error.value.as_str()), (EGRESS, bad));
        }
        assert!(read(&[(EGRESS, "1k")]).is_ok() && read(&[(EGRESS, "1P")]).is_ok());
    }
}
