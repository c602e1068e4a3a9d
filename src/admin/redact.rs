//! Takes secrets out of what is shown of the configuration.
//!
//! There is no key for a secret today: credentials stand in files that keys name. This is for the user and password that a URL may
//! hold, and for a key that somebody adds one day and forgets here.

use serde_json::Value;

/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";
/// Words in the names of keys whose values are secrets, and endings of those that only tell where one is.
const SECRET: [&str; 5] = ["password", "secret", "token", "credential", "headers"];

/// The same without secrets.
pub(super) fn redact(value: Value) -> Value {
    match value {
        Value::Object(table) => {
            let entries = table.into_iter().map(|(key, value)| {
                let is_secret = SECRET.iter().any(|word| key.to_ascii_lowercase().contains(word));
                let value = if is_secret && !is_empty(&value) { HIDDEN.into() } else { redact(value) };
                (key, value)
            });
            Value::Object(entries.collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(redact).collect()),
        Value::String(text) => Value::String(without_user(text)),
        plain => plain,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(table) => table.is_empty(),
        plain => plain.is_null(),
    }
}

/// `https://user:password@host` without the user.
fn without_user(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}{path}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_not() {
        let before = json!({
            "image": { "registry_token": "abc", "auth_files": ["/root/.docker/config.json"], "password": "" },
            "tracing": { "endpoint": "https://me:pw@otel:4317/v1?a=b", "headers": { "x": "y" }, "headers_file": [] },
            "limits": [1, "http://host/p@th", { "SecretKey": 5 }],
        });
        let after = json!({
            "image": { "registry_token": HIDDEN, "auth_files": ["/root/.docker/config.json"], "password": "" },
            "tracing": { "endpoint": "https://(hidden)@otel:4317/v1?a=b", "headers": HIDDEN, "headers_file": [] },
            "limits": [1, "http://host/p@th", { "SecretKey": HIDDEN }],
        });
        assert_eq!(redact(before), after);
    }
}
