//! Values of `hosts.toml` that have several forms.

use std::path::{Path, PathBuf};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Value;

/// Files with a client's certificate and its key; one file may hold both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Identity {
    fn of(certificate: &str, key: &str, directory: &Path) -> Self {
        let key = if key.is_empty() { certificate } else { key };
        Self { certificate: directory.join(certificate), key: directory.join(key) }
    }
}

/// A string, or a list of them.
pub(super) fn strings(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(one) => Some(vec![one]),
        Value::Array(many) => many.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// `client`: a file with both, or a list of such files and of pairs `[certificate, key]`.
pub(super) fn identities(value: &Value, directory: &Path) -> Option<Vec<Identity>> {
    match value {
        Value::String(both) => Some(vec![Identity::of(both, "", directory)]),
        Value::Array(many) => many.iter().map(|one| identity(one, directory)).collect(),
        _ => None,
    }
}

fn identity(value: &Value, directory: &Path) -> Option<Identity> {
    match strings(value)?.as_slice() {
        [both] => Some(Identity::of(both, "", directory)),
        [certificate, key] => Some(Identity::of(certificate, key, directory)),
        _ => None,
    }
}

/// `header`: names with one value or several. They may be secrets, so that they are not shown.
pub(super) fn headers(value: &Value) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, values) in value.as_table()? {
        let name: HeaderName = name.parse().ok()?;
        for value in strings(values)? {
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            headers.append(name.clone(), value);
        }
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        toml::from_str::<toml::Table>(&format!("v = {text}")).unwrap().remove("v").unwrap()
    }

    #[test]
    fn identities_have_all_of_containerds_forms() {
        let pair = |certificate: &str, key: &str| Identity::of(certificate, key, Path::new("/d"));
        for (text, expected) in [
            ("\"a.pem\"", vec![pair("/d/a.pem", "/d/a.pem")]),
            ("[\"a.pem\", \"/b.pem\"]", vec![pair("/d/a.pem", "/d/a.pem"), pair("/b.pem", "/b.pem")]),
            (
                "[[\"a.crt\", \"a.key\"], [\"b.pem\", \"\"], [\"c.pem\"]]",
                vec![
                    pair("/d/a.crt", "/d/a.key"),
                    pair("/d/b.pem", "/d/b.pem"),
                    pair("/d/c.pem", "/d/c.pem"),
                ],
            ),
        ] {
            assert_eq!(identities(&value(text), Path::new("/d")), Some(expected), "{text}");
        }
        for bad in ["1", "[1]", "[[]]", "[[\"a\", \"b\", \"c\"]]", "[[\"a\", 1]]"] {
            assert_eq!(identities(&value(bad), Path::new("/d")), None, "{bad}");
        }
    }

    #[test]
    fn headers_are_not_shown() {
        let found = headers(&value("{ X-One = \"hunter2\", x-two = [\"b\", \"c\"] }")).unwrap();
        assert_eq!(found["x-one"], "hunter2");
        assert_eq!(found.get_all("x-two").iter().count(), 2);
        assert!(!format!("{found:?}").contains("hunter2"));
        for bad in ["{ \"a b\" = \"c\" }", "{ a = \"b\\nc\" }", "{ a = 1 }", "\"a\""] {
            assert_eq!(headers(&value(bad)), None, "{bad}");
        }
    }
}
