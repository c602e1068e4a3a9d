//! A resource limit of processes, as `ulimit` has it: `NAME=SOFT:HARD`, or `NAME=BOTH`; "unlimited" and -1 stand for none.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spec::Rlimit;

use super::values::ValueError;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ulimit(Rlimit);

impl Ulimit {
    /// The limit.
    #[must_use]
    pub fn rlimit(self) -> Rlimit {
        self.0
    }
}

impl FromStr for Ulimit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parsed = || {
            let (name, values) = text.split_once('=')?;
            let (soft, hard) = values.split_once(':').unwrap_or((values, values));
            let name = Rlimit::known(name)?;
            let limit = Rlimit { name, soft: value(soft)?, hard: value(hard)? };
            (limit.soft <= limit.hard).then_some(Self(limit))
        };
        parsed().ok_or_else(|| ValueError::Ulimit(text.to_owned()))
    }
}

fn value(text: &str) -> Option<u64> {
    match text {
        "unlimited" | "-1" => Some(u64::MAX),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => number.parse().ok(),
        _ => None,
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        write!(f, "{}={}:{}", self.0.name, show(self.0.soft), show(self.0.hard))
    }
}

impl TryFrom<String> for Ulimit {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Ulimit> for String {
    fn from(limit: Ulimit) -> String {
        limit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_written_alike() {
        for (text, again) in [
            ("nofile=1024:524288", "nofile=1024:524288"),
            ("core=0", "core=0:0"),
            ("memlock=-1", "memlock=unlimited:unlimited"),
            ("nproc=5:unlimited", "nproc=5:unlimited"),
        ] {
            assert_eq!(text.parse::<Ulimit>().unwrap().to_string(), again);
        }
        for bad in [
            "",
            "nofile",
            "nofile=",
            "files=1",
            "nofile=2:1",
            "nofile=unlimited:1",
            "core=-2",
            "core=+1",
            "core=1:2:3",
        ] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad:?}");
        }
    }
}
