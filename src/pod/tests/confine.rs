//! What confines pods: profiles that must be there, levels that no two pods share, files that are labelled for one.

use std::sync::Mutex;

use spec::oci_spec::runtime::Spec;
use spec::selinux::Contexts;
use v1::security_profile::ProfileType;

use super::*;

/// A node whose AppArmor has these profiles, and which has SELinux.
fn node(profiles: &[&str]) -> Node {
    let profiles = profiles.iter().map(|name| (*name).to_owned()).collect();
    let confinement = FakeConfinement {
        profiles: Mutex::new(Some(profiles)),
        contexts: Some(Contexts::parse("")),
        labelled: Mutex::default(),
    };
    Node { confinement: Arc::new(confinement), ..Node::new() }
}

fn secured(name: &str, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> ContainerRequest {
    let mut config = container(name).config().clone();
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    ContainerRequest::parse(config).unwrap()
}

fn apparmor(name: &str, kind: ProfileType, profile: &str) -> ContainerRequest {
    secured(name, |context| {
        let localhost_ref = profile.to_owned();
        context.apparmor = Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref });
    })
}

/// The spec in a bundle: of a container, or of the pause container of a sandbox.
fn spec_of(pods: &Pods, id: &str) -> Spec {
    serde_json::from_slice(&std::fs::read(pods.layout().bundle(id).join("config.json")).unwrap()).unwrap()
}

fn profile_of(pods: &Pods, id: &str) -> Option<String> {
    spec_of(pods, id).process().as_ref().unwrap().apparmor_profile().clone()
}

fn label_of(pods: &Pods, id: &str) -> String {
    spec_of(pods, id).process().as_ref().unwrap().selinux_label().clone().unwrap()
}

#[tokio::test]
async fn a_profile_must_be_there_when_the_container_is_made() {
    let node = node(&["crimson-default", "web"]);
    let pods = node.recovered().await;
    let pod = pods.run_sandbox(sandbox("web")).await.unwrap();
    assert_eq!(profile_of(&pods, pod.as_str()).as_deref(), Some("crimson-default"));
    let create = |request| pods.create_container(pod.as_str(), request);
    let id = create(container("unset")).await.unwrap();
    assert_eq!(profile_of(&pods, id.as_str()).as_deref(), Some("crimson-default"));
    let id = create(apparmor("web", ProfileType::Localhost, "web")).await.unwrap();
    assert_eq!(profile_of(&pods, id.as_str()).as_deref(), Some("web"));

    let held = pods.sandbox(pod.as_str()).unwrap().1.containers.len();
    let error = create(apparmor("gone", ProfileType::Localhost, "gone")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(types::error::chain(&*error).contains("AppArmor profile \"gone\""), "{error}");
    assert_eq!(pods.sandbox(pod.as_str()).unwrap().1.containers.len(), held, "nothing is left of it");

    // The default profile goes, and cannot be loaded again.
    *node.confinement.profiles.lock().unwrap() = Some(Vec::new());
    let id = create(container("later")).await.unwrap();
    assert_eq!(profile_of(&pods, id.as_str()), None);
    let error = create(apparmor("demanded", ProfileType::RuntimeDefault, "")).await.unwrap_err();
    assert!(types::error::chain(&*error).contains("there is no parser"), "{error}");
    pods.remove_sandbox(pod.as_str()).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn living_pods_share_no_level_and_keep_theirs_over_a_restart() {
    let node = node(&[]);
    let pods = node.recovered().await;
    let (first, second) =
        (pods.run_sandbox(sandbox("a")).await.unwrap(), pods.run_sandbox(sandbox("b")).await.unwrap());
    let label = label_of(&pods, first.as_str());
    assert!(label.starts_with("system_u:system_r:container_t:s0:c"), "{label}");
    assert_ne!(label, label_of(&pods, second.as_str()));
    drop(pods);

    let pods = node.recovered().await;
    let id = pods.create_container(first.as_str(), container("app")).await.unwrap();
    assert_eq!(label_of(&pods, id.as_str()), label, "a container has its pod's");
    let level = label.strip_prefix("system_u:system_r:container_t:").unwrap().to_owned();
    assert!(pods.shared.levels.all().contains(&level), "a pod of an earlier run holds its level");
    pods.remove_sandbox(first.as_str()).await.unwrap();
    assert!(!pods.shared.levels.all().contains(&level), "it is free again");
    pods.remove_sandbox(second.as_str()).await.unwrap();
    assert_eq!(pods.shared.levels.all(), Vec::<String>::new());
}

#[tokio::test]
async fn labels_are_asked_for_refused_and_given_to_files() {
    let node = node(&[]);
    let pods = node.recovered().await;
    let pod = pods.run_sandbox(sandbox("web")).await.unwrap();
    let own = label_of(&pods, pod.as_str()).replace("system_r:container_t", "object_r:container_file_t");
    let shm = pods.layout().pod_dir(&pod).join("shm");
    assert!(node.confinement.labelled.lock().unwrap().contains(&(shm, own.clone())));

    let of_type = |name: &str, kind: &str| {
        secured(name, |context| {
            context.selinux_options = Some(v1::SeLinuxOption { r#type: kind.into(), ..Default::default() });
        })
    };
    let id = pods.create_container(pod.as_str(), of_type("typed", "web_t")).await.unwrap();
    assert!(label_of(&pods, id.as_str()).contains(":web_t:s0:c"));
    let error = pods.create_container(pod.as_str(), of_type("unknown", "unknown_t")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument, "{error:?}");

    let source = node.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    let mount = |flagged| v1::Mount {
        host_path: source.display().to_string(),
        container_path: "/volume".into(),
        selinux_relabel: flagged,
        ..Default::default()
    };
    let is_labelled = || {
        let all = node.confinement.labelled.lock().unwrap();
        all.iter().any(|(path, label)| *path == source.canonicalize().unwrap() && *label == own)
    };
    pods.create_container(pod.as_str(), container_with("plain", vec![mount(false)])).await.unwrap();
    assert!(!is_labelled());
    pods.create_container(pod.as_str(), container_with("flagged", vec![mount(true)])).await.unwrap();
    assert!(is_labelled());
}
