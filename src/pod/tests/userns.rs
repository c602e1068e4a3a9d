//! Pods with a user namespace of their own: what is asked of the host and of the monitor, and whether the handler can.

use super::*;

fn mapped(name: &str) -> SandboxRequest {
    let mut config = sandbox(name).config().clone();
    let ids = || vec![v1::IdMapping { host_id: 70_000, container_id: 0, length: 65_536 }];
    let userns_options = Some(v1::UserNamespace { uids: ids(), gids: ids(), ..Default::default() });
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().userns_options = userns_options;
    SandboxRequest::parse(config, String::new()).unwrap()
}

fn able(pods: &Pods) {
    let mut settings = Settings::clone(&pods.settings());
    settings.handlers.get_mut("runc").unwrap().user_namespaces = true;
    pods.reconfigure(settings);
}

fn spec_of(pods: &Pods, id: &str) -> serde_json::Value {
    let path = pods.layout().bundle(id).join("config.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn a_handler_without_them_is_not_asked_for_one() {
    let node = Node::new();
    let pods = node.recovered().await;
    let error = pods.run_sandbox(mapped("web")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("user namespace"), "{error}");
    assert_eq!((node.left(), node.host.owned.lock().unwrap().len()), (Vec::<String>::new(), 0));
}

#[tokio::test]
async fn the_namespace_is_made_with_the_network_and_joined_by_all() {
    let node = Node::new();
    let pods = node.recovered().await;
    able(&pods);
    let sandbox_id = pods.run_sandbox(mapped("web")).await.unwrap();
    let map = sys::userns::IdMap { outside: 70_000, length: 65_536 };
    assert_eq!(*node.host.owned.lock().unwrap(), [sys::userns::IdMaps { uids: map, gids: map }]);
    let source = node.dir.path().join("volume");
    let ids = || vec![v1::IdMapping { host_id: 70_000, container_id: 0, length: 65_536 }];
    let mount = v1::Mount {
        container_path: "/volume".to_owned(),
        host_path: source.display().to_string(),
        uid_mappings: ids(),
        gid_mappings: ids(),
        ..v1::Mount::default()
    };
    let id = pods.create_container(sandbox_id.as_str(), container_with("app", vec![mount])).await.unwrap();
    pods.start_container(id.as_str()).await.unwrap();

    let bundle = |id: &str| pods.layout().bundle(id);
    let user = |spec: &serde_json::Value| {
        let list = spec["linux"]["namespaces"].as_array().unwrap();
        list.iter().find(|it| it["type"] == "user").unwrap()["path"].as_str().unwrap().to_owned()
    };
    let pause = spec_of(&pods, sandbox_id.as_str());
    assert_eq!(Path::new(&user(&pause)), bundle(sandbox_id.as_str()).join("user"));
    let spec = spec_of(&pods, id.as_str());
    assert!(user(&spec).ends_with("/ns/user") && user(&spec).starts_with("/proc/"), "{}", user(&spec));
    let mounted =
        spec["mounts"].as_array().unwrap().iter().find(|it| it["destination"] == "/volume").unwrap();
    let target = bundle(id.as_str()).join("volumes/0");
    assert_eq!(mounted["source"].as_str().unwrap(), target.to_str().unwrap(), "where the helper binds it");
    let record = std::fs::read_dir(pods.layout().records().join(sandbox_id.as_str())).unwrap();
    let record = record.map(|entry| entry.unwrap().path()).find(|path| path.ends_with(format!("{id}.json")));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record.unwrap()).unwrap()).unwrap();
    let found = source.canonicalize().unwrap();
    assert_eq!(record["mapped"][0]["source"].as_str().unwrap(), found.to_str().unwrap());
    pods.remove_sandbox(sandbox_id.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}
