//! Containers: lifecycle, exec, logs, user, capabilities, volumes.

use std::time::{Duration, Instant};

use e2e::cri::{
    Capability, ContainerFilter, ContainerState, ContainerStateValue, ExecSyncRequest, Int64Value,
    ListContainersRequest, MountPropagation, ReopenContainerLogRequest,
};
use e2e::{ContainerSpec, Result, Stage, code_of, prefix_of};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_from_create_to_remove() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let spec = ContainerSpec::lasting("life", &stage.image);
    let id = cri.create(&stage.pod_id, &spec, &stage.pod).await?;
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(
        cri.create(&stage.pod_id, &spec, &stage.pod).await?,
        id,
        "a retry gets the first call's result"
    );

    let created = cri.container(&id).await?;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!((created.metadata, &created.labels), (spec.config.metadata.clone(), &spec.config.labels));
    assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0);
    assert_eq!(created.image_id, stage.image);
    assert!(!created.image_ref.is_empty() && created.image.is_some());
    assert!(
        created.log_path.starts_with('/') && created.log_path.ends_with("stage/life/0.log"),
        "{}",
        created.log_path
    );

    cri.start(&id).await?;
    let running = cri.container(&id).await?;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at);
    assert_ne!(code_of(&cri.start(&id).await), Code::Ok, "a running container is not started again");

    // The first process of a namespace does not get a SIGTERM that it has not asked for.
    cri.shell(&id, "until grep -q '^SigCgt:.*[4567cdef]...$' /proc/1/status; do sleep 0.01; done").await?;
    let (begun, grace) = (Instant::now(), e2e::patience(30));
    cri.stop(&id, i64::try_from(grace.as_secs())?).await?;
    assert!(begun.elapsed() < grace, "a process that obeys ends at once, not after the grace");
    let exited = cri.container(&id).await?;
    assert_eq!((exited.state(), exited.exit_code), (ContainerState::ContainerExited, 0));
    assert_eq!(exited.reason, "Completed");
    assert!(exited.finished_at >= exited.started_at);
    cri.stop(&id, 0).await?;
    assert_ne!(code_of(&cri.start(&id).await), Code::Ok, "an ended container is not started again");

    for _ in 0..2 {
        cri.remove(&id).await?;
        assert_eq!(code_of(&cri.container(&id).await), Code::NotFound);
    }
    assert_eq!(cri.all_containers().await?, []);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_kept() -> Result {
    let stage = Stage::set().await?;
    for (name, line, code, reason) in [
        ("good", "exit 0", 0, "Completed"),
        ("bad", "exit 3", 3, "Error"),
        ("large", "exit 255", 255, "Error"),
        ("killed", "kill -KILL $$", 137, "Error"),
        ("term", "kill -TERM $$", 143, "Error"),
    ] {
        // As process 1 a shell ignores its own signals, so the signalled one is a child that takes its place in the code.
        let line = if code > 128 { format!("sh -c '{line}'; exit $?") } else { line.to_owned() };
        let status = stage.run_to_end(&stage.shell(name, &line)).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ignores_the_signal_is_killed_after_the_grace() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let stubborn = stage.shell("stubborn", "trap '' TERM; echo ready; while :; do sleep 3600; done");
    let id = stage.run(&stubborn).await?;
    stage.says(&id, "ready").await?;
    let begun = Instant::now();
    cri.stop(&id, 1).await?;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(900) && took < e2e::patience(30), "{took:?}");
    let status = cri.container(&id).await?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));

    let id = stage.run(&stubborn.clone().attempt(1)).await?;
    let begun = Instant::now();
    cri.stop(&id, 0).await?;
    assert!(begun.elapsed() < e2e::patience(8), "no grace at all");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_stop_overtakes_a_longer_one() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id =
        stage.run(&stage.shell("stubborn", "trap '' TERM; echo ready; while :; do sleep 3600; done")).await?;
    stage.says(&id, "ready").await?;
    let begun = Instant::now();
    let patient = tokio::spawn({
        let (cri, id) = (cri.clone(), id.clone());
        async move { cri.stop(&id, 600).await }
    });
    cri.stop(&id, 1).await?;
    patient.await??;
    assert!(begun.elapsed() < e2e::patience(40), "{:?}", begun.elapsed());
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_running_container_kills_all_its_processes() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&stage.shell("family", "sleep 7001 & sleep 7002 & sleep 7003")).await?;
    cri.remove(&id).await?;
    let left = stage.node.machine().output("ps", &["-eo", "args"]).await?;
    assert!(!left.contains("sleep 700"), "{left}");
    stage.finish().await
}

/// A server may find out when it creates the container or when it starts it. In the first case there is none; in the
/// second it is there, ended, with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_start_is_named() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let missing = ContainerSpec::new("missing", &stage.image, &["/no/such/program"]);
    let refused = match cri.create(&stage.pod_id, &missing, &stage.pod).await {
        Err(status) => {
            assert_eq!(cri.all_containers().await?, []);
            status
        }
        Ok(id) => {
            let status = cri.start(&id).await.expect_err("there is no such program");
            let left = cri.container(&id).await?;
            assert_eq!(left.state(), ContainerState::ContainerExited);
            assert!(left.exit_code != 0 && left.finished_at > 0 && !left.reason.is_empty(), "{left:?}");
            cri.remove(&id).await?;
            status
        }
    };
    assert!(refused.message().contains("/no/such/program"), "{refused:?}");
    assert_ne!(refused.code(), Code::Unknown, "{refused:?}");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_and_code() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&ContainerSpec::lasting("keeper", &stage.image)).await?;
    let reply = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"]).await?;
    assert_eq!(reply.exit_code, 5);
    assert_eq!(
        (reply.stdout.as_slice(), reply.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );

    let large = cri.exec(&id, &["sh", "-c", "dd if=/dev/zero bs=1M count=3 2>/dev/null"]).await?;
    assert_eq!(large.stdout.len(), 3 << 20, "megabytes arrive whole");

    let missing = cri.exec(&id, &["/no/such/program"]).await;
    match &missing {
        Ok(reply) => assert!(matches!(reply.exit_code, 126 | 127), "{reply:?}"),
        Err(status) => assert!(status.message().contains("/no/such/program"), "{status:?}"),
    }
    let empty = cri.exec_sync(ExecSyncRequest { container_id: id.clone(), ..Default::default() }).await;
    assert_eq!(code_of(&empty), Code::InvalidArgument, "a command is needed");

    cri.stop(&id, 5).await?;
    let late = cri.exec(&id, &["true"]).await;
    assert!(matches!(code_of(&late), Code::FailedPrecondition | Code::NotFound), "{late:?}");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_beyond_its_time_is_killed_with_its_children() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&ContainerSpec::lasting("keeper", &stage.image)).await?;
    let begun = Instant::now();
    let late = cri.exec_for(&id, &["sh", "-c", "sleep 7101 & sleep 7102"], 1).await;
    assert_eq!(code_of(&late), Code::DeadlineExceeded, "{late:?}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(900) && took < e2e::patience(30), "{took:?}");
    let gone = async {
        while cri.shell(&id, "ps").await?.contains("sleep 710") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(e2e::patience(30), gone).await??;
    assert_eq!(cri.container(&id).await?.state(), ContainerState::ContainerRunning);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_execs_leave_nothing_open() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&ContainerSpec::lasting("keeper", &stage.image)).await?;
    for round in 0..4 {
        let calls: Vec<_> = (0..8)
            .map(|n| {
                let (cri, id) = (cri.clone(), id.clone());
                tokio::spawn(async move { cri.shell(&id, &format!("echo {round}-{n}")).await })
            })
            .collect();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await??, format!("{round}-{n}"));
        }
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_have_stream_tag_and_content() -> Result {
    let stage = Stage::set().await?;
    let line = "echo one; echo two >&2; printf 'x%.0s' $(seq 20000); echo; printf unended";
    stage.run_to_end(&stage.shell("talk", line)).await?;
    let log = stage.node.container_log("stage", "talk/0.log")?;
    let of = |stream: &str| log.iter().filter(|it| it.0 == stream).collect::<Vec<_>>();
    assert_eq!(of("stderr").iter().map(|it| it.2.as_str()).collect::<Vec<_>>(), ["two"]);
    let stdout = of("stdout");
    assert_eq!((stdout[0].1.as_str(), stdout[0].2.as_str()), ("F", "one"));
    let last = stdout.last().expect("lines");
    assert_eq!(last.2, "unended");
    // A long line comes in pieces, all but the last partial; together they are the line.
    let long = &stdout[1..stdout.len() - 1];
    assert!(long.len() >= 2, "20000 bytes are more than one piece");
    let (end, begin) = long.split_last().expect("pieces");
    assert!(end.1 == "F" && begin.iter().all(|it| it.1 == "P"));
    assert_eq!(long.iter().map(|it| it.2.len()).sum::<usize>(), 20000);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_loses_and_repeats_no_line() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id =
        stage.run(&stage.shell("count", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done")).await?;
    let directory = stage.node.dir().join("logs/stage/count");
    let mut rotated = Vec::new();
    for turn in 0..4 {
        let old = directory.join(format!("0.log.{turn}"));
        std::fs::rename(directory.join("0.log"), &old)?;
        let reply = cri.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await;
        if code_of(&reply) != Code::Ok {
            // It has ended meanwhile: then no new file may appear, and the kubelet renames back.
            assert!(!directory.join("0.log").try_exists()?, "{reply:?}");
            std::fs::rename(&old, directory.join("0.log"))?;
            break;
        }
        rotated.push(format!("count/0.log.{turn}"));
    }
    stage.node.exited(&id).await?;
    rotated.push("count/0.log".to_owned());
    let mut numbers = Vec::new();
    for name in &rotated {
        for (_, _, text) in stage.node.container_log("stage", name)? {
            numbers.push(text.parse::<u32>()?);
        }
    }
    assert!(numbers.iter().copied().eq(0..3000), "{} lines over {} files", numbers.len(), rotated.len());

    let late = cri.reopen_container_log(ReopenContainerLogRequest { container_id: id }).await;
    assert_ne!(code_of(&late), Code::Ok, "an ended container has no log to reopen");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_is_as_asked_for() -> Result {
    let stage = Stage::set().await?;
    let mut spec =
        stage.shell("line", "echo \"$KEY\" \"$1\" \"$(pwd)\"").with_env("KEY", "a value=with 'signs'");
    spec.config.args = vec!["zero".to_owned(), "first word".to_owned()];
    spec.config.working_dir = "/made/by/create".to_owned();
    assert_eq!(stage.printed_by(spec).await?, "a value=with 'signs' first word /made/by/create");

    let mut tty = stage.shell("tty", "test -t 0 && test -t 1 && echo terminal");
    tty.config.tty = true;
    tty.config.stdin = true;
    assert_eq!(stage.printed_by(tty).await?.trim_end(), "terminal");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_as_asked_for() -> Result {
    let stage = Stage::set().await?;
    let id = "echo $(id -u) $(id -g) $(id -G)";
    let number = |value: i64| Some(Int64Value { value });
    let numeric = stage.shell("numeric", id).secured(|it| {
        it.run_as_user = number(1234);
        it.run_as_group = number(5678);
        it.supplemental_groups = vec![42];
    });
    assert_eq!(stage.printed_by(numeric).await?, "1234 5678 5678 42");
    let named = stage.shell("named", id).secured(|it| it.run_as_username = "web".to_owned());
    assert_eq!(
        stage.printed_by(named).await?,
        "1000 1000 1000 2000",
        "with the groups that the image gives the user"
    );
    let known = stage.shell("known", id).secured(|it| it.run_as_user = number(1000));
    assert!(
        stage.printed_by(known).await?.starts_with("1000 1000"),
        "the primary group comes from the image"
    );
    let keeper = ContainerSpec::lasting("keeper", &stage.image).secured(|it| it.run_as_user = number(1000));
    let keeper = stage.run(&keeper).await?;
    assert_eq!(stage.node.cri().shell(&keeper, "id -u").await?, "1000", "exec runs as the container's user");
    let user = stage
        .node
        .cri()
        .container(&keeper)
        .await?
        .user
        .and_then(|it| it.linux)
        .expect("the user is reported");
    assert_eq!((user.uid, user.gid), (1000, 1000));
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_are_as_asked_for() -> Result {
    let stage = Stage::set().await?;
    let effective = "grep CapEff /proc/self/status | cut -f2";
    let bits = |hex: String| u64::from_str_radix(hex.trim(), 16).map_err(anyhow::Error::from);
    let with = |add: &[&str], drop: &[&str]| Capability {
        add_capabilities: add.iter().map(|&it| it.to_owned()).collect(),
        drop_capabilities: drop.iter().map(|&it| it.to_owned()).collect(),
        ..Default::default()
    };
    let plain = bits(stage.printed_by(stage.shell("plain", effective)).await?)?;
    let none = stage.shell("none", effective).secured(|it| it.capabilities = Some(with(&[], &["ALL"])));
    assert_eq!(bits(stage.printed_by(none).await?)?, 0);
    let one =
        stage.shell("one", effective).secured(|it| it.capabilities = Some(with(&["NET_ADMIN"], &["CHOWN"])));
    let one = bits(stage.printed_by(one).await?)?;
    assert_eq!(one, (plain | 1 << 12) & !1, "plain is {plain:x}");
    let user = stage.shell("user", effective).secured(|it| it.run_as_user = Some(Int64Value { value: 1000 }));
    assert_eq!(bits(stage.printed_by(user).await?)?, 0, "a user other than root has none in effect");

    let guarded = "grep -E 'NoNewPrivs|^Seccomp:' /proc/self/status | cut -f2";
    assert_eq!(stage.printed_by(stage.shell("filtered", guarded)).await?, "0\n2");
    let guarded = stage.shell("guarded", guarded).secured(|it| it.no_new_privs = true);
    assert_eq!(stage.printed_by(guarded).await?, "1\n2");

    let write =
        "touch /file 2>/dev/null && echo written || echo refused; touch /tmp-ok 2>/dev/null; ls -d /proc";
    let readonly = stage.shell("readonly", write).secured(|it| it.readonly_rootfs = true);
    assert_eq!(stage.printed_by(readonly).await?, "refused\n/proc");
    let mut pod = stage.pod.clone();
    pod.config.linux.as_mut().and_then(|it| it.security_context.as_mut()).expect("context").privileged = true;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_sees_the_devices_of_the_host() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut pod = stage.node.pod("privileged");
    pod.config.linux.as_mut().and_then(|it| it.security_context.as_mut()).expect("context").privileged = true;
    let pod_id = cri.run_pod(&pod).await?;
    let privileged = ContainerSpec::lasting("privileged", &stage.image).secured(|it| it.privileged = true);
    let id = cri.run(&pod_id, &privileged, &pod).await?;
    cri.shell(&id, "test -e /dev/kmsg && mount -t tmpfs none /tmp && test -w /proc/sys/kernel/hostname")
        .await?;
    let plain = stage.run(&ContainerSpec::lasting("plain", &stage.image)).await?;
    assert_eq!(
        cri.exec(&plain, &["sh", "-c", "test -e /dev/kmsg || mount -t tmpfs none /tmp"]).await?.exit_code,
        1
    );
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_the_host_s() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let volume = stage.node.dir().join("volume");
    std::fs::create_dir(&volume)?;
    std::fs::write(volume.join("given"), "given")?;
    let spec = ContainerSpec::lasting("volumes", &stage.image)
        .with_mount(&volume, "/rw", false)
        .with_mount(&volume, "/deep/er/ro", true)
        .with_mount(&volume.join("given"), "/etc/single", true);
    let id = stage.run(&spec).await?;
    assert_eq!(cri.shell(&id, "cat /rw/given /deep/er/ro/given /etc/single").await?, "givengivengiven");
    cri.shell(&id, "echo taken > /rw/taken").await?;
    assert_eq!(std::fs::read_to_string(volume.join("taken"))?, "taken\n");
    assert_ne!(cri.exec(&id, &["touch", "/deep/er/ro/file"]).await?.exit_code, 0);
    let reported = cri.container(&id).await?.mounts;
    assert!(
        reported.iter().any(|it| it.container_path == "/rw" && it.host_path == volume.display().to_string())
    );
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_travel_as_the_propagation_says() -> Result {
    let stage = Stage::set().await?;
    let (cri, machine) = (stage.node.cri(), stage.node.machine().clone());
    let volume = stage.node.dir().join("travel");
    for name in ["early", "late", "back"] {
        std::fs::create_dir_all(volume.join(name))?;
    }
    let path = |name: &str| volume.join(name).display().to_string();
    machine.output("mount", &["-t", "tmpfs", "early", &path("early")]).await?;
    machine.output("touch", &[&format!("{}/file", path("early"))]).await?;

    let mount = |name: &str, propagation: MountPropagation| {
        let mut spec = ContainerSpec::lasting(name, &stage.image).with_mount(&volume, "/v", false);
        spec.config.mounts[0].propagation = propagation.into();
        spec.secured(|it| it.privileged = propagation == MountPropagation::PropagationBidirectional)
    };
    let mut pod = stage.node.pod("travel");
    pod.config.linux.as_mut().and_then(|it| it.security_context.as_mut()).expect("context").privileged = true;
    let pod_id = cri.run_pod(&pod).await?;
    let private = cri.run(&pod_id, &mount("private", MountPropagation::PropagationPrivate), &pod).await?;
    let slave = cri.run(&pod_id, &mount("slave", MountPropagation::PropagationHostToContainer), &pod).await?;
    let shared = cri.run(&pod_id, &mount("shared", MountPropagation::PropagationBidirectional), &pod).await?;

    machine.output("mount", &["-t", "tmpfs", "late", &path("late")]).await?;
    machine.output("touch", &[&format!("{}/file", path("late"))]).await?;
    cri.shell(&shared, "mount -t tmpfs back /v/back && touch /v/back/file").await?;
    let sees = |id: String, name: &'static str| {
        let cri = cri.clone();
        async move {
            Ok::<_, anyhow::Error>(
                cri.exec(&id, &["test", "-e", &format!("/v/{name}/file")]).await?.exit_code == 0,
            )
        }
    };
    for (id, early, late, back) in
        [(&private, true, false, false), (&slave, true, true, true), (&shared, true, true, true)]
    {
        assert_eq!(sees(id.clone(), "early").await?, early, "a mount from before is seen");
        assert_eq!(sees(id.clone(), "late").await?, late);
        assert_eq!(sees(id.clone(), "back").await?, back);
    }
    machine.output("test", &["-e", &format!("{}/file", path("back"))]).await?;
    for name in ["back", "late", "early"] {
        machine.output("umount", &[&path(name)]).await?;
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_outlives_its_image() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let id = stage.run(&ContainerSpec::lasting("keeper", &stage.image)).await?;
    cri.forget_image(&stage.image).await?;
    assert_eq!(cri.image(&stage.image).await?, None);
    assert_eq!(cri.shell(&id, "cat /www/index.html").await?, "hello from crimson");
    let status = cri.container(&id).await?;
    assert!(!status.image_ref.is_empty() && status.image.is_some_and(|it| !it.image.is_empty()));
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_listed_by_every_field_at_once() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let running = stage.run(&ContainerSpec::lasting("running", &stage.image)).await?;
    let ended = stage.run_to_end(&stage.shell("ended", "true")).await?.id;
    let list = |filter: ContainerFilter| {
        let cri = cri.clone();
        async move {
            let reply = cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?;
            let mut ids: Vec<String> = reply.containers.into_iter().map(|it| it.id).collect();
            ids.sort();
            Ok::<_, tonic::Status>(ids)
        }
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let mut both = vec![running.clone(), ended.clone()];
    both.sort();
    assert_eq!(
        list(ContainerFilter { pod_sandbox_id: stage.pod_id.clone(), ..Default::default() }).await?,
        both
    );
    let only = ContainerFilter { state: state(ContainerState::ContainerExited), ..Default::default() };
    assert_eq!(list(only).await?, std::slice::from_ref(&ended));
    assert_eq!(list(ContainerFilter { id: prefix_of(&running), ..Default::default() }).await?, [running]);
    let none =
        ContainerFilter { id: ended, state: state(ContainerState::ContainerRunning), ..Default::default() };
    assert_eq!(list(none).await?, Vec::<String>::new());
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_cgroup() -> Result {
    let stage = Stage::set().await?;
    let mut spec = ContainerSpec::lasting("limited", &stage.image);
    let resources = spec.config.linux.as_mut().and_then(|it| it.resources.as_mut()).expect("resources");
    resources.memory_limit_in_bytes = 77 << 20;
    resources.cpu_quota = 50_000;
    let id = stage.run(&spec).await?;
    let limit =
        "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(stage.node.cri().shell(&id, limit).await?, (77_u64 << 20).to_string());
    let quota =
        "cut -d' ' -f1 /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us";
    assert_eq!(stage.node.cri().shell(&id, quota).await?.lines().next(), Some("50000"));
    let reported =
        stage.node.cri().container(&id).await?.resources.and_then(|it| it.linux).expect("resources");
    assert_eq!(reported.memory_limit_in_bytes, 77 << 20);
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_told_as_the_reason() -> Result {
    let stage = Stage::set().await?;
    // The shell itself grows, so that it is process 1 that dies.
    let mut spec = stage.shell("hungry", "x=0123456789abcdef; while :; do x=$x$x; done");
    let resources = spec.config.linux.as_mut().and_then(|it| it.resources.as_mut()).expect("resources");
    resources.memory_limit_in_bytes = 16 << 20;
    resources.memory_swap_limit_in_bytes = 16 << 20;
    let status = stage.run_to_end(&spec).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    stage.finish().await
}
