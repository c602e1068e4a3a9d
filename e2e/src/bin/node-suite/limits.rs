//! The limits of a container in the two places that must agree: systemd's properties of its scope, and the kernel's files.

use std::path::PathBuf;

use e2e::Result;
use e2e::cri::{HugepageLimit, LinuxContainerResources};

use crate::host::{self, property};
use crate::world;

/// Limits as a pod asks for them.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) shares: i64,
    /// Of 100 000 µs.
    pub(crate) quota: i64,
    pub(crate) memory: i64,
    /// Memory and swap together.
    pub(crate) memory_and_swap: i64,
    pub(crate) cpus: &'static str,
    pub(crate) mems: &'static str,
    pub(crate) huge_2mb: u64,
    pub(crate) oom_score_adj: i64,
    /// By a key of the unified hierarchy, which there is on v2 only.
    pub(crate) pids: u64,
    /// The same.
    pub(crate) memory_high: u64,
}

impl Limits {
    /// The message that carries them.
    pub(crate) fn message(&self) -> LinuxContainerResources {
        let huge = HugepageLimit { page_size: "2MB".to_owned(), limit: self.huge_2mb };
        let unified = [("pids.max", self.pids), ("memory.high", self.memory_high)];
        LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: self.quota,
            cpu_shares: self.shares,
            memory_limit_in_bytes: self.memory,
            memory_swap_limit_in_bytes: self.memory_and_swap,
            cpuset_cpus: self.cpus.to_owned(),
            cpuset_mems: self.mems.to_owned(),
            oom_score_adj: self.oom_score_adj,
            hugepage_limits: if has_2mb_pages() { vec![huge] } else { Vec::new() },
            unified: if is_v2() {
                unified.map(|(key, value)| (key.to_owned(), value.to_string())).into()
            } else {
                Default::default()
            },
        }
    }
}

/// Whether the node has the unified hierarchy only.
pub(crate) fn is_v2() -> bool {
    std::fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok()
}

fn has_2mb_pages() -> bool {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let controlled = v2.contains("hugetlb") || std::fs::metadata("/sys/fs/cgroup/hugetlb").is_ok();
    controlled && std::fs::metadata("/sys/kernel/mm/hugepages/hugepages-2048kB").is_ok()
}

/// The groups of a container: its scope, and within that the one that crun makes for itself.
#[derive(Debug)]
pub(crate) struct Groups {
    scope: String,
    path: String,
    pid: u32,
}

impl Groups {
    /// Those of a running container.
    pub(crate) async fn of(id: &str, pid: u32) -> Result<Self> {
        let scope = world::scope(id);
        let path = property(&scope, "ControlGroup").await?;
        Ok(Self { scope, path, pid })
    }

    /// Everything that is not as these limits say.
    pub(crate) async fn complaints(&self, wanted: &Limits) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        for (what, is, should) in self.in_files(wanted)?.into_iter().chain(self.in_systemd(wanted).await?) {
            if is != should {
                complaints.push(format!("{what} is {is}, not {should}"));
            }
        }
        Ok(complaints)
    }

    /// What the files say: name, value, and the value they should have.
    fn in_files(&self, wanted: &Limits) -> Result<Vec<(String, String, String)>> {
        let quota = format!("{} 100000", wanted.quota);
        let swap = (wanted.memory_and_swap - wanted.memory).to_string();
        let (memory, total, huge) =
            (wanted.memory.to_string(), wanted.memory_and_swap.to_string(), wanted.huge_2mb.to_string());
        let (quota_us, shares) = (wanted.quota.to_string(), wanted.shares.to_string());
        let (pids, high) = (wanted.pids.to_string(), wanted.memory_high.to_string());
        let v2: [(&str, &str, &str); 8] = [
            ("", "cpu.max", &quota),
            ("", "memory.max", &memory),
            ("", "memory.swap.max", &swap),
            ("", "memory.high", &high),
            ("", "pids.max", &pids),
            ("", "hugetlb.2MB.max", &huge),
            ("", "cpuset.cpus", wanted.cpus),
            ("", "cpuset.mems", wanted.mems),
        ];
        let v1: [(&str, &str, &str); 8] = [
            ("cpu", "cpu.cfs_quota_us", &quota_us),
            ("cpu", "cpu.cfs_period_us", "100000"),
            ("cpu", "cpu.shares", &shares),
            ("memory", "memory.limit_in_bytes", &memory),
            ("memory", "memory.memsw.limit_in_bytes", &total),
            ("hugetlb", "hugetlb.2MB.limit_in_bytes", &huge),
            ("cpuset", "cpuset.cpus", wanted.cpus),
            ("cpuset", "cpuset.mems", wanted.mems),
        ];
        let mut found = Vec::new();
        for (controller, file, should) in if is_v2() { v2 } else { v1 } {
            if let Some(value) = self.strictest(controller, file) {
                found.push((file.to_owned(), value, should.to_owned()));
            }
        }
        let score = host::read(format!("/proc/{}/oom_score_adj", self.pid))?;
        found.push(("oom_score_adj".to_owned(), score, wanted.oom_score_adj.to_string()));
        Ok(found)
    }

    /// What systemd says, in the same form. What it does not know on this hierarchy is not among it.
    async fn in_systemd(&self, wanted: &Limits) -> Result<Vec<(String, String, String)>> {
        let quota = format!("{}ms", wanted.quota / 100);
        let memory = wanted.memory.to_string();
        let mut found = vec![self.told("CPUQuotaPerSecUSec", &quota).await?];
        if is_v2() {
            let weight = self.file("", "cpu.weight", "").unwrap_or_default();
            let swap = (wanted.memory_and_swap - wanted.memory).to_string();
            found.push(self.told("CPUWeight", &weight).await?);
            found.push(self.told("MemoryMax", &memory).await?);
            found.push(self.told("MemorySwapMax", &swap).await?);
            found.push(self.told("MemoryHigh", &wanted.memory_high.to_string()).await?);
            found.push(self.told("TasksMax", &wanted.pids.to_string()).await?);
            found.push(self.told("AllowedCPUs", wanted.cpus).await?);
            found.push(self.told("AllowedMemoryNodes", wanted.mems).await?);
        } else {
            found.push(self.told("CPUShares", &wanted.shares.to_string()).await?);
            // runc uses the one property, crun the other.
            let either = [self.told("MemoryLimit", &memory).await?, self.told("MemoryMax", &memory).await?];
            let [limit, max] = either;
            found.push(if max.1 == max.2 { max } else { limit });
        }
        Ok(found)
    }

    async fn told(&self, name: &str, should: &str) -> Result<(String, String, String)> {
        Ok((format!("systemd's {name}"), property(&self.scope, name).await?, should.to_owned()))
    }

    /// The value that counts: of scope and the group within it, the one that is not the default.
    fn strictest(&self, controller: &str, file: &str) -> Option<String> {
        let values: Vec<String> =
            ["", "/container"].iter().filter_map(|inner| self.file(controller, file, inner)).collect();
        let numbers: Vec<i64> =
            values.iter().filter_map(|value| value.parse().ok()).filter(|it| *it >= 0).collect();
        match numbers.iter().min() {
            Some(least) if numbers.len() == values.len() || values.iter().any(|it| it == "max") => {
                Some(least.to_string())
            }
            _ => values.into_iter().find(|value| !value.is_empty() && !value.starts_with("max")),
        }
    }

    fn file(&self, controller: &str, file: &str, inner: &str) -> Option<String> {
        let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}{}{inner}/{file}", self.path));
        host::read(path).ok()
    }
}
