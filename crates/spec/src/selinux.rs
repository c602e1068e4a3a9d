//! SELinux: labels of processes and of their files.
//!
//! A label is `user:role:type:level`. The policy says which of the first three a container has and which its files have; the
//! level is the pod's own pair of categories, which keeps pods from each other's files. A request may name any part. All
//! containers of a pod share its level, and what they do not say otherwise; a privileged one runs as the type that confines
//! nothing, and its files are labelled as the pod's.
//!
//! Where SELinux is off the options are checked for form and otherwise without effect, as with the peers: network and
//! storage agents ask for a label on every node and must run on those without SELinux too.

use std::collections::BTreeSet;
use std::fmt;

use cri_api::v1;

use crate::error::SpecError;

/// The labels of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabels {
    /// Label of the process.
    pub process: String,
    /// Label of the files it may use.
    pub mount: String,
}

/// The type of what is not confined.
const PRIVILEGED_TYPE: &str = "spc_t";
/// The level of what may use every category, and of files that every pod may use.
const PLAIN_LEVEL: &str = "s0";

/// A label in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: Option<String>,
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { user, role, kind, level: parts.next() })
    }

    /// The label with this level, unless the policy has no levels.
    fn at(&self, level: &str) -> Self {
        let level = self.level.as_ref().map(|_| level.to_owned());
        Self { level, ..self.clone() }
    }

    /// The label with what the options say.
    fn with(&self, options: Option<&v1::SeLinuxOption>) -> Self {
        let Some(options) = options else { return self.clone() };
        let or = |text: &String, own: &String| if text.is_empty() { own.clone() } else { text.clone() };
        let level = Some(options.level.clone()).filter(|level| !level.is_empty());
        Self {
            user: or(&options.user, &self.user),
            role: or(&options.role, &self.role),
            kind: or(&options.r#type, &self.kind),
            level: level.or_else(|| self.level.clone()),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.as_ref().map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

/// What a node's policy says of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    process: Label,
    file: Label,
}

impl Contexts {
    /// Reads the policy's file `lxc_contexts`; what it does not say is as in the reference policy.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
            let mut values = lines.filter_map(|line| line.split_once('='));
            values
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
        };
        let label = |key, kind: &str, role: &str| {
            value(key).and_then(|text| Label::parse(&text)).unwrap_or_else(|| Label {
                user: "system_u".to_owned(),
                role: role.to_owned(),
                kind: kind.to_owned(),
                level: Some(PLAIN_LEVEL.to_owned()),
            })
        };
        Self {
            process: label("process", "container_t", "system_r"),
            file: label("file", "container_file_t", "object_r"),
        }
    }

    /// Labels of a pod at its level, with what its request says of the process.
    pub(crate) fn of_pod(&self, pod: Option<&v1::SeLinuxOption>, level: &str) -> SelinuxLabels {
        let process = self.process.at(level).with(pod);
        let file = self.file_of(&process);
        SelinuxLabels { process: process.to_string(), mount: file.to_string() }
    }

    /// Labels of one of its containers. One that says nothing has the pod's, one that says something has the rest from the policy.
    pub(crate) fn of_container(
        &self,
        pod: Option<&v1::SeLinuxOption>,
        container: Option<&v1::SeLinuxOption>,
        privileged: bool,
        level: &str,
    ) -> SelinuxLabels {
        let process = self.process.at(level).with(container.or(pod));
        let file = self.file_of(&process);
        if !privileged {
            return SelinuxLabels { process: process.to_string(), mount: file.to_string() };
        }
        let free = Label { kind: PRIVILEGED_TYPE.to_owned(), ..self.process.at(PLAIN_LEVEL) };
        SelinuxLabels { process: free.to_string(), mount: file.to_string() }
    }

    /// The label of files for processes with this one: of their user and level.
    fn file_of(&self, process: &Label) -> Label {
        Label { user: process.user.clone(), level: process.level.clone(), ..self.file.clone() }
    }

    /// The label of files that every pod may use.
    #[must_use]
    pub fn shared_file(&self) -> String {
        self.file.at(PLAIN_LEVEL).to_string()
    }

    /// Whether the policy has levels, so that pods can be kept apart.
    #[must_use]
    pub fn has_levels(&self) -> bool {
        self.process.level.is_some()
    }
}

/// A pair of categories below `range` that no level in `taken` is, found from the place `seed` in the order of all pairs; none
/// if all are taken.
#[must_use]
pub fn choose_level(range: u32, taken: &BTreeSet<String>, seed: u64) -> Option<String> {
    let range = u64::from(range);
    let pairs = range.saturating_mul(range.saturating_sub(1)) / 2;
    // One more try than there are levels taken cannot miss a free one.
    let tries = pairs.min(u64::try_from(taken.len()).unwrap_or(u64::MAX).saturating_add(1));
    (0..tries).map(|step| pair(seed.wrapping_add(step) % pairs)).find(|level| !taken.contains(level))
}

/// The pair at a place in the order (0,1), (0,2), (1,2), (0,3), …
fn pair(place: u64) -> String {
    let higher = (1 + 8 * place).isqrt().div_ceil(2);
    let lower = place - higher * (higher - 1) / 2;
    format!("s0:c{lower},c{higher}")
}

/// Checks the form of the options.
pub(crate) fn check(options: Option<&v1::SeLinuxOption>) -> Result<(), SpecError> {
    let Some(options) = options else { return Ok(()) };
    for (field, text) in [
        ("selinux_options.user", &options.user),
        ("selinux_options.role", &options.role),
        ("selinux_options.type", &options.r#type),
    ] {
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            return Err(SpecError::invalid(field, text, "it is not a part of a label"));
        }
    }
    if options.level.is_empty() || is_level(&options.level) {
        return Ok(());
    }
    let reason = "expected a level such as s0, s0-s1 or s0:c1,c2";
    Err(SpecError::invalid("selinux_options.level", &options.level, reason))
}

/// `s<n>[-s<n>][:c<n>[.c<n>][,c<n>…]]`, each end of a range with categories of its own.
fn is_level(level: &str) -> bool {
    level.split('-').count() <= 2 && level.split('-').all(is_sensitivity)
}

fn is_sensitivity(text: &str) -> bool {
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    numbered(sensitivity, 's')
        && categories
            .is_none_or(|list| list.split(',').all(|range| range.split('.').all(|part| numbered(part, 'c'))))
}

fn numbered(text: &str, letter: char) -> bool {
    text.strip_prefix(letter)
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LXC: &str = "# comment\nprocess = \"system_u:system_r:container_t:s0\"\n file=system_u:object_r:container_file_t:s0\nro_file = \"x:y:z:s0\"\n";

    fn options(user: &str, role: &str, kind: &str, level: &str) -> v1::SeLinuxOption {
        v1::SeLinuxOption { user: user.into(), role: role.into(), r#type: kind.into(), level: level.into() }
    }

    #[test]
    fn levels() {
        for good in ["s0", "s0-s15", "s0:c1,c2", "s0-s0:c0.c1023", "s0:c3"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["s", "0", "s0:", "s0:x1", "s0-s1-s2", "s0:c1,", "s0,c4,c5", "gibberish"] {
            assert!(!is_level(bad), "{bad}");
        }
    }

    #[test]
    fn the_policy_names_the_types() {
        let other = "process = \"u:r:svirt_lxc_net_t:s0\"\nfile = \"u:object_r:svirt_sandbox_file_t:s0\"";
        let labels = Contexts::parse(other).of_pod(None, "s0:c1,c2");
        assert_eq!(labels.process, "u:r:svirt_lxc_net_t:s0:c1,c2");
        assert_eq!(labels.mount, "u:object_r:svirt_sandbox_file_t:s0:c1,c2");
        assert_eq!(Contexts::parse(""), Contexts::parse(LXC));
        let plain = Contexts::parse("process = u:r:a_t\nfile = u:o:b_t");
        assert!(!plain.has_levels());
        assert_eq!(plain.of_pod(None, "s0:c1,c2").process, "u:r:a_t");
    }

    #[test]
    fn what_is_not_said_comes_from_the_pod() {
        let contexts = Contexts::parse(LXC);
        let of = |pod: Option<&v1::SeLinuxOption>, container: Option<&v1::SeLinuxOption>| {
            contexts.of_container(pod, container, false, "s0:c1,c2")
        };
        let default = of(None, None);
        assert_eq!(default.process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(default.mount, "system_u:object_r:container_file_t:s0:c1,c2");
        let level_only = options("", "", "", "s0");
        assert_eq!(of(None, Some(&level_only)).process, "system_u:system_r:container_t:s0");
        assert_eq!(of(None, Some(&level_only)).mount, "system_u:object_r:container_file_t:s0");
        let kind_only = options("", "", "web_t", "");
        assert_eq!(of(None, Some(&kind_only)).process, "system_u:system_r:web_t:s0:c1,c2");
        assert_eq!(of(Some(&kind_only), None).process, "system_u:system_r:web_t:s0:c1,c2");
        assert_eq!(of(Some(&kind_only), Some(&level_only)).process, "system_u:system_r:container_t:s0");
        let whole = options("staff_u", "staff_r", "svirt_lxc_net_t", "s0:c4,c5");
        assert_eq!(of(None, Some(&whole)).process, "staff_u:staff_r:svirt_lxc_net_t:s0:c4,c5");
        assert_eq!(of(None, Some(&whole)).mount, "staff_u:object_r:container_file_t:s0:c4,c5");
    }

    #[test]
    fn a_privileged_container_is_not_confined_and_its_files_are_the_pods() {
        let labels = Contexts::parse(LXC).of_container(None, None, true, "s0:c1,c2");
        assert_eq!(labels.process, "system_u:system_r:spc_t:s0");
        assert_eq!(labels.mount, "system_u:object_r:container_file_t:s0:c1,c2");
    }

    #[test]
    fn pairs_are_all_there_and_each_once() {
        let range = 7;
        let mut taken = BTreeSet::new();
        for seed in 0..21 {
            let level = choose_level(range, &taken, seed * 1_000_003).unwrap();
            assert!(is_level(&level), "{level}");
            assert!(taken.insert(level), "seed {seed}");
        }
        assert!(taken.contains("s0:c0,c1") && taken.contains("s0:c5,c6"));
        assert_eq!(choose_level(range, &taken, 5), None);
        taken.remove("s0:c2,c4");
        assert_eq!(choose_level(range, &taken, 0).as_deref(), Some("s0:c2,c4"));
        assert_eq!(choose_level(1, &BTreeSet::new(), 0), None);
        assert!(choose_level(1024, &BTreeSet::new(), u64::MAX).is_some());
        assert_eq!(pair(1024 * 1023 / 2 - 1), "s0:c1022,c1023");
    }
}
