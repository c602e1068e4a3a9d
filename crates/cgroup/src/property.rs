//! Limits of a group as properties of its unit.
//!
//! systemd writes a unit's properties into the cgroup files whenever it sees reason to. A limit that only the files know is
//! lost then, so both have to be told.

use std::collections::BTreeMap;

use zbus::zvariant::Value;

use crate::error::CgroupError;
use crate::mounts::Hierarchy;

/// systemd's word for no limit.
const INFINITY: u64 = u64::MAX;
/// systemd keeps a quota in whole percents of a processor: so many microseconds for each second.
const QUOTA_STEP: u64 = 10_000;
/// The kernel's period where none is given.
const DEFAULT_PERIOD: u64 = 100_000;
/// The highest processor or memory node that is taken for one.
const LAST_BIT: usize = 8191;

/// Limits of a group in the units of the OCI runtime specification. What is none stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight of processor time, 2 to 262144; 0 says nothing.
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period; not positive: unlimited.
    pub cpu_quota: Option<i64>,
    /// Microseconds of a period; 0 says nothing.
    pub cpu_period: Option<u64>,
    /// Processors, as `0-3,7`.
    pub cpus: Option<String>,
    /// Memory nodes, likewise.
    pub mems: Option<String>,
    /// Bytes of memory; negative: unlimited.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; negative: unlimited.
    pub memory_and_swap: Option<i64>,
    /// Number of tasks; not positive: unlimited.
    pub tasks: Option<i64>,
    /// Relative weight of input and output, 10 to 1000; 0 says nothing.
    pub io_weight: Option<u16>,
    /// Bytes of huge pages by page size, as `2MB`. There is no property for them.
    pub hugepages: Vec<(String, u64)>,
    /// Files of the unified hierarchy and what to write into them.
    pub unified: BTreeMap<String, String>,
}

/// The properties that limit what a unit's processes may use.
pub(crate) const LIMITING: [&str; 15] = [
    "CPUWeight",
    "CPUShares",
    "CPUQuotaPerSecUSec",
    "CPUQuotaPeriodUSec",
    "AllowedCPUs",
    "AllowedMemoryNodes",
    "IOWeight",
    "BlockIOWeight",
    "MemoryMin",
    "MemoryLow",
    "MemoryHigh",
    "MemoryMax",
    "MemoryLimit",
    "MemorySwapMax",
    "TasksMax",
];

/// Those of `wanted` that `present` does not say. Of the two properties for memory on v1 one is enough, since each OCI
/// runtime keeps to one of them.
pub(crate) fn differing(wanted: Vec<Property>, present: &[Property]) -> Vec<Property> {
    let now = |name: &str| present.iter().find(|property| property.name == name).map(|p| &p.value);
    let said = |name: &str| wanted.iter().any(|p| p.name == name && now(name) == Some(&p.value));
    let unused = |name: &str| now(name) == Some(&PropertyValue::Number(INFINITY));
    let spare = |name: &str| match name {
        "MemoryMax" => unused("MemoryMax") && said("MemoryLimit"),
        "MemoryLimit" => unused("MemoryLimit") && said("MemoryMax"),
        _ => false,
    };
    let differs = |property: &&Property| now(property.name) != Some(&property.value) && !spare(property.name);
    wanted.iter().filter(differs).cloned().collect()
}

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its name on D-Bus.
    pub name: &'static str,
    /// Its value.
    pub value: PropertyValue,
}

/// The value of a [`Property`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// `t`
    Number(u64),
    /// `ay`
    Bytes(Vec<u8>),
}

impl PropertyValue {
    pub(crate) fn to_variant(&self) -> Value<'_> {
        match self {
            Self::Number(number) => Value::from(*number),
            Self::Bytes(bytes) => Value::from(bytes.as_slice()),
        }
    }

    pub(crate) fn of_variant(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::U64(number) => Some(Self::Number(*number)),
            Value::Array(bytes) => {
                bytes.iter().map(|byte| u8::try_from(byte).ok()).collect::<Option<_>>().map(Self::Bytes)
            }
            _ => None,
        }
    }
}

/// The properties that say the same as `limits` on a host with this hierarchy. Where there is no property for a limit (huge
/// pages, most unified keys) there is none here, and systemd leaves such files alone; so it does with cpusets on v1, which it
/// knows but does not manage.
///
/// # Errors
/// [`CgroupError::Value`] for a list of processors or nodes or a unified value that cannot be read.
pub fn properties(hierarchy: Hierarchy, limits: &Limits) -> Result<Vec<Property>, CgroupError> {
    let mut found = Found::default();
    found.quota(limits);
    found.number(
        "TasksMax",
        limits.tasks.map(|tasks| bound(tasks.max(0)).filter(|n| *n > 0).unwrap_or(INFINITY)),
    );
    if hierarchy == Hierarchy::V2 {
        found.number("CPUWeight", limits.cpu_shares.and_then(cpu_weight));
        found.number("IOWeight", limits.io_weight.and_then(io_weight));
        found.number("MemoryMax", limits.memory.map(bytes));
        found.number("MemorySwapMax", swap(limits));
    } else {
        found.number("CPUShares", limits.cpu_shares.filter(|shares| *shares > 0));
        found.number("BlockIOWeight", limits.io_weight.map(u64::from).filter(|weight| *weight > 0));
        // crun sets the one and runc the other; systemd prefers the first where both are set.
        found.number("MemoryMax", limits.memory.map(bytes));
        found.number("MemoryLimit", limits.memory.map(bytes));
    }
    found.bits("AllowedCPUs", limits.cpus.as_deref())?;
    found.bits("AllowedMemoryNodes", limits.mems.as_deref())?;
    if hierarchy == Hierarchy::V2 {
        limits.unified.iter().try_for_each(|(file, text)| found.unified(file, text))?;
    }
    Ok(found.properties)
}

/// The v2 weight (1 to 10000) for v1 shares (2 to 262144), by the curve on which the defaults of both, 1024 and 100, meet;
/// the OCI runtimes of 2025 and later and kubelet use the same. None for 0, which says nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "the shares are below 2^19 here")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the curve runs from 1 to 10000")]
pub fn cpu_weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1 | 2 => Some(1),
        262_144.. => Some(10_000),
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10_f64.powf(exponent).ceil() as u64)
        }
    }
}

/// The v2 weight (1 to 10000) for a v1 weight (10 to 1000), on a straight line. None for 0, which says nothing.
#[must_use]
pub fn io_weight(weight: u16) -> Option<u64> {
    let weight = u64::from(weight);
    (weight > 0).then(|| 1 + (weight.clamp(10, 1000) - 10) * 9999 / 990)
}

fn bound(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

fn bytes(number: i64) -> u64 {
    bound(number).unwrap_or(INFINITY)
}

/// v2 counts swap alone.
fn swap(limits: &Limits) -> Option<u64> {
    let total = limits.memory_and_swap?;
    let Some(total) = bound(total) else { return Some(INFINITY) };
    limits.memory.and_then(bound).map(|memory| total.saturating_sub(memory))
}

#[derive(Debug, Default)]
struct Found {
    properties: Vec<Property>,
}

impl Found {
    fn number(&mut self, name: &'static str, value: Option<u64>) {
        self.put(name, value.map(PropertyValue::Number));
    }

    /// What is said last holds: unified keys come after the fields that they repeat.
    fn put(&mut self, name: &'static str, value: Option<PropertyValue>) {
        let Some(value) = value else { return };
        self.properties.retain(|property| property.name != name);
        self.properties.push(Property { name, value });
    }

    fn quota(&mut self, limits: &Limits) {
        let period = limits.cpu_period.filter(|period| *period > 0);
        self.number("CPUQuotaPeriodUSec", period);
        let Some(quota) = limits.cpu_quota else { return };
        self.number("CPUQuotaPerSecUSec", Some(per_second(quota, period.unwrap_or(DEFAULT_PERIOD))));
    }

    fn bits(&mut self, name: &'static str, list: Option<&str>) -> Result<(), CgroupError> {
        let Some(list) = list.filter(|list| !list.trim().is_empty()) else { return Ok(()) };
        self.put(name, Some(PropertyValue::Bytes(mask(list)?)));
        Ok(())
    }

    fn unified(&mut self, file: &str, text: &str) -> Result<(), CgroupError> {
        let name = match file {
            "cpuset.cpus" => return self.bits("AllowedCPUs", Some(text)),
            "cpuset.mems" => return self.bits("AllowedMemoryNodes", Some(text)),
            "cpu.weight" => "CPUWeight",
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            _ => return Ok(()),
        };
        let number = match text.trim() {
            "max" => INFINITY,
            text => text.parse().map_err(|_| CgroupError::value(file, text, "a number or max is wanted"))?,
        };
        self.number(name, Some(number));
        Ok(())
    }
}

/// A quota for one second, rounded up to what systemd keeps, so that it never grants less than was asked for.
fn per_second(quota: i64, period: u64) -> u64 {
    let Some(quota) = bound(quota).filter(|quota| *quota > 0) else { return INFINITY };
    let exact = (u128::from(quota) * 1_000_000).div_ceil(u128::from(period));
    let rounded = exact.div_ceil(u128::from(QUOTA_STEP)) * u128::from(QUOTA_STEP);
    u64::try_from(rounded).unwrap_or(INFINITY)
}

/// The bits of a list such as `0-3,7`, lowest first.
fn mask(list: &str) -> Result<Vec<u8>, CgroupError> {
    let refused = || CgroupError::value("cpuset", list, "numbers and ranges of them are wanted, as 0-3,7");
    let mut bytes = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| refused())?;
        let last: usize = last.trim().parse().map_err(|_| refused())?;
        if first > last || last > LAST_BIT {
            return Err(refused());
        }
        for bit in first..=last {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0);
            }
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hierarchy: Hierarchy, limits: &Limits) -> BTreeMap<&'static str, PropertyValue> {
        properties(hierarchy, limits).unwrap().into_iter().map(|p| (p.name, p.value)).collect()
    }

    fn all() -> Limits {
        Limits {
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpus: Some("0-2,9".to_owned()),
            mems: Some("0".to_owned()),
            memory: Some(64 << 20),
            memory_and_swap: Some(96 << 20),
            tasks: Some(100),
            io_weight: Some(10),
            hugepages: vec![("2MB".to_owned(), 0)],
            unified: BTreeMap::new(),
        }
    }

    #[test]
    fn every_limit_on_v2() {
        use PropertyValue::{Bytes, Number};
        let expected = BTreeMap::from([
            ("CPUWeight", Number(59)),
            ("CPUQuotaPerSecUSec", Number(500_000)),
            ("CPUQuotaPeriodUSec", Number(100_000)),
            ("AllowedCPUs", Bytes(vec![0b111, 0b10])),
            ("AllowedMemoryNodes", Bytes(vec![1])),
            ("MemoryMax", Number(64 << 20)),
            ("MemorySwapMax", Number(32 << 20)),
            ("TasksMax", Number(100)),
            ("IOWeight", Number(1)),
        ]);
        assert_eq!(of(Hierarchy::V2, &all()), expected);
    }

    #[test]
    fn every_limit_on_v1() {
        use PropertyValue::{Bytes, Number};
        let expected = BTreeMap::from([
            ("AllowedCPUs", Bytes(vec![0b111, 0b10])),
            ("AllowedMemoryNodes", Bytes(vec![1])),
            ("CPUShares", Number(512)),
            ("CPUQuotaPerSecUSec", Number(500_000)),
            ("CPUQuotaPeriodUSec", Number(100_000)),
            ("MemoryMax", Number(64 << 20)),
            ("MemoryLimit", Number(64 << 20)),
            ("TasksMax", Number(100)),
            ("BlockIOWeight", Number(10)),
        ]);
        assert_eq!(of(Hierarchy::V1, &all()), expected);
        assert_eq!(of(Hierarchy::Hybrid, &all()), expected);
    }

    #[test]
    fn nothing_asked_for_is_nothing_said() {
        for hierarchy in [Hierarchy::V1, Hierarchy::V2] {
            assert!(of(hierarchy, &Limits::default()).is_empty());
            let zero = Limits {
                cpu_shares: Some(0),
                cpu_period: Some(0),
                io_weight: Some(0),
                cpus: Some(String::new()),
                ..Limits::default()
            };
            assert!(of(hierarchy, &zero).is_empty());
        }
    }

    #[test]
    fn unlimited_is_infinity() {
        let none = Limits {
            cpu_quota: Some(-1),
            memory: Some(-1),
            memory_and_swap: Some(-1),
            tasks: Some(-1),
            ..Limits::default()
        };
        for name in ["CPUQuotaPerSecUSec", "MemoryMax", "MemorySwapMax", "TasksMax"] {
            assert_eq!(of(Hierarchy::V2, &none)[name], PropertyValue::Number(INFINITY), "{name}");
        }
        assert_eq!(of(Hierarchy::V1, &none)["MemoryLimit"], PropertyValue::Number(INFINITY));
    }

    #[test]
    fn only_what_systemd_does_not_know_is_told() {
        let number = |name, value| Property { name, value: PropertyValue::Number(value) };
        let wanted = || vec![number("MemoryMax", 5), number("MemoryLimit", 5), number("TasksMax", 3)];
        let names = |present: &[Property]| {
            differing(wanted(), present).iter().map(|property| property.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["MemoryMax", "MemoryLimit", "TasksMax"]);
        assert_eq!(names(&wanted()), Vec::<&str>::new());
        let (max, limit, tasks) = ("MemoryMax", "MemoryLimit", number("TasksMax", 3));
        let none = |name| number(name, INFINITY);
        assert_eq!(names(&[number(max, 5), none(limit), tasks.clone()]), Vec::<&str>::new());
        assert_eq!(names(&[none(max), number(limit, 5), number("TasksMax", 4)]), ["TasksMax"]);
        assert_eq!(
            names(&[number(max, 4), number(limit, 5), tasks.clone()]),
            [max],
            "it outweighs the other"
        );
        assert_eq!(names(&[none(max), none(limit), tasks]), [max, limit]);
    }

    #[test]
    fn swap_is_what_is_above_memory() {
        let of = |memory, memory_and_swap| swap(&Limits { memory, memory_and_swap, ..Limits::default() });
        assert_eq!(of(Some(5), Some(5)), Some(0));
        assert_eq!(of(Some(5), Some(7)), Some(2));
        assert_eq!(of(Some(5), Some(-1)), Some(INFINITY));
        assert_eq!(of(Some(5), None), None);
        assert_eq!(of(None, Some(5)), None, "how much of it is memory is not known");
    }

    #[test]
    fn quotas_never_shrink() {
        assert_eq!(per_second(1_000, 100_000), 10_000);
        assert_eq!(per_second(12_345, 100_000), 130_000);
        assert_eq!(per_second(150_000, 100_000), 1_500_000);
        assert_eq!(per_second(1, 3), 340_000);
        assert_eq!(per_second(i64::MAX, 1), INFINITY);
        assert_eq!(per_second(0, 100_000), INFINITY);
    }

    /// The ends and defaults of both scales meet, and more shares are never less weight.
    #[test]
    fn weights_of_v1_and_v2() {
        for (shares, weight) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(cpu_weight(shares), Some(weight), "{shares}");
        }
        let weights: Vec<u64> = (2..=262_144).step_by(97).filter_map(cpu_weight).collect();
        assert!(weights.is_sorted());
        for (from, to) in [(10, 1), (500, 4950), (1000, 10_000), (1, 1), (u16::MAX, 10_000)] {
            assert_eq!(io_weight(from), Some(to), "{from}");
        }
    }

    #[test]
    fn unified_keys_outweigh_fields() {
        let mut limits = all();
        let files = [
            ("memory.high", "48"),
            ("memory.max", "max"),
            ("cpu.weight", "7"),
            ("cpuset.cpus", "1"),
            ("io.max", "8:0 rbps=1"),
            ("hugetlb.2MB.max", "4"),
        ];
        limits.unified = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        let found = of(Hierarchy::V2, &limits);
        assert_eq!(found["MemoryHigh"], PropertyValue::Number(48));
        assert_eq!(found["MemoryMax"], PropertyValue::Number(INFINITY));
        assert_eq!(found["CPUWeight"], PropertyValue::Number(7));
        assert_eq!(found["AllowedCPUs"], PropertyValue::Bytes(vec![2]));
        assert!(!of(Hierarchy::V1, &limits).contains_key("MemoryHigh"));
        limits.unified.insert("memory.low".to_owned(), "much".to_owned());
        let error = properties(Hierarchy::V2, &limits).unwrap_err().to_string();
        assert!(error.contains("memory.low") && error.contains("much"), "{error}");
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        for list in ["a", "3-1", "1-", "-1", "1,,2", "0-99999999", "8192"] {
            assert!(mask(list).is_err(), "{list:?}");
        }
        assert_eq!(mask("15, 0").unwrap(), [1, 0x80]);
    }
}
