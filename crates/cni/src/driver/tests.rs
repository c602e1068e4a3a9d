//! The driver against plugins that are shell scripts: what they are told, in which order, and what stays when they or
//! this process fail.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use types::{ErrorKind, Kind};

use super::*;
use crate::testing::{self, Bench, answer, fails};

/// More than anything takes, also on a busy machine; where it is to pass, [`testing::pass`] has it pass.
const LONG: Duration = Duration::from_secs(60);

/// No look and no STATUS comes by time alone, so that a test sees what events do.
fn events_only() -> Rhythm {
    let never = Duration::from_secs(3600);
    Rhythm { look_every: never, status_every: never, status_limit: LONG, ..Rhythm::default() }
}

async fn open(bench: &Bench) -> Cni {
    Cni::with_rhythm(bench.config(), events_only(), &CancellationToken::new()).await.unwrap()
}

fn pod(seed: u8) -> PodNetwork {
    PodNetwork { netns: Some("/proc/self/ns/net".into()), ..testing::pod(seed) }
}

/// A bench with a list of good plugins.
fn bench(version: &str, plugins: &[&str]) -> Bench {
    let bench = Bench::new();
    let list: Vec<String> = plugins.iter().map(|name| format!(r#"{{"type":"{name}"}}"#)).collect();
    bench.list(version, &list.iter().map(String::as_str).collect::<Vec<_>>());
    for name in plugins {
        bench.good_plugin(name, "10.1.0.2");
    }
    bench
}

/// A fifo: reading its whole content ends when whoever opened it for writing is done.
fn fifo(bench: &Bench, name: &str) -> PathBuf {
    let path = bench.path("log").join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

async fn read_to_end(path: PathBuf) -> String {
    tokio::task::spawn_blocking(move || fs::read_to_string(path).unwrap()).await.unwrap()
}

#[tokio::test]
async fn add_runs_the_list_in_order_and_del_backwards() {
    let bench = Bench::new();
    bench
        .list("1.0.0", &[r#"{"type":"a","mtu":1400}"#, r#"{"type":"b","capabilities":{"cgroupPath":true}}"#]);
    bench.good_plugin("a", "10.1.0.2");
    bench.good_plugin("b", "10.1.0.3");
    let cni = open(&bench).await;
    let mut pod = pod(1);
    pod.cgroup_parent = "/kubepods".to_owned();

    let attachment = cni.setup(&pod).await.unwrap();
    assert_eq!(
        (attachment.network.as_str(), attachment.ips[0].to_string().as_str()),
        ("testnet", "10.1.0.3")
    );
    assert_eq!((bench.records(), cni.cached()), (1, vec![pod.sandbox.clone()]));
    cni.check(&pod).await.unwrap();
    cni.teardown(&pod).await.unwrap();
    assert_eq!(bench.calls(), ["a ADD", "b ADD", "a CHECK", "b CHECK", "b DEL", "a DEL"]);
    assert_eq!((bench.records(), cni.cached()), (0, vec![]));

    let first = bench.conf("a", "ADD");
    assert_eq!(first, json!({"type": "a", "mtu": 1400, "name": "testnet", "cniVersion": "1.0.0"}));
    let second = bench.conf("b", "ADD");
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
    assert_eq!(second["runtimeConfig"], json!({"cgroupPath": "/kubepods"}));
    for (plugin, verb) in [("a", "DEL"), ("b", "DEL"), ("a", "CHECK"), ("b", "CHECK")] {
        assert_eq!(bench.conf(plugin, verb)["prevResult"], attachment.result, "{plugin} {verb}");
    }
    let env = bench.env("a", "ADD");
    let get = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!((get("CNI_COMMAND"), get("CNI_IFNAME")), ("ADD", "eth0"));
    assert_eq!((get("CNI_CONTAINERID"), get("CNI_NETNS")), (pod.sandbox.as_str(), "/proc/self/ns/net"));
    assert_eq!(get("CNI_PATH"), bench.path("bin").to_str().unwrap());
    assert!(get("CNI_ARGS").starts_with("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"));
}

#[tokio::test]
async fn teardown_needs_neither_the_configuration_nor_the_namespace_nor_the_process() {
    let bench = bench("0.4.0", &["a", "b"]);
    let mut pod = pod(1);
    let attachment = open(&bench).await.setup(&pod).await.unwrap();
    fs::remove_dir_all(bench.path("conf")).unwrap();
    bench.forget_calls();

    let cni = open(&bench).await;
    assert!(!cni.status().ready);
    assert_eq!(cni.cached(), [pod.sandbox.clone()]);
    pod.netns = Some(bench.path("no-namespace"));
    cni.teardown(&pod).await.unwrap();
    assert_eq!(bench.calls(), ["b DEL", "a DEL"]);
    assert_eq!(bench.env("b", "DEL")["CNI_NETNS"], "");
    assert_eq!(bench.conf("b", "DEL")["prevResult"], attachment.result);
    cni.teardown(&pod).await.unwrap();
    assert_eq!(bench.calls().len(), 2, "what is detached stays detached without asking plugins");
}

#[tokio::test]
async fn old_versions_are_spared_what_they_do_not_know() {
    let bench = bench("0.3.1", &["a"]);
    let cni = open(&bench).await;
    let attachment = cni.setup(&pod(1)).await.unwrap();
    assert_eq!(attachment.ips.len(), 1);
    cni.check(&pod(1)).await.unwrap();
    cni.gc(&[pod(1).sandbox]).await.unwrap();
    cni.teardown(&pod(1)).await.unwrap();
    assert_eq!(bench.calls(), ["a ADD", "a DEL"]);
    assert!(bench.conf("a", "DEL").get("prevResult").is_none());
    let error = cni.check(&pod(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_failed_add_is_undone_for_the_plugins_that_were_started() {
    let bench = bench("1.0.0", &["a", "b", "c"]);
    bench.plugin("b", &fails("ADD", 7, "10.1.0.2"));
    let cni = open(&bench).await;
    let error = cni.setup(&pod(1)).await.unwrap_err();
    assert!(matches!(&error, CniError::Plugin { code: 7, plugin, .. } if plugin == "b"), "{error}");
    assert_eq!(bench.calls(), ["a ADD", "b ADD", "b DEL", "a DEL"]);
    assert_eq!(bench.records(), 0);
}

#[tokio::test]
async fn what_could_not_be_undone_stays_on_record_until_it_is() {
    let bench = bench("1.0.0", &["a", "b"]);
    bench.plugin("b", "echo '{\"code\":100,\"msg\":\"broken\"}'; exit 1");
    let cni = open(&bench).await;
    let error = cni.setup(&pod(1)).await.unwrap_err();
    assert!(matches!(error, CniError::Plugin { command: "ADD", .. }), "{error}");
    let calls = ["a ADD", "b ADD", "b DEL", "b DEL"];
    assert_eq!(bench.calls(), calls, "an address is kept while rules may lead to it");
    let error = cni.teardown(&pod(1)).await.unwrap_err();
    assert!(matches!(error, CniError::Plugin { command: "DEL", .. }), "{error}");
    assert_eq!(bench.records(), 1);
    bench.good_plugin("b", "10.1.0.2");
    cni.teardown(&pod(1)).await.unwrap();
    assert_eq!(bench.records(), 0);
}

#[tokio::test]
async fn a_plugin_that_stumbles_once_over_its_unfinished_work_is_asked_again() {
    let bench = bench("1.0.0", &["a"]);
    let cni = open(&bench).await;
    bench.plugin(
        "a",
        "[ $CNI_COMMAND = ADD ] && { : > unfinished; exit 1; }; mv unfinished x && exit 1; rm x",
    );
    let error = cni.setup(&pod(1)).await.unwrap_err();
    assert!(matches!(error, CniError::Died { command: "ADD", .. }), "{error}");
    assert_eq!(bench.calls(), ["a ADD", "a DEL", "a DEL"]);
    assert_eq!(bench.records(), 0);
}

#[tokio::test]
async fn nothing_is_begun_when_something_is_known_to_be_missing() {
    let bench = bench("1.0.0", &["a", "b"]);
    fs::remove_file(bench.path("bin/b")).unwrap();
    let cni = open(&bench).await;
    let error = cni.setup(&pod(1)).await.unwrap_err();
    assert!(matches!(&error, CniError::PluginMissing { plugin, .. } if plugin == "b"), "{error}");
    let error = cni.setup(&PodNetwork { netns: None, ..pod(1) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = cni.setup(&PodNetwork { name: "a;b".to_owned(), ..pod(1) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!((bench.calls(), bench.records()), (vec![], 0));
}

#[tokio::test]
async fn without_a_network_setup_says_what_is_wrong() {
    let bench = Bench::new();
    fs::write(bench.path("conf/1.conflist"), "{").unwrap();
    let cni = open(&bench).await;
    let error = cni.setup(&pod(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.starts_with("cni plugin not initialized: no valid network config found in "), "{text}");
    assert!(text.contains("1.conflist: it is not valid JSON"), "{text}");
    assert_eq!(cni.describe()["Networks"], json!([]));
}

#[tokio::test]
async fn a_pod_may_have_its_network_configured_elsewhere() {
    let bench = bench("1.0.0", &["a"]);
    let cni = open(&bench).await;
    let elsewhere = bench.path("elsewhere");
    let apart = PodNetwork { conf_dir: Some(elsewhere.clone()), ..pod(1) };
    let error = cni.setup(&apart).await.unwrap_err().to_string();
    assert!(error.ends_with("elsewhere does not exist"), "{error}");
    fs::create_dir(&elsewhere).unwrap();
    bench.good_plugin("b", "10.2.0.2");
    let text = r#"{"cniVersion":"1.0.0","name":"apart","plugins":[{"type":"b"}]}"#;
    fs::write(elsewhere.join("1.conflist"), text).unwrap();
    cni.setup(&apart).await.unwrap();
    cni.setup(&pod(2)).await.unwrap();
    assert_eq!(bench.calls(), ["b ADD", "a ADD"]);
    bench.forget_calls();
    // Who undoes it need not know where it was configured, nor need that be there.
    fs::remove_dir_all(&elsewhere).unwrap();
    cni.teardown(&pod(1)).await.unwrap();
    assert_eq!(bench.calls(), ["b DEL"]);
}

#[tokio::test]
async fn results_that_are_none_are_failures_and_undone() {
    for (body, expected) in [
        ("echo hello", "something that is no cni result"),
        ("true", "something that is no cni result"),
        ("echo '{}'", "gave interface eth0 no address"),
    ] {
        let bench = bench("1.0.0", &["a"]);
        bench.plugin("a", body);
        let error = open(&bench).await.setup(&pod(1)).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{body}: {error}");
        assert_eq!(
            (bench.calls(), bench.records()),
            (vec!["a ADD".to_owned(), "a DEL".to_owned()], 0),
            "{body}"
        );
    }
}

/// A network whose plugin hangs in ADD, once it has opened and closed the fifo.
async fn hanging_in_add(version: &str) -> (Bench, Cni, PathBuf) {
    let bench = bench(version, &["a"]);
    let reached = fifo(&bench, "reached");
    bench.plugin(
        "a",
        &format!("[ $CNI_COMMAND = ADD ] && : > reached && exec sleep 1000\n{}", answer("10.1.0.2")),
    );
    let config = CniConfig { operation_timeout: LONG, ..bench.config() };
    let cni = Cni::with_rhythm(config, events_only(), &CancellationToken::new()).await.unwrap();
    (bench, cni, reached)
}

#[tokio::test]
async fn a_hanging_plugin_costs_its_time_and_no_more() {
    let (bench, cni, reached) = hanging_in_add("1.0.0").await;
    let pod = pod(1);
    let (setup, ()) = tokio::join!(cni.setup(&pod), async {
        read_to_end(reached).await;
        testing::pass(LONG).await;
    });
    let error = setup.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert_eq!(error.to_string(), r#"cni plugin "a" did not finish ADD within 60s"#);
    assert_eq!((bench.calls(), bench.records()), (vec!["a ADD".to_owned(), "a DEL".to_owned()], 0));
}

/// Begins a setup in a runtime of its own and lets the whole runtime die when the plugins have opened and closed the
/// fifo `reached`. The plugin that runs then goes on without a parent that waits for it.
async fn die_during_setup(bench: &Bench, pod: PodNetwork, reached: PathBuf) {
    let life = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = bench.config();
    life.spawn(async move {
        let cni = Cni::with_rhythm(config, events_only(), &CancellationToken::new()).await.unwrap();
        cni.setup(&pod).await
    });
    read_to_end(reached).await;
    tokio::task::spawn_blocking(move || life.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
}

#[tokio::test]
async fn death_in_the_middle_of_add_leaves_enough_to_undo_it_when_the_plugin_has_ended() {
    let bench = bench("1.0.0", &["a", "b"]);
    let (reached, go_on) = (fifo(&bench, "reached"), fifo(&bench, "go_on"));
    bench.plugin("b", &format!("echo > {}; cat {}; echo late >> calls", reached.display(), go_on.display()));
    die_during_setup(&bench, pod(1), reached).await;
    assert_eq!(bench.calls(), ["a ADD", "b ADD"]);
    bench.good_plugin("b", "10.1.0.9");

    let cni = open(&bench).await;
    assert_eq!(cni.cached(), [pod(1).sandbox]);
    cni.setup(&pod(2)).await.unwrap();
    let one = pod(1);
    let (attached, ()) = tokio::join!(cni.setup(&one), async {
        tokio::task::spawn_blocking(move || fs::write(go_on, "now").unwrap()).await.unwrap();
    });
    attached.unwrap();
    let calls = ["a ADD", "b ADD", "a ADD", "b ADD", "late", "b DEL", "a DEL", "a ADD", "b ADD"];
    assert_eq!(
        bench.calls(),
        calls,
        "the old plugin ends, what it did is undone, the new attempt starts clean"
    );
    assert!(!bench.conf("b", "DEL").as_object().unwrap().contains_key("prevResult"));
}

#[tokio::test]
async fn a_plugin_of_an_earlier_life_that_never_ends_is_killed() {
    let bench = bench("1.0.0", &["a"]);
    let reached = fifo(&bench, "reached");
    bench.plugin("a", &format!("echo > {}; exec sleep 1000", reached.display()));
    die_during_setup(&bench, pod(1), reached).await;
    bench.good_plugin("a", "10.1.0.2");
    let config = CniConfig { operation_timeout: Duration::from_secs(1), ..bench.config() };
    let cni = Cni::with_rhythm(config, events_only(), &CancellationToken::new()).await.unwrap();
    let error = cni.check(&pod(1)).await.unwrap_err();
    assert!(matches!(error, CniError::NotAttached), "an attachment without result is none: {error}");
    // What comes now is to end.
    cni.reconfigure(bench.config()).await;
    cni.teardown(&pod(1)).await.unwrap();
    assert_eq!((bench.calls(), bench.records()), (vec!["a ADD".to_owned(), "a DEL".to_owned()], 0));
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    let bench = bench("1.0.0", &["a"]);
    let (reached, go_on) = (fifo(&bench, "reached"), fifo(&bench, "go_on"));
    let wait =
        format!("[ $CNI_COMMAND = ADD ] && {{ echo > {}; cat {}; }}", reached.display(), go_on.display());
    bench.plugin("a", &format!("{wait}\n{}", answer("10.1.0.2")));
    let cni = open(&bench).await;
    let pod = pod(1);
    tokio::select! {
        _ = cni.setup(&pod) => panic!("the plugin waits for the test"),
        _ = read_to_end(reached) => {}
    }
    let (detached, ()) = tokio::join!(cni.teardown(&pod), async {
        tokio::task::spawn_blocking(move || fs::write(go_on, "").unwrap()).await.unwrap();
    });
    detached.unwrap();
    assert!(bench.conf("a", "DEL").get("prevResult").is_some(), "ADD had come to its end");
    assert_eq!(bench.records(), 0);
}

#[tokio::test]
async fn collection_detaches_what_earlier_lives_left_and_tells_plugins_who_is_valid() {
    let bench = bench("1.1.0", &["a", "b"]);
    let earlier = open(&bench).await;
    for seed in [1, 2] {
        earlier.setup(&pod(seed)).await.unwrap();
    }
    drop(earlier);
    let cni = open(&bench).await;
    cni.setup(&pod(3)).await.unwrap();
    cni.wait_for(|status| status.ready).await.unwrap();
    bench.forget_calls();

    cni.gc(&[pod(2).sandbox]).await.unwrap();
    assert_eq!(bench.calls(), ["b DEL", "a DEL", "a GC", "b GC"]);
    assert_eq!(bench.env("a", "DEL")["CNI_CONTAINERID"], pod(1).sandbox.as_str());
    let mut left = cni.cached();
    left.sort();
    assert_eq!(left, [pod(2).sandbox, pod(3).sandbox]);
    let valid = json!([{"containerID": pod(2).sandbox, "ifname": "eth0"},
        {"containerID": pod(3).sandbox, "ifname": "eth0"}]);
    assert_eq!(bench.conf("b", "GC")["cni.dev/valid-attachments"], valid);
    assert!(!bench.env("b", "GC").contains_key("CNI_CONTAINERID"));
}

#[tokio::test]
async fn collection_goes_on_past_failures_and_reports_them_all() {
    let bench = bench("1.1.0", &["a", "b"]);
    let earlier = open(&bench).await;
    earlier.setup(&pod(1)).await.unwrap();
    earlier.setup(&pod(2)).await.unwrap();
    drop(earlier);
    bench.plugin("b", "[ $CNI_COMMAND = STATUS ] && exit 0; echo '{\"code\":11,\"msg\":\"later\"}'; exit 1");
    let cni = open(&bench).await;
    cni.wait_for(|status| status.ready).await.unwrap();
    bench.forget_calls();
    let error = cni.gc(&[]).await.unwrap_err();
    assert!(matches!(&error, CniError::Several(all) if all.len() == 3), "{error}");
    assert_eq!((error.kind(), bench.records()), (ErrorKind::Unavailable, 2));
    let mut calls = bench.calls();
    calls.sort();
    assert_eq!(calls, ["a GC", "b DEL", "b DEL", "b GC"]);
}

#[tokio::test]
async fn a_damaged_record_falls_back_to_the_present_network() {
    let bench = bench("1.0.0", &["a"]);
    let cni = open(&bench).await;
    cni.setup(&pod(1)).await.unwrap();
    let record = bench.path("cache").join(format!("{}.json", pod(1).sandbox));
    fs::write(&record, "{").unwrap();
    cni.teardown(&pod(1)).await.unwrap();
    assert_eq!((bench.calls(), bench.records()), (vec!["a ADD".to_owned(), "a DEL".to_owned()], 0));
}

#[tokio::test]
async fn different_sandboxes_run_side_by_side_and_one_waits_for_itself() {
    let bench = bench("1.0.0", &["a"]);
    let meet = fifo(&bench, "meet");
    // Opening the fifo ends only when both ends are open: the two runs must be alive at once.
    let body = format!(
        "m={}\nif [ $CNI_COMMAND = ADD ]; then if mkdir first 2>/dev/null; then cat $m > /dev/null; else : > $m; fi; fi\n{}",
        meet.display(),
        answer("10.1.0.2")
    );
    bench.plugin("a", &body);
    let cni = open(&bench).await;
    let (one, two) = (pod(1), pod(2));
    let (first, second) = tokio::join!(cni.setup(&one), cni.setup(&two));
    first.and(second).unwrap();
    bench.plugin(
        "a",
        &format!("{}\n", answer("10.1.0.2").replace("exit 0", "echo \"end $CNI_COMMAND\" >> calls")),
    );
    bench.forget_calls();
    let three = pod(3);
    let (attached, detached) = tokio::join!(cni.setup(&three), cni.teardown(&three));
    attached.map(drop).and(detached).unwrap();
    assert_eq!(bench.calls(), ["a ADD", "end ADD", "a DEL", "end DEL"]);
}

#[tokio::test]
async fn status_follows_the_status_verb_without_ever_waiting_for_it() {
    let bench = bench("1.1.0", &["a"]);
    bench.plugin("a", "[ $CNI_COMMAND = STATUS ] && exec sleep 1000");
    let rhythm = Rhythm {
        status_every: Duration::from_millis(20),
        status_limit: Duration::from_secs(1),
        ..events_only()
    };
    let cni = Cni::with_rhythm(bench.config(), rhythm, &CancellationToken::new()).await.unwrap();
    assert!(cni.status().message.ends_with("was not asked for its status yet"), "{:?}", cni.status());
    let status = cni.wait_for(|status| status.message.contains("did not finish STATUS within 1s")).await;
    assert!(!status.unwrap().ready);
    bench.plugin("a", "echo '{\"code\":50,\"msg\":\"no route\"}'; exit 1");
    let status = cni.wait_for(|status| status.message.contains("no route")).await.unwrap();
    let expected = "Network plugin returns error: network \"testnet\" is not ready: cni plugin \"a\" failed STATUS \
                    with code 50: no route";
    assert_eq!((status.reason.as_str(), status.message.as_str()), ("NetworkPluginNotReady", expected));
    bench.good_plugin("a", "10.1.0.2");
    assert_eq!(cni.wait_for(|status| status.ready).await, Some(NetworkStatus::ready()));
}

/// Waits until the published status contains `text`, or is ready when it is empty. A second is the promise; the rest is
/// for a loaded machine, and `events_only` makes sure that it is an event that ends the wait.
async fn becomes(cni: &Cni, text: &str) {
    let wanted = |status: &NetworkStatus| {
        if text.is_empty() { status.ready } else { !status.ready && status.message.contains(text) }
    };
    let waited = tokio::time::timeout(LONG, cni.wait_for(wanted)).await;
    assert!(waited.is_ok(), "status stays {:?} while {text:?} is awaited", cni.status());
}

#[tokio::test]
async fn the_configuration_directory_may_go_and_come_back() {
    let bench = bench("1.0.0", &["a"]);
    let cni = open(&bench).await;
    assert!(cni.status().ready);
    for _ in 0..3 {
        fs::remove_dir_all(bench.path("conf")).unwrap();
        becomes(&cni, "does not exist").await;
        fs::create_dir(bench.path("conf")).unwrap();
        becomes(&cni, "no valid network config found").await;
        fs::write(bench.path("conf/1.conflist"), "{").unwrap();
        becomes(&cni, "1.conflist: it is not valid JSON").await;
        bench.list("1.0.0", &[r#"{"type":"a"}"#]);
        becomes(&cni, "").await;
    }
    cni.setup(&pod(1)).await.unwrap();
}

#[tokio::test]
async fn a_swapped_link_changes_the_network() {
    let bench = Bench::new();
    for (dir, name) in [("v1", "old"), ("v2", "new")] {
        fs::create_dir(bench.path(dir)).unwrap();
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"a"}}]}}"#);
        fs::write(bench.path(dir).join("1.conflist"), text).unwrap();
    }
    fs::remove_dir(bench.path("conf")).unwrap();
    symlink("v1", bench.path("conf")).unwrap();
    let cni = open(&bench).await;
    let name = || cni.describe()["Networks"][0]["Config"]["Name"].clone();
    assert_eq!(name(), "old");
    symlink("v2", bench.path("next")).unwrap();
    fs::rename(bench.path("next"), bench.path("conf")).unwrap();
    let mut state = cni.inner.setup().state.clone();
    let swapped = state.wait_for(|state| state.network.as_ref().is_some_and(|net| net.list.name == "new"));
    drop(tokio::time::timeout(LONG, swapped).await.unwrap().unwrap());
    assert_eq!(name(), "new");
}

#[tokio::test]
async fn the_tasks_end_with_their_token_and_with_the_driver() {
    let bench = bench("1.0.0", &["a"]);
    let token = CancellationToken::new();
    let cni = Cni::with_rhythm(bench.config(), events_only(), &token).await.unwrap();
    token.cancel();
    assert_eq!(cni.wait_for(|status| !status.ready).await, None);
    let cni = open(&bench).await;
    let mut state = cni.inner.setup().state.clone();
    drop(cni);
    assert!(state.wait_for(|_| false).await.is_err());
}

#[tokio::test]
async fn a_reload_moves_to_other_directories_and_limits() {
    let bench = bench("1.0.0", &["a"]);
    let cni = open(&bench).await;
    cni.setup(&pod(1)).await.unwrap();
    let old_state = cni.inner.setup().state.clone();
    for dir in ["conf2", "bin2"] {
        fs::create_dir(bench.path(dir)).unwrap();
    }
    let text = r#"{"cniVersion":"1.1.0","name":"second","plugins":[{"type":"a"}]}"#;
    fs::write(bench.path("conf2/1.conflist"), text).unwrap();
    let program = fs::read_to_string(bench.path("bin/a")).unwrap();
    testing::write_program(&bench.path("bin2/a"), &program);
    let limit = Duration::from_secs(70);
    let next = CniConfig {
        conf_dir: bench.path("conf2"),
        bin_dirs: vec![bench.path("bin2")],
        operation_timeout: limit,
        cache_dir: "/nowhere".into(),
        ..bench.config()
    };
    cni.reconfigure(next.clone()).await;
    assert!(cni.status().ready, "it was asked before it came into force: {:?}", cni.status());
    assert_eq!(cni.describe()["Networks"][0]["Config"]["Name"], "second");
    assert_eq!(cni.inner.setup().config.operation_timeout, limit);
    assert_eq!(cni.setup(&pod(2)).await.unwrap().network, "second");
    assert_eq!(cni.cached().len(), 2, "records stay where they are");
    cni.teardown(&pod(1)).await.unwrap();
    assert!(old_state.has_changed().is_err(), "the tasks of the old directory have ended");

    cni.reconfigure(CniConfig { operation_timeout: 2 * limit, ..next }).await;
    assert_eq!(cni.inner.setup().config.operation_timeout, 2 * limit);
    assert!(cni.status().ready);
    cni.teardown(&pod(2)).await.unwrap();
}

/// Of one verb: how many ended well, failed, and ran out of time.
fn ends(cni: &Cni, verb: &str) -> (u64, u64, u64) {
    let figures = cni.operations().into_iter().find(|figures| figures.verb == verb).unwrap();
    (figures.ok, figures.failed, figures.timed_out)
}

#[tokio::test]
async fn operations_are_counted_by_what_became_of_them() {
    let bench = bench("1.0.0", &["a", "b"]);
    let cni = open(&bench).await;
    cni.setup(&pod(1)).await.unwrap();
    cni.check(&pod(1)).await.unwrap();
    cni.teardown(&pod(1)).await.unwrap();
    cni.teardown(&pod(1)).await.unwrap();
    assert_eq!((ends(&cni, "ADD"), ends(&cni, "CHECK")), ((1, 0, 0), (1, 0, 0)));
    assert_eq!(ends(&cni, "DEL"), (1, 0, 0), "what is detached needs no DEL");
    bench.plugin("b", &fails("ADD", 7, "10.1.0.2"));
    cni.setup(&pod(1)).await.unwrap_err();
    assert_eq!((ends(&cni, "ADD"), ends(&cni, "DEL")), ((1, 1, 0), (2, 0, 0)), "it was undone");
    fs::remove_file(bench.path("bin/b")).unwrap();
    cni.setup(&pod(1)).await.unwrap_err();
    fs::remove_dir_all(bench.path("conf")).unwrap();
    becomes(&cni, "does not exist").await;
    cni.setup(&pod(1)).await.unwrap_err();
    assert_eq!(ends(&cni, "ADD"), (1, 3, 0), "a missing program, a missing network");
    assert_eq!((ends(&cni, "GC"), ends(&cni, "STATUS")), ((0, 0, 0), (0, 0, 0)));
    let add = &cni.operations()[0];
    assert_eq!((add.verb, add.durations.total(), add.in_flight), ("ADD", 2, 0), "those that ran plugins");
    // A reload goes on counting.
    fs::create_dir(bench.path("conf2")).unwrap();
    cni.reconfigure(CniConfig { conf_dir: bench.path("conf2"), ..bench.config() }).await;
    assert_eq!(ends(&cni, "ADD"), (1, 3, 0));
}

#[tokio::test]
async fn a_hanging_operation_is_in_flight_and_then_out_of_time() {
    let (_bench, cni, reached) = hanging_in_add("1.1.0").await;
    cni.wait_for(|status| status.ready).await.unwrap();
    let pod = pod(1);
    let (setup, in_flight) = tokio::join!(cni.setup(&pod), async {
        read_to_end(reached).await;
        let in_flight = cni.operations()[0].in_flight;
        testing::pass(LONG).await;
        in_flight
    });
    setup.unwrap_err();
    assert_eq!(in_flight, 1);
    assert_eq!((ends(&cni, "ADD"), cni.operations()[0].in_flight), ((0, 0, 1), 0));
    assert_eq!((ends(&cni, "DEL"), ends(&cni, "STATUS")), ((1, 0, 0), (1, 0, 0)));
}
