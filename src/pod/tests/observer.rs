//! What an observer hears of pods' lives.

use std::sync::Mutex;

use super::super::Observer;
use super::*;

#[derive(Debug, Default)]
struct Heard {
    steps: Mutex<Vec<(&'static str, &'static str, bool)>>,
    verbs: Mutex<Vec<(&'static str, bool)>>,
}

impl Observer for Heard {
    fn step(&self, verb: &'static str, step: &'static str, _: Duration, succeeded: bool) {
        self.steps.lock().unwrap().push((verb, step, succeeded));
    }

    fn verb(&self, verb: &'static str, _: Duration, succeeded: bool) {
        self.verbs.lock().unwrap().push((verb, succeeded));
    }
}

impl Heard {
    fn has_step(&self, verb: &'static str, step: &'static str, succeeded: bool) -> bool {
        self.steps.lock().unwrap().contains(&(verb, step, succeeded))
    }
}

#[tokio::test]
async fn every_step_and_verb_is_heard_with_its_end() {
    let node = Node::new();
    let pods = node.recovered().await;
    let heard = Arc::new(Heard::default());
    pods.observe(Arc::<Heard>::clone(&heard));
    let (sandbox_id, first) = run(&pods, "web").await;
    assert!(
        heard.has_step("run sandbox", "CNI", true) && heard.has_step("start container", "OCI start", true)
    );
    assert!(heard.has_step("start container", "mount", true), "measured by the monitor");

    let second = pods.create_container(sandbox_id.as_str(), container("broken")).await.unwrap();
    pods.shared.faults.arm("start container", "OCI create");
    pods.start_container(second.as_str()).await.unwrap_err();
    assert!(heard.has_step("start container", "OCI create", false));
    pods.stop_container(first.as_str(), Duration::ZERO).await.unwrap();
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    let verbs = [
        ("run sandbox", true),
        ("create container", true),
        ("start container", true),
        ("create container", true),
        ("start container", false),
        ("remove sandbox", true),
    ];
    assert_eq!(*heard.verbs.lock().unwrap(), verbs);
}
