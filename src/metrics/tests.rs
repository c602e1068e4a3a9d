//! `docs/metrics.md`, the dashboard and the alert rules, held to what is rendered.
//!
//! The table is made from the code: `UPDATE_DOCS=1 cargo test -p crimson metrics` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use image::{ImageFigures, PullFailure, PullFigures};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tower_layer::Layer as _;
use types::{Durations, Timestamp};

use super::figures::Figures;
use super::*;
use crate::pod::{MonitorFigures, Observer as _, StateCounts};
use crate::tasks::{Kind, TaskView};

const PREAMBLE: &str = include_str!("preamble.md");

/// What the drivers would tell.
#[derive(Debug)]
struct Samples;

impl Collector for Samples {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut to = Figures(encoder);
        pods::write(&mut to, &pods())?;
        images::write(&mut to, &images())?;
        networks::write(&mut to, &networks())
    }
}

fn pods() -> super::pods::Seen {
    let task = TaskView {
        kind: Kind::Operation,
        verb: "run sandbox",
        object: "sandbox a/b".to_owned(),
        id: "c".to_owned(),
        owner: String::new(),
        age: Duration::from_secs(3),
        stages: Vec::new(),
        after: None,
    };
    let younger = TaskView { age: Duration::from_secs(1), ..task.clone() };
    let session = TaskView { kind: Kind::Session, verb: "exec in", ..task.clone() };
    super::pods::Seen {
        states: StateCounts { sandboxes_ready: 2, containers_running: 5, ..StateCounts::default() },
        monitors: MonitorFigures { running: Vec::new(), lost: 1, reconnected: 4 },
        pending: Vec::new(),
        lost_log_lines: 7,
        subscriptions: 1,
        tasks: vec![younger, task, session],
    }
}

fn images() -> ImageFigures {
    let durations = Durations::new(&[1.0, 10.0]);
    durations.add(Duration::from_secs(2));
    ImageFigures {
        images: 3,
        usage: image::StoreUsage {
            mountpoint: PathBuf::from("/"),
            used_bytes: 4096,
            inodes_used: 9,
            timestamp: Timestamp(0),
        },
        pulls: PullFigures {
            started: 2,
            joined: 0,
            succeeded: 1,
            failed: PullFailure::ALL.into_iter().map(|why| (why, 0)).collect(),
            received_bytes: 1000,
            unpacked_bytes: 3000,
            layers_fetched: 2,
            layers_shared: 1,
            durations: durations.read(),
            download_rates: image::RateCounts { buckets: vec![(1e6, 1), (f64::INFINITY, 1)], sum: 3_000_000 },
            in_progress: Vec::new(),
        },
    }
}

fn networks() -> Vec<cni::OperationFigures> {
    let durations = Durations::new(&[0.1]);
    let figures = |verb| cni::OperationFigures {
        verb,
        ok: 1,
        failed: 0,
        timed_out: 2,
        in_flight: 1,
        durations: durations.read(),
    };
    vec![figures("ADD"), figures("DEL")]
}

/// Answers every call with an error.
#[derive(Debug, Clone)]
struct Refusing;

impl Service<Request<()>> for Refusing {
    type Response = Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), std::convert::Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(tonic::Status::not_found("nothing here").into_http()))
    }
}

/// A text with every metric that there is.
async fn everything() -> String {
    let metrics = Metrics::new();
    let request = Request::builder().uri("/runtime.v1.RuntimeService/Version").body(()).unwrap();
    metrics.calls().layer(Refusing).call(request).await.unwrap();
    metrics.verbs.step("run sandbox", "CNI", Duration::from_millis(20), false);
    metrics.verbs.verb("run sandbox", Duration::from_millis(80), true);
    metrics.recovered(Duration::from_millis(1500));
    let mut registry = metrics.registry.lock().unwrap();
    registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(Samples));
    drop(registry);
    metrics.render()
}

/// A metric as its lines describe it.
#[derive(Debug, Default)]
struct Described {
    name: String,
    kind: String,
    help: String,
    labels: Vec<String>,
    samples: BTreeSet<String>,
}

fn described(text: &str) -> Vec<Described> {
    let mut all: Vec<Described> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            all.push(Described { name: name.to_owned(), help: help.to_owned(), ..Described::default() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            all.last_mut().unwrap().kind = rest.split_once(' ').unwrap().1.to_owned();
        } else if !line.starts_with('#') {
            all.last_mut().unwrap().sample(line);
        }
    }
    all
}

impl Described {
    fn sample(&mut self, line: &str) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        self.samples.insert(name.to_owned());
        for label in
            labels.trim_end_matches('}').split(',').filter_map(|label| Some(label.split_once('=')?.0))
        {
            if label != "le" && !self.labels.iter().any(|known| known == label) {
                self.labels.push(label.to_owned());
            }
        }
    }

    /// As it is written in a query.
    fn queried(&self) -> String {
        match self.kind.as_str() {
            "counter" => format!("{}_total", self.name),
            "info" => format!("{}_info", self.name),
            _ => self.name.clone(),
        }
    }

    fn row(&self) -> String {
        let labels = self.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        format!("| `{}` | {} | {labels} | {} |\n", self.queried(), self.kind, self.help)
    }
}

fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[tokio::test]
async fn the_reference_is_up_to_date() {
    let mut all = described(&everything().await);
    all.sort_by_key(Described::queried);
    let mut text = PREAMBLE.to_owned();
    for metric in &all {
        write!(text, "{}", metric.row()).unwrap();
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md"), &text).unwrap();
    }
    let stale = "docs/metrics.md is stale: UPDATE_DOCS=1 cargo test -p crimson metrics";
    assert_eq!(file("docs/metrics.md"), text, "{stale}");
}

#[tokio::test]
async fn the_text_is_what_readers_expect() {
    let text = everything().await;
    assert!(text.ends_with("# EOF\n"));
    assert!(CONTENT_TYPE.starts_with("application/openmetrics-text; version=1.0.0"));
    let all = described(&text);
    let names: BTreeSet<_> = all.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "each metric is described once");
    for metric in &all {
        assert!(!metric.samples.is_empty(), "{} has no series", metric.name);
        assert!(["crimson_", "process_"].iter().any(|prefix| metric.name.starts_with(prefix)));
        assert!(!metric.name.ends_with("_total"), "{} would be _total_total", metric.name);
    }
    for line in [
        "crimson_rpc_total{method=\"Version\",code=\"NotFound\"} 1",
        "crimson_verbs_in_progress{verb=\"run sandbox\"} 2",
        "crimson_verb_oldest_seconds{verb=\"run sandbox\"} 3.0",
        "crimson_containers{state=\"running\"} 5",
        "crimson_cni_operations_total{op=\"DEL\",result=\"timeout\"} 2",
        "crimson_image_pull_duration_seconds_bucket{le=\"1.0\"} 0",
        "crimson_image_pull_duration_seconds_bucket{le=\"10.0\"} 1",
        "crimson_image_pull_duration_seconds_bucket{le=\"+Inf\"} 1",
        "crimson_image_pull_duration_seconds_sum 2.0",
        "crimson_log_lines_lost_total 7",
        "crimson_recovery_duration_seconds 1.5",
    ] {
        assert!(text.lines().any(|has| has == line), "{line} in\n{text}");
    }
    assert!(!text.contains("exec in"), "sessions are no operations");
}

/// The names of metrics in a query, and the labels that it groups by or selects.
fn mentioned(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = query.split(|c| !is_word(c));
    let names = words.filter(|word| word.starts_with("crimson_") || word.starts_with("process_"));
    let mut labels = BTreeSet::new();
    for part in query.split("by (").skip(1) {
        let list = part.split(')').next().unwrap_or_default();
        labels.extend(list.split(',').map(|label| label.trim().to_owned()));
    }
    for part in query.split('{').skip(1) {
        let list = part.split('}').next().unwrap_or_default();
        let names = list.split(',').filter_map(|matcher| matcher.split(['=', '!']).next());
        labels.extend(names.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()));
    }
    (names.map(str::to_owned).collect(), labels)
}

/// Fails when a query names a metric or a label that does not exist. Says how many metrics were named.
async fn check(queries: &[String]) -> usize {
    let all = described(&everything().await);
    let series: BTreeSet<_> = all.iter().flat_map(|metric| metric.samples.iter().cloned()).collect();
    let mut labels: BTreeSet<_> = all.iter().flat_map(|metric| metric.labels.iter().cloned()).collect();
    // Those that Prometheus adds, and that of buckets.
    labels.extend(["job", "instance", "le"].map(str::to_owned));
    let mut named = BTreeSet::new();
    for query in queries {
        let (names, used) = mentioned(query);
        assert!(names.is_subset(&series), "{query}: unknown: {:?}", names.difference(&series));
        assert!(used.is_subset(&labels), "{query}: unknown: {:?}", used.difference(&labels));
        named.extend(names);
    }
    named.len()
}

fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            found.extend(map.get("expr").and_then(|expr| expr.as_str()).map(str::to_owned));
            map.values().for_each(|value| queries(value, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_dashboard_shows_what_there_is() {
    let dashboard: serde_json::Value = serde_json::from_str(&file("deploy/grafana/crimson.json")).unwrap();
    let mut found = Vec::new();
    queries(&dashboard, &mut found);
    assert!(check(&found).await > 40, "{found:?}");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
}

#[tokio::test]
async fn the_alerts_are_about_what_there_is() {
    let rules = file("deploy/prometheus/crimson-rules.yaml");
    let alerts = rules.lines().filter(|line| line.trim_start().starts_with("- alert: ")).count();
    assert!(alerts >= 10, "{alerts}");
    for part in ["for: ", "severity: ", "summary: ", "description: ", "expr: "] {
        assert_eq!(rules.matches(part).count(), alerts, "each alert has {part:?}");
    }
    let found = rules.split("expr: ").skip(1).map(|rest| rest.split("for: ").next().unwrap().to_owned());
    let found: Vec<_> = found.collect();
    assert!(check(&found).await > 10);
}
