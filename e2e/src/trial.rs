//! Trials: what the promises of a pod's life cost to keep, asked with real daemons and real faults.
//!
//! Each trial is one function of a plan, whose size says how long it takes. `tests/lifecycle.rs` runs all in a short form,
//! the program `soak` in the form that the promises are stated in. A trial fails with an error that says which promise
//! was broken, and else reports what it measured.

pub mod commands;
pub mod exits;
mod held;
pub mod hung;
pub mod logs;
pub mod network;
pub mod recovery;
pub mod streams;
pub mod timeouts;
pub mod verbs;

pub use held::Held;

use std::fmt;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::faulty::{self, Faulty};
use crate::{
    ImageBuilder, Layer, Machine, Media, Node, Options, PodSpec, Registry, RegistryProxy, Result, patience,
};

/// What a trial has measured, line by line.
#[derive(Debug, Default, Clone)]
pub struct Report(Vec<String>);

impl Report {
    pub(crate) fn note(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }

    /// Adds what another trial has measured.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(out, "  {line}"))
    }
}

/// A node with an image, whose network and OCI runtime can be made to fail.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) registry: Registry,
    pub(crate) faulty: Faulty,
    pub(crate) image: String,
}

impl Stage {
    /// Sets it up with this configuration file.
    pub(crate) async fn set(config: &str) -> Result<Self> {
        Self::with_args(config, Vec::new()).await
    }

    /// The same with further flags.
    pub(crate) async fn with_args(config: &str, more: Vec<String>) -> Result<Self> {
        let faulty = Faulty::new()?;
        let args = [faulty.args(), more].concat();
        let options = Options { args, config: config.to_owned(), ..Options::default() };
        let (node, registry) = Node::start_with_registry(options).await?;
        faulty.wrap_network(&node).await?;
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
        let image = node.cri().pull(&pushed.reference).await?;
        Ok(Self { node, registry, faulty, image })
    }

    /// A proxy before the registry, which the daemon knows.
    pub(crate) async fn proxy(&self) -> Result<RegistryProxy> {
        let proxy = RegistryProxy::start(self.node.machine(), self.registry.host()).await?;
        proxy.describe_to(&self.node.registry_config_dir())?;
        Ok(proxy)
    }

    /// A pod with the wrapped OCI runtime.
    pub(crate) fn pod(&self, name: &str) -> PodSpec {
        PodSpec { handler: faulty::HANDLER.to_owned(), ..self.node.pod(name) }
    }

    /// Takes everything down and proves that nothing is left.
    pub(crate) async fn finish(self) -> Result {
        self.node.finish().await
    }
}

/// A pod of a node that somebody else holds.
pub(crate) fn pod_on(machine: &Machine, dir: &Path, name: &str) -> PodSpec {
    let uid = format!("{name}-{}", machine.token());
    let parent = machine.cgroups().pod_parent(&uid);
    let pod = PodSpec::new(name, &uid, parent, &dir.join("logs").join(name));
    PodSpec { handler: faulty::HANDLER.to_owned(), ..pod }
}

/// The usual image with a layer of its own: a file `own` that starts with the text, and random bytes that no compression
/// makes fewer.
pub(crate) fn own_image(random: &mut Random, text: &str, size: usize) -> Result<ImageBuilder> {
    let noise = random.bytes(size);
    let layer = Layer::new().file("own", 0o644, text.as_bytes()).file("noise", 0o644, &noise);
    Ok(ImageBuilder::busybox(Media::Oci)?.layer(layer))
}

/// Something to be done beside other things.
pub(crate) type Work = std::pin::Pin<Box<dyn Future<Output = Result> + Send>>;

/// Does all of it at the same time; gives the results in order, or the first error.
pub(crate) async fn together<T, F>(work: impl IntoIterator<Item = F>) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let tasks: Vec<_> = work.into_iter().map(tokio::spawn).collect();
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await??);
    }
    Ok(done)
}

/// Waits until a condition holds, at most so many seconds of [`patience`].
pub async fn until<F>(what: &str, seconds: u64, mut holds: impl FnMut() -> F) -> Result
where
    F: Future<Output = Result<bool>>,
{
    let deadline = Instant::now() + patience(seconds);
    while !holds().await? {
        if Instant::now() > deadline {
            bail!("after {:?} it does not hold that {what}", patience(seconds));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Nanoseconds since 1970, as CRI counts them.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or_default()
}

/// Milliseconds with a sign, for reports.
pub(crate) fn milliseconds(nanoseconds: i64) -> String {
    format!("{}.{} ms", nanoseconds / 1_000_000, (nanoseconds / 100_000 % 10).abs())
}

/// What a process holds at one moment. Directories of cgroups are not counted: the daemon keeps those of all that runs open, to
/// read from them, and opens them when it comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) resident_kib: u64,
}

impl Footprint {
    /// Looks at a process as the `/proc` of some machine numbers it.
    pub(crate) fn of(proc: &Path, pid: u32) -> Result<Self> {
        let proc = proc.join(pid.to_string());
        let status = fs::read_to_string(proc.join("status")).context("reading a process's status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Ok(Self {
            descriptors: fs::read_dir(proc.join("fd"))?.filter(|fd| !is_cgroup(fd)).count(),
            threads: fs::read_dir(proc.join("task"))?.count(),
            resident_kib: resident.unwrap_or_default(),
        })
    }
}

fn is_cgroup(fd: &std::io::Result<fs::DirEntry>) -> bool {
    let target = fd.as_ref().ok().and_then(|fd| fs::read_link(fd.path()).ok());
    target.is_some_and(|target| target.starts_with("/sys/fs/cgroup"))
}

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A place in a list of that length.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.below(length)).unwrap_or_default()
    }

    /// A number of milliseconds from `low` to just below `high`.
    pub(crate) fn milliseconds(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.below((high - low).max(1)))
    }

    /// So many bytes, rounded up to eights.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect()
    }

    /// A generator of its own for somebody.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..5).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn milliseconds_keep_their_sign() {
        assert_eq!(milliseconds(12_345_678), "12.3 ms");
        assert_eq!(milliseconds(-12_345_678), "-12.3 ms");
    }
}
