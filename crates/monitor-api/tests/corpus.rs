//! Messages as they were recorded, which every later build has to understand: a monitor that an old daemon has started, and a
//! daemon that went back to an old version, send them.
//!
//! `corpus/v1/<type>-<name>.json` holds one message each. They are never changed, only added to:
//! `CRIMSON_RECORD=1 cargo test -p monitor-api --test corpus` writes the ones that are missing. A message or a field that is new
//! since they were recorded shows by [`every_message_of_this_build_is_recorded`].
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use monitor_api::{
    AttachRequest, ContainerState, CreateRequest, Envelope, Event, ExecRequest, ExitRecord, ImageMount,
    MappedVolume, Overlay, Phase, Refusal, RefusalKind, Reply, Request, RuntimeCommand, UserNamespace,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use types::{ContainerId, ExecId, SandboxId, Timestamp};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/v1")
}

fn container() -> ContainerId {
    ContainerId::from_random([0xc0; 32])
}

fn exec() -> ExecId {
    ExecId::from_random([0xe0; 32])
}

/// A message of each kind, under the name it is recorded by.
fn requests() -> Vec<(&'static str, Request)> {
    let signal = |signal, all| Request::Signal { container: container(), signal, all };
    let resize = |exec| Request::Resize { container: container(), exec, width: 80, height: 25 };
    let requests = vec![
        ("hello", Request::Hello { version: 1, oldest: 1 }),
        ("create", Request::Create(Box::new(create()))),
        ("create-with-images", Request::Create(Box::new(create_with_images()))),
        ("create-with-user-namespace", Request::Create(Box::new(create_with_user_namespace()))),
        ("start", Request::Start { container: container() }),
        ("signal", signal(15, false)),
        ("signal-all", signal(9, true)),
        ("exec", Request::Exec(exec_request())),
        ("attach", Request::Attach(attach_request())),
        ("close-stdin", Request::CloseStdin { session: exec() }),
        ("detach", Request::Detach { session: exec() }),
        ("kill-exec", Request::KillExec { exec: exec() }),
        ("resize", resize(None)),
        ("resize-exec", resize(Some(exec()))),
        ("reopen-log", Request::ReopenLog { container: container() }),
        ("delete", Request::Delete { container: container() }),
        ("list", Request::List),
        ("shutdown", Request::Shutdown),
    ];
    for (_, request) in &requests {
        // A new kind does not compile here before it is listed above.
        match request {
            Request::Hello { .. } | Request::Create(_) | Request::Start { .. } | Request::Signal { .. } => {}
            Request::Exec(_) | Request::KillExec { .. } | Request::Resize { .. } => {}
            Request::Attach(_) | Request::CloseStdin { .. } | Request::Detach { .. } => {}
            Request::ReopenLog { .. } | Request::Delete { .. } | Request::List | Request::Shutdown => {}
        }
    }
    requests
}

fn create() -> CreateRequest {
    CreateRequest {
        container: container(),
        bundle: "/run/crimson/containers/c0".into(),
        rootfs: Some(Overlay {
            lowers: vec!["/l2".into(), "/l1".into()],
            upper: Some("/upper".into()),
            work: Some("/work".into()),
            readonly: true,
        }),
        images: Vec::new(),
        user_namespace: None,
        runtime: RuntimeCommand {
            path: "/usr/bin/runc".into(),
            root: "/run/crimson/runc".into(),
            systemd_cgroup: true,
        },
        log: Some("/var/log/pods/p/c/0.log".into()),
        terminal: true,
        stdin: true,
        stdin_once: true,
        exit_file: "/run/crimson/containers/c0/exit.json".into(),
        timeout_ms: 240_000,
    }
}

fn create_with_images() -> CreateRequest {
    let image = |n: u32, sub_path: &str| ImageMount {
        target: format!("/run/crimson/containers/c0/images/{n}").into(),
        layers: vec!["/l2".into(), "/l1".into()],
        sub_path: sub_path.into(),
    };
    CreateRequest { images: vec![image(0, ""), image(1, "etc/x")], ..create() }
}

fn create_with_user_namespace() -> CreateRequest {
    let volume =
        MappedVolume { source: "/srv".into(), target: "/run/crimson/containers/c0/volumes/0".into() };
    let user_namespace = UserNamespace {
        path: "/run/netns/cni-0".into(),
        bind: Some("/run/crimson/containers/c0/user".into()),
        uid: 65_536,
        gid: 65_537,
        volumes: vec![volume],
    };
    CreateRequest { user_namespace: Some(user_namespace), ..create() }
}

fn exec_request() -> ExecRequest {
    ExecRequest {
        exec: exec(),
        container: container(),
        process: "/run/crimson/containers/c0/exec.json".into(),
        stdin: true,
        stdout: true,
        stderr: true,
        terminal: true,
        timeout_ms: 60_000,
    }
}

fn attach_request() -> AttachRequest {
    AttachRequest { session: exec(), container: container(), stdin: true, stdout: true, stderr: true }
}

fn replies() -> Vec<(&'static str, Reply)> {
    let sandbox = SandboxId::from_random([0x50; 32]);
    let refused = |kind| Reply::Refused(Refusal::new(kind, "the reason"));
    let replies = vec![
        ("hello", Reply::Hello { version: 1, pid: 4711, sandbox }),
        ("created", Reply::Created { pid: 12, mount_us: 345 }),
        ("started", Reply::Started { started_at: Timestamp(1_700_000_000_123_456_789) }),
        ("done", Reply::Done),
        ("exec-started", Reply::ExecStarted { pid: 13 }),
        ("attached", Reply::Attached { stdin: true }),
        ("list", Reply::List(vec![state(Phase::Created), state(Phase::Running), state(Phase::Exited)])),
        ("list-with-drops-told", Reply::List(vec![state_with_drops_told()])),
        ("refused-not-found", refused(RefusalKind::NotFound)),
        ("refused-invalid-state", refused(RefusalKind::InvalidState)),
        ("refused-runtime-failed", refused(RefusalKind::RuntimeFailed)),
        ("refused-runtime-timed-out", refused(RefusalKind::RuntimeTimedOut)),
        ("refused-io", refused(RefusalKind::Io)),
        ("refused-unsupported", refused(RefusalKind::Unsupported)),
    ];
    for (_, reply) in &replies {
        match reply {
            Reply::Hello { .. } | Reply::Created { .. } | Reply::Started { .. } | Reply::Done => {}
            Reply::Attached { .. } | Reply::ExecStarted { .. } | Reply::List(_) | Reply::Refused(_) => {}
        }
    }
    replies
}

fn state(phase: Phase) -> ContainerState {
    ContainerState {
        container: container(),
        pid: (phase != Phase::Exited).then_some(12),
        phase,
        exit: (phase == Phase::Exited).then(exit_record),
        dropped_log_lines: 3,
        dropped_log_lines_told: None,
        started_at: Timestamp(1_700_000_000_123_456_789),
    }
}

fn state_with_drops_told() -> ContainerState {
    ContainerState { dropped_log_lines_told: Some(2), ..state(Phase::Running) }
}

fn exit_record() -> ExitRecord {
    ExitRecord {
        version: ExitRecord::VERSION,
        container: container(),
        exit_code: 137,
        signal: Some(9),
        finished_at: Timestamp(1_700_000_001_123_456_789),
        started_at: Timestamp(1_700_000_000_123_456_789),
        oom_killed: true,
    }
}

fn events() -> Vec<(&'static str, Event)> {
    let exec_exited = |exit_code, signal| Event::ExecExited { exec: exec(), exit_code, signal };
    let events = vec![
        ("exited", Event::Exited(exit_record())),
        ("exec-exited", exec_exited(7, None)),
        ("exec-exited-signal", exec_exited(137, Some(9))),
        ("log-lines-dropped", Event::LogLinesDropped { container: container(), lines: 12 }),
    ];
    for (_, event) in &events {
        match event {
            Event::Exited(_) | Event::ExecExited { .. } | Event::LogLinesDropped { .. } => {}
        }
    }
    events
}

/// As it travels.
fn sent<T: Serialize>(body: &T) -> Value {
    serde_json::from_slice(&monitor_api::codec::encode(1, body).unwrap()).unwrap()
}

/// Records it if it is missing and that was asked for, and reads the record.
fn recorded(name: &str, today: &Value) -> Value {
    let file = corpus().join(format!("{name}.json"));
    if std::env::var_os("CRIMSON_RECORD").is_some() && !file.try_exists().unwrap() {
        fs::write(&file, format!("{today:#}\n")).unwrap();
    }
    let text = fs::read(&file).unwrap_or_else(|error| panic!("{} is not recorded: {error}", file.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Reads a record as today's type and writes it again.
fn read_again<T: DeserializeOwned + Serialize>(name: &str, record: &Value) -> Value {
    let text = serde_json::to_vec(record).unwrap();
    let envelope: Envelope<T> = monitor_api::codec::decode(&text).unwrap_or_else(|error| {
        panic!("the recorded message {name} is no longer understood: {}", types::error::chain(&error))
    });
    sent(&envelope.body)
}

/// Every value of `old` is in `new`, at its place.
fn contains(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(name, old)| new.get(name).is_some_and(|new| contains(new, old)))
        }
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| contains(new, old))
        }
        (new, old) => new == old,
    }
}

fn each(kind: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(corpus()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name.starts_with(&format!("{kind}-")) {
            found.push((name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()));
        }
    }
    assert!(!found.is_empty(), "no recorded {kind}");
    found
}

#[test]
fn whatever_was_recorded_is_understood_with_nothing_lost() {
    for (name, record) in each("request") {
        assert!(contains(&read_again::<Request>(&name, &record), &record), "{name}");
    }
    for (name, record) in each("reply") {
        assert!(contains(&read_again::<Reply>(&name, &record), &record), "{name}");
    }
    for (name, record) in each("event") {
        assert!(contains(&read_again::<Event>(&name, &record), &record), "{name}");
    }
    for (name, record) in each("file") {
        let read = ExitRecord::from_json(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(contains(&serde_json::to_value(read).unwrap(), &record), "{name}");
    }
}

#[test]
fn every_message_of_this_build_is_recorded() {
    let same = |name: String, today: Value| assert_eq!(recorded(&name, &today), today, "{name} has changed");
    requests().iter().for_each(|(name, request)| same(format!("request-{name}"), sent(request)));
    replies().iter().for_each(|(name, reply)| same(format!("reply-{name}"), sent(reply)));
    events().iter().for_each(|(name, event)| same(format!("event-{name}"), sent(event)));
    same("file-exit".to_owned(), serde_json::from_slice(&exit_record().to_json().unwrap()).unwrap());
}

/// What the first build sent before it knew of any field that has a default today.
#[test]
fn the_least_that_was_ever_sent_is_enough() {
    let (container, exec) = (container(), exec());
    let least = [
        r#"{"Hello":{"version":1}}"#.to_owned(),
        format!(
            r#"{{"Create":{{"container":"{container}","bundle":"/b","runtime":{{"path":"/r","root":"/s"}},"exit_file":"/e","timeout_ms":1}}}}"#
        ),
        format!(r#"{{"Exec":{{"exec":"{exec}","container":"{container}","process":"/p","timeout_ms":1}}}}"#),
    ];
    for body in least {
        let text = format!(r#"{{"seq":1,"body":{body}}}"#);
        monitor_api::codec::decode::<Request>(text.as_bytes()).unwrap();
    }
    let list = format!(
        r#"{{"seq":1,"body":{{"List":[{{"container":"{container}","pid":null,"phase":"Created"}}]}}}}"#
    );
    monitor_api::codec::decode::<Reply>(list.as_bytes()).unwrap();
    let exit = format!(r#"{{"version":1,"container":"{container}","exit_code":0,"finished_at":5}}"#);
    assert!(!ExitRecord::from_json(exit.as_bytes()).unwrap().oom_killed);
}
