//! Containers that cannot be: each is refused with a code and by name, and nothing of it is left.

use e2e::cri::security_profile::ProfileType;
use e2e::cri::{
    CdiDevice, Device, IdMapping, ImageSpec, LinuxContainerSecurityContext as Security, Mount,
    MountPropagation, NamespaceMode, SeLinuxOption, SecurityProfile,
};
use e2e::{ContainerSpec, ImageBuilder, Media, Result};
use tonic::Code;

use crate::ask::{capabilities, number, words};
use crate::cases::Pod;
use crate::ground::Ground;

/// A way to ask for what cannot be, the code of the refusal, and what it has to name.
type Refusal = (&'static str, fn(&mut ContainerSpec), Code, &'static str);

fn mount(spec: &mut ContainerSpec, change: fn(&mut Mount)) {
    let mut mount =
        Mount { container_path: "/vol".to_owned(), host_path: "/tmp".to_owned(), ..Default::default() };
    change(&mut mount);
    spec.config.mounts.push(mount);
}

fn secure(spec: &mut ContainerSpec, change: fn(&mut Security)) {
    *spec = spec.clone().secured(change);
}

fn localhost(name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: name.to_owned() })
}

fn memory(spec: &mut ContainerSpec, bytes: i64) {
    let linux = spec.config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default().memory_limit_in_bytes = bytes;
}

const BAD: Code = Code::InvalidArgument;

const REFUSALS: &[Refusal] = &[
    (
        "a source beneath a file",
        |it| mount(it, |it| it.host_path = "/etc/passwd/below".into()),
        BAD,
        "/etc/passwd/below",
    ),
    ("a relative source", |it| mount(it, |it| it.host_path = "tmp".into()), BAD, "mount.host_path"),
    ("no source", |it| mount(it, |it| it.host_path.clear()), BAD, "mount.host_path"),
    ("a relative target", |it| mount(it, |it| it.container_path = "vol".into()), BAD, "mount.container_path"),
    (
        "the root as target",
        |it| mount(it, |it| it.container_path = "/vol/..".into()),
        BAD,
        "mount.container_path",
    ),
    ("an unknown propagation", |it| mount(it, |it| it.propagation = 9), BAD, "mount.propagation"),
    (
        "writable and recursively read-only",
        |it| mount(it, |it| it.recursive_read_only = true),
        BAD,
        "readonly",
    ),
    (
        "recursively read-only and a slave",
        |it| {
            mount(it, |it| {
                (it.readonly, it.recursive_read_only) = (true, true);
                it.propagation = MountPropagation::PropagationHostToContainer.into();
            })
        },
        BAD,
        "private propagation",
    ),
    (
        "recursively read-only and shared",
        |it| {
            mount(it, |it| {
                (it.readonly, it.recursive_read_only) = (true, true);
                it.propagation = MountPropagation::PropagationBidirectional.into();
            })
        },
        BAD,
        "private propagation",
    ),
    (
        "an image that is writable",
        |it| {
            mount(it, |it| {
                it.host_path.clear();
                it.image = Some(ImageSpec { image: "any".into(), ..Default::default() });
            })
        },
        BAD,
        "ImageVolumeMountFailed",
    ),
    (
        "an image and a source",
        |it| {
            mount(it, |it| {
                it.readonly = true;
                it.image = Some(ImageSpec { image: "any".into(), ..Default::default() });
            })
        },
        BAD,
        "ImageVolumeMountFailed",
    ),
    (
        "an image that is not here",
        |it| {
            mount(it, |it| {
                it.host_path.clear();
                it.readonly = true;
                it.image = Some(ImageSpec { image: "not.here/at-all:1".into(), ..Default::default() });
            })
        },
        Code::NotFound,
        "ImageVolumeMountFailed",
    ),
    (
        "mapped ids in a pod that has none",
        |it| {
            mount(it, |it| {
                let line = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
                (it.uid_mappings, it.gid_mappings) = (vec![line], vec![line]);
            })
        },
        BAD,
        "mount.uid_mappings",
    ),
    ("a group without a user", |it| secure(it, |it| it.run_as_group = number(7)), BAD, "run_as_group"),
    (
        "a user nobody knows",
        |it| secure(it, |it| it.run_as_username = "nobody-here".into()),
        BAD,
        "nobody-here",
    ),
    ("a user below zero", |it| secure(it, |it| it.run_as_user = number(-1)), BAD, "run_as_user"),
    (
        "a group too large",
        |it| secure(it, |it| it.supplemental_groups = vec![1 << 32]),
        BAD,
        "supplemental_groups",
    ),
    (
        "an unknown policy",
        |it| secure(it, |it| it.supplemental_groups_policy = 5),
        BAD,
        "supplemental_groups_policy",
    ),
    (
        "a capability nobody knows",
        |it| secure(it, |it| it.capabilities = capabilities(&["FLY"], &[], &[])),
        BAD,
        "FLY",
    ),
    (
        "a capability nobody knows, to be dropped",
        |it| secure(it, |it| it.capabilities = capabilities(&[], &["FLY"], &[])),
        BAD,
        "FLY",
    ),
    (
        "a filter that is not there",
        |it| secure(it, |it| it.seccomp = localhost("/no/such/profile.json")),
        BAD,
        "/no/such/profile.json",
    ),
    (
        "a filter that is none",
        |it| secure(it, |it| it.seccomp = localhost("/etc/passwd")),
        BAD,
        "/etc/passwd",
    ),
    ("a filter without a name", |it| secure(it, |it| it.seccomp = localhost("")), BAD, "seccomp"),
    (
        "a hidden path that is relative",
        |it| secure(it, |it| it.masked_paths = words(&["proc"])),
        BAD,
        "masked_paths",
    ),
    ("more than its pod may have", |it| secure(it, |it| it.privileged = true), BAD, "privileged"),
    (
        "an SELinux level that is none",
        |it| {
            secure(it, |it| {
                it.selinux_options =
                    Some(SeLinuxOption { level: "s0:c1:c2:c3:c4 oh no".into(), ..Default::default() });
            })
        },
        BAD,
        "selinux",
    ),
    (
        "a target that is not in the pod",
        |it| {
            secure(it, |it| {
                let options = it.namespace_options.get_or_insert_default();
                options.pid = NamespaceMode::Target.into();
                options.target_id = "0123456789abcdef".repeat(4);
            })
        },
        BAD,
        "0123456789abcdef",
    ),
    (
        "no target",
        |it| {
            secure(it, |it| {
                it.namespace_options.get_or_insert_default().pid = NamespaceMode::Target.into();
            })
        },
        BAD,
        "target_id",
    ),
    (
        "a device that is not there",
        |it| {
            it.config.devices = vec![Device {
                host_path: "/dev/no-such".into(),
                permissions: "rw".into(),
                ..Default::default()
            }]
        },
        BAD,
        "/dev/no-such",
    ),
    (
        "a permission that is none",
        |it| {
            it.config.devices =
                vec![Device { host_path: "/dev/null".into(), permissions: "x".into(), ..Default::default() }]
        },
        BAD,
        "permissions",
    ),
    (
        "a CDI device that nobody describes",
        |it| {
            it.config.cdi_devices = vec![CdiDevice { name: "example.test/gpu=none".into() }];
        },
        Code::FailedPrecondition,
        "example.test/gpu=none",
    ),
    ("less memory than a start takes", |it| memory(it, 1 << 20), BAD, "memory"),
    ("memory below zero", |it| memory(it, -5), BAD, "memory"),
    ("a variable that has no name", |it| *it = it.clone().with_env("A=B", "c"), BAD, "envs.key"),
    ("a log outside of its directory", |it| it.config.log_path = "../../log".into(), BAD, "log_path"),
    ("a zero byte in a word", |it| it.config.args = words(&["a\0b"]), BAD, "args"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name_and_leaves_nothing() -> Result {
    let ground = Ground::set(ImageBuilder::busybox(Media::Oci)?).await?;
    let cri = ground.node.cri();
    let (pod_id, pod) = ground.run_pod(Pod::Plain, &ground.handlers[0]).await?;
    let left = || -> Result<Vec<String>> {
        let dirs = [ground.node.root().join("containers"), ground.node.state().join("containers")];
        let mut names = Vec::new();
        for entry in dirs.iter().flat_map(std::fs::read_dir).flatten() {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    };
    let before = left()?;
    let mut complaints = Vec::new();
    for (name, spoil, code, named) in REFUSALS {
        let mut spec = ContainerSpec::lasting("refused", &ground.image);
        spoil(&mut spec);
        match cri.create(&pod_id, &spec, &pod).await {
            Ok(_) => complaints.push(format!("{name} must be refused")),
            Err(status) if status.code() != *code || !status.message().contains(named) => {
                complaints.push(format!("{name}: {:?}: {}", status.code(), status.message()));
            }
            Err(_) => {}
        }
        assert_eq!((cri.all_containers().await?.len(), left()?), (0, before.clone()), "after {name}");
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    let alone = ground.node.dir().join("alone");
    std::fs::create_dir(&alone)?;
    let place = alone.display().to_string();
    ground.node.machine().output("mount", &["--bind", &place, &place]).await?;
    ground.node.machine().output("mount", &["--make-private", &place]).await?;
    for (propagation, named) in [
        (MountPropagation::PropagationBidirectional, "not a shared mount"),
        (MountPropagation::PropagationHostToContainer, "neither a shared nor a slave mount"),
    ] {
        let mut spec = ContainerSpec::lasting("refused", &ground.image).with_mount(&alone, "/vol", false);
        spec.config.mounts[0].propagation = propagation.into();
        let refused = cri.create(&pod_id, &spec, &pod).await.expect_err("nothing travels from there");
        assert!(refused.code() == BAD && refused.message().contains(named), "{refused:?}");
    }
    ground.node.machine().output("umount", &[&place]).await?;

    // A container of another pod is no target either, and none of them has taken the name.
    let (other_id, other) = ground.run_pod(Pod::Privileged, &ground.handlers[0]).await?;
    let target = cri.run(&other_id, &ContainerSpec::lasting("target", &ground.image), &other).await?;
    let foreign = ContainerSpec::lasting("refused", &ground.image).secured(|it| {
        let options = it.namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        options.target_id = target.clone();
    });
    let refused = cri.create(&pod_id, &foreign, &pod).await.expect_err("it is in another pod");
    assert!(refused.code() == BAD && refused.message().contains(&target), "{refused:?}");
    cri.run(&pod_id, &ContainerSpec::lasting("refused", &ground.image), &pod).await?;
    ground.node.finish().await
}
