//! Which images the configuration asks to keep. kubelet's garbage collection leaves pinned images alone.

use std::collections::BTreeSet;

use crate::reference::Reference;

/// Whether one of the tags is named by a pattern: a reference in any spelling, or a text in which `*` stands for anything.
pub(crate) fn is_pinned(patterns: &[String], tags: &BTreeSet<String>) -> bool {
    patterns.iter().any(|pattern| {
        let normal = Reference::parse(pattern).ok().map(|reference| reference.to_string());
        tags.iter().any(|tag| normal.as_ref() == Some(tag) || matches(pattern, tag))
    })
}

/// Whether the text is the pattern's, in which `*` stands for anything.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_tags() {
        let tags = BTreeSet::from([
            "registry.k8s.io/pause:3.10".to_owned(),
            "docker.io/library/busybox:1".to_owned(),
        ]);
        for (pattern, expected) in [
            ("registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/pause:*", true),
            ("*pause*", true),
            ("*", true),
            ("busybox:1", true),
            ("busybox", false),
            ("pause", false),
            ("registry.k8s.io/*:4", false),
            ("", false),
        ] {
            assert_eq!(is_pinned(&[pattern.to_owned()], &tags), expected, "{pattern}");
        }
    }
}
