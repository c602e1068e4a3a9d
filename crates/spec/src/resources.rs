//! Limits of a container: CRI's numbers → OCI's, and the merging of updates.
//!
//! In CRI zero or empty means "not said": at creation no limit, in an update unchanged. Shares are passed on in the range that
//! cgroup v1 holds them to; the OCI runtime turns them into a weight on v2, runc since 1.3.2 and crun since 1.23 by another
//! formula than before. What a field says cannot be said once more in the unified map under the name of its file. Swap on v2 goes by its own file: told of memory and swap
//! together, neither runc nor crun tells systemd what it then writes (runc 1.1.15 leaves no swap out, crun 1.21 says the sum).

use std::collections::HashMap;

use cri_api::v1;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, Spec};

use crate::error::SpecError;
use crate::facts::{Hierarchy, NodeFacts};
use crate::request::{ContainerRequest, SandboxRequest};

/// What the kernel takes for a period, in microseconds; the least is also that of a quota.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// The highest number that is taken for a processor or a memory node.
const LAST_NODE: u32 = 8191;
/// The file of the swap limit on v2.
const SWAP_FILE: &str = "memory.swap.max";
/// What the kernel makes of shares on v1: what is outside becomes the nearest. On v2 a weight cannot be made of others.
const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// The period of a quota that comes without one, in microseconds: the kernel's.
const DEFAULT_PERIOD: i64 = 100_000;

/// A field of a request and the v2 file that says the same.
struct Twin {
    field: &'static str,
    file: &'static str,
    is_said: fn(&v1::LinuxContainerResources) -> bool,
    forget: fn(&mut v1::LinuxContainerResources),
}

const TWINS: [Twin; 6] = [
    Twin {
        field: "cpu_quota",
        file: "cpu.max",
        is_said: |it| it.cpu_quota != 0 || it.cpu_period != 0,
        forget: |it| (it.cpu_quota, it.cpu_period) = (0, 0),
    },
    Twin {
        field: "cpu_shares",
        file: "cpu.weight",
        is_said: |it| it.cpu_shares != 0,
        forget: |it| it.cpu_shares = 0,
    },
    Twin {
        field: "cpuset_cpus",
        file: "cpuset.cpus",
        is_said: |it| !it.cpuset_cpus.is_empty(),
        forget: |it| it.cpuset_cpus.clear(),
    },
    Twin {
        field: "cpuset_mems",
        file: "cpuset.mems",
        is_said: |it| !it.cpuset_mems.is_empty(),
        forget: |it| it.cpuset_mems.clear(),
    },
    Twin {
        field: "memory_limit_in_bytes",
        file: "memory.max",
        is_said: |it| it.memory_limit_in_bytes != 0,
        forget: |it| it.memory_limit_in_bytes = 0,
    },
    Twin {
        field: "memory_swap_limit_in_bytes",
        file: SWAP_FILE,
        is_said: |it| it.memory_swap_limit_in_bytes != 0,
        forget: |it| it.memory_swap_limit_in_bytes = 0,
    },
];

/// Checks what needs no knowledge of the node.
pub(crate) fn check(resources: Option<&v1::LinuxContainerResources>) -> Result<(), SpecError> {
    let Some(resources) = resources else { return Ok(()) };
    check_quota(resources)?;
    not_below("cpu_shares", resources.cpu_shares, 0)?;
    not_below("memory_limit_in_bytes", resources.memory_limit_in_bytes, -1)?;
    not_below("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes, -1)?;
    cpuset("cpuset_cpus", &resources.cpuset_cpus)?;
    cpuset("cpuset_mems", &resources.cpuset_mems)?;
    check_swap(resources)?;
    check_unified(resources)
}

fn check_unified(resources: &v1::LinuxContainerResources) -> Result<(), SpecError> {
    for (key, value) in &resources.unified {
        if key.is_empty() || key.contains(['/', '\0']) || !key.contains('.') {
            return Err(SpecError::invalid("unified", key, "it is not the name of a cgroup v2 file"));
        }
        if key.starts_with("cgroup.") {
            return Err(SpecError::invalid("unified", key, "it steers the group and limits nothing"));
        }
        if value.contains('\0') {
            return Err(SpecError::invalid("unified", value, "it contains a zero byte"));
        }
    }
    let twice =
        TWINS.iter().find(|twin| (twin.is_said)(resources) && resources.unified.contains_key(twin.file));
    match twice {
        Some(twin) => Err(SpecError::Conflict {
            field: twin.field,
            reason: "the unified resource map says it too, under the name of its file",
        }),
        None => Ok(()),
    }
}

fn not_below(field: &'static str, value: i64, least: i64) -> Result<(), SpecError> {
    if value >= least { Ok(()) } else { Err(SpecError::invalid(field, value.to_string(), "it is negative")) }
}

fn check_quota(resources: &v1::LinuxContainerResources) -> Result<(), SpecError> {
    let (period, quota) = (resources.cpu_period, resources.cpu_quota);
    if period != 0 && !PERIOD.contains(&period) {
        let reason = "it is not between a millisecond and a second";
        return Err(SpecError::invalid("cpu_period", period.to_string(), reason));
    }
    if !matches!(quota, -1 | 0) && quota < *PERIOD.start() {
        let reason = "it is less than a millisecond, and not -1 for no limit";
        return Err(SpecError::invalid("cpu_quota", quota.to_string(), reason));
    }
    Ok(())
}

fn cpuset(field: &'static str, list: &str) -> Result<(), SpecError> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= LAST_NODE);
    let is_range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        number(first).is_some_and(|first| number(last).is_some_and(|last| first <= last))
    };
    if list.is_empty() || list.split(',').all(is_range) {
        return Ok(());
    }
    Err(SpecError::invalid(field, list, "it is not a list of numbers and ranges"))
}

/// CRI's swap limit counts memory and swap together.
fn check_swap(resources: &v1::LinuxContainerResources) -> Result<(), SpecError> {
    let (memory, both) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
    if both > 0 && memory > both {
        let reason = "it counts memory too, so it cannot be below the memory limit";
        return Err(SpecError::invalid("memory_swap_limit_in_bytes", both.to_string(), reason));
    }
    Ok(())
}

/// Lays an update over the present values; what the update leaves zero or empty stays, unless the update says it in the other
/// way: by a field instead of the unified map, or the reverse.
pub(crate) fn merge(
    mut present: v1::LinuxContainerResources,
    update: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    for twin in &TWINS {
        if update.unified.contains_key(twin.file) {
            (twin.forget)(&mut present);
        } else if (twin.is_said)(update) {
            present.unified.remove(twin.file);
        }
    }
    let number = |present: i64, update: i64| if update == 0 { present } else { update };
    let text = |present: String, update: &String| if update.is_empty() { present } else { update.clone() };
    let mut unified = present.unified;
    unified.extend(update.unified.clone());
    v1::LinuxContainerResources {
        cpu_period: number(present.cpu_period, update.cpu_period),
        cpu_quota: number(present.cpu_quota, update.cpu_quota),
        cpu_shares: number(present.cpu_shares, update.cpu_shares),
        memory_limit_in_bytes: number(present.memory_limit_in_bytes, update.memory_limit_in_bytes),
        oom_score_adj: number(present.oom_score_adj, update.oom_score_adj),
        cpuset_cpus: text(present.cpuset_cpus, &update.cpuset_cpus),
        cpuset_mems: text(present.cpuset_mems, &update.cpuset_mems),
        hugepage_limits: merge_hugepages(present.hugepage_limits, &update.hugepage_limits),
        unified,
        memory_swap_limit_in_bytes: number(
            present.memory_swap_limit_in_bytes,
            update.memory_swap_limit_in_bytes,
        ),
    }
}

fn merge_hugepages(
    mut present: Vec<v1::HugepageLimit>,
    update: &[v1::HugepageLimit],
) -> Vec<v1::HugepageLimit> {
    for limit in update {
        present.retain(|old| old.page_size != limit.page_size);
        present.push(limit.clone());
    }
    present
}

/// The OCI limits of a request, for its spec. Device rules are not among them. What is unlimited is left out.
///
/// # Errors
/// [`SpecError`] when the node cannot enforce a limit that is asked for.
pub fn linux_resources(request: &ContainerRequest, facts: &NodeFacts) -> Result<LinuxResources, SpecError> {
    let mut asked = request.wire_resources().cloned().unwrap_or_default();
    for limit in
        [&mut asked.cpu_quota, &mut asked.memory_limit_in_bytes, &mut asked.memory_swap_limit_in_bytes]
    {
        *limit = (*limit).max(0);
    }
    if request.wire_resources().is_some_and(|asked| asked.memory_swap_limit_in_bytes < 0) {
        asked.memory_swap_limit_in_bytes = -1;
    }
    translate(&asked, facts)
}

/// The OCI limits of a request, for the runtime's `update` of a running container: as [`linux_resources`], with what is
/// unlimited said, since it may have been limited before.
///
/// # Errors
/// As for [`linux_resources`].
pub fn updated_resources(request: &ContainerRequest, facts: &NodeFacts) -> Result<LinuxResources, SpecError> {
    translate(request.wire_resources().unwrap_or(&v1::LinuxContainerResources::default()), facts)
}

/// Writes the limits of a request into a spec that was made from an earlier one. Nothing else in it depends on them.
///
/// # Errors
/// As for [`linux_resources`].
pub fn update_spec(spec: &mut Spec, request: &ContainerRequest, facts: &NodeFacts) -> Result<(), SpecError> {
    let mut resources = linux_resources(request, facts)?;
    if let Some(linux) = spec.linux_mut() {
        let devices = linux.resources().as_ref().and_then(|resources| resources.devices().clone());
        resources.set_devices(devices);
        linux.set_resources(Some(resources));
    }
    if let Some(process) = spec.process_mut() {
        process.set_oom_score_adj(Some(oom_score_adj(request, facts)));
    }
    Ok(())
}

/// The limits in force on this node: those asked for, with what the node makes of them.
#[must_use]
pub fn in_force(request: &ContainerRequest, facts: &NodeFacts) -> Option<v1::LinuxContainerResources> {
    let mut asked = request.wire_resources()?.clone();
    if facts.swap_accounting && asked.memory_swap_limit_in_bytes == 0 {
        asked.memory_swap_limit_in_bytes = with_swap(&asked);
    }
    asked.cpu_shares = shares(asked.cpu_shares);
    if asked.cpu_quota > 0 && asked.cpu_period == 0 {
        asked.cpu_period = DEFAULT_PERIOD;
    }
    asked.oom_score_adj = oom_score_adj(request, facts).into();
    Some(asked)
}

/// Memory and swap together, where the sum is not said: what the unified map allows of swap, else none.
fn with_swap(asked: &v1::LinuxContainerResources) -> i64 {
    let memory = asked.memory_limit_in_bytes;
    match asked.unified.get(SWAP_FILE).map(|swap| swap.trim()) {
        Some("max") if memory > 0 => -1,
        Some(swap) if memory > 0 => swap.parse().map_or(0, |swap: i64| memory.saturating_add(swap)),
        _ => memory,
    }
}

/// Shares as the kernel would have them; 0 stays "not said".
fn shares(asked: i64) -> i64 {
    if asked == 0 { 0 } else { asked.clamp(*SHARES.start(), *SHARES.end()) }
}

fn translate(asked: &v1::LinuxContainerResources, facts: &NodeFacts) -> Result<LinuxResources, SpecError> {
    let mut linux = LinuxResources::default();
    linux.set_devices(None);
    linux.set_cpu(cpu(asked));
    linux.set_memory(memory(asked, facts)?);
    linux.set_hugepage_limits(hugepages(asked, facts)?);
    let unified = unified(asked, facts)?;
    linux.set_unified(Some(unified).filter(|unified| !unified.is_empty()));
    Ok(linux)
}

fn unified(
    asked: &v1::LinuxContainerResources,
    facts: &NodeFacts,
) -> Result<HashMap<String, String>, SpecError> {
    let mut unified = asked.unified.clone();
    if facts.hierarchy == Hierarchy::V1 {
        if unified.is_empty() {
            return Ok(unified);
        }
        let what = "the unified resource map".to_owned();
        return Err(SpecError::Unavailable { what, reason: "it needs cgroup v2" });
    }
    if !facts.swap_accounting {
        return without_swap(unified);
    }
    if let Some(swap) = swap_alone(asked) {
        unified.entry(SWAP_FILE.to_owned()).or_insert(swap);
    }
    Ok(unified)
}

/// A node that does not count swap can keep to "none" where it has none, and to "any amount", but to nothing in between.
fn without_swap(mut unified: HashMap<String, String>) -> Result<HashMap<String, String>, SpecError> {
    match unified.remove(SWAP_FILE) {
        Some(swap) if !matches!(swap.trim(), "0" | "max") => Err(SpecError::Unavailable {
            what: format!("a swap limit of {swap}"),
            reason: "the kernel does not count swap per control group",
        }),
        _ => Ok(unified),
    }
}

/// Memory and swap together: without a swap limit of its own a container with a memory limit gets no swap.
fn memory_and_swap(asked: &v1::LinuxContainerResources) -> i64 {
    match asked.memory_swap_limit_in_bytes {
        0 => asked.memory_limit_in_bytes,
        both => both,
    }
}

/// Swap as v2 counts it. Of a sum without a memory limit nobody knows how much of it is swap.
fn swap_alone(asked: &v1::LinuxContainerResources) -> Option<String> {
    let (memory, both) = (asked.memory_limit_in_bytes, memory_and_swap(asked));
    if both < 0 {
        return Some("max".to_owned());
    }
    (memory > 0 && both > 0).then(|| both.saturating_sub(memory).to_string())
}

fn cpu(asked: &v1::LinuxContainerResources) -> Option<LinuxCpu> {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(shares(asked.cpu_shares)))
        .set_period(positive(asked.cpu_period))
        .set_quota(Some(asked.cpu_quota).filter(|quota| *quota != 0))
        .set_cpus(text(&asked.cpuset_cpus))
        .set_mems(text(&asked.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn memory(asked: &v1::LinuxContainerResources, facts: &NodeFacts) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = asked.memory_limit_in_bytes;
    if limit > 0 && limit < facts.min_memory_bytes {
        let reason = "it is below the least that a container can start with on this node";
        return Err(SpecError::invalid("memory_limit_in_bytes", limit.to_string(), reason));
    }
    let by_sum = facts.swap_accounting && facts.hierarchy == Hierarchy::V1;
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|limit| *limit != 0));
    memory.set_swap(Some(memory_and_swap(asked)).filter(|swap| *swap != 0 && by_sum));
    Ok((memory != LinuxMemory::default()).then_some(memory))
}

/// kubelet sends a limit of 0 for every page size it knows; only a real limit needs the controller.
fn hugepages(
    asked: &v1::LinuxContainerResources,
    facts: &NodeFacts,
) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    let mut limits = Vec::new();
    for limit in &asked.hugepage_limits {
        if facts.hugepage_sizes.contains(&limit.page_size) {
            let mut known = LinuxHugepageLimit::default();
            known.set_page_size(limit.page_size.clone());
            known.set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
            limits.push(known);
        } else if limit.limit > 0 {
            let what = format!("a limit on huge pages of {}", limit.page_size);
            return Err(SpecError::Unavailable {
                what,
                reason: "no cgroup controller counts pages of this size",
            });
        }
    }
    Ok(Some(limits).filter(|limits| !limits.is_empty()))
}

/// The score for the kernel's out-of-memory killer, brought into the range this node can set.
#[must_use]
pub fn oom_score_adj(request: &ContainerRequest, facts: &NodeFacts) -> i32 {
    facts.clamp_oom(request.wire_resources().map_or(0, |asked| asked.oom_score_adj))
}

/// Checked values of an UpdatePodSandboxResources call. kubelet owns the pod's group; a sandbox only remembers them.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxResources {
    overhead: Option<v1::LinuxContainerResources>,
    resources: Option<v1::LinuxContainerResources>,
}

impl SandboxResources {
    /// Checks the values; what is none stays as it is.
    ///
    /// # Errors
    /// [`SpecError`] naming the first value that cannot be meant.
    pub fn parse(
        overhead: Option<v1::LinuxContainerResources>,
        resources: Option<v1::LinuxContainerResources>,
    ) -> Result<Self, SpecError> {
        check(overhead.as_ref())?;
        check(resources.as_ref())?;
        Ok(Self { overhead, resources })
    }

    /// The request with these values.
    ///
    /// # Errors
    /// Those of [`SandboxRequest::parse`], which the request has passed before.
    pub fn applied_to(&self, request: &SandboxRequest) -> Result<SandboxRequest, SpecError> {
        let mut config = request.config().clone();
        let linux = config.linux.get_or_insert_default();
        for (values, place) in
            [(&self.overhead, &mut linux.overhead), (&self.resources, &mut linux.resources)]
        {
            if values.is_some() {
                place.clone_from(values);
            }
        }
        SandboxRequest::parse(config, request.runtime_handler().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn request(resources: v1::LinuxContainerResources) -> ContainerRequest {
        let mut config = fixtures::container();
        *fixtures::resources(&mut config) = resources;
        ContainerRequest::parse(config).unwrap()
    }

    fn v2() -> NodeFacts {
        NodeFacts::default()
    }

    fn limited() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 96 << 20,
            oom_score_adj: 500,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_unlimited_is_left_out_at_first_and_said_in_an_update() {
        let none = v1::LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: -1,
            memory_swap_limit_in_bytes: -1,
            ..Default::default()
        };
        let request = request(none);
        let v1 = fixtures::facts();
        let created = linux_resources(&request, &v1).unwrap();
        assert_eq!((created.cpu(), created.memory().unwrap().limit()), (&None, None));
        let updated = updated_resources(&request, &v1).unwrap();
        assert_eq!(updated.cpu().as_ref().unwrap().quota(), Some(-1));
        let memory = updated.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(-1), Some(-1)));
        let updated = updated_resources(&request, &v2()).unwrap();
        assert_eq!(updated.memory().unwrap().swap(), None);
        assert_eq!(updated.unified().as_ref().unwrap()[SWAP_FILE], "max");
    }

    #[test]
    fn swap_on_v2_goes_by_its_own_file() {
        let swap = |memory, both, key: Option<&str>| {
            let mut asked = v1::LinuxContainerResources {
                memory_limit_in_bytes: memory,
                memory_swap_limit_in_bytes: both,
                ..Default::default()
            };
            asked.unified.extend(key.map(|key| (SWAP_FILE.to_owned(), key.to_owned())));
            let linux = linux_resources(&request(asked), &v2()).unwrap();
            assert_eq!(linux.memory().and_then(|memory| memory.swap()), None);
            linux.unified().as_ref().and_then(|unified| unified.get(SWAP_FILE).cloned())
        };
        let mib = 1 << 20;
        assert_eq!(swap(64 * mib, 0, None).unwrap(), "0");
        assert_eq!(swap(64 * mib, 96 * mib, None).unwrap(), (32 * mib).to_string());
        assert_eq!(swap(64 * mib, -1, None).unwrap(), "max");
        assert_eq!(swap(64 * mib, 0, Some("7")).unwrap(), "7", "what is said by name holds");
        let blind = NodeFacts { swap_accounting: false, ..v2() };
        let of_blind = |swap: &str| {
            let mut asked = v1::LinuxContainerResources::default();
            asked.unified.insert(SWAP_FILE.to_owned(), swap.to_owned());
            linux_resources(&request(asked), &blind).map(|linux| linux.unified().clone())
        };
        assert_eq!((of_blind("0").unwrap(), of_blind("max").unwrap()), (None, None));
        assert!(of_blind("1048576").unwrap_err().to_string().contains("swap limit of 1048576"));
        assert_eq!(swap(0, 96 * mib, None), None);
        assert_eq!(swap(0, 0, None), None);
    }

    #[test]
    fn a_spec_gets_new_limits_and_keeps_the_rest() {
        let spec = fixtures::container_json(fixtures::container(), fixtures::pod(), &v2(), |_| {}).unwrap();
        let before: Spec = serde_json::from_value(spec).unwrap();
        let mut changed = before.clone();
        update_spec(&mut changed, &request(limited()), &v2()).unwrap();
        let json = serde_json::to_value(&changed).unwrap();
        assert_eq!(json["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert_eq!(
            json["linux"]["resources"]["devices"],
            serde_json::json!([{"allow": false, "access": "rwm"}])
        );
        assert_eq!(json["process"]["oomScoreAdj"], 500);
        update_spec(&mut changed, &ContainerRequest::parse(fixtures::container()).unwrap(), &v2()).unwrap();
        assert_eq!(changed, before);
    }

    #[test]
    fn what_is_in_force_is_what_the_node_makes_of_it() {
        let mut asked = limited();
        asked.memory_swap_limit_in_bytes = 0;
        asked.oom_score_adj = -998;
        let weak = NodeFacts { oom_score_adj_floor: 0, ..v2() };
        let shown = in_force(&request(asked.clone()), &weak).unwrap();
        assert_eq!((shown.memory_swap_limit_in_bytes, shown.oom_score_adj), (64 << 20, 0));
        let blind = NodeFacts { swap_accounting: false, ..v2() };
        assert_eq!(in_force(&request(asked.clone()), &blind).unwrap(), asked);
        for (file, sum) in [("33554432", 96 << 20), ("max", -1), ("0", 64 << 20)] {
            asked.unified.insert(SWAP_FILE.to_owned(), file.to_owned());
            let shown = in_force(&request(asked.clone()), &v2()).unwrap();
            assert_eq!(shown.memory_swap_limit_in_bytes, sum, "{file}");
        }
        let bare = v1::LinuxContainerResources { cpu_shares: 1, cpu_quota: 20_000, ..Default::default() };
        let shown = in_force(&request(bare), &v2()).unwrap();
        assert_eq!((shown.cpu_shares, shown.cpu_period), (2, 100_000));
    }

    #[test]
    fn shares_outside_the_kernels_range_become_the_nearest() {
        for (asked, passed) in [(1, Some(2)), (2, Some(2)), (300_000, Some(262_144)), (0, None)] {
            let resources = v1::LinuxContainerResources { cpu_shares: asked, ..Default::default() };
            let linux = linux_resources(&request(resources), &v2()).unwrap();
            assert_eq!(linux.cpu().as_ref().and_then(|cpu| cpu.shares()), passed, "{asked}");
        }
    }

    #[test]
    fn what_is_said_by_field_and_by_file_is_refused_by_name() {
        type Say = fn(&mut v1::LinuxContainerResources);
        let cases: [(&str, &str, Say); 6] = [
            ("cpu_quota", "cpu.max", |it| it.cpu_quota = 10_000),
            ("cpu_shares", "cpu.weight", |it| it.cpu_shares = 512),
            ("cpuset_cpus", "cpuset.cpus", |it| it.cpuset_cpus = "0".to_owned()),
            ("cpuset_mems", "cpuset.mems", |it| it.cpuset_mems = "0".to_owned()),
            ("memory_limit_in_bytes", "memory.max", |it| it.memory_limit_in_bytes = 64 << 20),
            ("memory_swap_limit_in_bytes", SWAP_FILE, |it| it.memory_swap_limit_in_bytes = 64 << 20),
        ];
        for (field, file, say) in cases {
            let by_file = v1::LinuxContainerResources {
                unified: [(file.into(), "1".into())].into(),
                ..Default::default()
            };
            let mut by_field = v1::LinuxContainerResources::default();
            say(&mut by_field);
            let mut both = by_file.clone();
            say(&mut both);
            let error = check(Some(&both)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
            check(Some(&by_file)).unwrap();
            // An update may change from one way to the other, and what was said the other way is over.
            assert_eq!(merge(by_file.clone(), &by_field), by_field);
            assert_eq!(merge(by_field, &by_file), by_file);
        }
    }

    #[test]
    fn files_that_limit_nothing_are_refused() {
        for (key, value) in
            [("cgroup.kill", "1"), ("pids", "1"), ("../pids.max", "1"), ("", "1"), ("pids.max", "\0")]
        {
            let unified = [(key.to_owned(), value.to_owned())].into();
            check(Some(&v1::LinuxContainerResources { unified, ..Default::default() })).unwrap_err();
        }
    }

    #[test]
    fn lists_quotas_and_periods_that_the_kernel_refuses_are_refused_by_name() {
        let refused = |field: &str, change: fn(&mut v1::LinuxContainerResources)| {
            let mut asked = limited();
            change(&mut asked);
            let error = check(Some(&asked)).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        };
        refused("cpu_period", |asked| asked.cpu_period = 999);
        refused("cpu_period", |asked| asked.cpu_period = 1_000_001);
        refused("cpu_quota", |asked| asked.cpu_quota = 999);
        refused("cpu_quota", |asked| asked.cpu_quota = -2);
        for list in ["3-1", "1,", "-1", "1-", "a", "8192", "0-2-3"] {
            let error = cpuset("cpuset_cpus", list).unwrap_err().to_string();
            assert!(error.contains("cpuset_cpus"), "{error}");
        }
        for list in ["", "0", "0-3,7", "5,1-2"] {
            cpuset("cpuset_mems", list).unwrap();
        }
    }

    #[test]
    fn a_sandbox_remembers_what_it_is_told() {
        let pod = SandboxRequest::parse(fixtures::pod(), "h".to_owned()).unwrap();
        let told = SandboxResources::parse(None, Some(limited())).unwrap().applied_to(&pod).unwrap();
        let told = SandboxResources::parse(Some(limited()), None).unwrap().applied_to(&told).unwrap();
        let linux = told.config().linux.clone().unwrap();
        assert_eq!((linux.overhead, linux.resources), (Some(limited()), Some(limited())));
        assert_eq!((told.key(), told.runtime_handler()), (pod.key(), "h"));
        let bad = v1::LinuxContainerResources { cpu_quota: -7, ..Default::default() };
        SandboxResources::parse(None, Some(bad)).unwrap_err();
    }
}
