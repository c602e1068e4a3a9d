//! `WWW-Authenticate`: what a server wants to know of us.

use hyper::HeaderMap;
use hyper::header::WWW_AUTHENTICATE;

/// How to answer a 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The best of the server's offers: a token before a password.
pub(super) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<Challenge> = values.flat_map(parse).collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(challenges.first()).cloned()
}

/// All challenges of one header: `scheme key=value, key="value", scheme …`.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for part in split_outside_quotes(text) {
        let part = part.trim();
        let (head, value) = part.split_once('=').unwrap_or((part, ""));
        // A scheme precedes its first parameter, or stands alone.
        let key = match head.trim().split_once(' ') {
            Some((scheme, key)) => {
                found.push((scheme.to_ascii_lowercase(), Vec::new()));
                key.trim()
            }
            None if !part.contains('=') => {
                found.push((part.to_ascii_lowercase(), Vec::new()));
                continue;
            }
            None => head.trim(),
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((key.to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| to_challenge(&scheme, &parameters)).collect()
}

fn to_challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let get = |key: &str| parameters.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
        }
        _ => None,
    }
}

/// Parts between commas that are not inside quotes.
fn split_outside_quotes(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            ',' if !quoted => {
                parts.push(String::new());
                continue;
            }
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && c == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn unquote(text: &str) -> String {
    let Some(inside) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut plain = String::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_in_their_many_spellings() {
        let bearer = |scope: Option<&str>| Challenge::Bearer {
            realm: "https://auth.example/token?a=b".into(),
            service: Some("registry, main".into()),
            scope: scope.map(Into::into),
        };
        let scope = "repository:a/b:pull,push";
        for text in [
            format!(
                r#"Bearer realm="https://auth.example/token?a=b",service="registry, main",scope="{scope}""#
            ),
            format!(
                r#"bearer Realm="https://auth.example/token?a=b", service="registry\, main" , scope="{scope}""#
            ),
        ] {
            assert_eq!(parse(&text), [bearer(Some(scope))], "{text}");
        }
        let both =
            r#"Basic realm="x, y", Bearer realm="https://auth.example/token?a=b",service="registry, main""#;
        assert_eq!(parse(both), [Challenge::Basic, bearer(None)]);
        assert_eq!(parse("Basic"), [Challenge::Basic]);
        for nothing in
            ["", ",,,", "Digest realm=\"x\"", "Bearer service=\"x\"", "=", "\"", "Bearer realm=\"x"]
        {
            let found = parse(nothing);
            assert!(
                found.iter().all(|c| matches!(c, Challenge::Bearer { .. })) && found.len() <= 1,
                "{nothing}"
            );
        }
    }
}
