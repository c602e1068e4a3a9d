//! What is shown of operations while they are under way.

use cni::fake::{Fault as NetworkFault, Verb};

use super::failpoints::nothing_in_flight;
use super::figures::until;
use super::*;
use crate::tasks::{Kind, TaskView};

fn doing(pods: &Pods, verb: &str) -> Option<TaskView> {
    pods.in_flight().list().into_iter().find(|task| task.verb == verb)
}

fn stages(task: &TaskView) -> Vec<&'static str> {
    task.stages.iter().map(|stage| stage.name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_hangs_is_shown_with_its_stage_and_its_callers() {
    let node = Node::new();
    let pods = node.recovered().await;
    nothing_in_flight(&pods, "recovery").await;
    node.network.inject(Verb::Setup, NetworkFault::Hang);
    let ask = || {
        let pods = pods.clone();
        tokio::spawn(async move { pods.run_sandbox(sandbox("web")).await })
    };
    let (first, second) = (ask(), ask());
    let at_network = || doing(&pods, "run sandbox").is_some_and(|task| stages(&task) == ["CNI"]);
    until("the network", at_network).await;
    until("two callers", || pods.in_flight().callers().len() == 2).await;
    let task = doing(&pods, "run sandbox").unwrap();
    assert_eq!((task.kind, task.object.as_str()), (Kind::Operation, "sandbox default/web"));
    assert_eq!(
        pods.owner(&task.owner).unwrap(),
        (SandboxId::parse(&task.id).unwrap(), None),
        "not listed yet"
    );
    for caller in pods.in_flight().callers() {
        assert_eq!(
            (caller.verb, caller.pod, caller.container),
            ("run sandbox", task.id.clone(), String::new())
        );
    }
    // Who leaves is no caller any more; the work goes on.
    first.abort();
    until("one caller", || pods.in_flight().callers().len() == 1).await;
    second.abort();
    until("no caller", || pods.in_flight().callers().is_empty()).await;
    assert!(at_network());
}

#[tokio::test(start_paused = true)]
async fn a_container_with_its_grace_waits_on_purpose() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (sandbox_id, id) = run(&pods, "web").await;
    node.monitors.ignore_sigterm(&id);
    let stopping = tokio::spawn({
        let (pods, id) = (pods.clone(), id.clone());
        async move { pods.stop_container(id.as_str(), Duration::from_secs(3600)).await }
    });
    until("the grace", || doing(&pods, "stop container").is_some_and(|task| stages(&task) == ["grace"]))
        .await;
    let task = doing(&pods, "stop container").unwrap();
    assert!(task.stages[0].waits);
    let (pod, name) = pods.owner(&task.owner).unwrap();
    assert_eq!((pod, name.as_deref()), (sandbox_id, Some("default/web")));
    let callers = pods.in_flight().callers();
    assert_eq!((callers.len(), callers[0].container.as_str()), (1, id.as_str()));
    pods.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
    stopping.await.unwrap().unwrap();
    nothing_in_flight(&pods, "the stop").await;
}

#[tokio::test(start_paused = true)]
async fn a_command_is_a_session_of_its_container_until_it_ends() {
    let node = Node::new();
    let pods = node.recovered().await;
    let (_, id) = run(&pods, "web").await;
    let command = tokio::spawn({
        let (pods, id) = (pods.clone(), id.clone());
        async move { pods.exec_sync(id.as_str(), vec!["/sleep".to_owned()], None).await }
    });
    let runs =
        |task: &TaskView| task.stages.is_empty() && task.after.is_some_and(|after| after.name == "tidy");
    until("the command", || doing(&pods, "exec in").is_some_and(|task| runs(&task))).await;
    let task = doing(&pods, "exec in").unwrap();
    assert_eq!((task.kind, task.owner.as_str()), (Kind::Session, id.as_str()));
    assert!(pods.in_flight().list().len() == 1, "one entry for all of its steps");
    assert!(node.monitors.exit_exec(&types::ExecId::parse(&task.id).unwrap(), 0));
    command.await.unwrap().unwrap();
    nothing_in_flight(&pods, "the command").await;
}
