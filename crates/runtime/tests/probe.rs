//! Trying runtimes out on this very host, and runtimes that misbehave.
#![cfg(feature = "probe")]
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runtime::probe::{features, find, probe, sweep, version};
use runtime::{Features, RuntimeCommand, RuntimeError};

/// One test at a time: while one writes its script, a program that another starts would hold the script open for writing
/// until its exec, and the script could not be run ("text file busy").
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

const LIMIT: Duration = Duration::from_secs(60);

fn command(path: PathBuf) -> RuntimeCommand {
    RuntimeCommand { path, root: "/nonexistent".into(), systemd_cgroup: false }
}

fn runc() -> RuntimeCommand {
    command(find("runc", None).expect("runc is installed"))
}

fn script(dir: &Path, text: &str) -> RuntimeCommand {
    let path = dir.join("runtime.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    command(path)
}

/// No file, cgroup or process of a probe in `scratch` is left.
fn assert_nothing_left(scratch: &Path, before: &[PathBuf]) {
    let left: Vec<_> = std::fs::read_dir(scratch).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, before);
    // What was killed is gone some time later.
    wait_until("no process is left", || mentioning(scratch.to_str().unwrap()).is_empty());
}

/// The command lines of processes that contain `text`.
fn mentioning(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(text)).collect()
}

#[test]
fn runc_makes_a_container_here_and_leaves_nothing() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    probe(&runc(), scratch.path(), LIMIT).unwrap();
    assert_nothing_left(scratch.path(), &[]);
    assert!(version(&runc()).unwrap().starts_with("runc version "));
    assert!(features(&runc()).unwrap().told);
}

#[test]
fn the_trial_names_resources_and_has_a_place_for_every_mount() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let look = r#"[ "$7" = create ] || exit 0
        for place in $(grep -o '"destination":"[^"]*"' "$9/config.json" | cut -d'"' -f4) /dev; do
            [ -d "$9/rootfs$place" ] || { echo '{"level":"error","msg":"no '$place'"}' > "$4"; exit 1; }
        done
        grep -q '"resources":{"devices"' "$9/config.json" || { echo '{"level":"error","msg":"no resources"}' > "$4"; exit 1; }"#;
    let runtime = script(scratch.path(), look);
    probe(&runtime, scratch.path(), LIMIT).unwrap();
    assert_nothing_left(scratch.path(), &[runtime.path]);
}

#[test]
fn a_runtime_that_refuses_is_quoted() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let log = r#"echo '{"level":"error","msg":"no cgroups today"}' > "$4"; exit 1"#;
    let runtime = script(scratch.path(), log);
    let error = probe(&runtime, scratch.path(), LIMIT).unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Failed { step: "create a container", message, .. } if message == "no cgroups today"),
        "{error}"
    );
    assert_nothing_left(scratch.path(), &[runtime.path]);
}

#[test]
fn a_runtime_that_hangs_is_ended_at_the_deadline_with_its_children() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let runtime = script(scratch.path(), "sleep 1000 & wait");
    let begin = Instant::now();
    let error = probe(&runtime, scratch.path(), Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, RuntimeError::TimedOut { .. }), "{error}");
    // It would sleep a thousand seconds.
    assert!(begin.elapsed() < Duration::from_secs(500));
    assert_nothing_left(scratch.path(), &[runtime.path]);
}

#[test]
fn a_missing_runtime_is_named() {
    let _alone = alone();
    let error = version(&command("/nonexistent/runc".into())).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/runc"), "{error}");
    assert_eq!(find("no-such-runtime-anywhere", None), None);
}

#[test]
fn a_runtime_without_features_is_no_error() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    assert_eq!(features(&script(scratch.path(), "exit 1")).unwrap(), Features::default());
    assert_eq!(features(&script(scratch.path(), "echo no JSON")).unwrap(), Features::default());
}

/// Every hierarchy's cgroups of probes with this name.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let mounts = sys::mount::list().unwrap().into_iter().filter(|mount| mount.fstype.starts_with("cgroup"));
    mounts.map(|mount| mount.mount_point.join(name)).filter(|dir| dir.is_dir()).collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a probe in a process of its own and kills that process, and nothing else, when `is_time` says so.
fn cut_off(scratch: &Path, runtime: &RuntimeCommand, is_time: impl Fn(&Path) -> bool) -> String {
    const ROLE: &str = "RUNTIME_TEST_PROBE";
    let test = "a_probe_that_is_cut_off_is_cleared_by_the_next_server";
    let mut server = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(ROLE, scratch)
        .env("RUNTIME_TEST_PROGRAM", &runtime.path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let dir =
        || std::fs::read_dir(scratch).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    wait_until("the probe", || dir().is_some_and(|dir| is_time(&dir)));
    server.kill().unwrap();
    server.wait().unwrap();
    dir().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_probe_that_is_cut_off_is_cleared_by_the_next_server() {
    if let Some(scratch) = std::env::var_os("RUNTIME_TEST_PROBE") {
        let runtime = command(std::env::var_os("RUNTIME_TEST_PROGRAM").unwrap().into());
        return drop(probe(&runtime, Path::new(&scratch), LIMIT));
    }
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let scratch = place.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    assert_eq!(sweep(&scratch.join("missing"), LIMIT), Vec::<String>::new());
    // With a container made and its runtime gone.
    let stalls = script(
        place.path(),
        &format!("{} \"$@\" || exit; [ \"$7\" != create ] || sleep 1000", runc().path.display()),
    );
    let name = cut_off(&scratch, &stalls, |dir| dir.join("pid").is_file());
    assert!(!cgroups(&name).is_empty(), "the test proves nothing");
    std::fs::write(scratch.join("other"), "").unwrap();
    assert_eq!(sweep(&scratch, LIMIT), std::slice::from_ref(&name));
    wait_until("its cgroups are gone", || cgroups(&name).is_empty());
    assert_nothing_left(&scratch, &[scratch.join("other")]);
    std::fs::remove_file(scratch.join("other")).unwrap();
    // Before the runtime has done anything.
    let idle = script(place.path(), "[ \"$7\" = create ] && sleep 1000");
    let name = cut_off(&scratch, &idle, |dir| !mentioning(dir.join("state").to_str().unwrap()).is_empty());
    assert_eq!(sweep(&scratch, LIMIT), [name]);
    assert_nothing_left(&scratch, &[]);
}
