//! Which of an index's images fits this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and processor, in the words of the OCI image specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// Go's name of the processor family, `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// Refinement of the architecture, such as `v8`; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// The platform of this machine.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well `offered` runs here: `None` not at all, else the smaller the better.
    pub(crate) fn distance(&self, offered: &Self) -> Option<usize> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        self.runnable_variants().iter().position(|variant| *variant == offered.variant)
    }

    /// The variants this machine runs, best first. An absent variant is the family's baseline.
    fn runnable_variants(&self) -> Vec<&str> {
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("arm64", "" | "v8") => vec!["v8", ""],
            ("arm", "v8") => vec!["v8", "v7", "", "v6", "v5"],
            ("arm", "" | "v7") => vec!["v7", "", "v6", "v5"],
            ("arm", "v6") => vec!["v6", "v5"],
            ("amd64", "" | "v1") => vec!["", "v1"],
            (_, "") => vec![""],
            (_, variant) => vec![variant, ""],
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(architecture: &str, variant: &str) -> Platform {
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    #[test]
    fn prefers_the_nearest_variant_and_refuses_newer_ones() {
        let arm7 = linux("arm", "v7");
        assert!(arm7.distance(&linux("arm", "v7")) < arm7.distance(&linux("arm", "v6")));
        assert_eq!(arm7.distance(&linux("arm", "v8")), None);
        assert_eq!(linux("amd64", "").distance(&linux("amd64", "v3")), None);
        assert!(linux("arm64", "v8").distance(&linux("arm64", "")).is_some());
        assert_eq!(linux("amd64", "").distance(&linux("arm64", "")), None);
        assert_eq!(
            linux("amd64", "").distance(&Platform { os: "windows".into(), ..linux("amd64", "") }),
            None
        );
    }
}
