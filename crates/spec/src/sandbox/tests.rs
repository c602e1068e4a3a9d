use cri_api::v1;
use serde_json::{Value, json};

use crate::fixtures::{
    caps, facts, has_options, mount_at, namespaces, pod, pod_namespaces, pod_security, sandbox_json,
    sandbox_place,
};
use crate::{Hierarchy, NodeFacts, SandboxRequest, SpecError, sandbox_spec};

const NODE: i32 = v1::NamespaceMode::Node as i32;

fn check(change: impl FnOnce(&mut v1::PodSandboxConfig), expect: impl FnOnce(&Value)) {
    let mut config = pod();
    change(&mut config);
    expect(&sandbox_json(config, &facts()).unwrap());
}

fn owned(list: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    list.iter().map(|(kind, path)| ((*kind).to_owned(), path.map(str::to_owned))).collect()
}

#[test]
fn a_plain_pod_holds_its_namespaces_and_nothing_else() {
    check(
        |_| {},
        |spec| {
            assert_eq!(spec["ociVersion"], "1.0.2");
            assert_eq!(spec["hostname"], "web-0");
            assert_eq!(spec["root"], json!({"path": "/var/lib/crimson/pause", "readonly": true}));
            assert_eq!(spec["process"]["args"], json!(["/pause"]));
            assert_eq!(
                spec["process"]["user"],
                json!({"uid": 65535, "gid": 65535, "additionalGids": [65535]})
            );
            assert_eq!(spec["process"]["noNewPrivileges"], true);
            assert_eq!(spec["process"]["oomScoreAdj"], -998);
            assert_eq!(spec["process"].get("rlimits"), None);
            assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/podu-1/sandbox");
            assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": false, "access": "rwm"}]));
            assert_eq!(spec["linux"]["resources"].get("pids"), None);
            assert_eq!(spec["linux"].get("seccomp"), None);
            assert!(caps(spec, "bounding").is_empty());
            let netns = Some("/run/netns/cni-1");
            let expected = [("ipc", None), ("mount", None), ("network", netns), ("pid", None), ("uts", None)];
            assert_eq!(namespaces(spec), owned(&expected));
            assert!(mount_at(spec, "/proc").is_some());
            assert!(has_options(spec, "/dev/shm", &["rbind"]));
        },
    );
}

#[test]
fn annotations_say_whose_pod_it_is() {
    let change = |config: &mut v1::PodSandboxConfig| {
        config.annotations.insert("run.oci.hooks".into(), "evil".into());
    };
    check(change, |spec| {
        let expected = json!({
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": "5a".repeat(32),
            "io.kubernetes.cri.sandbox-name": "web",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-uid": "u-1",
            "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/shop_web_u-1",
        });
        assert_eq!(spec["annotations"], expected);
    });
}

#[test]
fn host_network_means_the_nodes_network_and_name() {
    check(
        |config| pod_namespaces(config).network = NODE,
        |spec| {
            assert_eq!(namespaces(spec), owned(&[("ipc", None), ("mount", None), ("pid", None)]));
            assert_eq!(spec.get("hostname"), None);
            assert_eq!(spec["linux"]["sysctl"], json!({}));
        },
    );
}

#[test]
fn host_pid_and_host_ipc_leave_those_out() {
    let change = |config: &mut v1::PodSandboxConfig| {
        let options = pod_namespaces(config);
        options.pid = NODE;
        options.ipc = NODE;
    };
    check(change, |spec| {
        let netns = Some("/run/netns/cni-1");
        assert_eq!(namespaces(spec), owned(&[("mount", None), ("network", netns), ("uts", None)]));
    });
}

#[test]
fn a_pod_without_a_host_name_keeps_the_nodes() {
    check(|config| config.hostname.clear(), |spec| assert_eq!(spec.get("hostname"), None));
}

#[test]
fn cgroup_v2_pods_see_their_own_subtree() {
    let v2 = NodeFacts { hierarchy: Hierarchy::V2, ..facts() };
    let spec = sandbox_json(pod(), &v2).unwrap();
    assert!(namespaces(&spec).contains(&("cgroup".to_owned(), None)));
}

#[test]
fn sysctls_of_the_pod_lie_over_the_nodes_defaults() {
    let change = |config: &mut v1::PodSandboxConfig| {
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        sysctls.insert("net/ipv4/ip_unprivileged_port_start".into(), "1024".into());
        sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    };
    check(change, |spec| {
        let expected = json!({
            "net.ipv4.ip_unprivileged_port_start": "1024",
            "net.ipv4.ping_group_range": "0 2147483647",
            "kernel.shm_rmid_forced": "1",
        });
        assert_eq!(spec["linux"]["sysctl"], expected);
    });
}

#[test]
fn the_pods_user_runs_pause() {
    let change = |config: &mut v1::PodSandboxConfig| {
        let context = pod_security(config);
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
        context.run_as_group = Some(v1::Int64Value { value: 2000 });
        context.supplemental_groups = vec![3000];
    };
    check(change, |spec| {
        assert_eq!(
            spec["process"]["user"],
            json!({"uid": 1000, "gid": 2000, "additionalGids": [2000, 3000]})
        );
    });
}

#[test]
fn the_default_seccomp_profile_fits_a_process_without_capabilities() {
    let change = |config: &mut v1::PodSandboxConfig| {
        pod_security(config).seccomp = Some(v1::SecurityProfile::default())
    };
    check(change, |spec| {
        let seccomp = &spec["linux"]["seccomp"];
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(seccomp["defaultErrnoRet"], 38);
        assert!(seccomp["syscalls"].as_array().unwrap().len() > 3);
    });
    let mut config = pod();
    change(&mut config);
    let without = NodeFacts { seccomp: false, ..facts() };
    assert_eq!(sandbox_json(config, &without).unwrap()["linux"].get("seccomp"), None);
}

#[test]
fn the_oom_score_is_what_the_node_can_set() {
    let weak = NodeFacts { oom_score_adj_floor: 0, ..facts() };
    assert_eq!(sandbox_json(pod(), &weak).unwrap()["process"]["oomScoreAdj"], 0);
}

#[test]
fn a_pause_image_gives_command_and_user() {
    let request = SandboxRequest::parse(pod(), String::new()).unwrap();
    let mut image = crate::fixtures::image();
    let mut config = image.config().clone().unwrap();
    config.set_user(Some("7:8".to_owned()));
    image.set_config(Some(config));
    let place = crate::SandboxPlace { command: vec![], image: Some(image), ..sandbox_place() };
    let spec = sandbox_spec(&request, &facts(), &place).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/entry", "serve", "--all"]);
    assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
}

#[test]
fn a_pod_of_its_own_network_needs_its_namespace() {
    let request = SandboxRequest::parse(pod(), String::new()).unwrap();
    let place = crate::SandboxPlace { netns: None, ..sandbox_place() };
    assert!(matches!(sandbox_spec(&request, &facts(), &place), Err(SpecError::Missing { .. })));
}
