//! Exit codes, reasons and times of containers that end while the daemon comes and goes.

mod deaths;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Random, Report, Stage, milliseconds, now};
use crate::cri::{ContainerState, ContainerStatus, NamespaceMode};
use crate::{ContainerSpec, Result, patience};

/// Signals that end a process which does not expect them.
const SIGNALS: [i32; 14] = [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// How many containers share a pod.
const POD_SIZE: usize = 10;

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many containers end.
    pub containers: usize,
    /// How often the daemon is killed meanwhile.
    pub kills: usize,
    /// Over which time the ends are spread.
    pub spread: Duration,
    /// By how much `finished_at` may be later than the moment when a bystander saw the container dead.
    pub tolerance: Duration,
    /// Where the random moments come from.
    pub seed: u64,
}

/// How one container ends.
#[derive(Debug, Clone)]
struct End {
    name: String,
    code: i32,
    line: String,
    id: String,
}

/// Containers that end by codes and signals while the daemon is killed again and again. Each one's last act is to create a
/// file: `finished_at` is not before that, and not long after somebody else saw the container dead.
pub async fn run(plan: Plan) -> Result<Report> {
    let mut stage = Stage::set("").await?;
    let mut random = Random::new(plan.seed);
    let volume = stage.node.dir().join("ends");
    std::fs::create_dir(&volume)?;
    let (mut ends, mut watches) = (Vec::new(), Vec::new());
    for (n, chunk) in plan_ends(&plan, &mut random).chunks(POD_SIZE).enumerate() {
        let started = start_pod(&stage, n, chunk, &volume).await?;
        let mut mortals = deaths::Mortals::default();
        for end in &started {
            mortals.add(&stage.node.cri(), &end.id).await?;
        }
        watches.push(mortals.watch()?);
        ends.extend(started);
    }
    let killed = kill_again_and_again(&mut stage, &plan, &mut random, &ends).await?;
    let mut deaths = BTreeMap::new();
    for watch in watches {
        deaths.extend(watch.moments()?);
    }
    let mut delays = Delays::default();
    for end in &ends {
        let status = stage.node.exited(&end.id).await?;
        check(end, &status, &volume, deaths.get(&end.id).copied(), &mut delays)
            .with_context(|| format!("seed {}: {}: {status:?}", plan.seed, end.name))?;
        if let Some(earlier) = killed.seen.get(&end.id) {
            ensure!(*earlier == status, "what was told of an end changed: {earlier:?} became {status:?}");
        }
    }
    let late = delays.later_than(plan.tolerance);
    ensure!(late.is_empty(), "seed {}: ended too late: {late:?}; {}", plan.seed, delays.describe());
    let mut report = Report::default();
    report.note(format!(
        "{} containers ended right ({} in the moments when no daemon ran), {} kills",
        ends.len(),
        delays.unseen(&killed.down),
        plan.kills
    ));
    report.note(format!("{} of them seen dead by a bystander; {}", deaths.len(), delays.describe()));
    stage.finish().await?;
    Ok(report)
}

fn plan_ends(plan: &Plan, random: &mut Random) -> Vec<End> {
    let mut ends = Vec::new();
    for n in 0..plan.containers {
        // In every other pod processes can be ended by signals, for none of them is the first of its namespace.
        let signals = (n / POD_SIZE) % 2 == 1 && n.is_multiple_of(2);
        let name = format!("end-{n}");
        let spread = u64::try_from(plan.spread.as_millis()).unwrap_or(u64::MAX);
        let wait = random.milliseconds(200, spread).as_secs_f64();
        let (code, line) = if signals {
            let signal = SIGNALS.get(n / 2 % SIGNALS.len()).copied().unwrap_or(9);
            // The shell itself has its own mind about some signals, so it becomes another program, which is waited for.
            let line = format!(
                "(sleep {wait:.3}; until grep -q ^sleep /proc/$$/cmdline; do sleep 0.01; done; \
                : >/ends/{name}; kill -{signal} $$) & exec sleep 1000"
            );
            (128 + signal, line)
        } else {
            let code = i32::try_from(n % 256).unwrap_or_default();
            (code, format!("sleep {wait:.3}; : >/ends/{name}; exit {code}"))
        };
        ends.push(End { name, code, line, id: String::new() });
    }
    ends
}

async fn start_pod(stage: &Stage, n: usize, ends: &[End], volume: &Path) -> Result<Vec<End>> {
    let cri = stage.node.cri();
    let shared = n % 2 == 1;
    let mut pod = stage.pod(&format!("ends-{n}"));
    if let Some(options) = pod.namespace_options().filter(|_| shared) {
        options.pid = NamespaceMode::Pod.into();
    }
    let pod_id = cri.run_pod(&pod).await?;
    let starts = ends.iter().cloned().map(|end| {
        let (cri, pod, pod_id) = (cri.clone(), pod.clone(), pod_id.clone());
        let spec = container(&end, stage, volume, shared);
        async move { Ok(End { id: cri.run(&pod_id, &spec, &pod).await?, ..end }) }
    });
    super::together(starts).await
}

fn container(end: &End, stage: &Stage, volume: &Path, shared: bool) -> ContainerSpec {
    let spec = ContainerSpec::shell(&end.name, &stage.image, &end.line).with_mount(volume, "/ends", false);
    spec.secured(|context| {
        if let Some(options) = context.namespace_options.as_mut().filter(|_| shared) {
            options.pid = NamespaceMode::Pod.into();
        }
    })
}

/// What happened while the daemon was killed.
#[derive(Debug, Default)]
struct Killed {
    /// When no daemon ran.
    down: Vec<(i64, i64)>,
    /// Ends that a daemon told of, by the container's id: no later one may tell another story.
    seen: BTreeMap<String, ContainerStatus>,
}

async fn kill_again_and_again(
    stage: &mut Stage,
    plan: &Plan,
    random: &mut Random,
    ends: &[End],
) -> Result<Killed> {
    let mut killed = Killed::default();
    let spread = u64::try_from(plan.spread.as_millis()).unwrap_or(u64::MAX);
    let rhythm = spread / u64::try_from(plan.kills.max(1)).unwrap_or(1);
    for _ in 0..plan.kills {
        tokio::time::sleep(random.milliseconds(0, rhythm)).await;
        stage.node.kill9().await?;
        let from = now();
        tokio::time::sleep(random.milliseconds(0, rhythm)).await;
        stage.node.restart().await?;
        killed.down.push((from, now()));
        for container in stage.node.cri().all_containers().await? {
            if container.state() == ContainerState::ContainerExited {
                let status = stage.node.cri().container(&container.id).await?;
                killed.seen.entry(container.id).or_insert(status);
            }
        }
        let listed = stage.node.cri().all_containers().await?.len();
        ensure!(listed == ends.len(), "{listed} of {} containers are listed", ends.len());
    }
    // The last ends are those of containers that were started last.
    let deadline = tokio::time::Instant::now() + plan.spread + patience(30);
    while stage
        .node
        .cri()
        .all_containers()
        .await?
        .iter()
        .any(|it| it.state() == ContainerState::ContainerRunning)
    {
        ensure!(tokio::time::Instant::now() < deadline, "some containers do not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(killed)
}

/// One end: when it was, and how much later it was told to be.
#[derive(Debug, Clone)]
struct Delay {
    name: String,
    /// The time of its last act.
    at: i64,
    after_act: i64,
    /// After it was seen dead; after its last act where nobody saw.
    after_death: i64,
}

#[derive(Debug, Default)]
struct Delays(Vec<Delay>);

impl Delays {
    fn describe(&self) -> String {
        let [act, death] = [|it: &Delay| it.after_act, |it: &Delay| it.after_death].map(|part| {
            let mut delays: Vec<i64> = self.0.iter().map(part).collect();
            delays.sort_unstable();
            let at = |part: usize| delays.get((delays.len() * part / 100).min(delays.len() - 1)).copied();
            let [median, late, last] = [50, 99, 100].map(|part| milliseconds(at(part).unwrap_or_default()));
            format!("median {median}, 99th percentile {late}, worst {last}")
        });
        format!("finished_at after the last act: {act}; after being seen dead: {death}")
    }

    fn later_than(&self, tolerance: Duration) -> Vec<String> {
        let tolerance = i64::try_from(tolerance.as_nanos()).unwrap_or(i64::MAX);
        let late = self.0.iter().filter(|it| it.after_death > tolerance);
        late.map(|it| format!("{} {}", it.name, milliseconds(it.after_death))).collect()
    }

    fn unseen(&self, down: &[(i64, i64)]) -> usize {
        let unseen = |at: i64| down.iter().any(|(from, to)| *from <= at && at <= *to);
        self.0.iter().filter(|it| unseen(it.at)).count()
    }
}

fn check(
    end: &End,
    status: &ContainerStatus,
    volume: &Path,
    death: Option<i64>,
    delays: &mut Delays,
) -> Result {
    let reason = if end.code == 0 { "Completed" } else { "Error" };
    ensure!(status.exit_code == end.code, "code {} instead of {}", status.exit_code, end.code);
    ensure!(status.reason == reason, "reason {:?} instead of {reason}", status.reason);
    let at = modified(&volume.join(&end.name))?;
    let after_act = status.finished_at - at;
    // The time of a file comes from a clock that ticks every few milliseconds.
    ensure!(after_act > -10_000_000, "finished {} before its last act", milliseconds(-after_act));
    let after_death = status.finished_at - death.unwrap_or(at);
    delays.0.push(Delay { name: end.name.clone(), at, after_act, after_death });
    Ok(())
}

fn modified(path: &PathBuf) -> Result<i64> {
    let data = std::fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok(data.mtime() * 1_000_000_000 + data.mtime_nsec())
}
