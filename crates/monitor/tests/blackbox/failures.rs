//! Creates that do not work out, and runtimes that misbehave.

use std::fs;
use std::pin::pin;
use std::time::Duration;

use monitor_api::RefusalKind;
use serde_json::json;

use crate::pod::{Pod, processes, program, wait_until};

#[tokio::test]
async fn a_program_that_is_missing_is_named_in_the_runtimes_words() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("");
    plan.config["process"]["args"] = json!(["/no/such/program"]);
    let error = pod.create(&plan).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::RuntimeFailed));
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert!(!error.to_string().contains("time="), "{error}");
    assert!(pod.connection.monitor.list().await.unwrap().is_empty());
    assert_eq!(
        fs::read(plan.request.log.as_ref().unwrap()).unwrap(),
        b"",
        "the runtime's words are not the container's"
    );
    pod.finish().await;
}

#[tokio::test]
async fn a_root_filesystem_that_cannot_be_mounted_is_explained() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("exit 0");
    plan.request.rootfs.as_mut().unwrap().lowers = vec!["/no/such/layer".into()];
    let error = pod.create(&plan).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::RuntimeFailed));
    assert!(error.to_string().contains("/no/such/layer"), "{error}");
    pod.finish().await;
}

#[tokio::test]
async fn a_runtime_that_hangs_is_killed_at_the_deadline_while_others_go_on() {
    let mut pod = Pod::new().await;
    let other = pod.plan("trap 'echo heard' USR1; echo ready; while :; do sleep 0.05; done");
    let id = pod.run(&other).await;
    Pod::wait_printed(&other, "ready").await;
    let mut hanging = pod.plan("exit 0");
    hanging.request.runtime.path = program(
        pod.path("hanging-runtime"),
        "#!/bin/sh\ncase \"$*\" in *delete*) exit 0;; esac\nsleep 54321 & sleep 54321\n",
    );
    // Long enough for all that the other container is to do meanwhile.
    hanging.request.timeout_ms = 10_000;
    let left = || processes(|text| text.starts_with("sleep\u{0}54321"));
    let created = {
        let mut creating = pin!(pod.create(&hanging));
        tokio::select! {
            created = &mut creating => panic!("the other container was held up: {created:?}"),
            () = async {
                wait_until("the runtime", || !left().is_empty()).await;
                pod.connection.monitor.signal(&id, 10, false).await.unwrap();
                Pod::wait_printed(&other, "heard").await;
            } => {}
        }
        creating.await
    };
    assert_eq!(created.unwrap_err().refusal(), Some(RefusalKind::RuntimeTimedOut));
    wait_until("the end of all of it", || left().is_empty()).await;
    pod.finish().await;
}

#[tokio::test]
async fn a_create_that_is_no_longer_wanted_is_given_up() {
    let mut pod = Pod::new().await;
    let mut hanging = pod.plan("exit 0");
    hanging.request.runtime.path = program(
        pod.path("hanging-runtime"),
        "#!/bin/sh\ncase \"$*\" in *delete*) exit 0;; esac\nsleep 43210\n",
    );
    let (created, deleted) = tokio::join!(pod.create(&hanging), async {
        wait_until("the runtime", || !processes(|text| text.starts_with("sleep\u{0}43210")).is_empty()).await;
        pod.connection.monitor.delete(&hanging.request.container).await
    });
    assert_eq!(created.unwrap_err().refusal(), Some(RefusalKind::InvalidState));
    deleted.unwrap();
    pod.finish().await;
}

/// As runc does when it is killed between making the file of the process id and giving it its name.
#[tokio::test]
async fn what_a_killed_runtime_left_of_its_pid_file_is_not_in_the_way_of_the_next() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("exit 4");
    let text = "#!/bin/sh\ncase \"$*\" in *delete*) exit 0;; esac\n: >.init.pid\nkill -KILL $$\n";
    let script = program(pod.path("dying-runtime"), text);
    let runtime = std::mem::replace(&mut plan.request.runtime.path, script);
    assert_eq!(pod.create(&plan).await.unwrap_err().refusal(), Some(RefusalKind::RuntimeFailed));
    plan.request.runtime.path = runtime;
    pod.run(&plan).await;
    assert_eq!(pod.exit().await.exit_code, 4);
    pod.finish().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_refuses_the_create() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("exit 0");
    plan.request.log = Some("/no/such/directory/0.log".into());
    let error = pod.create(&plan).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::Io));
    assert!(error.to_string().contains("/no/such/directory/0.log"), "{error}");
    pod.finish().await;
}

#[tokio::test]
async fn an_exit_record_that_cannot_be_written_is_tried_again() {
    let mut pod = Pod::new().await;
    let mut plan = pod.plan("exit 3");
    let dir = pod.path("exits");
    plan.request.exit_file = dir.join("exit");
    pod.run(&plan).await;
    let waited = tokio::time::timeout(Duration::from_secs(2), pod.connection.events.recv()).await;
    assert!(waited.is_err(), "announced although not on disk: {waited:?}");
    fs::create_dir(&dir).unwrap();
    assert_eq!(pod.exit().await.exit_code, 3);
    assert!(plan.request.exit_file.is_file());
    pod.finish().await;
}
