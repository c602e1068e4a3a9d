//! SELinux: labels of processes and of their files.
//!
//! Where SELinux is off the options are checked for form and otherwise without effect, as with the peers: network and
//! storage agents ask for a label on every node and must run on those without SELinux too.

use cri_api::v1;

use crate::error::SpecError;

/// The labels of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabels {
    /// Label of the process.
    pub process: String,
    /// Label of the files it may use.
    pub mount: String,
}

const USER: &str = "system_u";
const ROLE: &str = "system_r";
const TYPE: &str = "container_t";
const FILE_ROLE: &str = "object_r";
const FILE_TYPE: &str = "container_file_t";

/// The labels for what a request says, with the pod's own category pair (`s0:c1,c2`) where it names no level.
#[must_use]
pub fn labels(options: Option<&v1::SeLinuxOption>, pod_level: &str) -> SelinuxLabels {
    let or = |text: Option<&String>, default: &str| match text {
        Some(text) if !text.is_empty() => text.clone(),
        _ => default.to_owned(),
    };
    let user = or(options.map(|options| &options.user), USER);
    let role = or(options.map(|options| &options.role), ROLE);
    let kind = or(options.map(|options| &options.r#type), TYPE);
    let level = or(options.map(|options| &options.level), pod_level);
    SelinuxLabels {
        process: format!("{user}:{role}:{kind}:{level}"),
        mount: format!("{user}:{FILE_ROLE}:{FILE_TYPE}:{level}"),
    }
}

/// Checks the form of the options.
pub(crate) fn check(options: Option<&v1::SeLinuxOption>) -> Result<(), SpecError> {
    let Some(options) = options else { return Ok(()) };
    for (field, text) in [
        ("selinux_options.user", &options.user),
        ("selinux_options.role", &options.role),
        ("selinux_options.type", &options.r#type),
    ] {
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            return Err(SpecError::invalid(field, text, "it is not a part of a label"));
        }
    }
    if options.level.is_empty() || is_level(&options.level) {
        return Ok(());
    }
    let reason = "expected a level such as s0, s0-s1 or s0:c1,c2";
    Err(SpecError::invalid("selinux_options.level", &options.level, reason))
}

/// `s<n>[-s<n>][:c<n>[.c<n>][,c<n>…]]`, each end of a range with categories of its own.
fn is_level(level: &str) -> bool {
    level.split('-').count() <= 2 && level.split('-').all(is_sensitivity)
}

fn is_sensitivity(text: &str) -> bool {
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    numbered(sensitivity, 's')
        && categories
            .is_none_or(|list| list.split(',').all(|range| range.split('.').all(|part| numbered(part, 'c'))))
}

fn numbered(text: &str, letter: char) -> bool {
    text.strip_prefix(letter)
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for good in ["s0", "s0-s15", "s0:c1,c2", "s0-s0:c0.c1023", "s0:c3"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["s", "0", "s0:", "s0:x1", "s0-s1-s2", "s0:c1,", "gibberish"] {
            assert!(!is_level(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_not_said_comes_from_the_pod() {
        assert_eq!(labels(None, "s0:c1,c2").process, "system_u:system_r:container_t:s0:c1,c2");
        let options = v1::SeLinuxOption { r#type: "spc_t".into(), level: "s0".into(), ..Default::default() };
        let labels = labels(Some(&options), "s0:c1,c2");
        assert_eq!(labels.process, "system_u:system_r:spc_t:s0");
        assert_eq!(labels.mount, "system_u:object_r:container_file_t:s0");
    }
}
