use std::path::PathBuf;

use cri_api::v1;
use serde_json::{Value, json};
use types::{ErrorKind, Kind};

use crate::fixtures::{
    caps, container, container_json, facts, has_options, mount, mount_at, namespaces, pod, pod_namespaces,
    pod_security, resources, security,
};
use crate::{ContainerPlace, DeviceKind, Hierarchy, NodeFacts, ResolvedDevice, cri_defaults};

mod cases;
mod table;

const NODE: i32 = v1::NamespaceMode::Node as i32;
const POD: i32 = v1::NamespaceMode::Pod as i32;
const TARGET: i32 = v1::NamespaceMode::Target as i32;

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn check(change: impl FnOnce(&mut v1::ContainerConfig), expect: impl FnOnce(&Value)) {
    let mut config = container();
    change(&mut config);
    expect(&container_json(config, pod(), &facts(), |_| {}).unwrap());
}

/// As [`check`], in a pod that allows privileged containers.
fn check_privileged(change: impl FnOnce(&mut v1::ContainerConfig), expect: impl FnOnce(&Value)) {
    let mut config = container();
    security(&mut config).privileged = true;
    change(&mut config);
    let mut pod = pod();
    pod_security(&mut pod).privileged = true;
    expect(&container_json(config, pod, &facts(), |_| {}).unwrap());
}

fn refused(kind: ErrorKind, facts: &NodeFacts, change: impl FnOnce(&mut v1::ContainerConfig)) -> String {
    let mut config = container();
    change(&mut config);
    let error = container_json(config, pod(), facts, |_| {}).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    error.to_string()
}

#[test]
fn a_plain_container() {
    check(
        |_| {},
        |spec| {
            assert_eq!(spec["ociVersion"], "1.0.2");
            assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
            assert_eq!(spec.get("hostname"), None);
            let process = &spec["process"];
            assert_eq!(process["terminal"], false);
            assert_eq!(process["args"], json!(["/entry", "serve", "--all"]));
            assert_eq!(process["cwd"], "/work");
            assert_eq!(process["user"], json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
            assert_eq!(process["env"], json!(["PATH=/image/bin", "MODE=image", "HOSTNAME=web-0"]));
            assert_eq!(process["noNewPrivileges"], false);
            assert_eq!(process["oomScoreAdj"], 0);
            for absent in ["rlimits", "apparmorProfile", "selinuxLabel"] {
                assert_eq!(process.get(absent), None, "{absent}");
            }
            assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/podu-1/app");
            for absent in ["seccomp", "rootfsPropagation", "mountLabel", "sysctl"] {
                assert_eq!(spec["linux"].get(absent), None, "{absent}");
            }
            assert_eq!(spec["linux"]["maskedPaths"], json!([]));
            let resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
            assert_eq!(spec["linux"]["resources"], resources);
        },
    );
}

#[test]
fn command_and_args_as_kubernetes_defines_them() {
    let table: [(&[&str], &[&str], &[&str]); 4] = [
        (&[], &[], &["/entry", "serve", "--all"]),
        (&["/cmd"], &[], &["/cmd"]),
        (&[], &["arg"], &["/entry", "arg"]),
        (&["/cmd"], &["arg"], &["/cmd", "arg"]),
    ];
    for (command, args, expected) in table {
        let change = |config: &mut v1::ContainerConfig| {
            config.command = words(command);
            config.args = words(args);
        };
        check(change, |spec| assert_eq!(spec["process"]["args"], json!(expected)));
    }
}

#[test]
fn an_image_without_command_needs_one_in_the_request() {
    let empty = oci_spec::image::ImageConfiguration::default();
    let sandbox = crate::SandboxRequest::parse(pod(), String::new()).unwrap();
    let translate = |config: v1::ContainerConfig| {
        let request = crate::ContainerRequest::parse(config).unwrap();
        let place = crate::fixtures::place(&request, &empty);
        crate::container_spec(&request, &sandbox, &facts(), &place)
    };
    assert_eq!(translate(container()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let spec = translate(v1::ContainerConfig { args: words(&["sh"]), ..container() }).unwrap();
    assert_eq!(spec.process().as_ref().unwrap().cwd(), &PathBuf::from("/"));
    assert_eq!(spec.process().as_ref().unwrap().env().as_ref().unwrap()[0], cri_defaults::PATH);
}

#[test]
fn the_requests_variables_replace_the_images_in_place() {
    let variable = |key: &str, value: &str| v1::KeyValue { key: key.into(), value: value.into() };
    let change = |config: &mut v1::ContainerConfig| {
        config.envs = vec![variable("MODE", "a=b"), variable("NEW", ""), variable("HOSTNAME", "mine")];
    };
    check(change, |spec| {
        let expected = json!(["PATH=/image/bin", "MODE=a=b", "HOSTNAME=mine", "NEW="]);
        assert_eq!(spec["process"]["env"], expected);
    });
}

#[test]
fn working_directories_are_absolute() {
    for (asked, expected) in [("", "/work"), ("/a/../b", "/b"), ("rel", "/rel")] {
        check(
            |config| config.working_dir = asked.into(),
            |spec| assert_eq!(spec["process"]["cwd"], expected),
        );
    }
}

#[test]
fn a_terminal_has_a_type() {
    let env = |spec: &Value| spec["process"]["env"].as_array().unwrap().contains(&json!("TERM=xterm"));
    check(
        |config| config.tty = true,
        |spec| {
            assert_eq!(spec["process"]["terminal"], true);
            assert!(env(spec));
        },
    );
    check(|_| {}, |spec| assert!(!env(spec)));
}

#[test]
fn annotations_are_copied_but_for_those_that_act() {
    let change = |config: &mut v1::ContainerConfig| {
        for name in ["io.kubernetes.container.hash", "run.oci.hooks.stdout", "io.kubernetes.cri.sandbox-id"] {
            config.annotations.insert(name.into(), "sent".into());
        }
    };
    check(change, |spec| {
        let all = &spec["annotations"];
        assert_eq!(all["io.kubernetes.container.hash"], "sent");
        assert_eq!(all.get("run.oci.hooks.stdout"), None);
        assert_eq!(all["io.kubernetes.cri.sandbox-id"], "5a".repeat(32));
        assert_eq!(all["io.kubernetes.cri.container-type"], "container");
        assert_eq!(all["io.kubernetes.cri.container-name"], "app");
        assert_eq!(all["io.kubernetes.cri.image-name"], "docker.io/library/web:1");
        assert_eq!(all["io.kubernetes.cri.sandbox-uid"], "u-1");
    });
}

fn pid_namespace(mode: i32, pod_mode: i32, target: Option<i32>) -> Option<Option<String>> {
    let mut config = container();
    security(&mut config).namespace_options =
        Some(v1::NamespaceOption { pid: mode, target_id: "other".into(), ..Default::default() });
    let mut pod = pod();
    pod_namespaces(&mut pod).pid = pod_mode;
    let spec = container_json(config, pod, &facts(), |place| place.target_pid = target).unwrap();
    namespaces(&spec).into_iter().find(|(kind, _)| kind == "pid").map(|(_, path)| path)
}

#[test]
fn process_ids_are_the_pods_ones_own_the_nodes_or_anothers() {
    let container = v1::NamespaceMode::Container as i32;
    assert_eq!(pid_namespace(container, POD, None), Some(None));
    assert_eq!(pid_namespace(POD, POD, None), Some(Some("/proc/4242/ns/pid".into())));
    assert_eq!(pid_namespace(POD, NODE, None), None);
    assert_eq!(pid_namespace(NODE, NODE, None), None);
    assert_eq!(pid_namespace(TARGET, POD, Some(77)), Some(Some("/proc/77/ns/pid".into())));
}

#[test]
fn a_target_must_run() {
    refused(ErrorKind::FailedPrecondition, &facts(), |config| {
        let options = security(config).namespace_options.as_mut().unwrap();
        options.pid = TARGET;
        options.target_id = "other".into();
    });
}

#[test]
fn the_pods_namespaces_are_joined() {
    check(
        |_| {},
        |spec| {
            let all = namespaces(spec);
            for (kind, path) in
                [("ipc", "/proc/4242/ns/ipc"), ("uts", "/proc/4242/ns/uts"), ("network", "/run/netns/cni-1")]
            {
                assert!(all.contains(&(kind.to_owned(), Some(path.to_owned()))), "{kind}");
            }
            assert!(all.contains(&("mount".to_owned(), None)));
        },
    );
}

#[test]
fn without_a_pinned_network_namespace_pauses_is_joined() {
    let spec = container_json(container(), pod(), &facts(), |place| place.netns = None).unwrap();
    assert!(namespaces(&spec).contains(&("network".to_owned(), Some("/proc/4242/ns/net".to_owned()))));
}

#[test]
fn a_pod_in_the_nodes_namespaces_joins_none() {
    let mut pod = pod();
    let options = pod_namespaces(&mut pod);
    (options.network, options.ipc, options.pid) = (NODE, NODE, NODE);
    let mut config = container();
    security(&mut config).namespace_options.as_mut().unwrap().pid = NODE;
    let spec = container_json(config, pod, &facts(), |place| place.shm = None).unwrap();
    assert_eq!(namespaces(&spec), vec![("mount".to_owned(), None)]);
    assert_eq!(mount_at(&spec, "/dev/shm").unwrap()["source"], "/dev/shm");
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("HOSTNAME=node-1")));
}

#[test]
fn only_unprivileged_containers_on_v2_get_a_cgroup_namespace() {
    let v2 = NodeFacts { hierarchy: Hierarchy::V2, ..facts() };
    let has = |spec: &Value| namespaces(spec).contains(&("cgroup".to_owned(), None));
    assert!(has(&container_json(container(), pod(), &v2, |_| {}).unwrap()));
    check(|_| {}, |spec| assert!(!has(spec)));
    let mut pod = pod();
    pod_security(&mut pod).privileged = true;
    let mut config = container();
    security(&mut config).privileged = true;
    assert!(!has(&container_json(config, pod, &v2, |_| {}).unwrap()));
}

#[test]
fn default_mounts_are_guarded() {
    check(
        |_| {},
        |spec| {
            assert!(has_options(spec, "/sys", &["ro", "nosuid"]));
            assert!(has_options(spec, "/sys/fs/cgroup", &["ro"]));
            assert!(has_options(spec, "/dev", &["size=65536k"]));
            assert!(has_options(spec, "/etc/resolv.conf", &["rbind", "rw"]));
            assert!(mount_at(spec, "/etc/hosts").is_none(), "the place has none");
            assert_eq!(mount_at(spec, "/dev/shm").unwrap()["source"], "/run/crimson/pods/1/shm");
        },
    );
}

#[test]
fn a_read_only_root_makes_the_pods_files_read_only() {
    check(
        |config| security(config).readonly_rootfs = true,
        |spec| {
            assert_eq!(spec["root"]["readonly"], true);
            assert!(has_options(spec, "/etc/hostname", &["ro"]));
        },
    );
}

#[test]
fn parents_are_mounted_before_what_lies_below() {
    let change = |config: &mut v1::ContainerConfig| {
        config.mounts = vec![mount("/data/a/b"), mount("/data"), mount("/data/a"), mount("/x")];
    };
    check(change, |spec| {
        let mounts = spec["mounts"].as_array().unwrap();
        let paths: Vec<_> = mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
        let at = |path: &str| paths.iter().position(|present| *present == path).unwrap();
        assert!(at("/data") < at("/data/a") && at("/data/a") < at("/data/a/b"));
        assert!(at("/data") < at("/x"), "the request's order stays within one depth");
        assert!(at("/dev") < at("/dev/pts") && at("/sys") < at("/sys/fs/cgroup"));
    });
}

#[test]
fn a_mount_of_the_request_replaces_a_default_one() {
    let change = |config: &mut v1::ContainerConfig| {
        config.mounts =
            vec![mount("/dev/shm"), mount("/etc/hosts"), mount("/etc/hostname"), mount("/sys/fs/cgroup/")];
    };
    check(change, |spec| {
        for path in ["/dev/shm", "/etc/hosts", "/etc/hostname", "/sys/fs/cgroup"] {
            assert_eq!(mount_at(spec, path).unwrap()["source"], "/srv", "{path}");
        }
    });
}

#[test]
fn propagation_reaches_the_root() {
    let slave = v1::MountPropagation::PropagationHostToContainer as i32;
    let shared = v1::MountPropagation::PropagationBidirectional as i32;
    let table: [(&[i32], Value); 4] = [
        (&[0], Value::Null),
        (&[slave, 0], json!("rslave")),
        (&[shared], json!("rshared")),
        (&[shared, slave], json!("rshared")),
    ];
    for (modes, expected) in table {
        let change = |config: &mut v1::ContainerConfig| {
            let numbered = modes.iter().enumerate();
            config.mounts = numbered
                .map(|(at, mode)| v1::Mount { propagation: *mode, ..mount(&format!("/m{at}")) })
                .collect();
        };
        check(change, |spec| {
            assert_eq!(spec["linux"]["rootfsPropagation"], expected);
            let option = if modes[0] == slave {
                "rslave"
            } else if modes[0] == shared {
                "rshared"
            } else {
                "rprivate"
            };
            assert!(has_options(spec, "/m0", &["rbind", option, "rw"]));
        });
    }
}

#[test]
fn read_only_mounts_and_recursively_so() {
    check(
        |config| config.mounts = vec![v1::Mount { readonly: true, ..mount("/m") }],
        |spec| {
            assert!(has_options(spec, "/m", &["ro", "rprivate"]));
        },
    );
    let recursive = |config: &mut v1::ContainerConfig| {
        config.mounts = vec![v1::Mount { readonly: true, recursive_read_only: true, ..mount("/m") }];
    };
    check(recursive, |spec| assert!(has_options(spec, "/m", &["rro"])));
    let old = NodeFacts { recursive_read_only: false, ..facts() };
    let message = refused(ErrorKind::FailedPrecondition, &old, recursive);
    assert!(message.starts_with("RROUnsupported"), "{message}");
}

#[test]
fn an_image_is_bound_read_only_and_its_programs_may_run() {
    let image = Some(v1::ImageSpec { image: "web:1".into(), ..Default::default() });
    let of_image = v1::Mount { image, host_path: String::new(), readonly: true, ..mount("/vol") };
    let recursive =
        v1::Mount { container_path: "/all".into(), recursive_read_only: true, ..of_image.clone() };
    let old = NodeFacts { recursive_read_only: false, ..facts() };
    let mut config = container();
    config.mounts = vec![of_image, recursive];
    let sources = |place: &mut ContainerPlace<'_>| {
        place.mounts.iter_mut().for_each(|mount| mount.source = "/bundle/images/0".into());
    };
    let spec = container_json(config, pod(), &old, sources).unwrap();
    for path in ["/vol", "/all"] {
        let bound = mount_at(&spec, path).unwrap();
        assert_eq!(bound["source"], "/bundle/images/0");
        assert_eq!(bound["options"], serde_json::json!(["bind", "rprivate", "ro"]));
    }
}

#[test]
fn image_volumes_are_bound_unless_the_request_mounts_there() {
    let mut config = container();
    config.mounts = vec![mount("/vol")];
    let volumes = |place: &mut ContainerPlace<'_>| {
        place.volumes = vec![("/vol".into(), "/v/1".into()), ("/cache".into(), "/v/2".into())];
    };
    let spec = container_json(config, pod(), &facts(), volumes).unwrap();
    assert_eq!(mount_at(&spec, "/vol").unwrap()["source"], "/srv");
    assert_eq!(mount_at(&spec, "/cache").unwrap()["source"], "/v/2");
}

fn device() -> ResolvedDevice {
    ResolvedDevice {
        path: "/dev/fuse".into(),
        kind: DeviceKind::Char,
        major: 10,
        minor: 229,
        file_mode: 0o666,
        uid: 0,
        gid: 0,
        access: "rw".into(),
    }
}

#[test]
fn devices_are_made_and_allowed() {
    let spec = container_json(container(), pod(), &facts(), |place| place.devices = vec![device()]).unwrap();
    let node = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0});
    assert_eq!(spec["linux"]["devices"], json!([node]));
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
    ]);
    assert_eq!(spec["linux"]["resources"]["devices"], rules);
}

#[test]
fn privileged_means_everything_the_host_gives() {
    let change = |config: &mut v1::ContainerConfig| {
        let context = security(config);
        context.seccomp = Some(v1::SecurityProfile::default());
        context.masked_paths = words(&["/proc/kcore"]);
        context.readonly_paths = words(&["/proc/sys"]);
    };
    check_privileged(change, |spec| {
        assert_eq!(caps(spec, "bounding").len(), 41);
        assert_eq!(caps(spec, "effective").len(), 41);
        assert!(caps(spec, "ambient").is_empty());
        assert_eq!(spec["linux"].get("seccomp"), None);
        assert_eq!(spec["linux"].get("maskedPaths"), None);
        assert_eq!(spec["linux"].get("readonlyPaths"), None);
        assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
        assert!(has_options(spec, "/sys", &["rw"]));
        assert!(has_options(spec, "/sys/fs/cgroup", &["rw"]));
    });
}

#[test]
fn privileged_needs_a_privileged_pod() {
    refused(ErrorKind::InvalidArgument, &facts(), |config| security(config).privileged = true);
}

#[test]
fn masked_and_read_only_paths_are_the_requests() {
    let change = |config: &mut v1::ContainerConfig| {
        security(config).masked_paths = words(&["/proc/kcore"]);
        security(config).readonly_paths = words(&["/proc/sys"]);
    };
    check(change, |spec| {
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
        assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    });
}

fn with_caps(add: &[&str], drop: &[&str], ambient: &[&str]) -> impl FnOnce(&mut v1::ContainerConfig) {
    let capabilities = v1::Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        add_ambient_capabilities: words(ambient),
    };
    move |config| security(config).capabilities = Some(capabilities)
}

#[test]
fn capabilities_are_added_and_dropped() {
    type Names = &'static [&'static str];
    let table: [(&str, Names, Names, usize, Names, Names); 7] = [
        ("defaults", &[], &[], 14, &["CAP_NET_RAW", "CAP_CHOWN"], &["CAP_SYS_ADMIN"]),
        ("add", &["NET_ADMIN"], &[], 15, &["CAP_NET_ADMIN"], &[]),
        ("add, spelled out", &["cap_net_admin"], &[], 15, &["CAP_NET_ADMIN"], &[]),
        ("drop", &[], &["CHOWN"], 13, &[], &["CAP_CHOWN"]),
        ("drop all", &[], &["ALL"], 0, &[], &["CAP_CHOWN"]),
        ("drop all, add one", &["KILL"], &["all"], 1, &["CAP_KILL"], &[]),
        ("add all, drop one", &["ALL"], &["SYS_ADMIN"], 40, &["CAP_BPF"], &["CAP_SYS_ADMIN"]),
    ];
    for (case, add, drop, count, present, absent) in table {
        check(with_caps(add, drop, &[]), |spec| {
            for set in ["bounding", "effective", "permitted"] {
                let names = caps(spec, set);
                assert_eq!(names.len(), count, "{case}: {set}");
                assert!(present.iter().all(|name| names.contains(&(*name).to_owned())), "{case}: {set}");
                assert!(!absent.iter().any(|name| names.contains(&(*name).to_owned())), "{case}: {set}");
            }
            for set in ["inheritable", "ambient"] {
                assert!(caps(spec, set).is_empty(), "{case}: {set}");
            }
        });
    }
}

#[test]
fn ambient_capabilities_are_in_every_set() {
    check(with_caps(&[], &["ALL"], &["NET_ADMIN"]), |spec| {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(caps(spec, set), ["CAP_NET_ADMIN"], "{set}");
        }
    });
}

#[test]
fn what_the_host_does_not_give_is_left_out_of_all_and_refused_by_name() {
    let host = NodeFacts { capabilities: crate::capabilities::from_mask(0x1ff_feff_ffff), ..facts() };
    let mut config = container();
    with_caps(&["ALL"], &[], &[])(&mut config);
    let spec = container_json(config, pod(), &host, |_| {}).unwrap();
    assert_eq!(caps(&spec, "bounding").len(), 40);
    refused(ErrorKind::FailedPrecondition, &host, with_caps(&["SYS_RESOURCE"], &[], &[]));
    refused(ErrorKind::InvalidArgument, &host, with_caps(&["SYS_MAGIC"], &[], &[]));
}

#[test]
fn no_new_privileges() {
    check(
        |config| security(config).no_new_privs = true,
        |spec| assert_eq!(spec["process"]["noNewPrivileges"], true),
    );
}

#[test]
fn users_and_groups() {
    let change = |config: &mut v1::ContainerConfig| {
        let context = security(config);
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
        context.run_as_group = Some(v1::Int64Value { value: 2000 });
        context.supplemental_groups = vec![3000, 2000];
    };
    check(change, |spec| {
        assert_eq!(
            spec["process"]["user"],
            json!({"uid": 1000, "gid": 2000, "additionalGids": [2000, 3000]})
        );
    });
}

#[test]
fn seccomp_profiles() {
    use v1::security_profile::ProfileType;
    let profile = |kind: ProfileType, name: &str| {
        Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
    };
    let default = profile(ProfileType::RuntimeDefault, "");
    check(
        |config| security(config).seccomp = default,
        |spec| {
            assert_eq!(spec["linux"]["seccomp"]["defaultErrnoRet"], 38);
        },
    );
    let unconfined = profile(ProfileType::Unconfined, "");
    check(
        |config| security(config).seccomp = unconfined,
        |spec| assert_eq!(spec["linux"].get("seccomp"), None),
    );

    let mut config = container();
    security(&mut config).seccomp = profile(ProfileType::Localhost, "/p.json");
    let content =
        br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let hand_in = |place: &mut ContainerPlace<'_>| place.seccomp_profile = Some(content.to_vec());
    let spec = container_json(config.clone(), pod(), &facts(), hand_in).unwrap();
    let expected = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}],
    });
    assert_eq!(spec["linux"]["seccomp"], expected);
    assert!(container_json(config, pod(), &facts(), |_| {}).is_err(), "the profile was not read");
}

#[test]
fn apparmor_where_it_is_on() {
    let on = NodeFacts { apparmor_default: Some("crimson-default".into()), ..facts() };
    let spec = container_json(container(), pod(), &on, |_| {}).unwrap();
    assert_eq!(spec["process"]["apparmorProfile"], "crimson-default");
    let default =
        |config: &mut v1::ContainerConfig| security(config).apparmor = Some(v1::SecurityProfile::default());
    refused(ErrorKind::FailedPrecondition, &facts(), default);
}

#[test]
fn selinux_labels_where_it_is_on() {
    let labels = crate::selinux::SelinuxLabels {
        process: "system_u:system_r:container_t:s0:c1,c2".into(),
        mount: "system_u:object_r:container_file_t:s0:c1,c2".into(),
    };
    let hand_in = |place: &mut ContainerPlace<'_>| place.selinux = Some(labels.clone());
    let on = NodeFacts { selinux: true, ..facts() };
    let spec = container_json(container(), pod(), &on, hand_in).unwrap();
    assert_eq!(spec["process"]["selinuxLabel"], "system_u:system_r:container_t:s0:c1,c2");
    assert_eq!(spec["linux"]["mountLabel"], "system_u:object_r:container_file_t:s0:c1,c2");
    let spec = container_json(container(), pod(), &facts(), hand_in).unwrap();
    assert_eq!(spec["process"].get("selinuxLabel"), None);
}

#[test]
fn limits_become_cgroup_values() {
    let change = |config: &mut v1::ContainerConfig| {
        *resources(config) = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 937,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "1GB".into(), limit: 0 }],
            ..Default::default()
        };
    };
    check(change, |spec| {
        let resources = &spec["linux"]["resources"];
        let cpu = json!({"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0"});
        assert_eq!(resources["cpu"], cpu);
        assert_eq!(resources["memory"], json!({"limit": 64 << 20, "swap": 64 << 20}));
        assert_eq!(resources.get("hugepageLimits"), None);
        assert_eq!(resources.get("pids"), None);
        assert_eq!(spec["process"]["oomScoreAdj"], 937);
    });
}

#[test]
fn swap_follows_the_request_where_it_is_counted() {
    let mut config = container();
    *resources(&mut config) = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        ..Default::default()
    };
    let spec = container_json(config.clone(), pod(), &facts(), |_| {}).unwrap();
    assert_eq!(spec["linux"]["resources"]["memory"]["swap"], 96 << 20);
    let blind = NodeFacts { swap_accounting: false, ..facts() };
    let spec = container_json(config, pod(), &blind, |_| {}).unwrap();
    assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 64 << 20}));
}

#[test]
fn huge_pages_and_unified_values_need_their_controllers() {
    let huge = |config: &mut v1::ContainerConfig| {
        resources(config).hugepage_limits =
            vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }];
    };
    let unified = |config: &mut v1::ContainerConfig| {
        resources(config).unified.insert("memory.high".into(), "1000".into());
    };
    refused(ErrorKind::FailedPrecondition, &facts(), huge);
    refused(ErrorKind::FailedPrecondition, &facts(), unified);
    let v2 = NodeFacts { hierarchy: Hierarchy::V2, hugepage_sizes: words(&["2MB"]), ..facts() };
    let mut config = container();
    huge(&mut config);
    unified(&mut config);
    let spec = container_json(config, pod(), &v2, |_| {}).unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["hugepageLimits"], json!([{"pageSize": "2MB", "limit": 4 << 20}]));
    assert_eq!(resources["unified"], json!({"memory.high": "1000"}));
}

#[test]
fn a_memory_limit_leaves_room_to_start() {
    let small = |config: &mut v1::ContainerConfig| resources(config).memory_limit_in_bytes = 4 << 20;
    refused(ErrorKind::InvalidArgument, &facts(), small);
    let lax = NodeFacts { min_memory_bytes: 0, ..facts() };
    let mut config = container();
    small(&mut config);
    assert!(container_json(config, pod(), &lax, |_| {}).is_ok());
}

#[test]
fn the_oom_score_is_what_the_node_can_set() {
    let weak = NodeFacts { oom_score_adj_floor: 0, ..facts() };
    for (asked, set) in [(-997, 0), (2, 2), (5000, 1000)] {
        let mut config = container();
        resources(&mut config).oom_score_adj = asked;
        let spec = container_json(config, pod(), &weak, |_| {}).unwrap();
        assert_eq!(spec["process"]["oomScoreAdj"], set);
    }
}

#[test]
fn an_exec_is_the_container_with_another_command() {
    let mut config = container();
    config.tty = false;
    security(&mut config).no_new_privs = true;
    security(&mut config).run_as_user = Some(v1::Int64Value { value: 1000 });
    let sandbox = crate::SandboxRequest::parse(pod(), String::new()).unwrap();
    let request = crate::ContainerRequest::parse(config).unwrap();
    let image = crate::fixtures::image();
    let place = crate::fixtures::place(&request, &image);
    let spec = crate::container_spec(&request, &sandbox, &facts(), &place).unwrap();

    let main = spec.process().clone().unwrap();
    let exec = crate::process_spec(&spec, &words(&["id", "-u"]), true).unwrap();
    assert_eq!(exec.args().as_ref().unwrap(), &["id", "-u"]);
    assert_eq!(exec.terminal(), Some(true));
    assert!(exec.env().as_ref().unwrap().contains(&"TERM=xterm".to_owned()));
    assert_eq!(exec.user(), main.user());
    assert_eq!(exec.capabilities(), main.capabilities());
    assert_eq!(exec.no_new_privileges(), Some(true));
    assert_eq!(exec.cwd(), main.cwd());
    assert!(crate::process_spec(&spec, &[], false).is_err());
}
