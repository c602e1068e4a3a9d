//! AppArmor: which profile a process is confined by.
//!
//! Two fields ask for one: the message (since Kubernetes 1.19 in CRI) and the older text, `runtime/default`,
//! `unconfined` or `localhost/<name>`. A profile that is demanded where AppArmor is off is refused; whether a localhost
//! profile is loaded is the daemon's to check ([`Profile::localhost`]).

use cri_api::v1;
use v1::security_profile::ProfileType;

use crate::error::SpecError;
use crate::facts::NodeFacts;

/// What a request says about AppArmor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Nothing: the default where there is one.
    Unset,
    /// The runtime's default, by name.
    RuntimeDefault,
    /// None at all.
    Unconfined,
    /// A profile that is loaded on the node.
    Localhost(String),
}

impl Profile {
    /// Reads both fields; the message wins.
    pub(crate) fn of(profile: Option<&v1::SecurityProfile>, legacy: &str) -> Result<Self, SpecError> {
        let Some(profile) = profile else { return Self::of_text(legacy) };
        Ok(match profile.profile_type() {
            ProfileType::RuntimeDefault => Self::RuntimeDefault,
            ProfileType::Unconfined => Self::Unconfined,
            ProfileType::Localhost => {
                let name = &profile.localhost_ref;
                Self::Localhost(name.strip_prefix("localhost/").unwrap_or(name).to_owned())
            }
        })
    }

    fn of_text(text: &str) -> Result<Self, SpecError> {
        match (text, text.strip_prefix("localhost/")) {
            ("", _) => Ok(Self::Unset),
            ("runtime/default", _) => Ok(Self::RuntimeDefault),
            ("unconfined", _) => Ok(Self::Unconfined),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Localhost(name.to_owned())),
            _ => {
                let reason = "expected runtime/default, unconfined or localhost/<profile>";
                Err(SpecError::invalid("apparmor_profile", text, reason))
            }
        }
    }

    /// Name of a profile that must be loaded on the node.
    #[must_use]
    pub fn localhost(&self) -> Option<&str> {
        match self {
            Self::Localhost(name) => Some(name),
            Self::Unset | Self::RuntimeDefault | Self::Unconfined => None,
        }
    }

    /// Whether the default profile is to confine the process, where there is one.
    #[must_use]
    pub fn wants_default(&self, privileged: bool) -> bool {
        matches!(self, Self::Unset | Self::RuntimeDefault) && !privileged
    }

    /// The name to write into the spec; `None` means unconfined. A privileged container has the default only if it is
    /// asked for, and then none is applied, as kubelet's own defaults demand.
    pub(crate) fn resolve(&self, privileged: bool, facts: &NodeFacts) -> Result<Option<String>, SpecError> {
        let missing = |what: String, reason| Err(SpecError::Unavailable { what, reason });
        match (self, &facts.apparmor_default) {
            (Self::Unconfined, _) => Ok(None),
            (Self::Localhost(name), _) if facts.apparmor => Ok(Some(name.clone())),
            (Self::Localhost(name), _) => missing(format!("AppArmor profile {name:?}"), "AppArmor is off"),
            (Self::Unset | Self::RuntimeDefault, _) if privileged => Ok(None),
            (Self::Unset | Self::RuntimeDefault, Some(default)) => Ok(Some(default.clone())),
            (Self::Unset, None) => Ok(None),
            (Self::RuntimeDefault, None) => {
                let reason = if facts.apparmor { "it cannot be loaded" } else { "AppArmor is off" };
                missing("the default AppArmor profile".to_owned(), reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_field() {
        let message = |kind: ProfileType, name: &str| v1::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: name.into(),
        };
        let local = Profile::Localhost("web".into());
        assert_eq!(Profile::of(Some(&message(ProfileType::Localhost, "web")), "unconfined").unwrap(), local);
        assert_eq!(Profile::of(Some(&message(ProfileType::Localhost, "localhost/web")), "").unwrap(), local);
        assert_eq!(Profile::of(None, "localhost/web").unwrap(), local);
        assert_eq!(Profile::of(None, "runtime/default").unwrap(), Profile::RuntimeDefault);
        assert_eq!(Profile::of(None, "").unwrap(), Profile::Unset);
        for bad in ["localhost/", "default", "web"] {
            assert!(Profile::of(None, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn demanded_where_it_is_off_is_refused() {
        let off = NodeFacts::default();
        let web = Profile::Localhost("web".into());
        assert_eq!(Profile::Unset.resolve(false, &off).unwrap(), None);
        assert_eq!(Profile::Unconfined.resolve(false, &off).unwrap(), None);
        assert_eq!(Profile::RuntimeDefault.resolve(true, &off).unwrap(), None);
        assert!(Profile::RuntimeDefault.resolve(false, &off).is_err());
        assert!(web.resolve(true, &off).unwrap_err().to_string().contains("\"web\""));
    }

    #[test]
    fn where_it_is_on_nothing_asked_for_means_the_default() {
        let on = NodeFacts {
            apparmor: true,
            apparmor_default: Some("crimson-default".into()),
            ..NodeFacts::default()
        };
        let web = Profile::Localhost("web".into());
        for profile in [Profile::Unset, Profile::RuntimeDefault] {
            assert_eq!(profile.resolve(false, &on).unwrap().as_deref(), Some("crimson-default"));
            assert_eq!(profile.resolve(true, &on).unwrap(), None, "privileged");
        }
        assert_eq!(Profile::Unconfined.resolve(false, &on).unwrap(), None);
        assert_eq!(web.resolve(true, &on).unwrap().as_deref(), Some("web"));
    }

    #[test]
    fn a_default_that_cannot_be_loaded_is_missed_only_by_who_demands_it() {
        let without = NodeFacts { apparmor: true, ..NodeFacts::default() };
        assert_eq!(Profile::Unset.resolve(false, &without).unwrap(), None);
        assert!(Profile::RuntimeDefault.resolve(false, &without).is_err());
        let web = Profile::Localhost("web".into());
        assert_eq!(web.resolve(false, &without).unwrap().as_deref(), Some("web"));
    }
}
