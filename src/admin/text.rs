//! The answer as `crimson status` prints it: what is wrong first, then the whole in a few lines, then what is in flight.

use std::time::Duration;

use super::status::{Caller, Handler, Monitors, Pending, Phase, Pod, Pull, Stage, Status, Task};

/// Marks what has taken too long.
const STUCK: &str = "!";

impl Status {
    /// What an operator should look at, in sentences; empty when all is well. What is done, and what is waited for, counts as stuck
    /// after `patience`.
    #[must_use]
    pub fn problems(&self, patience: Duration) -> Vec<String> {
        let mut problems = self.not_ready();
        let limit = patience.as_secs_f64();
        problems.extend(self.tasks.iter().filter(|task| task.is_stuck(limit)).map(Task::problem));
        problems.extend(self.waiting.iter().filter(|caller| caller.age > limit).map(Caller::problem));
        problems.extend(self.teardown.iter().filter(|it| it.is_stuck(limit)).map(Pending::problem));
        problems
    }

    fn not_ready(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.server.latency.is_none() {
            problems.push("the server's workers are stuck: they run no tasks".to_owned());
        }
        if self.server.phase != Phase::Serving {
            problems.push(format!("the server is {}", self.server.phase.word()));
        }
        if self.server.phase == Phase::Starting {
            return problems;
        }
        match self.handlers.iter().find(|handler| handler.is_default) {
            None => problems.push("no OCI runtime is configured or found".to_owned()),
            Some(Handler { broken: Some(reason), name, .. }) => {
                problems.push(format!("handler {name}, the default, does not work: {reason}"));
            }
            Some(_) => {}
        }
        if let Some(network) = self.network.as_ref().filter(|network| !network.ready) {
            problems.push(format!("the network is not ready: {}", network.message));
        }
        if let Some(broken) = self.recovery.map(|found| found.broken).filter(|broken| *broken > 0) {
            problems.push(format!("{broken} records of pods cannot be read: see crimson check"));
        }
        problems
    }

    /// For people.
    #[must_use]
    pub fn text(&self, patience: Duration) -> String {
        let limit = patience.as_secs_f64();
        let mut text = self.headline();
        for problem in self.problems(patience) {
            text.push_str(&format!("{STUCK} {}\n", one_line(&problem)));
        }
        text.push('\n');
        for (name, value) in self.summary() {
            text.push_str(&format!("{name:12}{}\n", one_line(&value)));
        }
        let tasks = self.tasks.iter().map(|task| task.row(limit));
        let waiting = self.waiting.iter().map(|caller| caller.row(limit));
        table(&mut text, ["IN FLIGHT", "AGE", "STAGE", "CALLERS"], tasks.chain(waiting).collect());
        let pending = self.teardown.iter().map(|pending| pending.row(limit));
        table(&mut text, ["GOES ON BEHIND", "AGE", "STAGE", "LAST FAILURE"], pending.collect());
        table(&mut text, ["PULL", "AGE", "STAGE", "DONE"], self.pulls.iter().map(Pull::row).collect());
        let sessions = self.sessions.iter().map(|session| session.row(f64::INFINITY));
        table(&mut text, ["SESSION", "AGE", "STAGE", "CALLERS"], sessions.collect());
        if let Some(pods) = &self.pod_list {
            table(&mut text, ["POD", "STATE", "HANDLER", "ID"], pods.iter().flat_map(Pod::rows).collect());
        }
        text
    }

    fn headline(&self) -> String {
        let build = &self.build;
        let commit = build.commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default();
        let features: String = build.features.iter().map(|feature| format!(", {feature}")).collect();
        format!(
            "crimson {}{commit}: {} for {}, pid {}; {} build{features} by {} for {}\n",
            build.version,
            self.server.phase.word(),
            age(self.server.uptime),
            self.server.pid,
            build.profile,
            build.rustc,
            build.target,
        )
    }

    fn summary(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some(log) = &self.log {
            lines.push(("log level", log.report().trim_end().replace('\n', ", ")));
        }
        let configured = ["root", "state", "socket"]
            .map(|key| format!("{key} {}", self.config[key].as_str().unwrap_or("?")));
        lines.push(("directories", configured.join(", ")));
        if let (Some(driver), Some(version)) = (&self.cgroups.driver, &self.cgroups.version) {
            lines.push(("cgroups", format!("{version}, made by {driver}")));
        }
        lines.extend(self.handlers.iter().map(|handler| ("OCI runtime", handler.line())));
        if let Some(network) = &self.network {
            lines.push(("network", if network.ready { "ready" } else { "not ready" }.to_owned()));
        }
        if let Some(found) = &self.recovery {
            let (pods, containers) = (found.sandboxes, found.containers);
            let rest = format!("{} undone, {} unreadable", found.undone, found.broken);
            lines.push(("recovered", format!("{pods} sandboxes, {containers} containers; {rest}")));
        }
        if self.server.phase != Phase::Starting {
            lines.extend(self.counts());
        }
        lines
    }

    fn counts(&self) -> [(&'static str, String); 5] {
        let (pods, containers, monitors) = (self.pods, self.containers, self.monitors);
        let Monitors { connected, lost, reconnected } = monitors;
        let (ready, not_ready, starting) = (pods.ready, pods.not_ready, pods.starting);
        let (running, created, exited) = (containers.running, containers.created, containers.exited);
        let (streams, subscribers) = (self.streams, self.event_subscribers);
        [
            ("pods", format!("{ready} ready, {not_ready} not ready, {starting} starting")),
            ("containers", format!("{running} running, {created} created, {exited} exited")),
            ("monitors", format!("{connected} connected, {lost} lost, {reconnected} reconnected")),
            ("log lines", format!("{} of containers lost", self.lost_log_lines)),
            ("clients", format!("{streams} of sessions, {subscribers} of events")),
        ]
    }
}

impl Handler {
    fn line(&self) -> String {
        let marks = [(self.is_default, " (default)"), (self.is_retired, " (retired by a reload)")];
        let marks: String = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
        let version = if self.runtime.is_empty() { "version unknown" } else { &self.runtime };
        let broken =
            self.broken.as_ref().map(|reason| format!("; DOES NOT WORK: {reason}")).unwrap_or_default();
        format!("{}{marks}: {}, {version}{broken}", self.name, self.path)
    }
}

impl Task {
    /// What waits on purpose is not stuck, nor is what its user holds up.
    fn is_stuck(&self, limit: f64) -> bool {
        let waits = self.stages.iter().any(|stage| stage.waits);
        let stage = self.stages.first().or(self.after.as_ref());
        !waits && stage.map_or(self.age, |stage| stage.age) > limit
    }

    /// Most names say already what they are.
    fn what(&self) -> String {
        let object = self.object.strip_prefix("sandbox ").unwrap_or(&self.object);
        let object = object.strip_prefix("container ").unwrap_or(object);
        match &self.pod {
            Some(pod) if !object.starts_with(pod.as_str()) => format!("{} {object} of {pod}", self.verb),
            _ => format!("{} {object}", self.verb),
        }
    }

    fn stage(&self) -> String {
        match (self.stages.as_slice(), &self.after) {
            ([], None) => "begins".to_owned(),
            ([], Some(after)) => format!("{} ago: {}", age(after.age), after.name),
            (stages, _) => stages.iter().map(Stage::text).collect::<Vec<_>>().join(", "),
        }
    }

    fn problem(&self) -> String {
        format!("{} ({}) takes {}: {}", self.what(), short(&self.id), age(self.age), self.stage())
    }

    fn row(&self, limit: f64) -> Row {
        let callers = match self.waited {
            Some(waited) => format!("{}, for {}", self.callers, age(waited)),
            None => "none".to_owned(),
        };
        Row { is_stuck: self.is_stuck(limit), cells: [self.what(), age(self.age), self.stage(), callers] }
    }
}

impl Stage {
    fn text(&self) -> String {
        format!("{} {}", self.name, age(self.age))
    }
}

impl Caller {
    fn what(&self) -> String {
        let pod = self.pod.clone().unwrap_or_else(|| format!("pod {}", short(&self.pod_id)));
        match self.container.as_str() {
            "" => format!("{} {pod}", self.verb),
            container => {
                let container = container.strip_prefix("container ").unwrap_or(short(container));
                format!("{} {container} of {pod}", self.verb)
            }
        }
    }

    fn problem(&self) -> String {
        format!("{} has not begun for {}: something else of the pod goes on", self.what(), age(self.age))
    }

    fn row(&self, limit: f64) -> Row {
        let cells = [self.what(), age(self.age), "has not begun".to_owned(), "1".to_owned()];
        Row { is_stuck: self.age > limit, cells }
    }
}

impl Pending {
    fn is_stuck(&self, limit: f64) -> bool {
        self.failures > 0 || self.age > limit
    }

    fn what(&self) -> String {
        format!("{} {}", self.verb, self.object)
    }

    fn problem(&self) -> String {
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let tries = match self.failures {
            0 => String::new(),
            1 => ", has failed once".to_owned(),
            many => format!(", has failed {many} times"),
        };
        format!("{} ({}) goes on behind for {}{tries}{reason}", self.what(), short(&self.id), age(self.age))
    }

    fn row(&self, limit: f64) -> Row {
        let failure = self.reason.clone().unwrap_or_else(|| "none".to_owned());
        let cells = [self.what(), age(self.age), self.stage.clone(), failure];
        Row { is_stuck: self.is_stuck(limit), cells }
    }
}

impl Pull {
    fn row(&self) -> Row {
        let mib = |bytes: u64| bytes >> 20;
        let done = match self.bytes_expected {
            0 => "size not known yet".to_owned(),
            all => format!(
                "{} of {} MiB, {} of {} layers, for {}",
                mib(self.bytes),
                mib(all),
                self.layers_done,
                self.layers,
                plural(self.callers, "caller"),
            ),
        };
        Row { is_stuck: false, cells: [self.reference.clone(), age(self.age), self.stage.clone(), done] }
    }
}

impl Pod {
    fn rows(&self) -> Vec<Row> {
        let plain = |cells| Row { is_stuck: false, cells };
        let id = short(&self.id).to_owned();
        let mut rows =
            vec![plain([self.name.clone(), self.state.replace('_', " "), self.handler.clone(), id])];
        for it in &self.containers {
            let end = it.exit_code.map(|code| format!(" {code}")).unwrap_or_default();
            let attempt = if it.attempt == 0 { String::new() } else { format!(" (attempt {})", it.attempt) };
            let cells = [
                format!("  {}{attempt}", it.name),
                format!("{}{end}", it.state),
                String::new(),
                short(&it.id).to_owned(),
            ];
            rows.push(plain(cells));
        }
        rows
    }
}

#[derive(Debug)]
struct Row {
    is_stuck: bool,
    cells: [String; 4],
}

/// Adds a table with columns that fit, unless it is empty.
fn table(text: &mut String, head: [&str; 4], rows: Vec<Row>) {
    if rows.is_empty() {
        return;
    }
    let head = Row { is_stuck: false, cells: head.map(str::to_owned) };
    let clean = |row: Row| Row { cells: row.cells.map(|cell| one_line(&cell)), ..row };
    let rows: Vec<Row> = std::iter::once(head).chain(rows).map(clean).collect();
    let widths = [0, 1, 2].map(|column| {
        let width = |row: &Row| row.cells.get(column).map_or(0, |cell| cell.chars().count());
        rows.iter().map(width).max().unwrap_or_default()
    });
    text.push('\n');
    for Row { is_stuck, cells: [first, second, third, last] } in rows {
        let mark = if is_stuck { STUCK } else { " " };
        let [a, b, c] = widths;
        let line = format!("{mark} {first:a$}  {second:>b$}  {third:c$}  {last}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Names come from clients, and reasons from plugins: what would move a terminal's cursor, or begin a line, does not.
fn one_line(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}

/// The beginning of an id, as tools for nodes take it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// An age in the two units that matter.
fn age(seconds: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "ages are small and not negative"
    )]
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::{Cgroups, Network, Server};
    use super::*;
    use crate::logging::LogLevel;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn healthy() -> Status {
        let server =
            Server { pid: 7, phase: Phase::Serving, uptime: 4.25, latency: Some(0.001), ..Server::default() };
        let log = LogLevel { level: "info".to_owned(), configured: "info".to_owned() };
        let handler = Handler { name: "runc".to_owned(), is_default: true, ..Handler::default() };
        Status {
            server,
            log: Some(log),
            handlers: vec![handler],
            network: Some(Network { ready: true, ..Network::default() }),
            cgroups: Cgroups { driver: Some("systemd".to_owned()), version: Some("v2".to_owned()) },
            ..Status::default()
        }
    }

    fn task(stage: &str, age: f64, waits: bool) -> Task {
        Task {
            verb: "run sandbox".to_owned(),
            object: "sandbox ns/web".to_owned(),
            id: "0123456789abcdef".to_owned(),
            pod: Some("ns/web".to_owned()),
            age: age + 1.0,
            stages: vec![Stage { name: stage.to_owned(), age, waits }],
            ..Task::default()
        }
    }

    #[test]
    fn a_server_that_is_well_has_no_problems() {
        let mut status = healthy();
        status.tasks = vec![task("network", 12.0, false), task("grace", 900.0, true)];
        status.sessions = vec![task("start", 9000.0, false)];
        assert_eq!(status.problems(PATIENCE), [""; 0]);
        assert!(!status.text(PATIENCE).contains('!'), "{}", status.text(PATIENCE));
    }

    #[test]
    fn what_is_stuck_stands_out_above_and_in_its_line() {
        let mut status = healthy();
        status.tasks = vec![task("network", 44.0, false), task("pause", 0.5, false)];
        let expected = ["run sandbox ns/web (0123456789ab) takes 45 s: network 44 s"];
        assert_eq!(status.problems(PATIENCE), expected);
        assert!(status.problems(Duration::from_secs(60)).is_empty());
        let text = status.text(PATIENCE);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('!')).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[1].starts_with("! run sandbox ns/web   45 s  network 44 s  none"), "{text}");
    }

    #[test]
    fn what_is_done_between_steps_counts_since_the_last() {
        let mut idle = task("", 0.0, false);
        idle.stages.clear();
        idle.age = 500.0;
        assert!(idle.is_stuck(30.0));
        idle.after = Some(Stage { name: "record".to_owned(), age: 2.0, waits: false });
        assert!(!idle.is_stuck(30.0));
        assert_eq!(idle.stage(), "2.0 s ago: record");
    }

    #[test]
    fn every_reason_why_pods_cannot_be_served_is_told() {
        let mut status = healthy();
        status.server.latency = None;
        status.server.phase = Phase::Recovering;
        status.handlers[0].broken = Some("it hangs".to_owned());
        status.network = Some(Network { ready: false, message: "no list".to_owned(), ..Network::default() });
        status.waiting = vec![Caller { verb: "stop sandbox".to_owned(), age: 31.0, ..Caller::default() }];
        status.teardown =
            vec![Pending { failures: 2, reason: Some("busy".to_owned()), ..Pending::default() }];
        let problems = status.problems(PATIENCE);
        let words = [
            "workers",
            "recovering",
            "runc, the default, does not work: it hangs",
            "no list",
            "not begun",
            "failed 2 times: busy",
        ];
        assert_eq!(problems.len(), words.len(), "{problems:?}");
        for (problem, word) in problems.iter().zip(words) {
            assert!(problem.contains(word), "{problem}");
        }
        let starting =
            Status { server: Server { latency: Some(0.0), ..Server::default() }, ..Status::default() };
        assert_eq!(starting.problems(PATIENCE), ["the server is starting"]);
    }

    #[test]
    fn what_others_have_written_stays_in_its_line() {
        let mut status = healthy();
        let reason = "plugin says:\n\u{1b}[2Jall is well\r".to_owned();
        status.tasks =
            vec![Task { object: "sandbox ns/\u{1b}[31mred".to_owned(), ..task("network", 1.0, false) }];
        status.teardown = vec![Pending { failures: 1, reason: Some(reason), ..Pending::default() }];
        let text = status.text(PATIENCE);
        assert!(text.chars().all(|it| it == '\n' || !it.is_control()), "{text:?}");
        assert_eq!(text.matches("plugin says:  [2Jall is well").count(), 2, "{text}");
    }

    #[test]
    fn columns_are_aligned() {
        let mut status = healthy();
        status.tasks = vec![task("network", 24.0, false), task("pause", 0.5, false)];
        let text = status.text(PATIENCE);
        let column = |word: &str| text.lines().find_map(|line| line.find(word)).unwrap();
        assert_eq!(column("STAGE"), column("network 24"));
        assert_eq!(column("STAGE"), column("pause 0.5"));
    }

    #[test]
    fn ages_have_the_unit_that_fits() {
        let cases = [
            (0.04, "0.0 s"),
            (9.95, "9.9 s"),
            (61.0, "61 s"),
            (200.0, "3 min"),
            (7380.0, "2 h 3 min"),
            (180_000.0, "2 d 2 h"),
        ];
        for (seconds, expected) in cases {
            let shown = age(seconds);
            assert!(shown == expected || shown == "10.0 s", "{seconds}: {shown}");
        }
    }
}
