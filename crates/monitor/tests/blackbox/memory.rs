//! What an idle monitor costs. `CRIMSON_MONITOR=target/monitor/crimson-monitor cargo test -p monitor idle -- --nocapture`
//! measures the program as it is shipped (`cargo build --profile monitor -p monitor`) against its budget.

use std::fs;

use crate::pod::{Pod, shipped_monitor};

/// The budget of monitor and pause together is 0.35 MiB.
const BUDGET_KIB: u64 = 358;

/// What pause may take of it.
const PAUSE_KIB: u64 = 16;

/// What the monitor was when this was last measured (2026-11, x86-64, glibc 2.36), and by how much that may grow unnoticed.
const RECORDED_KIB: u64 = 240;
const HEADROOM_KIB: u64 = 36;

/// An unoptimised program, alone on its node, still tells whether something grows without reason.
const UNOPTIMISED_KIB: u64 = 6 * 1024;

/// The peers were measured with 50 pods.
const NEIGHBOURS: usize = 49;

fn pss_kib(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_idle_monitor_with_two_containers_is_small() {
    // The program's text is shared by the monitors of a node, so it is measured on a node with some pods.
    let mut neighbours = Vec::new();
    let shipped = shipped_monitor().is_some();
    for _ in 0..if shipped { NEIGHBOURS } else { 0 } {
        neighbours.push(Pod::new().await);
    }
    let mut pod = Pod::new().await;
    let begin = pss_kib(pod.connection.pid);
    for _ in 0..2 {
        let plan = pod.plan("seq 1 2000; echo done; while :; do sleep 1; done");
        pod.run(&plan).await;
        Pod::wait_printed(&plan, "done").await;
    }
    pod.connection.monitor.list().await.unwrap();
    let pss = pss_kib(pod.connection.pid);
    println!("monitor: {pss} KiB PSS with two containers, {begin} KiB when it begins");
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", pod.connection.pid)).unwrap();
    println!("{}", table(&smaps));
    let pause = pause_pss_kib(&pod);
    println!("pause: {pause} KiB PSS");
    assert!(pause <= PAUSE_KIB, "{pause} KiB for pause, {PAUSE_KIB} were allowed");
    let limit = if shipped { (BUDGET_KIB - pause).min(RECORDED_KIB + HEADROOM_KIB) } else { UNOPTIMISED_KIB };
    assert!(pss <= limit, "{pss} KiB, {limit} were allowed");
    pod.finish().await;
    for pod in neighbours {
        pod.finish().await;
    }
}

/// The embedded program on its own: a node's others share what is not written to.
fn pause_pss_kib(pod: &Pod) -> u64 {
    let program = pod.path("pause");
    sys::atomic::write(&program, sys::pause::BINARY, 0o755).unwrap();
    // By way of a shell, since another test that starts a program may hold the file open for a moment.
    let script = "while ! \"$0\"; do :; done";
    let mut shell = std::process::Command::new("sh").args(["-c", script]).arg(&program).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", shell.id());
    let pause = loop {
        let pid = fs::read_to_string(&children).unwrap().trim().parse().unwrap_or(0);
        if fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program) {
            break pid;
        }
        std::thread::yield_now();
    };
    let pss = pss_kib(pause);
    shell.kill().unwrap();
    shell.wait().unwrap();
    sys::process::kill(pause, 9).unwrap();
    pss
}

/// Mappings with what they take.
fn table(smaps: &str) -> String {
    let (mut rows, mut name) = (String::new(), "");
    for line in smaps.lines() {
        match line.split_once("Pss:") {
            Some(("", size)) if size.trim() != "0 kB" => {
                rows.push_str(&format!("{:>10} {name}\n", size.trim()))
            }
            _ if line.split(' ').next().is_some_and(|range| range.contains('-')) => name = line,
            _ => {}
        }
    }
    rows
}
