//! What the kernel says of this process, under the names that all programs have for it.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

use super::figures::{About, Figures};

/// Ticks of a second in `/proc`: the same on all architectures that Rust's Linux targets have, whatever the kernel's own clock does.
const TICKS: f64 = 100.0;

#[derive(Debug)]
struct Process {
    /// Seconds since 1970. Found once: the kernel's own idea of it moves when the clock is set, and a restart is told by its change.
    start: Option<f64>,
}

pub(super) fn register(registry: &mut Registry) {
    let start = Stat::read().and_then(|stat| Some(boot_time()? + stat.start));
    registry.sub_registry_with_prefix("process").register_collector(Box::new(Process { start }));
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut figures = Figures(encoder);
        if let Some(stat) = Stat::read() {
            figures.counter(About::seconds("cpu", "Processor time used by this process"), stat.cpu)?;
        }
        figures.known(About::seconds("start_time", "When this process began, since 1970"), self.start)?;
        let status = read("/proc/self/status").unwrap_or_default();
        let kilobytes = |key| field(&status, key).map(|value| value * 1024);
        figures.known(About::bytes("resident_memory", "Memory held by this process"), kilobytes("VmRSS:"))?;
        figures
            .known(About::bytes("virtual_memory", "Address space of this process"), kilobytes("VmSize:"))?;
        figures.known(About::new("threads", "Threads of this process"), field(&status, "Threads:"))?;
        figures.known(About::new("open_fds", "Descriptors open in this process"), open_fds())?;
        let max_fds = getrlimit(Resource::Nofile).current;
        figures.known(About::new("max_fds", "Descriptors this process may have open"), max_fds)
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

struct Stat {
    /// Seconds.
    cpu: f64,
    /// Seconds since the host has started.
    start: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&read("/proc/self/stat")?)
    }

    /// The program's name, in parentheses, may contain anything; fields are counted behind it.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
        Some(Self { cpu: (ticks(11)? + ticks(12)?) / TICKS, start: ticks(19)? / TICKS })
    }
}

/// When the host was started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    read("/proc/stat")?.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn field(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Without the descriptor that reading the directory takes.
fn open_fds() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(open.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let text = "7 (a) R 1 (b)) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1200 99 5";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu, stat.start), (3.0, 12.0));
        assert!(Stat::parse("7 (a) R 1").is_none());
    }

    #[test]
    fn the_figures_are_those_of_this_process() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} in {text}")).parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") < value("process_max_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }
}
