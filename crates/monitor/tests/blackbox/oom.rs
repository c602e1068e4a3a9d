//! The kernel's OOM killer: whoever of a container it strikes, and whoever's limit was the reason, the exit record says so.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::pod::{Plan, Pod};

const LIMIT: u64 = 24 << 20;

/// Takes more than the limit, in one process.
const GREED: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";

fn limited(pod: &mut Pod, script: &str) -> Plan {
    let mut plan = pod.plan(script);
    plan.config["linux"]["resources"] = json!({"memory": {"limit": LIMIT, "swap": LIMIT}});
    if !swap_is_accounted() {
        plan.config["linux"]["resources"]["memory"].as_object_mut().unwrap().remove("swap");
    }
    plan
}

fn swap_is_accounted() -> bool {
    let v1 = PathBuf::from("/sys/fs/cgroup/memory");
    !v1.is_dir() || v1.join("memory.memsw.limit_in_bytes").is_file()
}

#[tokio::test]
async fn an_init_that_is_killed_for_memory_is_told_so() {
    let mut pod = Pod::new().await;
    let plan = limited(&mut pod, &format!("exec {GREED}"));
    pod.run(&plan).await;
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.signal, record.oom_killed), (137, Some(9), true));
    pod.finish().await;
}

/// As containerd does: the container has lost something to the OOM killer, whatever its init made of that.
#[tokio::test]
async fn a_child_that_is_killed_for_memory_counts_too() {
    let mut pod = Pod::new().await;
    let plan = limited(&mut pod, &format!("{GREED}; echo went on; exit 3"));
    pod.run(&plan).await;
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.signal, record.oom_killed), (3, None, true));
    assert!(Pod::printed(&plan, crilog::Stream::Stdout).contains("went on"));
    pod.finish().await;
}

/// With `memory.oom.group`, which kubelet sets on cgroup v2, a child's greed ends them all. There is no such thing on v1.
#[tokio::test]
async fn a_group_that_is_killed_for_memory_is_told_so() {
    let unified = sys::mount::list()
        .unwrap()
        .iter()
        .any(|mount| mount.mount_point == Path::new("/sys/fs/cgroup") && mount.fstype == "cgroup2");
    if !unified {
        return;
    }
    let mut pod = Pod::new().await;
    let mut plan = limited(&mut pod, &format!("{GREED}; echo went on; while :; do sleep 1; done"));
    plan.config["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1"});
    pod.run(&plan).await;
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.signal, record.oom_killed), (137, Some(9), true));
    assert_eq!(Pod::printed(&plan, crilog::Stream::Stdout), "");
    pod.finish().await;
}

#[tokio::test]
async fn a_process_of_an_exec_counts_as_the_containers() {
    let mut pod = Pod::new().await;
    let plan = limited(&mut pod, "trap 'exit 0' USR1; echo ready; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    let request = pod.process(&id, &format!("{GREED}; exit 0"));
    pod.connection.monitor.exec(request, Vec::new()).await.unwrap();
    assert!(matches!(pod.event().await, monitor_api::Event::ExecExited { .. }));
    pod.connection.monitor.signal(&id, 10, false).await.unwrap();
    assert!(pod.exit().await.oom_killed);
    pod.finish().await;
}

#[tokio::test]
async fn the_limit_may_be_the_pods() {
    let mut pod = Pod::new().await;
    let plan = pod.plan(&format!("while ! [ -e /go ]; do sleep 0.05; done; {GREED}; exit 5"));
    pod.run(&plan).await;
    limit_pod(&pod);
    let touch = pod.process(&plan.request.container, ": > /go");
    pod.connection.monitor.exec(touch, Vec::new()).await.unwrap();
    let record = loop {
        if let monitor_api::Event::Exited(record) = pod.event().await {
            break record;
        }
    };
    assert!(record.oom_killed, "{record:?}");
    pod.finish().await;
}

#[tokio::test]
async fn an_end_by_signal_alone_is_no_oom() {
    let mut pod = Pod::new().await;
    let plan = limited(&mut pod, "kill -9 $$; while :; do sleep 1; done");
    let id = pod.run(&plan).await;
    pod.connection.monitor.signal(&id, 9, false).await.unwrap();
    let record = pod.exit().await;
    assert_eq!((record.exit_code, record.oom_killed), (137, false));
    pod.finish().await;
}

/// Limits the cgroup that the pod's containers are in.
fn limit_pod(pod: &Pod) {
    for dir in pod.cgroups() {
        let v1 = dir.join("memory.limit_in_bytes");
        let v2 = dir.join("memory.max");
        for file in [v1, v2] {
            if file.is_file() {
                fs::write(&file, LIMIT.to_string()).unwrap();
            }
        }
    }
}
