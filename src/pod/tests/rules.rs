//! Handlers whose pods differ from others'.

use super::super::HandlerRules;
use super::*;

/// Puts rules in force for the only handler.
fn rule(pods: &Pods, rules: HandlerRules) {
    let mut settings = Settings::clone(&pods.settings());
    settings.handlers.get_mut("runc").unwrap().rules = rules;
    pods.reconfigure(settings);
}

fn limited(name: &str, memory: i64) -> ContainerRequest {
    let mut config = container(name).config().clone();
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    ContainerRequest::parse(config).unwrap()
}

fn change(memory: i64) -> spec::ResourcesUpdate {
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
    spec::ResourcesUpdate::parse(resources).unwrap()
}

#[tokio::test]
async fn the_least_memory_limit_holds_for_making_and_for_changing() {
    let node = Node::new();
    let pods = node.recovered().await;
    rule(&pods, HandlerRules { min_memory_bytes: 64 << 20, ..HandlerRules::default() });
    let sandbox_id = pods.run_sandbox(sandbox("web")).await.unwrap();
    let error = pods.create_container(sandbox_id.as_str(), limited("small", 32 << 20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let id = pods.create_container(sandbox_id.as_str(), limited("large", 96 << 20)).await.unwrap();
    let error = pods.update_container(id.as_str(), change(32 << 20)).await.unwrap_err();
    assert!(types::error::chain(&*error).contains("memory_limit_in_bytes"), "{error}");
    pods.update_container(id.as_str(), change(64 << 20)).await.unwrap();
    // Any limit will do where there is no least one.
    rule(&pods, HandlerRules { min_memory_bytes: 0, ..HandlerRules::default() });
    pods.update_container(id.as_str(), change(1 << 20)).await.unwrap();
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn annotations_reach_the_runtime_as_far_as_the_handler_lets_them() {
    let node = Node::new();
    let pods = node.recovered().await;
    rule(&pods, HandlerRules { pod_annotations: vec!["io.kata.*".to_owned()], ..HandlerRules::default() });
    let mut config = sandbox("web").config().clone();
    let said = [("io.kata.x", "1"), ("run.oci.hooks.stdout", "/f")];
    config.annotations.extend(said.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let request = SandboxRequest::parse(config, String::new()).unwrap();
    let sandbox_id = pods.run_sandbox(request).await.unwrap();
    let id = pods.create_container(sandbox_id.as_str(), container("app")).await.unwrap();
    for bundle in [sandbox_id.as_str(), id.as_str()] {
        let path = pods.layout().bundle(bundle).join("config.json");
        let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(spec["annotations"]["io.kata.x"], "1");
        assert_eq!(spec["annotations"].get("run.oci.hooks.stdout"), None);
    }
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
}

#[tokio::test]
async fn what_a_runtime_was_built_without_is_not_promised() {
    let node = Node::new();
    let pods = node.recovered().await;
    let mut settings = Settings::clone(&pods.settings());
    settings.facts.selinux = true;
    let handler = settings.handlers.get_mut("runc").unwrap();
    handler.features = runtime::Features { told: true, seccomp: Some(false), ..runtime::Features::default() };
    let facts = settings.facts_of("runc");
    assert!(!facts.seccomp && facts.selinux, "what is not said is not denied");
    assert!(!facts.recursive_read_only);
    assert!(settings.facts_of("nobody").seccomp, "without a handler the node's own offers count");
}
