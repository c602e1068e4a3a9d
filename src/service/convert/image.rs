//! Images on the wire.

use std::collections::HashMap;

use cri_api::v1;
use image::{Auth, ImageRecord, ImageUser};
use serde_json::json;

use super::json as text;

/// An image as lists and ImageStatus show it.
#[must_use]
pub fn item(record: &ImageRecord) -> v1::Image {
    let (uid, username) = match record.user() {
        // kubelet takes "neither" for root that is not known to be root.
        ImageUser::Unset => (None, String::new()),
        ImageUser::Uid(value) => (Some(v1::Int64Value { value }), String::new()),
        ImageUser::Name(name) => (None, name),
    };
    v1::Image {
        id: record.id.to_string(),
        repo_tags: record.repo_tags.clone(),
        repo_digests: record.repo_digests.clone(),
        size: record.size,
        uid,
        username,
        spec: Some(v1::ImageSpec { image: record.id.to_string(), ..v1::ImageSpec::default() }),
        pinned: record.pinned,
    }
}

/// The verbose part of ImageStatus.
#[must_use]
pub fn info(record: &ImageRecord) -> HashMap<String, String> {
    let body = json!({
        "chainID": record.chain_id.as_str(),
        "imageSpec": *record.config,
    });
    HashMap::from([("info".to_owned(), text(&body))])
}

/// Credentials of a pull.
#[must_use]
pub fn auth(auth: v1::AuthConfig) -> Auth {
    Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}
