//! Wishes that the API has no field for and that come as annotations of the pod, by the names that CRI-O gave them. They count where
//! the configuration of the handler lets the annotation pass, and are not there for a pod of any other.

use crate::annotations::passing;
use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::request::SandboxRequest;

const UMASK: [&str; 2] = ["umask.crio.io", "io.kubernetes.cri-o.umask"];
const SHM_SIZE: [&str; 2] = ["shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"];

/// What is taken away from the mode of every file that the containers make; one to four octal digits.
pub(crate) fn umask(pod: &SandboxRequest, facts: &NodeFacts) -> Result<Option<u32>, SpecError> {
    let Some(text) = wish(pod, facts, UMASK) else { return Ok(None) };
    let octal = (1..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(umask) if octal && umask <= 0o777 => Ok(Some(umask)),
        _ => Err(SpecError::invalid(UMASK[0], text, "it is not a mask of one to four octal digits")),
    }
}

/// How large the pod's shared memory is to be, in bytes; none for the usual size.
///
/// # Errors
/// [`SpecError::Invalid`] for what is no quantity of Kubernetes, or nothing.
pub fn shm_bytes(pod: &SandboxRequest, facts: &NodeFacts) -> Result<Option<u64>, SpecError> {
    let Some(text) = wish(pod, facts, SHM_SIZE) else { return Ok(None) };
    let refused = || SpecError::invalid(SHM_SIZE[0], text, "it is not a size, such as 64Mi");
    quantity(text).filter(|bytes| *bytes > 0).map(Some).ok_or_else(refused)
}

fn wish<'a>(pod: &'a SandboxRequest, facts: &NodeFacts, names: [&str; 2]) -> Option<&'a str> {
    names.iter().find_map(|name| passing(pod, facts, name))
}

/// A whole number with one of the suffixes that Kubernetes has for bytes.
fn quantity(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let unit = UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn pod(name: &str, value: &str) -> SandboxRequest {
        let mut config = fixtures::pod();
        config.annotations.insert(name.to_owned(), value.to_owned());
        SandboxRequest::parse(config, String::new()).unwrap()
    }

    fn open() -> NodeFacts {
        NodeFacts {
            pod_annotations: vec!["*.crio.io".into(), "io.kubernetes.cri-o.*".into()],
            ..fixtures::facts()
        }
    }

    #[test]
    fn a_wish_counts_where_the_handler_lets_it_pass() {
        let wished = pod("umask.crio.io", "027");
        assert_eq!(umask(&wished, &open()).unwrap(), Some(0o27));
        assert_eq!(umask(&wished, &fixtures::facts()).unwrap(), None);
        assert_eq!(umask(&pod("io.kubernetes.cri-o.umask", "0"), &open()).unwrap(), Some(0));
        assert_eq!(shm_bytes(&pod("shm-size.crio.io", "1Gi"), &open()).unwrap(), Some(1 << 30));
        assert_eq!(shm_bytes(&pod("shm-size.crio.io", "1Gi"), &fixtures::facts()).unwrap(), None);
    }

    #[test]
    fn what_is_no_mask_and_no_size_is_refused() {
        for bad in ["", "8", "00022", "1777", "u=rw", "+22", "-1"] {
            assert!(umask(&pod("umask.crio.io", bad), &open()).is_err(), "{bad:?}");
        }
        for bad in ["", "0", "-1", "1.5Gi", "Mi", "64 Mi", "99999999999Ti", "1e3"] {
            assert!(shm_bytes(&pod("shm-size.crio.io", bad), &open()).is_err(), "{bad:?}");
        }
        for (text, bytes) in [("65536", 65536), ("64Mi", 64 << 20), ("2k", 2000), ("3G", 3_000_000_000)] {
            assert_eq!(quantity(text), Some(bytes));
        }
    }
}
