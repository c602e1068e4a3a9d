//! Processor time and memory of a server and of what it started for its pods, from `/proc` of the host.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;

use anyhow::Context;
use e2e::Result;

/// Programs that servers start for pods and containers: the kernel keeps fifteen letters of a name.
const HELPERS: [&str; 4] = ["crimson-monitor", "containerd-shim", "conmon", "pause"];
/// Ticks per second in which the kernel tells processor time, on every machine that Rust's standard library runs on.
const TICKS: f64 = 100.0;

/// A server, and by the absence of what was there before it had pods, its helpers.
pub(crate) struct Family {
    pid: u32,
    strangers: HashSet<u32>,
}

/// Seconds of processor time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) server: f64,
    pub(crate) helpers: f64,
}

/// MiB of memory.
pub(crate) struct Memory {
    resident: f64,
    proportional: f64,
    anonymous: f64,
    helpers: BTreeMap<String, (usize, f64)>,
    pods: usize,
}

impl Family {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Ok(Self { pid, strangers: processes()?.into_iter().collect() })
    }

    /// Process ids of helpers with their names.
    fn helpers(&self) -> Result<Vec<(u32, String)>> {
        let mut found = Vec::new();
        for pid in processes()?.into_iter().filter(|pid| !self.strangers.contains(pid)) {
            // Gone since the listing.
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            if HELPERS.contains(&name.trim_end()) {
                found.push((pid, name.trim_end().to_owned()));
            }
        }
        Ok(found)
    }

    pub(crate) fn spent(&self) -> Result<Spent> {
        let server = ticks(self.pid)? / TICKS;
        let helpers: f64 = self.helpers()?.iter().filter_map(|(pid, _)| ticks(*pid).ok()).sum();
        Ok(Spent { server, helpers: helpers / TICKS })
    }

    /// What is used by the server, and by the helpers of so many pods.
    pub(crate) fn memory(&self, pods: usize) -> Result<Memory> {
        let of_server = rollup(self.pid)?;
        let mut helpers: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        for (pid, name) in self.helpers()? {
            let Ok(of_helper) = rollup(pid) else { continue };
            let sum = helpers.entry(name).or_default();
            *sum = (sum.0 + 1, sum.1 + mib(&of_helper, "Pss"));
        }
        let server = |name| mib(&of_server, name);
        let (resident, proportional, anonymous) = (server("Rss"), server("Pss"), server("Anonymous"));
        Ok(Memory { resident, proportional, anonymous, helpers, pods })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "server {:.1} MiB resident ({:.1} proportional, {:.1} anonymous)",
            self.resident, self.proportional, self.anonymous
        )?;
        for (name, (count, sum)) in &self.helpers {
            write!(f, "; {count} {name}: {sum:.1} MiB")?;
        }
        if self.pods > 0 {
            let sum: f64 = self.helpers.values().map(|(_, sum)| sum).sum();
            write!(f, "; helpers {:.3} MiB per pod", sum / self.pods as f64)?;
        }
        Ok(())
    }
}

fn processes() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("listing processes")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// User and system time of a process in ticks, its ended threads included.
fn ticks(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The name before it may hold anything.
    let (_, fields) = text.rsplit_once(") ").with_context(|| format!("no name in {path}"))?;
    let times: Vec<f64> = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    anyhow::ensure!(times.len() == 2, "no times in {path}");
    Ok(times.iter().sum())
}

fn rollup(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

fn mib(rollup: &str, name: &str) -> f64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
