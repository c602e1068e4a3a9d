//! Limits that every process of every container begins with, when the node sets any. CRI has no field for them; without, they are
//! those of this server, as its unit sets them.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType as Type};

/// One limit of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// As `ulimit` and limits.conf call it; one of [`Rlimit::known`].
    pub name: &'static str,
    /// What holds at first.
    pub soft: u64,
    /// How far a process may raise it itself.
    pub hard: u64,
}

const TYPES: [(&str, Type); 16] = [
    ("as", Type::RlimitAs),
    ("core", Type::RlimitCore),
    ("cpu", Type::RlimitCpu),
    ("data", Type::RlimitData),
    ("fsize", Type::RlimitFsize),
    ("locks", Type::RlimitLocks),
    ("memlock", Type::RlimitMemlock),
    ("msgqueue", Type::RlimitMsgqueue),
    ("nice", Type::RlimitNice),
    ("nofile", Type::RlimitNofile),
    ("nproc", Type::RlimitNproc),
    ("rss", Type::RlimitRss),
    ("rtprio", Type::RlimitRtprio),
    ("rttime", Type::RlimitRttime),
    ("sigpending", Type::RlimitSigpending),
    ("stack", Type::RlimitStack),
];

impl Rlimit {
    /// The name, if it is one of a limit.
    #[must_use]
    pub fn known(name: &str) -> Option<&'static str> {
        TYPES.iter().map(|(known, _)| *known).find(|known| *known == name)
    }

    fn oci(self) -> Option<PosixRlimit> {
        let (_, kind) = TYPES.iter().find(|(name, _)| *name == self.name)?;
        PosixRlimitBuilder::default().typ(*kind).soft(self.soft).hard(self.hard).build().ok()
    }
}

/// As an OCI spec has them; none at all is no list.
pub(crate) fn oci(limits: &[Rlimit]) -> Option<Vec<PosixRlimit>> {
    let limits: Vec<_> = limits.iter().filter_map(|limit| limit.oci()).collect();
    (!limits.is_empty()).then_some(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_the_name_that_oci_runtimes_know() {
        for (name, _) in TYPES {
            let limits = oci(&[Rlimit { name, soft: 1, hard: u64::MAX }]).unwrap();
            let expected = serde_json::json!([{
                "type": format!("RLIMIT_{}", name.to_uppercase()), "soft": 1, "hard": u64::MAX,
            }]);
            assert_eq!(serde_json::to_value(limits).unwrap(), expected);
        }
        assert_eq!(oci(&[]), None);
    }
}
