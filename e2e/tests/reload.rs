//! The configuration is read again while the server runs: by SIGHUP, and by `crimson reload`, which waits for the outcome.

use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use e2e::cri::{StatusRequest, VersionRequest};
use e2e::{CgroupDriver, ContainerSpec, Cri, ImageBuilder, Media, Node, Options, Result, code_of, patience};
use tokio::net::UnixDatagram;
use tokio::process::Child;

/// A server that has everything from its configuration file, nothing from flags, and is managed as systemd would.
struct Service {
    node: Node,
    dir: PathBuf,
    child: Child,
    manager: UnixDatagram,
    cri: Cri,
}

impl Service {
    async fn start() -> Result<Self> {
        let node = Node::boot().await?;
        let dir = node.dir().join("s");
        for name in ["net.d", "certs-a", "certs-b", "config.toml.d"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let manager = UnixDatagram::bind(dir.join("manager"))?;
        fs::write(dir.join("config.toml"), base(&dir.display().to_string()))?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = node.daemon_command("serve")?;
        command.arg("--config").arg(dir.join("config.toml")).env("NOTIFY_SOCKET", dir.join("manager"));
        let child = command.stderr(Stdio::from(log)).kill_on_drop(true).spawn()?;
        let heard = hear(&manager, "READY=1").await?;
        assert!(heard.iter().any(|line| line.starts_with("STATUS=serving on")), "{heard:?}");
        let cri = Cri::connect(&node.machine().path(&dir.join("state/crimson.sock"))).await?;
        Ok(Self { node, dir, child, manager, cri })
    }

    /// Puts `text` into the drop-in that a test plays with.
    fn configure(&self, text: &str) -> Result {
        Ok(fs::write(self.dir.join("config.toml.d/50-test.toml"), text)?)
    }

    /// As the unit does.
    async fn reload(&self) -> Result<Output> {
        let mut command = self.node.daemon_command("reload")?;
        command.arg("--pid").arg(self.pid()?);
        Ok(tokio::time::timeout(patience(30), command.output()).await??)
    }

    /// Its process, as it is called on the machine.
    fn pid(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("state/crimson.lock"))?.trim().to_owned())
    }

    async fn signal(&self, name: &str) -> Result {
        self.node.machine().output("sh", &["-c", &format!("kill -{name} {}", self.pid()?)]).await?;
        Ok(())
    }

    /// What the service manager hears of one reload; its status comes last.
    async fn reloads(&self) -> Result<String> {
        let begun = hear(&self.manager, "RELOADING=1").await?;
        let with_time = begun.iter().any(|line| line.starts_with("MONOTONIC_USEC="));
        assert!(with_time, "newer versions of systemd insist on the time: {begun:?}");
        let ended = hear(&self.manager, "READY=1").await?;
        let status = ended.iter().find_map(|line| line.strip_prefix("STATUS="));
        Ok(status.unwrap_or_default().to_owned())
    }

    /// Hears whatever the service manager is told; never ends well.
    async fn listen(&self) -> Result {
        loop {
            self.manager.recv(&mut [0; 4096]).await?;
        }
    }

    /// The configuration as `crictl info` shows it.
    async fn shown(&self) -> Result<serde_json::Value> {
        let status = self.cri.status(StatusRequest { verbose: true }).await?;
        Ok(serde_json::from_str(&status.info["config"])?)
    }

    async fn registry_dir(&self) -> Result<String> {
        Ok(self.shown().await?["registry"]["configPath"].as_str().unwrap_or_default().to_owned())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    async fn finish(mut self) -> Result {
        self.signal("TERM").await?;
        hear(&self.manager, "STOPPING=1").await?;
        let status = tokio::time::timeout(patience(30), self.child.wait()).await??;
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
        self.node.finish().await
    }
}

fn base(dir: &str) -> String {
    let driver = CgroupDriver::asked_for().flag();
    format!(
        "root = '{dir}/root'\nstate = '{dir}/state'\nsocket = '{dir}/state/crimson.sock'\n[cgroup]\ndriver = '{driver}'\n\
         [cni]\nconf_dir = '{dir}/net.d'\n[image]\nregistry_config_dir = '{dir}/certs-a'\n"
    )
}

/// Reads until a message with this line comes; gives its lines.
async fn hear(manager: &UnixDatagram, wanted: &str) -> Result<Vec<String>> {
    let mut buffer = [0_u8; 4096];
    loop {
        let length = tokio::time::timeout(patience(30), manager.recv(&mut buffer)).await??;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.iter().any(|line| line == wanted) {
            return Ok(lines);
        }
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_configuration_is_in_force_when_reload_returns() -> Result {
    let service = Service::start().await?;
    assert!(service.registry_dir().await?.ends_with("/certs-a"));
    let mut by_hand = service.node.daemon_command("reload")?;
    let output = by_hand.arg("--config").arg(service.dir.join("config.toml")).output().await?;
    assert_eq!(stdout(&output), "reloaded, nothing new is in force\n", "{}", stderr(&output));
    assert_eq!(service.reloads().await?, "configuration reloaded");

    let dir = service.dir.display();
    service.configure(&format!("log.level = 'debug'\nimage.registry_config_dir = '{dir}/certs-b'\n"))?;
    let output = service.reload().await?;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "reloaded, now in force: log.level, image.registry_config_dir\n");
    assert!(service.registry_dir().await?.ends_with("/certs-b"));
    assert_eq!(service.reloads().await?, "configuration reloaded");
    let log = service.log();
    let (before, _) = log.split_once("configuration reloaded keys=").expect("the reload has been told");
    assert!(!before.contains(" DEBUG "), "the new level was in force before the reload: {log}");

    // Another form of log, from the next line on.
    service.configure("log.format = 'json'\n")?;
    assert!(service.reload().await?.status.success());
    let log = service.log();
    // More may have been logged since.
    let last = log.lines().rfind(|line| line.contains("configuration reloaded")).unwrap_or_default();
    let line: serde_json::Value = serde_json::from_str(last)?;
    assert_eq!(line["message"], "configuration reloaded", "{last}");
    assert!(
        service.registry_dir().await?.ends_with("/certs-a"),
        "what a drop-in no longer says is as before it"
    );
    service.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_leaves_the_old_one_in_force() -> Result {
    let service = Service::start().await?;
    let cases = [
        ("image.registry_config_dir = '/elsewhere'\nlog.level = 'loud'\n", "50-test.toml:2"),
        ("surprise = true\n", "surprise"),
        ("root = '/\n", "50-test.toml:1"),
        ("state = '/run'\n", "directory of crimson's own"),
        ("[runtime.handlers.broken]\npath = '/bin/false'\n", "would not work"),
    ];
    for (text, reason) in cases {
        service.configure(text)?;
        let output = service.reload().await?;
        assert_eq!(output.status.code(), Some(1), "{text:?} was accepted: {}", stdout(&output));
        assert!(stderr(&output).contains(reason), "{text:?}: {}", stderr(&output));
        let status = service.reloads().await?;
        assert!(
            status.contains("the old configuration stays in force") && status.contains(reason),
            "{status}"
        );
        assert!(service.log().contains("ERROR") && service.log().contains(reason), "{}", service.log());
        assert!(service.registry_dir().await?.ends_with("/certs-a"), "nothing of {text:?} is in force");
        service.cri.version(VersionRequest::default()).await?;
    }
    service.configure("")?;
    assert!(service.reload().await?.status.success());
    service.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_and_the_rest_is_in_force() -> Result {
    let service = Service::start().await?;
    let dir = service.dir.display().to_string();
    let text = format!(
        "socket = '{dir}/other.sock'\nmonitor.path = '/x'\nimage.registry_config_dir = '{dir}/certs-b'\n"
    );
    service.configure(&text)?;
    let output = service.reload().await?;
    let expected =
        "reloaded, now in force: image.registry_config_dir\nrestart crimson to apply: socket, monitor.path\n";
    assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    let status = service.reloads().await?;
    assert_eq!(status, "configuration reloaded; restart crimson to apply socket, monitor.path");
    assert!(service.log().contains("keys=\"socket, monitor.path\""), "{}", service.log());
    assert!(service.registry_dir().await?.ends_with("/certs-b"));
    service.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reload_and_never_end_the_server() -> Result {
    let service = Service::start().await?;
    let network = service.node.network().conf_dir.display().to_string();
    service.configure(&format!("cni.conf_dir = '{network}'\n"))?;
    let ready = async || -> Result<bool> {
        let status = service.cri.status(StatusRequest::default()).await?.status.unwrap_or_default();
        Ok(status.conditions.iter().any(|it| it.r#type == "NetworkReady" && it.status))
    };
    assert!(!ready().await?, "there is no network to begin with");
    service.signal("HUP").await?;
    assert_eq!(service.reloads().await?, "configuration reloaded");
    assert!(ready().await?, "the network of the other directory is there at once");
    for _ in 0..20 {
        service.signal("HUP").await?;
    }
    service.reloads().await?;
    // Asked while reloads go on, it still waits for one that began later.
    service.configure("log.format = 'json'\n")?;
    // The server waits for a manager that does not read what it is told.
    tokio::select! {
        reloaded = service.reload() => assert!(reloaded?.status.success()),
        unheard = service.listen() => unheard?,
    }
    let log = service.log();
    assert!(log.lines().last().is_some_and(|line| line.starts_with('{')), "{log}");
    service.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_keep_the_handler_that_a_reload_takes_away() -> Result {
    let runtime = std::env::var("CRIMSON_E2E_RUNTIME").unwrap_or_else(|_| "runc".to_owned());
    let program = e2e::program(&runtime).expect("the OCI runtime is installed");
    let handler = |name: &str| format!("[runtime.handlers.{name}]\npath = '{}'\n", program.display());
    let options = Options { config: handler("early"), ..Options::default() };
    let (node, registry) = Node::start_with_registry(options).await?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let cri = node.cri();
    let image = cri.pull(&pushed.reference).await?;
    let on = |name: &str, handler: &str| {
        let mut pod = node.pod(name);
        handler.clone_into(&mut pod.handler);
        pod
    };
    let pod = on("old", "early");
    let pod_id = cri.run_pod(&pod).await?;
    let counter = cri.run(&pod_id, &ContainerSpec::lasting("counter", &image), &pod).await?;

    fs::write(node.dir().join("config.toml"), handler("late"))?;
    let mut reload = node.daemon_command("reload")?;
    let output = reload.arg("--state").arg(node.state()).output().await?;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("runtime.handlers.early, runtime.handlers.late"), "{}", stdout(&output));

    assert_eq!(cri.shell(&counter, "echo alive").await?, "alive");
    let more = cri.run(&pod_id, &ContainerSpec::lasting("more", &image), &pod).await?;
    assert_eq!(cri.shell(&more, "echo alive").await?, "alive");
    let refused = cri.run_pod(&on("refused", "early")).await;
    assert_ne!(code_of(&refused), tonic::Code::Ok, "new pods do not get it");
    let next = on("next", "late");
    let next_id = cri.run_pod(&next).await?;
    cri.run(&next_id, &ContainerSpec::lasting("app", &image), &next).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_reload_says_so() -> Result {
    let mut node = Node::boot().await?;
    node.stop().await?;
    let mut reload = node.daemon_command("reload")?;
    let output = reload.arg("--state").arg(node.state()).output().await?;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no crimson daemon runs on"), "{}", stderr(&output));
    node.finish().await
}
