//! Updates by runtimes that behave and misbehave.
#![cfg(feature = "probe")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::{RuntimeCommand, RuntimeError, UPDATE_ATTEMPTS, update};

/// A runtime that notes its calls beside its `--root` and behaves as the files there say.
fn scripted(root: &Path) -> RuntimeCommand {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/update.sh");
    RuntimeCommand { path, root: root.to_owned(), systemd_cgroup: false }
}

fn calls(root: &Path) -> Vec<String> {
    std::fs::read_to_string(root.join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
}

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_runtime_reads_what_it_is_given_and_nothing_stays() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    update(&scripted(root.path()), "c1", br#"{"cpu":{"shares":7}}"#, scratch.path(), LIMIT).unwrap();
    assert_eq!(calls(root.path()), [r#"c1 {"cpu":{"shares":7}}"#]);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_refusal_is_quoted_and_not_repeated() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(root.path().join("refuse"), "too little memory").unwrap();
    let error = update(&scripted(root.path()), "c1", b"{}", scratch.path(), LIMIT).unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Failed { message, .. } if message == "too little memory"),
        "{error}"
    );
    assert_eq!(calls(root.path()).len(), 1);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_group_that_cannot_be_frozen_is_tried_again_a_few_times() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(root.path().join("freeze"), "2").unwrap();
    update(&scripted(root.path()), "c1", b"{}", scratch.path(), LIMIT).unwrap();
    assert_eq!(calls(root.path()).len(), 3);
    std::fs::write(root.path().join("freeze"), "99").unwrap();
    let error = update(&scripted(root.path()), "c1", b"{}", scratch.path(), LIMIT).unwrap_err();
    assert!(error.to_string().contains("unable to freeze"), "{error}");
    assert_eq!(calls(root.path()).len(), 3 + UPDATE_ATTEMPTS);
}

#[test]
fn a_runtime_that_hangs_is_ended() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(root.path().join("hang"), "").unwrap();
    let begun = Instant::now();
    let limit = Duration::from_millis(300);
    let error = update(&scripted(root.path()), "c1", b"{}", scratch.path(), limit).unwrap_err();
    assert!(matches!(error, RuntimeError::TimedOut { .. }), "{error}");
    // It would sleep a thousand seconds.
    assert!(begun.elapsed() < Duration::from_secs(500));
}
