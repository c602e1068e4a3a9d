//! Published vulnerabilities of OCI runtimes, by the versions that first were free of them.
//!
//! The table is data: what the projects' own release notes say (runc's CHANGELOG, crun's NEWS). It names what lets a container
//! reach the host or another user, as far as it can happen to containers of a CRI server. A distribution may have mended an older
//! version without changing its number, so what is found here is a question to its security tracker, not yet a fact.

use crate::version::{Version, identify};

/// One vulnerability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advisory {
    /// Its number.
    pub id: &'static str,
    /// The program that has it.
    pub runtime: &'static str,
    /// The first version with it, where that is known.
    since: &'static str,
    /// The first version of each release line without it. A line that is missing here and older than the newest never was mended.
    fixed: &'static [&'static str],
    /// What it allows.
    pub what: &'static str,
}

const ADVISORIES: &[Advisory] = &[
    Advisory {
        id: "CVE-2019-5736",
        runtime: "runc",
        since: "0.0.0",
        fixed: &["1.0.0-rc7"],
        what: "a container can overwrite the runtime's program",
    },
    Advisory {
        id: "CVE-2021-30465",
        runtime: "runc",
        since: "0.0.0",
        fixed: &["1.0.0-rc95"],
        what: "mounts can be led out of the root file system",
    },
    Advisory {
        id: "CVE-2023-27561",
        runtime: "runc",
        since: "1.0.0-rc95",
        fixed: &["1.1.5"],
        what: "/proc can be replaced by a link",
    },
    Advisory {
        id: "CVE-2023-28642",
        runtime: "runc",
        since: "1.0.0-rc95",
        fixed: &["1.1.5"],
        what: "AppArmor and SELinux can be passed by",
    },
    Advisory {
        id: "CVE-2024-21626",
        runtime: "runc",
        since: "1.0.0-rc93",
        fixed: &["1.1.12"],
        what: "a working directory can lead to the host",
    },
    Advisory {
        id: "CVE-2024-45310",
        runtime: "runc",
        since: "0.0.0",
        fixed: &["1.1.14", "1.2.0-rc.3"],
        what: "empty files can be made on the host",
    },
    Advisory {
        id: "CVE-2025-31133",
        runtime: "runc",
        since: "0.0.0",
        fixed: &["1.2.8", "1.3.3", "1.4.0-rc.3"],
        what: "masked paths can be made to mount others",
    },
    Advisory {
        id: "CVE-2025-52565",
        runtime: "runc",
        since: "1.0.0-rc3",
        fixed: &["1.2.8", "1.3.3", "1.4.0-rc.3"],
        what: "/dev/console can be made to mount others",
    },
    Advisory {
        id: "CVE-2025-52881",
        runtime: "runc",
        since: "0.0.0",
        fixed: &["1.2.8", "1.3.3", "1.4.0-rc.3"],
        what: "writes to /proc can be led elsewhere",
    },
    Advisory {
        id: "CVE-2026-41579",
        runtime: "runc",
        since: "0.0.0",
        fixed: &["1.3.6", "1.4.3", "1.5.0-rc.3"],
        what: "an image's /dev can lead to the host",
    },
    Advisory {
        id: "CVE-2022-27650",
        runtime: "crun",
        since: "0.0.0",
        fixed: &["1.4.4"],
        what: "exec gives inheritable capabilities",
    },
    Advisory {
        id: "CVE-2026-47766",
        runtime: "crun",
        since: "0.0.0",
        fixed: &["1.28"],
        what: "an image's /dev can lead to the host",
    },
];

impl Advisory {
    /// Those that the runtime has, going by the first line it prints for `--version`.
    #[must_use]
    pub fn of(line: &str) -> Vec<&'static Self> {
        let Some((name, version)) = identify(line) else { return Vec::new() };
        ADVISORIES.iter().filter(|it| it.runtime == name && it.concerns(&version)).collect()
    }

    fn concerns(&self, version: &Version) -> bool {
        let since = self.since.parse::<Version>();
        if since.is_ok_and(|since| *version < since) {
            return false;
        }
        let fixed: Vec<Version> = self.fixed.iter().filter_map(|fixed| fixed.parse().ok()).collect();
        let mended = |fixed: &Version| version.same_line(fixed) && version >= fixed;
        let is_older = fixed.iter().max().is_some_and(|newest| version < newest);
        is_older && !fixed.iter().any(mended)
    }

    /// The least version without it, for one who has `line` now: of the same release line where there is one.
    #[must_use]
    pub fn fixed_for(&self, line: &str) -> Option<Version> {
        let (_, version) = identify(line)?;
        let mut newer: Vec<Version> = self.fixed.iter().filter_map(|fixed| fixed.parse().ok()).collect();
        newer.retain(|fixed: &Version| *fixed > version);
        newer.into_iter().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(line: &str) -> Vec<&'static str> {
        Advisory::of(line).iter().map(|advisory| advisory.id).collect()
    }

    #[test]
    fn each_version_has_what_its_release_line_had() {
        let of_2025 = ["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881", "CVE-2026-41579"];
        let mut of_1_1_5 = vec!["CVE-2024-21626", "CVE-2024-45310"];
        of_1_1_5.extend(of_2025);
        assert_eq!(ids("runc version 1.1.5+ds1"), of_1_1_5);
        assert_eq!(ids("runc version 1.1.15+ds1"), of_2025);
        assert_eq!(ids("runc version 1.2.0-rc.2")[0], "CVE-2024-45310");
        assert_eq!(ids("runc version 1.2.9"), ["CVE-2026-41579"], "never mended in that line");
        assert_eq!(ids("runc version 1.4.0-rc.2"), of_2025);
        assert_eq!(ids("runc version 1.3.6"), [""; 0]);
        assert_eq!(ids("runc version 1.6.0"), [""; 0]);
        assert_eq!(ids("crun version 1.21"), ["CVE-2026-47766"]);
        assert_eq!(ids("crun version 1.28"), [""; 0]);
        assert_eq!(ids("runsc version release-20240807.0"), [""; 0]);
    }

    #[test]
    fn the_way_out_is_the_nearest_release() {
        let masked = ADVISORIES.iter().find(|it| it.id == "CVE-2025-31133").unwrap();
        let fixed = |line| masked.fixed_for(line).unwrap().to_string();
        assert_eq!(fixed("runc version 1.1.5"), "1.2.8");
        assert_eq!(fixed("runc version 1.3.0"), "1.3.3");
        assert_eq!(fixed("runc version 1.4.0-rc.1"), "1.4.0-rc.3");
    }

    #[test]
    fn every_version_in_the_table_is_one() {
        for advisory in ADVISORIES {
            for text in advisory.fixed.iter().chain([&advisory.since]) {
                assert!(text.parse::<Version>().is_ok(), "{}: {text}", advisory.id);
            }
        }
    }
}
