//! From the parts of the daemon to the answer: reads what they have published.

use std::time::Duration;

use serde_json::Value;
use types::Timestamp;

use super::board::{Board, Daemon};
use super::redact::redact;
use super::status::{
    Build, Caller, Cgroups, Container, ContainerCounts, Handler, Monitors, Network, Pending, Pod, PodCounts,
    Pull, Recovered, Server, Stage, Status, Task, VERSION,
};
use crate::config::ConfigFile;
use crate::pod::view::{ContainerState, ContainerView, PodView, SandboxState};
use crate::pod::{self, Pods};
use crate::tasks::{CallerView, Kind, StageView, TaskView};

/// All that is to be told. Waits for no more than locks.
pub(super) fn status(board: &Board, latency: Option<Duration>, details: bool) -> Status {
    let mut status = Status {
        version: VERSION,
        build: build(),
        server: server(board, latency),
        log: Some(board.logging.level()),
        config: config(&board.config),
        recovery: board.recovery.get().map(recovered),
        ..Status::default()
    };
    if let Some(daemon) = board.daemon.get() {
        add_daemon(&mut status, daemon);
        add_pods(&mut status, &daemon.live.pods, details);
        add_work(&mut status, &daemon.live.pods);
    }
    status
}

fn build() -> Build {
    let features = if cfg!(debug_assertions) { vec!["failpoints".to_owned()] } else { Vec::new() };
    Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("CRIMSON_COMMIT").map(str::to_owned),
        rustc: env!("CRIMSON_RUSTC").to_owned(),
        target: env!("CRIMSON_TARGET").to_owned(),
        profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        features,
    }
}

fn server(board: &Board, latency: Option<Duration>) -> Server {
    Server {
        pid: std::process::id(),
        phase: board.phase(),
        started_at: instant(board.begun_at),
        uptime: seconds(board.begun.elapsed()),
        latency: latency.map(|latency| latency.as_secs_f64()),
    }
}

fn config(file: &ConfigFile) -> Value {
    serde_json::to_value(file).map_or(Value::Null, redact)
}

fn recovered(found: &pod::Recovery) -> Recovered {
    let pod::Recovery { sandboxes, containers, undone, broken } = *found;
    Recovered { sandboxes, containers, undone, broken }
}

fn add_daemon(status: &mut Status, daemon: &Daemon) {
    let live = &daemon.live;
    let network = live.pods.drivers().network.status();
    status.network = Some(Network { ready: network.ready, reason: network.reason, message: network.message });
    let driver = live.pods.drivers().cgroups.kind().as_str().to_owned();
    status.cgroups = Cgroups { driver: Some(driver), version: daemon.cgroups.clone() };
    status.handlers = handlers(&live.pods.settings());
    status.config = config(&live.written.borrow());
    status.streams = live.streaming.sessions();
    status.pulls = live.images.figures().pulls.in_progress.into_iter().map(pull).collect();
    status.monitors = monitors(&live.pods);
    status.teardown = live.pods.pending_teardowns().into_iter().map(pending).collect();
}

fn handlers(settings: &pod::Settings) -> Vec<Handler> {
    let of = |handler: &pod::Handler, is_retired: bool| Handler {
        name: handler.name.clone(),
        path: handler.command.path.display().to_string(),
        runtime: handler.version.clone(),
        is_default: !is_retired && handler.name == settings.default_handler,
        is_retired,
        broken: handler.broken.clone(),
    };
    let used = settings.handlers.values().map(|handler| of(handler, false));
    let mut handlers: Vec<_> = used.chain(settings.retired.values().map(|it| of(it, true))).collect();
    handlers.sort_by_key(|handler| (!handler.is_default, handler.is_retired));
    handlers
}

fn pull(pull: image::PullProgress) -> Pull {
    Pull {
        stage: pull.stage.word().to_owned(),
        age: seconds(pull.age),
        bytes: pull.bytes_done,
        bytes_expected: pull.bytes_expected,
        layers_done: pull.layers_done,
        layers: pull.layers,
        callers: pull.waiters,
        reference: pull.reference,
    }
}

fn monitors(pods: &Pods) -> Monitors {
    let figures = pods.monitors();
    Monitors { connected: figures.running.len(), lost: figures.lost, reconnected: figures.reconnected }
}

fn pending(teardown: pod::PendingTeardown) -> Pending {
    Pending {
        verb: teardown.verb.to_owned(),
        object: teardown.object,
        id: teardown.id,
        stage: teardown.stage.to_owned(),
        age: seconds(teardown.age),
        failures: teardown.failures,
        reason: teardown.last_error,
    }
}

fn add_pods(status: &mut Status, pods: &Pods, details: bool) {
    let counts = pods.state_counts();
    status.pods = PodCounts {
        starting: counts.sandboxes_starting,
        ready: counts.sandboxes_ready,
        not_ready: counts.sandboxes_not_ready,
    };
    status.containers = ContainerCounts {
        created: counts.containers_created,
        running: counts.containers_running,
        exited: counts.containers_exited,
    };
    status.lost_log_lines = pods.lost_log_lines().total;
    status.event_subscribers = pods.events().subscriptions();
    status.pod_list = details.then(|| pods.list().iter().filter_map(|view| listed(view)).collect());
}

fn sandbox_state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Ready => "ready",
        SandboxState::NotReady => "not_ready",
    }
}

fn container_state(view: &ContainerView) -> &'static str {
    match view.state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
    }
}

fn listed(view: &PodView) -> Option<Pod> {
    let sandbox = view.sandbox.as_ref()?;
    Some(Pod {
        id: sandbox.id.to_string(),
        name: format!("{}/{}", sandbox.request.namespace(), sandbox.request.name()),
        state: sandbox_state(sandbox.state).to_owned(),
        created_at: instant(sandbox.created_at),
        handler: sandbox.handler.clone(),
        ips: sandbox.ips.iter().map(ToString::to_string).collect(),
        containers: view.containers.iter().map(|view| container(view)).collect(),
    })
}

fn container(view: &ContainerView) -> Container {
    Container {
        id: view.id.to_string(),
        name: view.request.name().to_owned(),
        attempt: view.request.attempt(),
        state: container_state(view).to_owned(),
        created_at: instant(view.created_at),
        exit_code: (view.state == ContainerState::Exited).then_some(view.exit_code),
        reason: view.reason.to_owned(),
        image: view.image_name.clone(),
    }
}

/// Operations with those who wait for them, and those who wait for none.
fn add_work(status: &mut Status, pods: &Pods) {
    let mut callers = pods.in_flight().callers();
    for view in pods.in_flight().list() {
        let owner = pods.owner(&view.owner);
        let pod_id = owner.as_ref().map_or(view.id.as_str(), |(id, _)| id.as_str());
        let (mine, others): (Vec<_>, Vec<_>) =
            callers.into_iter().partition(|caller| waits_for(caller, &view, pod_id));
        callers = others;
        let list = if view.kind == Kind::Session { &mut status.sessions } else { &mut status.tasks };
        list.push(task(view, owner.and_then(|(_, name)| name), &mine));
    }
    status.waiting = callers.into_iter().map(|view| caller(view, pods)).collect();
}

fn waits_for(caller: &CallerView, task: &TaskView, pod_id: &str) -> bool {
    let of_it = if caller.container.is_empty() {
        caller.pod == task.id
    } else {
        caller.pod == pod_id && (caller.container == task.id || caller.container == task.object)
    };
    caller.verb == task.verb && of_it
}

fn task(view: TaskView, pod: Option<String>, callers: &[CallerView]) -> Task {
    Task {
        verb: view.verb.to_owned(),
        object: view.object,
        id: view.id,
        pod,
        age: seconds(view.age),
        stages: view.stages.into_iter().map(stage).collect(),
        after: view.after.map(stage),
        callers: callers.len(),
        waited: callers.first().map(|caller| seconds(caller.age)),
    }
}

fn stage(view: StageView) -> Stage {
    Stage { name: view.name.to_owned(), age: seconds(view.age), waits: view.waits }
}

fn caller(view: CallerView, pods: &Pods) -> Caller {
    Caller {
        verb: view.verb.to_owned(),
        container: view.container,
        pod: pods.owner(&view.pod).and_then(|(_, name)| name),
        pod_id: view.pod,
        age: seconds(view.age),
    }
}

/// To the millisecond, which is as much as anybody reads.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn instant(time: Timestamp) -> f64 {
    seconds(Duration::from_nanos(u64::try_from(time.0).unwrap_or_default()))
}
