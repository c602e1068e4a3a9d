//! What is mounted in containers: volumes of images, links as mount points, sources that hang, what kubelet adds.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use e2e::{ContainerSpec, Cri, ImageBuilder, Layer, Media, Node, Result, patience};
use serde_json::json;

use crate::cases::Pod;
use crate::ground::Ground;

/// busybox with data of an application, as database images have them.
fn with_volumes(paths: &[&str]) -> Result<ImageBuilder> {
    let volumes: serde_json::Map<_, _> = paths.iter().map(|path| ((*path).to_owned(), json!({}))).collect();
    let data = Layer::new()
        .dir("data", 0o755)
        .owned_file("data/of-web", 0o640, (1000, 2000), b"of the image\n")
        .hard_link("data/again", "data/of-web")
        .symlink("data/climbing", "../../../../../../etc/hostname")
        .symlink("srv", "/data")
        .symlink("out", "../../../../../../../../tmp");
    Ok(ImageBuilder::busybox(Media::Oci)?.layer(data).config("Volumes", json!(volumes)))
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_the_image_are_the_container_s_own() -> Result {
    let ground = Ground::set(with_volumes(&["/data", "/var/empty/"])?).await?;
    let cri = ground.node.cri();
    for handler in &ground.handlers {
        let (pod_id, pod) = ground.run_pod(Pod::Plain, handler).await?;
        let readonly = ContainerSpec::lasting("db", &ground.image).secured(|it| it.readonly_rootfs = true);
        let id = cri.run(&pod_id, &readonly, &pod).await?;
        let seen = cri
            .shell(
                &id,
                "stat -c '%u %g %a %h' /data/of-web; cat /data/again; readlink /data/climbing; ls /srv",
            )
            .await?;
        let expected =
            "1000 2000 640 2\nof the image\n../../../../../../etc/hostname\nagain\nclimbing\nof-web";
        assert_eq!(seen, expected, "{handler}");
        cri.shell(&id, "echo x > /data/written && echo y > /var/empty/written && ! touch /written").await?;
        assert_eq!(cri.container(&id).await?.mounts, [], "they are not asked for, so they are not told of");
        let volumes = ground.node.root().join("containers").join(&id).join("volumes");
        let written = |n: &str| std::fs::read_to_string(volumes.join(n).join("written"));
        assert_eq!((written("0")?.as_str(), written("1")?.as_str()), ("x\n", "y\n"));

        let covering = ground.node.dir().join(format!("kept-{handler}"));
        let covered = ContainerSpec::lasting("kept", &ground.image).with_mount(&covering, "/data", false);
        let other = cri.run(&pod_id, &covered, &pod).await?;
        assert_eq!(cri.shell(&other, "ls /data; ls /var/empty").await?, "", "another container has its own");
        cri.remove(&id).await?;
        assert!(!volumes.try_exists()?, "they go with the container");
        cri.remove(&other).await?;
        assert!(covering.try_exists()?, "what is mounted stays");
    }
    ground.node.finish().await
}

/// Mount points that are links in the image lead to places in the container, whatever they say.
#[tokio::test(flavor = "multi_thread")]
async fn mount_points_that_are_links_stay_in_the_container() -> Result {
    let ground = Ground::set(with_volumes(&[])?).await?;
    let cri = ground.node.cri();
    let given = ground.node.dir().join("given");
    std::fs::create_dir(&given)?;
    std::fs::write(given.join("file"), "given")?;
    let name = format!("made-{}", ground.node.machine().token());
    for handler in &ground.handlers {
        let (pod_id, pod) = ground.run_pod(Pod::Plain, handler).await?;
        let spec = ContainerSpec::lasting("links", &ground.image)
            .with_mount(&given, &format!("/out/{name}"), false)
            .with_mount(&given, "/srv/deep/er", true);
        let id = cri.run(&pod_id, &spec, &pod).await?;
        let seen = cri.shell(&id, &format!("cat /tmp/{name}/file /data/deep/er/file")).await?;
        assert_eq!(seen, "givengiven", "{handler}");
        assert!(!Path::new("/tmp").join(&name).try_exists()?, "{handler}: nothing is made on the host");
        cri.remove(&id).await?;
    }
    ground.node.finish().await
}

/// The process that serves a file system which answers nothing.
const SILENT: &str = r#"
import ctypes, os, sys
fuse = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0'.encode()
if libc.mount(b'silent', sys.argv[1].encode(), b'fuse', 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
print('mounted', flush=True)
sys.stdin.read()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_source_that_never_answers_does_not_hold_the_container_s_name() -> Result {
    use tokio::io::{AsyncBufReadExt, BufReader};
    // As long as a busy machine may take for a source that is well.
    let limits = format!("mount_source_timeout_secs = {}", patience(4).as_secs());
    let ground = Ground::with_limits(ImageBuilder::busybox(Media::Oci)?, &limits).await?;
    let (cri, machine) = (ground.node.cri(), ground.node.machine());
    let dead = ground.node.dir().join("dead");
    std::fs::create_dir(&dead)?;
    let mut server = machine.command("python3");
    server.args(["-c", SILENT, &dead.display().to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn()?;
    let stdout = server.stdout.take().context("stdout")?;
    if BufReader::new(stdout).lines().next_line().await?.is_none() {
        println!("not here: a file system that never answers, as there is no FUSE");
        return ground.node.finish().await;
    }
    let (pod_id, pod) = ground.run_pod(Pod::Plain, &ground.handlers[0]).await?;
    let spec =
        |source: &Path| ContainerSpec::lasting("waiting", &ground.image).with_mount(source, "/v", false);
    for _ in 0..2 {
        let refused =
            cri.create(&pod_id, &spec(&dead.join("volume")), &pod).await.expect_err("it cannot be looked at");
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded, "{refused:?}");
        assert!(refused.message().contains(&dead.display().to_string()), "{refused:?}");
        assert_eq!(cri.all_containers().await?, []);
    }
    // Threads that have found what they were looking for end a moment later.
    let deadline = tokio::time::Instant::now() + patience(30);
    while lookups(&ground.node)? != 1 {
        let late = tokio::time::Instant::now() > deadline;
        assert!(!late, "one thread hangs, however often it was tried, not {}", lookups(&ground.node)?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fine = cri.run(&pod_id, &spec(&ground.node.dir().join("fine")), &pod).await?;
    cri.shell(&fine, "ls /v").await?;
    drop(server.stdin.take());
    server.wait().await?;
    machine.output("umount", &["-l", &dead.display().to_string()]).await?;
    ground.node.finish().await
}

/// How many threads of the daemon look at mount sources.
fn lookups(node: &Node) -> Result<usize> {
    let pid = node.pid().context("the daemon runs")?;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let name =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    Ok(tasks.flatten().map(name).filter(|name| name.trim() == "lookup").count())
}

/// What kubelet adds to every container: its own hosts file, a termination log, tokens beneath a link.
#[tokio::test(flavor = "multi_thread")]
async fn what_kubelet_mounts_is_where_it_belongs() -> Result {
    let ground = Ground::set(ImageBuilder::busybox(Media::Oci)?).await?;
    let cri: Cri = ground.node.cri();
    let dir = ground.node.dir().join("kubelet");
    std::fs::create_dir_all(dir.join("..data"))?;
    std::fs::write(dir.join("..data/token"), "secret")?;
    std::os::unix::fs::symlink("..data", dir.join("current"))?;
    for (name, content) in [("etc-hosts", "192.0.2.1 mine\n"), ("log", "")] {
        std::fs::write(dir.join(name), content)?;
    }
    for handler in &ground.handlers {
        let (pod_id, pod) = ground.run_pod(Pod::Plain, handler).await?;
        let spec = ContainerSpec::lasting("kubelets", &ground.image)
            .with_mount(&dir.join("current"), "/var/run/secrets/token", true)
            .with_mount(&dir.join("etc-hosts"), "/etc/hosts", false)
            .with_mount(&dir.join("log"), "/dev/termination-log", false);
        let id = cri.run(&pod_id, &spec, &pod).await?;
        let seen = cri.shell(&id, "cat /var/run/secrets/token/token; echo; cat /etc/hosts /etc/hostname; grep name /etc/resolv.conf").await?;
        assert_eq!(seen, "secret\n192.0.2.1 mine\nplain\nnameserver 192.0.2.53", "{handler}");
        cri.shell(&id, &format!("echo {handler} > /dev/termination-log; df /dev/shm | grep -q 65536"))
            .await?;
        assert_eq!(std::fs::read_to_string(dir.join("log"))?, format!("{handler}\n"));
        cri.remove(&id).await?;
    }
    ground.node.finish().await
}
