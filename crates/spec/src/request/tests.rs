use cri_api::v1;
use proptest::prelude::*;
use prost::Message;
use types::{ErrorKind, Kind, Protocol};

use crate::fixtures::{container, facts, mount, pod, pod_namespaces, pod_security, resources, security};
use crate::{ContainerRequest, PidMode, ResourcesUpdate, SandboxRequest, SpecError, linux_resources};

fn sandbox(config: v1::PodSandboxConfig) -> Result<SandboxRequest, SpecError> {
    SandboxRequest::parse(config, "runc".into())
}

#[test]
fn a_sandbox_request_tells_what_was_asked() {
    let mut config = pod();
    config.labels.insert("app".into(), "web".into());
    config.port_mappings = vec![v1::PortMapping {
        protocol: v1::Protocol::Udp.into(),
        container_port: 53,
        host_port: 5353,
        host_ip: "::1".into(),
    }];
    let request = sandbox(config).unwrap();
    assert_eq!(
        (request.name(), request.namespace(), request.uid(), request.attempt()),
        ("web", "shop", "u-1", 2)
    );
    assert_eq!(request.key().name, "web");
    assert_eq!(request.runtime_handler(), "runc");
    assert_eq!(request.cgroup_parent(), Some("/kubepods/podu-1"));
    assert_eq!(request.labels()["app"], "web");
    let [mapping] = &request.port_mappings()[..] else { panic!("one mapping") };
    assert_eq!((mapping.protocol, mapping.container_port, mapping.host_port), (Protocol::Udp, 53, 5353));
    assert_eq!(request.pid_mode(), PidMode::Pod);
    assert_eq!(request.effective_hostname("node"), "web-0");
    assert!(!request.host_network() && !request.host_pid() && !request.host_ipc() && !request.privileged());
}

#[test]
fn bad_sandboxes_are_refused_by_name() {
    type Change = fn(&mut v1::PodSandboxConfig);
    let table: Vec<(&str, Change)> = vec![
        ("metadata", |config| config.metadata = None),
        ("metadata.name", |config| config.metadata.as_mut().unwrap().name.clear()),
        ("metadata.namespace", |config| config.metadata.as_mut().unwrap().namespace.clear()),
        ("metadata.uid", |config| config.metadata.as_mut().unwrap().uid.clear()),
        ("hostname", |config| config.hostname = "a b".into()),
        ("hostname", |config| config.hostname = "x".repeat(65)),
        ("log_directory", |config| config.log_directory = "logs".into()),
        ("run_as_group", |config| pod_security(config).run_as_group = Some(v1::Int64Value { value: 1 })),
        ("run_as_user", |config| pod_security(config).run_as_user = Some(v1::Int64Value { value: -1 })),
        ("supplemental_groups", |config| pod_security(config).supplemental_groups = vec![-5]),
        ("network", |config| pod_namespaces(config).network = v1::NamespaceMode::Container.into()),
        ("ipc", |config| pod_namespaces(config).ipc = v1::NamespaceMode::Target.into()),
        ("pid", |config| pod_namespaces(config).pid = v1::NamespaceMode::Target.into()),
        ("pid", |config| pod_namespaces(config).pid = 17),
        ("host_port", |config| {
            config.port_mappings =
                vec![v1::PortMapping { host_port: 70_000, container_port: 1, ..Default::default() }];
        }),
        ("host_ip", |config| {
            config.port_mappings = vec![v1::PortMapping { host_ip: "here".into(), ..Default::default() }];
        }),
        ("sysctl", |config| {
            config.linux.as_mut().unwrap().sysctls.insert("kernel.panic".into(), "1".into());
        }),
        ("level", |config| {
            pod_security(config).selinux_options =
                Some(v1::SeLinuxOption { level: "gibberish".into(), ..Default::default() });
        }),
        ("seccomp", |config| {
            pod_security(config).seccomp =
                Some(v1::SecurityProfile { profile_type: 2, localhost_ref: String::new() });
        }),
        ("userns_options", |config| {
            pod_namespaces(config).userns_options = Some(v1::UserNamespace::default());
        }),
    ];
    for (name, change) in table {
        let mut config = pod();
        change(&mut config);
        let error = sandbox(config).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}

#[test]
fn bad_containers_are_refused_by_name() {
    type Change = fn(&mut v1::ContainerConfig);
    let table: Vec<(&str, Change)> = vec![
        ("metadata", |config| config.metadata = None),
        ("metadata.name", |config| config.metadata.as_mut().unwrap().name.clear()),
        ("image", |config| config.image = None),
        ("log_path", |config| config.log_path = "../../etc/passwd".into()),
        ("mount.container_path", |config| config.mounts = vec![mount("relative")]),
        ("device.permissions", |config| {
            let device =
                v1::Device { host_path: "/dev/x".into(), permissions: "rx".into(), ..Default::default() };
            config.devices = vec![device];
        }),
        ("envs", |config| config.envs = vec![v1::KeyValue { key: "A=B".into(), value: vec![] }]),
        ("envs", |config| config.envs = vec![v1::KeyValue { key: "A".into(), value: vec![0xff] }]),
        ("args", |config| config.args = vec!["a\0b".into()]),
        ("run_as_group", |config| security(config).run_as_group = Some(v1::Int64Value { value: 1 })),
        ("capability", |config| {
            security(config).capabilities =
                Some(v1::Capability { drop_capabilities: vec!["FLY".into()], ..Default::default() });
        }),
        ("apparmor_profile", |config| security(config).apparmor_profile = "nonsense".into()),
        ("seccomp", |config| security(config).seccomp_profile_path = "nonsense".into()),
        ("target_id", |config| {
            security(config).namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Target.into();
        }),
        ("stop_signal", |config| config.stop_signal = 99),
        ("cpuset_cpus", |config| resources(config).cpuset_cpus = "0;1".into()),
        ("cpu_shares", |config| resources(config).cpu_shares = -2),
        ("unified", |config| {
            resources(config).unified.insert("../memory.max".into(), "1".into());
        }),
        ("memory_swap_limit_in_bytes", |config| {
            resources(config).memory_limit_in_bytes = 64 << 20;
            resources(config).memory_swap_limit_in_bytes = 32 << 20;
        }),
    ];
    for (name, change) in table {
        let mut config = container();
        change(&mut config);
        let error = ContainerRequest::parse(config).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}

#[test]
fn requests_survive_the_store() {
    let mut config = pod();
    config.annotations.insert("k".into(), "v".into());
    let request = sandbox(config).unwrap();
    assert_eq!(SandboxRequest::from_bytes(&request.to_bytes()).unwrap(), request);
    let mut config = container();
    config.mounts = vec![mount("/m")];
    let request = ContainerRequest::parse(config).unwrap();
    assert_eq!(ContainerRequest::from_bytes(&request.to_bytes()).unwrap(), request);
    assert!(matches!(SandboxRequest::from_bytes(&[0xff]), Err(SpecError::Record { .. })));
    assert!(matches!(ContainerRequest::from_bytes(&[]), Err(SpecError::RecordMetadata { .. })));
}

#[test]
fn a_record_that_newer_rules_would_refuse_stays_readable() {
    let mut config = container();
    config.mounts = vec![mount("relative")];
    let request = ContainerRequest::from_bytes(&config.encode_to_vec()).unwrap();
    assert_eq!(request.mounts().len(), 1);
}

#[test]
fn names_of_the_image() {
    let mut config = container();
    let request = ContainerRequest::parse(config.clone()).unwrap();
    assert_eq!((request.image(), request.user_specified_image()), ("sha256:abc", "sha256:abc"));
    config.image.as_mut().unwrap().user_specified_image = "web:1".into();
    assert_eq!(ContainerRequest::parse(config).unwrap().user_specified_image(), "web:1");
}

#[test]
fn the_stop_signal_is_the_requests_the_images_or_term() {
    let number = |config: v1::ContainerConfig, image: Option<&str>| {
        let mut with = crate::fixtures::image();
        let mut of_image = with.config().clone().unwrap();
        of_image.set_stop_signal(image.map(str::to_owned));
        with.set_config(Some(of_image));
        ContainerRequest::parse(config).unwrap().stop_signal(&with).number()
    };
    assert_eq!(number(container(), None), 15);
    assert_eq!(number(container(), Some("SIGQUIT")), 3);
    assert_eq!(number(container(), Some("rubbish")), 15);
    let asked = v1::ContainerConfig { stop_signal: v1::Signal::Sigusr1.into(), ..container() };
    assert_eq!(number(asked, Some("SIGQUIT")), 10);
}

#[test]
fn an_update_changes_what_it_says_and_nothing_else() {
    let mut config = container();
    *resources(&mut config) = v1::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 10_000,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Default::default()
    };
    let request = ContainerRequest::parse(config).unwrap();
    let update = v1::LinuxContainerResources {
        cpu_quota: 20_000,
        memory_limit_in_bytes: 128 << 20,
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 }],
        ..Default::default()
    };
    let changed = request.with_resources(&ResourcesUpdate::parse(update).unwrap()).unwrap();
    let now = changed.wire_resources().unwrap();
    assert_eq!((now.cpu_shares, now.cpu_quota, now.cpuset_cpus.as_str()), (512, 20_000, "0"));
    assert_eq!(now.hugepage_limits, [v1::HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 }]);
    let facts = crate::NodeFacts { hugepage_sizes: vec!["2MB".into()], ..facts() };
    let limits = linux_resources(&changed, &facts).unwrap();
    assert_eq!(limits.memory().unwrap().swap(), Some(128 << 20), "no swap stays no swap");
    assert!(limits.devices().is_none(), "an update leaves device rules alone");
}

#[test]
fn an_update_that_contradicts_what_stays_is_refused() {
    let mut config = container();
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 64 << 20;
    let request = ContainerRequest::parse(config).unwrap();
    let more = v1::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    assert!(request.with_resources(&ResourcesUpdate::parse(more).unwrap()).is_err());
    let negative = v1::LinuxContainerResources { cpu_period: -1, ..Default::default() };
    assert!(ResourcesUpdate::parse(negative).is_err());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["", "[a-z./:,=\\-0-9]{0,12}", "\\PC{0,6}", Just("\0".to_owned()), Just("/..".to_owned())]
}

proptest! {
    #[test]
    fn no_bytes_make_parsing_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(config) = v1::ContainerConfig::decode(&bytes[..])
            && let Ok(request) = ContainerRequest::parse(config)
        {
            prop_assert_eq!(&ContainerRequest::from_bytes(&request.to_bytes()).unwrap(), &request);
        }
        if let Ok(config) = v1::PodSandboxConfig::decode(&bytes[..])
            && let Ok(request) = sandbox(config)
        {
            prop_assert_eq!(&SandboxRequest::from_bytes(&request.to_bytes()).unwrap(), &request);
        }
    }

    #[test]
    fn no_values_make_translation_panic(
        texts in proptest::collection::vec(text(), 12),
        numbers in proptest::collection::vec(any::<i64>(), 6),
        small in proptest::collection::vec(-2i32..8, 8),
    ) {
        let mut config = container();
        config.log_path.clone_from(&texts[0]);
        config.working_dir.clone_from(&texts[1]);
        config.command = vec![texts[2].clone()];
        config.stop_signal = small[0].wrapping_mul(13);
        config.mounts = vec![v1::Mount { propagation: small[1], readonly: small[2] > 0, ..mount(&texts[3]) }];
        config.devices = vec![v1::Device { host_path: texts[4].clone(), container_path: texts[5].clone(), permissions: texts[6].clone() }];
        *resources(&mut config) = v1::LinuxContainerResources {
            cpu_period: numbers[0], cpu_quota: numbers[1], memory_limit_in_bytes: numbers[2],
            oom_score_adj: numbers[3], cpuset_cpus: texts[7].clone(), ..Default::default()
        };
        let context = security(&mut config);
        context.run_as_user = Some(v1::Int64Value { value: numbers[4] });
        context.supplemental_groups = vec![numbers[5]];
        context.seccomp_profile_path.clone_from(&texts[8]);
        context.namespace_options.as_mut().unwrap().pid = small[3];
        let mut pod = pod();
        pod.hostname.clone_from(&texts[9]);
        pod.linux.as_mut().unwrap().sysctls.insert(texts[10].clone(), texts[11].clone());
        pod_namespaces(&mut pod).network = small[4];
        for outcome in [
            crate::fixtures::sandbox_json(pod.clone(), &facts()),
            crate::fixtures::container_json(config, pod, &facts(), |_| {}),
        ] {
            prop_assert!(outcome.map_or_else(|error| !error.to_string().is_empty(), |spec| spec.is_object()));
        }
    }
}
