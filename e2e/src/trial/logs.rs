//! Log lines while nobody looks after the daemon, and while the disk is full.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use super::{Report, Stage, together};
use crate::cri::ContainerState;
use crate::{ContainerSpec, PodSpec, Result, patience, process};

/// How many containers share a pod.
const POD_SIZE: usize = 5;

/// What a writer does once all are there: so many lines at a time, ten times a second, until it is told that these are the last so many
/// times. Then it notes the longest time that one such burst took, in hundredths of a second, by the clock that a shell can read without
/// starting a program, and how many lines there were.
const WRITER: &str = r#"
text=$(printf '%080d' 0)
while [ ! -e /notes/go ]; do sleep 0.1; done
i=0; worst=0; left=$LAST
while [ $left -gt 0 ]; do
    [ ! -e /notes/last ] || left=$((left-1))
    read up _ </proc/uptime; begun=${up%.*}${up#*.}
    j=0
    while [ $j -lt $BURST ]; do echo "$i $text"; i=$((i+1)); j=$((j+1)); done
    read up _ </proc/uptime; took=$((${up%.*}${up#*.}-begun))
    [ $took -gt $worst ] && worst=$took
    sleep 0.1
done
echo "$worst $i" >/notes/$NAME
"#;

/// How many bursts come after the last event, at least.
const LAST: usize = 30;

/// No line of a log is longer.
const LINE_LIMIT: usize = 136;

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many containers write.
    pub containers: usize,
    /// How many lines each writes in a second, at most.
    pub lines_per_second: usize,
    /// How long the daemon is stopped before it is killed.
    pub stopped: Duration,
    /// How long the file system of the logs is full; zero leaves that part out.
    pub full: Duration,
    /// The longest that writing a tenth of a second's lines may take; less than both times above.
    pub longest_burst: Duration,
}

/// Writers whose daemon is stopped, killed and started again; then writers whose file system is full for a while.
pub async fn run(plan: Plan) -> Result<Report> {
    let shortest = if plan.full.is_zero() { plan.stopped } else { plan.stopped.min(plan.full) };
    ensure!(plan.longest_burst < shortest, "nobody could be seen to wait");
    let mut report = Report::default();
    let mut stage = Stage::set("").await?;
    while_stopped(&mut stage, plan, &mut report).await.context("while the daemon is stopped")?;
    if !plan.full.is_zero() {
        while_full(&stage, plan, &mut report).await.context("while the file system is full")?;
    }
    stage.finish().await?;
    Ok(report)
}

async fn while_stopped(stage: &mut Stage, plan: Plan, report: &mut Report) -> Result {
    let writers = Writers::start(stage, "stopped", plan, None).await?;
    let daemon = stage.node.pid().context("the daemon runs")?;
    process::signal(daemon, Signal::STOP)?;
    tokio::time::sleep(plan.stopped).await;
    let resumed = tokio::spawn(resume_nsenter(daemon));
    stage.node.kill9().await?;
    resumed.await??;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.node.restart().await?;
    writers.finish(stage).await?;
    let mut lines = 0;
    for name in &writers.names {
        let (there, missing) = writers.read(stage, name)?;
        ensure!(missing == 0, "{name}: {missing} lines are missing");
        lines += there;
    }
    let worst = writers.worst()?;
    ensure!(worst <= plan.longest_burst, "a writer was held up for {worst:?}");
    report.note(format!(
        "daemon stopped {:?}, then killed: {} writers, {lines} lines, each there once and in order; longest burst {worst:?}",
        plan.stopped, plan.containers
    ));
    writers.remove(stage).await
}

/// `nsenter` stops itself when the program stops that it has started; it goes on, to be seen ending, after the program's death. It may
/// come to either late, so it is told so until it has ended.
async fn resume_nsenter(daemon: u32) -> Result {
    // Where there is no `nsenter` it is not there for long.
    let Ok(status) = fs::read_to_string(format!("/proc/{daemon}/status")) else { return Ok(()) };
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    let parent: u32 = parent.context("the daemon's parent")?;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
        if name.trim_end() != "nsenter" {
            return Ok(());
        }
        // It may end just now.
        drop(process::signal(parent, Signal::CONT));
    }
}

async fn while_full(stage: &Stage, plan: Plan, report: &mut Report) -> Result {
    // Room for all that is written, also if that goes on for twice as long, so that it is full only when it is made so.
    let seconds = 2 * (plan.full + Duration::from_secs(5));
    let lines = plan.containers * plan.lines_per_second * usize::try_from(seconds.as_secs())?;
    let disk = Disk::mount(stage, 8 + ((lines * LINE_LIMIT) >> 20)).await?;
    let writers = Writers::start(stage, "full", plan, Some(&disk.inside)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    disk.fill()?;
    tokio::time::sleep(plan.full).await;
    disk.free()?;
    writers.finish(stage).await?;
    let (mut lines, mut lost) = (0, 0);
    for name in &writers.names {
        let (there, missing) = writers.read(stage, name)?;
        lines += there;
        lost += missing;
    }
    ensure!(lost > 0, "the file system was never full");
    let worst = writers.worst()?;
    ensure!(worst <= plan.longest_burst, "a writer was held up for {worst:?}");
    report.note(format!(
        "file system full {:?}: {lines} lines, {lost} dropped, which the logs tell of; longest burst {worst:?}",
        plan.full
    ));
    writers.remove(stage).await?;
    disk.unmount(stage).await
}

/// Containers that write numbered lines.
struct Writers {
    names: Vec<String>,
    ids: BTreeMap<String, String>,
    pods: Vec<(PodSpec, String)>,
    notes: PathBuf,
    logs: PathBuf,
}

impl Writers {
    async fn start(stage: &Stage, kind: &str, plan: Plan, logs: Option<&Path>) -> Result<Self> {
        let notes = stage.node.dir().join(format!("notes-{kind}"));
        fs::create_dir(&notes)?;
        let logs = logs.map_or_else(|| stage.node.dir().join("logs"), Path::to_owned);
        let burst = (plan.lines_per_second / 10).max(1);
        let mut writers = Self {
            names: (0..plan.containers).map(|n| format!("{kind}-{n}")).collect(),
            ids: BTreeMap::new(),
            pods: Vec::new(),
            notes,
            logs,
        };
        for (n, names) in writers.names.clone().chunks(POD_SIZE).enumerate() {
            writers.start_pod(stage, &format!("{kind}-{n}"), names, burst).await?;
        }
        fs::write(writers.notes.join("go"), "")?;
        Ok(writers)
    }

    async fn start_pod(&mut self, stage: &Stage, pod: &str, names: &[String], burst: usize) -> Result {
        let cri = stage.node.cri();
        let mut pod = stage.pod(pod);
        pod.config.log_directory = self.logs.display().to_string();
        let pod_id = cri.run_pod(&pod).await?;
        let starts = names.iter().cloned().map(|name| {
            let (cri, pod, pod_id) = (cri.clone(), pod.clone(), pod_id.clone());
            let spec = ContainerSpec::shell(&name, &stage.image, WRITER)
                .with_env("NAME", &name)
                .with_env("LAST", &LAST.to_string())
                .with_env("BURST", &burst.to_string())
                .with_mount(&self.notes, "/notes", false);
            // The daemon's machine may have another file system there than we have.
            let log = stage.node.machine().path(&self.logs.join(&name));
            async move {
                fs::create_dir_all(&log).with_context(|| format!("making {}", log.display()))?;
                Ok((name, cri.run(&pod_id, &spec, &pod).await?))
            }
        });
        self.ids.extend(together(starts).await?);
        self.pods.push((pod, pod_id));
        Ok(())
    }

    /// Has them come to an end and waits until all have ended well.
    async fn finish(&self, stage: &Stage) -> Result {
        fs::write(self.notes.join("last"), "")?;
        let cri = stage.node.cri();
        let deadline = tokio::time::Instant::now() + patience(180);
        for (name, id) in &self.ids {
            loop {
                let status = cri.container(id).await?;
                if status.state() == ContainerState::ContainerExited {
                    ensure!(status.exit_code == 0, "{name}: {status:?}");
                    break;
                }
                ensure!(tokio::time::Instant::now() < deadline, "{name} does not end: it waits for somebody");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Reads a log, in which each of the writer's lines is there once and in order, or told of as missing at its place; the
    /// last one is there. Gives how many are there and how many are missing.
    fn read(&self, stage: &Stage, name: &str) -> Result<(usize, usize)> {
        let path = stage.node.machine().path(&self.logs.join(name).join("0.log"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let (mut there, mut missing) = (0, 0);
        let mut before: [&str; 2] = [""; 2];
        for line in text.lines() {
            match Line::parse(line).with_context(|| name.to_owned())? {
                Line::Missing(count) => missing += count,
                Line::Written(number) if number == there + missing => there += 1,
                Line::Written(number) => bail!(
                    "{name}: line {number} comes where {} is expected, after these:\n{}\n{line}",
                    there + missing,
                    before.join("\n")
                ),
            }
            before = [before[1], line];
        }
        let [_, lines] = self.note(name)?;
        ensure!(lines == there + missing, "{name}: {there} lines and {missing} missing ones of {lines}");
        let resumed = matches!(Line::parse(before[1]), Ok(Line::Written(_)));
        ensure!(resumed, "{name}: nothing was written after the last notice");
        Ok((there, missing))
    }

    /// The longest time that a burst of any writer took.
    fn worst(&self) -> Result<Duration> {
        let mut worst = 0_usize;
        for name in &self.names {
            let [longest, _] = self.note(name)?;
            worst = worst.max(longest);
        }
        Ok(Duration::from_millis(u64::try_from(worst)? * 10))
    }

    /// What a writer has noted: the longest time that a burst took, in hundredths of a second, and how many lines it has written.
    fn note(&self, name: &str) -> Result<[usize; 2]> {
        let text = fs::read_to_string(self.notes.join(name)).with_context(|| format!("{name}'s note"))?;
        let numbers: Option<Vec<usize>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.with_context(|| format!("{name}'s note {text:?}"))
    }

    async fn remove(self, stage: &Stage) -> Result {
        let cri = stage.node.cri();
        for (_, id) in &self.pods {
            cri.stop_pod(id).await?;
            cri.remove_pod(id).await?;
        }
        Ok(())
    }
}

/// A line of a log.
enum Line {
    /// The writer's, with its number.
    Written(usize),
    /// The monitor's, which says how many lines are missing there.
    Missing(usize),
}

impl Line {
    /// Anything but a whole line is an error.
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let count = |text: &str| text.parse().with_context(|| format!("a number in {line:?}"));
        match fields.as_slice() {
            [time, "stdout", "F", number, text] if time.len() > 20 && text.len() == 80 => {
                Ok(Self::Written(count(number)?))
            }
            [_, "stderr", "F", "crimson:", number, "log", "line" | "lines", ..] => {
                Ok(Self::Missing(count(number)?))
            }
            _ => bail!("a torn line: {line:?}"),
        }
    }
}

/// A small file system for logs.
struct Disk {
    inside: PathBuf,
    outside: PathBuf,
}

impl Disk {
    async fn mount(stage: &Stage, mib: usize) -> Result<Self> {
        let inside = stage.node.dir().join("disk");
        fs::create_dir(&inside)?;
        let options = format!("size={mib}m,mode=755");
        let target = inside.display().to_string();
        stage.node.machine().output("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &target]).await?;
        let outside = stage.node.machine().path(&inside);
        Ok(Self { inside, outside })
    }

    fn fill(&self) -> Result {
        let mut ballast = fs::File::create(self.outside.join("ballast"))?;
        let block = vec![0_u8; 1 << 16];
        while ballast.write_all(&block).is_ok() {}
        // What is left is less than a block.
        while ballast.write_all(&[0]).is_ok() {}
        Ok(())
    }

    fn free(&self) -> Result {
        fs::remove_file(self.outside.join("ballast")).context("removing the ballast")
    }

    async fn unmount(self, stage: &Stage) -> Result {
        stage.node.machine().output("umount", &[&self.inside.display().to_string()]).await.map(drop)
    }
}
