//! What pods tell: how many there are in which state, their monitors, and what is not gone yet.

use std::collections::BTreeMap;
use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::figures::{About, Figures};
use crate::pod::{MonitorFigures, PendingTeardown, Pods, StateCounts};
use crate::tasks::{Kind, TaskView};

/// Reads the pods' own figures.
#[derive(Debug)]
pub(super) struct OfPods(pub(super) Pods);

impl Collector for OfPods {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        write(&mut Figures(encoder), &Seen::of(&self.0))
    }
}

/// What pods tell at one moment.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) states: StateCounts,
    pub(super) monitors: MonitorFigures,
    pub(super) pending: Vec<PendingTeardown>,
    pub(super) lost_log_lines: u64,
    pub(super) subscriptions: usize,
    pub(super) tasks: Vec<TaskView>,
}

impl Seen {
    fn of(pods: &Pods) -> Self {
        Self {
            states: pods.state_counts(),
            monitors: pods.monitors(),
            pending: pods.pending_teardowns(),
            lost_log_lines: pods.lost_log_lines().total,
            subscriptions: pods.events().subscriptions(),
            tasks: pods.in_flight().list(),
        }
    }
}

pub(super) fn write(to: &mut Figures<'_>, seen: &Seen) -> Result<(), Error> {
    states(to, seen.states)?;
    monitors(to, &seen.monitors)?;
    teardown(to, &seen.pending)?;
    let help = "Lines of containers' logs that could not be written";
    to.counter(About::new("log_lines_lost", help), seen.lost_log_lines)?;
    let help = "Clients that follow events of containers";
    to.gauge(About::new("event_subscriptions", help), seen.subscriptions)?;
    operations(to, &seen.tasks)
}

fn states(to: &mut Figures<'_>, counts: StateCounts) -> Result<(), Error> {
    let sandboxes = [
        ("starting", counts.sandboxes_starting),
        ("ready", counts.sandboxes_ready),
        ("not_ready", counts.sandboxes_not_ready),
    ];
    to.gauges(About::new("sandboxes", "Sandboxes, by state"), sandboxes.map(by_state))?;
    let containers = [
        ("created", counts.containers_created),
        ("running", counts.containers_running),
        ("exited", counts.containers_exited),
    ];
    to.gauges(About::new("containers", "Containers, by state"), containers.map(by_state))
}

fn by_state((state, count): (&'static str, usize)) -> ([(&'static str, &'static str); 1], usize) {
    ([("state", state)], count)
}

fn monitors(to: &mut Figures<'_>, monitors: &MonitorFigures) -> Result<(), Error> {
    to.gauge(About::new("monitors", "Monitors that the server is connected to"), monitors.running.len())?;
    let help = "Monitors that died while their pod needed them";
    to.counter(About::new("monitors_lost", help), monitors.lost)?;
    let help = "Connections to monitors that broke and were made again";
    to.counter(About::new("monitor_reconnects", help), monitors.reconnected)
}

fn teardown(to: &mut Figures<'_>, pending: &[PendingTeardown]) -> Result<(), Error> {
    let help = "Teardowns that go on behind their call, or wait to be tried again";
    to.gauge(About::new("teardowns_pending", help), pending.len())?;
    let failing = pending.iter().filter(|it| it.failures > 0).count();
    to.gauge(About::new("teardowns_failing", "Pending teardowns that have failed before"), failing)?;
    let oldest = pending.iter().map(|it| it.age.as_secs_f64()).fold(0.0, f64::max);
    to.gauge(About::seconds("teardown_oldest", "Age of the oldest pending teardown, or 0"), oldest)
}

/// Sessions last as long as their users like, and say nothing about the server.
fn operations(to: &mut Figures<'_>, tasks: &[TaskView]) -> Result<(), Error> {
    let mut by_verb: BTreeMap<&'static str, (u64, f64)> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.kind == Kind::Operation) {
        let (count, oldest) = by_verb.entry(task.verb).or_default();
        *count += 1;
        *oldest = oldest.max(task.age.as_secs_f64());
    }
    let counts = by_verb.iter().map(|(verb, (count, _))| ([("verb", *verb)], *count));
    to.gauges(About::new("verbs_in_progress", "Verbs that have not ended"), counts)?;
    let oldest = by_verb.iter().map(|(verb, (_, oldest))| ([("verb", *verb)], *oldest));
    to.gauges(About::seconds("verb_oldest", "Age of the oldest verb of its kind that has not ended"), oldest)
}
