//! Names of devices: `vendor/class=device`, and where a container's request has them.

use std::collections::{BTreeMap, HashMap};

use crate::error::CdiError;

/// Annotations that begin so have names of devices as their value, separated by commas.
pub const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// All devices of a request, each once: those of the field first, then those of the annotations in the order of their keys.
///
/// # Errors
/// [`CdiError::Name`] for the first that is not a name.
pub fn requested<'a>(
    field: impl IntoIterator<Item = &'a str>,
    annotations: &'a HashMap<String, String>,
) -> Result<Vec<String>, CdiError> {
    let annotated: BTreeMap<_, _> =
        annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)).collect();
    let mut names: Vec<String> = Vec::new();
    for name in field.into_iter().chain(annotated.values().flat_map(|value| value.split(','))) {
        check(name)?;
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Checks a whole name.
fn check(name: &str) -> Result<(), CdiError> {
    let refused = |reason| CdiError::Name { name: name.to_owned(), reason };
    let (kind, device) = name.split_once('=').ok_or_else(|| refused("it has no \"=\""))?;
    check_kind(kind).and_then(|()| check_device(device)).map_err(refused)
}

/// Checks `vendor/class`.
pub(crate) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("it has no \"/\" between vendor and class")?;
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && is_run(word, |byte| b"_-.".contains(&byte))
    };
    if is_word(vendor) && is_word(class) {
        return Ok(());
    }
    Err(
        "vendor and class begin with a letter, end with a letter or digit, and between are letters, digits, _ - .",
    )
}

/// Checks the name of a device within its kind.
pub(crate) fn check_device(name: &str) -> Result<(), &'static str> {
    if is_run(name, |byte| b"_-.:".contains(&byte)) {
        return Ok(());
    }
    Err("a device's name begins and ends with a letter or digit, and between are letters, digits, _ - . :")
}

/// Letters and digits at both ends, and between also what `inner` takes.
fn is_run(word: &str, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = word.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || inner(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["vendor.com/net=eth0", "a/b=c", "nvidia.com/gpu=0", "v/c.x=a:1:2", "V-1/c_d=0"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "gpu0",
            "/dev/null",
            "v/c",
            "v/c=",
            "=x",
            "v=x",
            "1v/c=x",
            "v/1c=x",
            "v-/c=x",
            "v/c=x-",
            "v/c=a b",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_field_and_annotations_together() {
        let annotations =
            [("cdi.k8s.io/z", "v/c=3,v/c=1"), ("cdi.k8s.io/a", "v/c=2"), ("other.io/x", "v/c=9")];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(requested(["v/c=1"], &annotations).unwrap(), ["v/c=1", "v/c=2", "v/c=3"]);
        let wrong = [("cdi.k8s.io/a".to_owned(), "v/c=2, v/c=3".to_owned())].into();
        assert!(requested([], &wrong).unwrap_err().to_string().contains("\" v/c=3\""));
    }
}
