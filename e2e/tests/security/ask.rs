//! Pieces of what is asked for.

use e2e::cri::security_profile::ProfileType;
use e2e::cri::{Capability, Int64Value, SecurityProfile};

pub(super) fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

pub(super) fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) fn capabilities(add: &[&str], drop: &[&str], ambient: &[&str]) -> Option<Capability> {
    Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        add_ambient_capabilities: words(ambient),
    })
}

pub(super) fn profile(kind: ProfileType) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() })
}
