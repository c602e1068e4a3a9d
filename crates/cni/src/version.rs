//! Versions of the CNI specification, and what each brought.

use std::fmt;

/// A version that this client speaks, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpecVersion {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

const ALL: &[(SpecVersion, &str)] = &[
    (SpecVersion::V0_1_0, "0.1.0"),
    (SpecVersion::V0_2_0, "0.2.0"),
    (SpecVersion::V0_3_0, "0.3.0"),
    (SpecVersion::V0_3_1, "0.3.1"),
    (SpecVersion::V0_4_0, "0.4.0"),
    (SpecVersion::V1_0_0, "1.0.0"),
    (SpecVersion::V1_1_0, "1.1.0"),
];

impl SpecVersion {
    /// The version named `text`; a configuration that names none means the first one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        ALL.iter().find(|(_, name)| *name == text).map(|(version, _)| *version)
    }

    pub(crate) fn as_str(self) -> &'static str {
        ALL.iter().find(|(version, _)| *version == self).map_or("", |(_, name)| name)
    }

    /// CHECK exists, and DEL is told the result of ADD.
    pub(crate) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// GC and STATUS exist.
    pub(crate) fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_what_it_writes() {
        for (version, name) in ALL {
            assert_eq!(SpecVersion::parse(name), Some(*version));
            assert_eq!(version.as_str(), *name);
        }
        assert_eq!(SpecVersion::parse(""), Some(SpecVersion::V0_1_0));
        for unknown in ["1", "1.2.0", "2.0.0", "v1.0.0", "0.4"] {
            assert_eq!(SpecVersion::parse(unknown), None, "{unknown}");
        }
    }
}
