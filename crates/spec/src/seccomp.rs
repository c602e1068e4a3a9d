//! seccomp: the system calls a container may make.
//!
//! Two fields ask for a profile: the message, and the older text `runtime/default`, `unconfined` or `localhost/<path>`.
//! Nothing said means unconfined, as in CRI, unless the node's configuration says otherwise. The built-in default is [`default_profile`]; a localhost profile is JSON in
//! the OCI form, read by the daemon and checked here on the raw JSON, because keys that OCI does not know would
//! otherwise be dropped and the filter would not be what its author wrote.

mod default;
mod table;

use cri_api::v1;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};
use serde_json::Value;
use v1::security_profile::ProfileType;

pub use default::default_profile;

use crate::error::SpecError;
use crate::facts::NodeFacts;

/// What a request says about seccomp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Nothing: what the node's configuration says of such requests.
    Unset,
    Unconfined,
    RuntimeDefault,
    Localhost(String),
}

impl Profile {
    /// Reads both fields; the message wins.
    pub(crate) fn of(profile: Option<&v1::SecurityProfile>, legacy: &str) -> Self {
        let path = |text: &str| text.strip_prefix("localhost/").unwrap_or(text).to_owned();
        match (profile.map(v1::SecurityProfile::profile_type), profile, legacy) {
            (Some(ProfileType::RuntimeDefault), ..) | (None, _, "runtime/default" | "docker/default") => {
                Self::RuntimeDefault
            }
            (None, _, "") => Self::Unset,
            (Some(ProfileType::Unconfined), ..) | (None, _, "unconfined") => Self::Unconfined,
            (Some(ProfileType::Localhost), Some(profile), _) => Self::Localhost(path(&profile.localhost_ref)),
            (_, _, text) => Self::Localhost(path(text)),
        }
    }

    /// Checks that a profile of the node is named by an absolute path.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        match self {
            Self::Localhost(path) if !path.starts_with('/') => {
                Err(SpecError::invalid("seccomp", path, "a localhost profile is named by an absolute path"))
            }
            _ => Ok(()),
        }
    }

    /// The profile, with what the node's configuration says where the request says nothing.
    pub(crate) fn or_unset(self, text: &str) -> Self {
        if self == Self::Unset { Self::of(None, text) } else { self }
    }

    /// Path of the profile to read.
    pub(crate) fn localhost(self) -> Option<String> {
        match self {
            Self::Localhost(path) => Some(path),
            Self::Unset | Self::Unconfined | Self::RuntimeDefault => None,
        }
    }

    /// The filter for the spec; `content` is the localhost profile's.
    pub(crate) fn filter(
        &self,
        content: Option<&[u8]>,
        capabilities: &LinuxCapabilities,
        facts: &NodeFacts,
    ) -> Result<Option<LinuxSeccomp>, SpecError> {
        if matches!(self, Self::Unset | Self::Unconfined) {
            return Ok(None);
        }
        if !facts.seccomp {
            let what = "a seccomp profile".to_owned();
            return Err(SpecError::Unavailable { what, reason: "kernel or OCI runtime lack seccomp" });
        }
        match (self, content) {
            (Self::Localhost(path), Some(content)) => parse(path, content).map(Some),
            (Self::Localhost(path), None) => Err(SpecError::Unavailable {
                what: format!("seccomp profile {path:?}"),
                reason: "it cannot be read on the node",
            }),
            _ => {
                let held = capabilities.bounding().clone().unwrap_or_default();
                Ok(Some(default_profile(facts.architecture, &held)))
            }
        }
    }
}

/// Whether a text names a profile as the older field does: `runtime/default`, `unconfined`, `localhost/` with an absolute path,
/// or nothing.
#[must_use]
pub fn is_profile(text: &str) -> bool {
    let profile = Profile::of(None, text);
    profile.check().is_ok() && (text.starts_with("localhost/") || profile.localhost().is_none())
}

/// Keys of a profile and of its rules; comments are not part of the form but harmless.
const PROFILE_KEYS: &[&str] = &[
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "listenerPath",
    "listenerMetadata",
    "syscalls",
    "comment",
];
const RULE_KEYS: &[&str] = &["names", "name", "action", "errnoRet", "args", "comment"];

/// Parses a profile in the OCI form.
///
/// # Errors
/// [`SpecError::SeccompProfile`] when it is not JSON of that form, [`SpecError::Invalid`] for a key that the form does
/// not have and whose loss would change the filter.
pub fn parse(path: &str, content: &[u8]) -> Result<LinuxSeccomp, SpecError> {
    let malformed = |source| SpecError::SeccompProfile { path: path.to_owned(), source };
    let mut profile: Value = serde_json::from_slice(content).map_err(malformed)?;
    known_keys(&profile, PROFILE_KEYS)?;
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        for rule in rules {
            known_keys(rule, RULE_KEYS)?;
            single_name(rule);
        }
    }
    serde_json::from_value(profile).map_err(malformed)
}

/// Refuses unknown keys, unless they say nothing (null, false, empty).
fn known_keys(value: &Value, known: &[&str]) -> Result<(), SpecError> {
    for (key, value) in value.as_object().into_iter().flatten() {
        let says_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        if !known.contains(&key.as_str()) && !says_nothing {
            let reason = "the OCI form of a profile has no such key, so it would have no effect";
            return Err(SpecError::invalid("seccomp profile key", key, reason));
        }
    }
    Ok(())
}

/// The oldest profiles have one `name` for each rule.
fn single_name(rule: &mut Value) {
    let Some(rule) = rule.as_object_mut() else { return };
    if let Some(name) = rule.remove("name")
        && !rule.contains_key("names")
    {
        rule.insert("names".to_owned(), Value::Array(vec![name]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxSeccompAction;

    #[test]
    fn which_field_asks_for_what() {
        let message = |kind: ProfileType, name: &str| v1::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: name.into(),
        };
        let local = Profile::Localhost("/p.json".into());
        assert_eq!(Profile::of(None, ""), Profile::Unset);
        assert_eq!(Profile::Unset.or_unset("runtime/default"), Profile::RuntimeDefault);
        assert_eq!(Profile::Unconfined.or_unset("runtime/default"), Profile::Unconfined);
        for good in ["", "runtime/default", "unconfined", "localhost//p.json"] {
            assert!(is_profile(good), "{good}");
        }
        for bad in ["/p.json", "localhost/p.json", "default"] {
            assert!(!is_profile(bad), "{bad}");
        }
        assert_eq!(Profile::of(None, "unconfined"), Profile::Unconfined);
        assert_eq!(Profile::of(None, "docker/default"), Profile::RuntimeDefault);
        assert_eq!(Profile::of(None, "localhost//p.json"), local);
        assert_eq!(Profile::of(Some(&message(ProfileType::Localhost, "/p.json")), "unconfined"), local);
        assert_eq!(
            Profile::of(Some(&message(ProfileType::RuntimeDefault, "")), "unconfined"),
            Profile::RuntimeDefault
        );
        assert!(Profile::of(None, "gibberish").check().is_err());
        assert!(local.check().is_ok());
    }

    #[test]
    fn profiles_of_the_oci_form() {
        let plain = br#"{"defaultAction":"SCMP_ACT_ALLOW","comment":"x","archMap":[],
            "syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"args":null,"includes":{}}]}"#;
        let profile = parse("/p.json", plain).unwrap();
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActAllow);
        assert_eq!(profile.syscalls().as_ref().unwrap()[0].errno_ret(), Some(1));

        let old =
            br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"chmod","action":"SCMP_ACT_ERRNO"}]}"#;
        let profile = parse("/p.json", old).unwrap();
        assert_eq!(profile.syscalls().as_ref().unwrap()[0].names(), &["chmod".to_owned()]);
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"syscalls":[]}"#,
            r#"{"defaultAction":"SCMP_ACT_NO"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#,
        ] {
            assert!(parse("/p.json", bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_seccomp_a_demanded_profile_is_refused() {
        let facts = NodeFacts { seccomp: false, ..NodeFacts::default() };
        let caps = crate::capabilities::none();
        assert!(Profile::RuntimeDefault.filter(None, &caps, &facts).is_err());
        assert_eq!(Profile::Unconfined.filter(None, &caps, &facts).unwrap(), None);
        assert!(Profile::Localhost("/p".into()).filter(None, &caps, &NodeFacts::default()).is_err());
    }
}
