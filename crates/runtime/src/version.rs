//! The name and version that an OCI runtime prints, and how two versions compare.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A version such as `1.2.0-rc.3`: numbers, and for what came before a release the number of the candidate. What a
/// distribution appends (`+ds1`, `~deb12u1`) has no part in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Major, minor and patch.
    pub numbers: [u32; 3],
    /// The release candidate, unless it is the release.
    pub candidate: Option<u32>,
}

/// A text without a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version")]
pub struct VersionError(String);

impl Version {
    /// Whether both are of one release line, such as 1.2.
    #[must_use]
    pub fn same_line(&self, other: &Self) -> bool {
        self.numbers[..2] == other.numbers[..2]
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let bad = || VersionError(text.to_owned());
        let plain = text.strip_prefix('v').unwrap_or(text);
        let end = plain.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(plain.len());
        let (numbers, rest) = plain.split_at(end);
        let mut parts = numbers.trim_end_matches('.').split('.');
        let mut next = || parts.next().map_or(Ok(0), |part| part.parse::<u32>().map_err(|_| bad()));
        let numbers = [next()?, next()?, next()?];
        let candidate = rest.strip_prefix("-rc").or(rest.strip_prefix("~rc"));
        let candidate = candidate.map(|rest| {
            let digits = rest.trim_start_matches('.').split(|c: char| !c.is_ascii_digit()).next();
            digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
        });
        Ok(Self { numbers, candidate })
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |version: &Self| version.candidate.unwrap_or(u32::MAX);
        self.numbers.cmp(&other.numbers).then_with(|| rank(self).cmp(&rank(other)))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        self.candidate.map_or(Ok(()), |candidate| write!(f, "-rc.{candidate}"))
    }
}

/// The name and version in the first line that a runtime prints for `--version`, such as `runc version 1.1.5+ds1`.
#[must_use]
pub fn identify(line: &str) -> Option<(String, Version)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.trim_end_matches(':').to_owned();
    let version = words.find_map(|word| {
        let starts = word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
        word.parse().ok().filter(|_| starts)
    })?;
    Some((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_ordered_as_they_were_released() {
        let order =
            ["1.0.0-rc93", "1.0.0", "1.1.5+ds1", "1.1.12", "1.2.0-rc.1", "1.2.0-rc.10", "1.2", "v1.10.0"];
        for pair in order.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
        assert_eq!(version("1.21"), version("1.21.0+dev-3"));
        assert_eq!(version("1.4.0-rc.3").to_string(), "1.4.0-rc.3");
        for bad in ["", "x", "99999999999.1"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn runtimes_are_known_by_their_first_line() {
        for (line, name, number) in [
            ("runc version 1.1.5+ds1", "runc", "1.1.5"),
            ("crun version 1.8.1", "crun", "1.8.1"),
            ("youki version: 0.5.7", "youki", "0.5.7"),
            ("kata-runtime  : 3.2.0", "kata-runtime", "3.2.0"),
        ] {
            let (found, version) = identify(line).unwrap();
            assert_eq!((found.as_str(), version.to_string().as_str()), (name, number));
        }
        assert_eq!(identify("runsc version release-20240807.0"), None);
        assert_eq!(identify(""), None);
    }
}
