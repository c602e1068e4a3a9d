//! What the daemon tells of itself while it works, hangs, starts and ends: the admin socket, `crimson status` and
//! `crimson log-level`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::faulty::{Fault, Faulty, HANDLER, Moment, Program, real_runtime};
use e2e::{ContainerSpec, ImageBuilder, Media, Node, Options, PodSpec, Result, Stage, patience};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long an answer may take: it waits for nothing. What hangs here does so for much longer.
const AT_ONCE_SECONDS: u64 = 30;
/// A user who is not root, and what he does with the socket.
const NOBODY: [&str; 5] = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
const KNOCK: &str = r#"
    $SIG{PIPE} = "IGNORE";
    socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
    connect($s, pack_sockaddr_un($ARGV[0])) or do { print "refused: $!"; exit };
    syswrite $s, "GET /status HTTP/1.1\r\nhost: x\r\n\r\n";
    print "connected: ", <$s>;
"#;

fn admin_socket(node: &Node) -> PathBuf {
    node.machine().path(&node.state().join("admin.sock"))
}

/// Status code and body of one request.
async fn ask(socket: &Path, method: &str, page: &str, body: &str) -> Result<(u16, String)> {
    let exchange = async {
        let stream = UnixStream::connect(socket).await.context("connecting to the admin socket")?;
        talk(stream, method, page, body).await
    };
    tokio::time::timeout(patience(AT_ONCE_SECONDS), exchange)
        .await
        .context("the answer waits for something")?
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    page: &str,
    body: &str,
) -> Result<(u16, String)> {
    let head = format!("{method} {page} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    let code = head.split(' ').nth(1).context("a status code")?.parse()?;
    Ok((code, body.to_owned()))
}

async fn status_of(socket: &Path) -> Result<Value> {
    let (code, body) = ask(socket, "GET", "/status?pods", "").await?;
    ensure!(code == 200, "{code}: {body}");
    Ok(serde_json::from_str(&body)?)
}

async fn status(node: &Node) -> Result<Value> {
    status_of(&admin_socket(node)).await
}

/// The operation with this verb on something of this name.
fn task<'a>(status: &'a Value, verb: &str, name: &str) -> Option<&'a Value> {
    let is_it = |task: &&Value| task["verb"] == verb && task["object"].to_string().contains(name);
    status["tasks"].as_array()?.iter().find(is_it)
}

fn stage_age(task: &Value, stage: &str) -> Option<f64> {
    task["stages"].as_array()?.iter().find(|it| it["name"] == stage)?["age"].as_f64()
}

/// Waits until the status is so, and gives what `look` found.
async fn until<T>(node: &Node, what: &str, look: impl Fn(&Value) -> Option<T>) -> Result<T> {
    let looking = async {
        loop {
            let status = status(node).await?;
            match look(&status) {
                Some(found) => return Ok(found),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(patience(30), looking).await.with_context(|| format!("{what} does not show"))?
}

async fn crimson(node: &Node, words: &str, args: &[&str]) -> Result<Output> {
    let mut command = node.daemon_command(words)?;
    Ok(command.arg("--state").arg(node.state()).args(args).output().await?)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A node with plugins and a runtime that hang when they are told to.
async fn faulty_node() -> Result<(Node, Faulty)> {
    let faulty = Faulty::new()?;
    let good = format!("good={}", real_runtime()?.display());
    let options = Options {
        args: [vec!["--runtime".to_owned(), good], faulty.args()].concat(),
        config:
            "[runtime]\ndefault = \"good\"\n[limits]\ncreate_timeout_secs = 300\n[cni]\ntimeout_secs = 300\n"
                .to_owned(),
        ..Options::default()
    };
    let node = Node::start(options).await?;
    faulty.wrap_network(&node).await?;
    Ok((node, faulty))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_is_shown_with_its_stage_and_a_growing_age() -> Result {
    let (node, faulty) = faulty_node().await?;
    let well = crimson(&node, "status", &[]).await?;
    assert_eq!(well.status.code(), Some(0), "{}{}", stdout(&well), stderr(&well));

    let plugin = faulty.inject(Program::Bridge, "ADD", Moment::Before, Fault::Hang)?;
    let runtime = faulty.inject(Program::Runtime, "create", Moment::Before, Fault::Hang)?;
    let (one, other) = (node.pod("plugin"), PodSpec { handler: HANDLER.to_owned(), ..node.pod("runtime") });
    let run = |pod: PodSpec| {
        let cri = node.cri();
        tokio::spawn(async move { cri.run_pod(&pod).await })
    };
    let first = run(one.clone());
    faulty.wait_for_hung(Program::Bridge, "ADD", 1).await?;
    let second = run(other);
    faulty.wait_for_hung(Program::Runtime, "create", 1).await?;

    let age = |status: &Value, name: &str, stage| stage_age(task(status, "run sandbox", name)?, stage);
    let earlier = until(&node, "the plugin", |status| age(status, "/plugin", "CNI")).await?;
    until(&node, "the runtime", |status| age(status, "/runtime", "pause create")).await?;
    until(&node, "its age", |status| age(status, "/plugin", "CNI").filter(|age| *age > earlier)).await?;
    let shown = status(&node).await?;
    let hung = task(&shown, "run sandbox", "/plugin").context("it is shown")?;
    assert_eq!(hung["callers"], 1, "{hung}");
    assert_eq!(shown["tasks"].as_array().map(Vec::len), Some(2), "{shown}");
    assert_eq!(shown["pods"]["starting"], 2, "{shown}");

    // Who has gone waits no more, and who asks again waits for the same.
    first.abort();
    until(&node, "a caller less", |status| {
        (task(status, "run sandbox", "/plugin")?["callers"] == 0).then_some(())
    })
    .await?;
    let first = run(one);
    until(&node, "a caller more", |status| {
        (task(status, "run sandbox", "/plugin")?["callers"] == 1).then_some(())
    })
    .await?;

    let stuck = crimson(&node, "status", &["--stuck-after", "0"]).await?;
    let text = stdout(&stuck);
    assert_eq!(stuck.status.code(), Some(1), "{text}");
    let marked = |line: &&str| line.starts_with("! run sandbox e2e/plugin") && line.contains("CNI");
    assert_eq!(text.lines().filter(marked).count(), 2, "once above, once in its line:\n{text}");
    let patient = crimson(&node, "status", &["--stuck-after", "100000", "--json"]).await?;
    assert_eq!(patient.status.code(), Some(0), "{}", stderr(&patient));
    assert_eq!(serde_json::from_slice::<Value>(&patient.stdout)?["version"], 1);
    for page in ["/metrics", "/healthz", "/log-level"] {
        assert_eq!(ask(&admin_socket(&node), "GET", page, "").await?.0, 200, "{page}");
    }

    plugin.lift();
    runtime.lift();
    first.await??;
    second.await??;
    until(&node, "the end", |status| status["tasks"].as_array()?.is_empty().then_some(())).await?;
    let well = crimson(&node, "status", &[]).await?;
    assert_eq!(well.status.code(), Some(0), "{}", stdout(&well));
    assert!(stdout(&well).contains("2 ready, 0 not ready"), "{}", stdout(&well));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_undone_behind_is_shown_with_its_reason() -> Result {
    let (node, faulty) = faulty_node().await?;
    let pod = node.pod("web");
    let pod_id = node.cri().run_pod(&pod).await?;
    let fault = faulty.inject(Program::Bridge, "DEL", Moment::Before, Fault::Fail)?;
    let (cri, id) = (node.cri(), pod_id.clone());
    let stopping = tokio::spawn(async move { cri.stop_pod(&id).await });
    let pending = until(&node, "the failure", |status| {
        status["teardown"].as_array()?.iter().find(|it| it["failures"].as_u64() > Some(0)).cloned()
    })
    .await?;
    assert_eq!(
        (&pending["verb"], &pending["stage"]),
        (&"stop sandbox".into(), &"network".into()),
        "{pending}"
    );
    assert!(pending["object"].to_string().contains("/web") && pending["id"] == pod_id.as_str(), "{pending}");
    let reason = pending["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("faulty-bridge"), "the plugin is named: {pending}");
    let output = crimson(&node, "status", &[]).await?;
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stdout(&output).contains(reason), "{}", stdout(&output));
    fault.lift();
    stopping.await??;
    until(&node, "the end", |status| status["teardown"].as_array()?.is_empty().then_some(())).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_sessions_and_the_configuration_in_force_are_shown() -> Result {
    let stage = Stage::set().await?;
    let node = &stage.node;
    let id = stage.run(&ContainerSpec::lasting("app", &stage.image)).await?;
    let (cri, container) = (node.cri(), id.clone());
    let line = "until [ -e /tmp/go ]; do sleep 0.1; done; echo done";
    let command = tokio::spawn(async move { cri.shell(&container, line).await });
    let session =
        until(node, "the command", |status| status["sessions"].as_array()?.first().cloned()).await?;
    assert_eq!((&session["verb"], &session["object"]), (&"exec in".into(), &"container \"app\"".into()));
    assert!(session["pod"].to_string().contains("/stage"), "{session}");
    let shown = status(node).await?;
    assert_eq!(shown["server"]["phase"], "serving");
    assert!(shown["build"]["rustc"].to_string().contains("rustc"), "{}", shown["build"]);
    assert_eq!(shown["config"]["state"], node.state().display().to_string());
    assert_eq!(shown["config"]["log"]["level"], "debug", "flags count");
    assert!(shown["config"]["limits"]["create_timeout_secs"].is_number(), "defaults are shown");
    assert_eq!((&shown["pods"]["ready"], &shown["containers"]["running"]), (&1.into(), &1.into()));
    assert_eq!(shown["monitors"]["connected"], 1);
    assert_eq!(shown["network"]["ready"], true);
    assert_eq!(shown["handlers"][0]["is_default"], true, "{}", shown["handlers"]);
    let pod = &shown["pod_list"][0];
    assert_eq!(
        (&pod["id"], &pod["containers"][0]["id"]),
        (&stage.pod_id.as_str().into(), &id.as_str().into())
    );
    let text = stdout(&crimson(node, "status", &["--pods"]).await?);
    assert!(text.contains("exec in \"app\"") && text.contains("1 running"), "{text}");
    node.cri().shell(&id, "touch /tmp/go").await?;
    assert_eq!(command.await??, "done");
    until(node, "the end", |status| status["sessions"].as_array()?.is_empty().then_some(())).await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_of_the_log_changes_while_the_server_runs() -> Result {
    let mut node = Node::boot().await?;
    let level = async |args: &[&str]| -> Result<String> {
        let output = crimson(&node, "log-level", args).await?;
        ensure!(output.status.success(), "{}", stderr(&output));
        Ok(stdout(&output))
    };
    // What a pod's life adds to the log.
    let said = async |pod: &str| -> Result<String> {
        let before = node.log().len();
        let cri = node.cri();
        let id = cri.run_pod(&node.pod(pod)).await?;
        cri.stop_pod(&id).await?;
        cri.remove_pod(&id).await?;
        Ok(node.log().get(before..).unwrap_or_default().to_owned())
    };
    assert_eq!(level(&[]).await?, "debug\n");
    assert!(said("one").await?.contains("DEBUG crimson::step"));

    let note = "until the next reload or restart; the configuration says debug\n";
    assert_eq!(level(&["warn"]).await?, format!("warn\n{note}"));
    assert!(node.log().contains("log level set until the next reload or restart"), "{}", node.log());
    let quiet = said("two").await?;
    assert!(!quiet.contains("DEBUG") && !quiet.contains("INFO"), "{quiet}");

    assert_eq!(level(&["info,crimson::step=debug"]).await?, format!("info,crimson::step=debug\n{note}"));
    let steps = said("three").await?;
    assert!(steps.contains("DEBUG crimson::step"), "{steps}");
    let others = |line: &&str| line.contains("DEBUG") && !line.contains("DEBUG crimson::step");
    assert_eq!(steps.lines().find(others), None, "{steps}");

    let output = crimson(&node, "log-level", &["loud"]).await?;
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("\"loud\" is not a level"), "{}", stderr(&output));
    let (code, body) = ask(&admin_socket(&node), "PUT", "/log-level", "info,=").await?;
    assert!(code == 400 && body.contains("TARGET=LEVEL"), "{code}: {body}");
    assert_eq!(level(&[]).await?, format!("info,crimson::step=debug\n{note}"), "as it was");

    let reload = crimson(&node, "reload", &[]).await?;
    assert!(reload.status.success(), "{}", stderr(&reload));
    assert_eq!(level(&[]).await?, "debug\n", "a reload sets what the configuration says");
    level(&["error"]).await?;
    node.stop().await?;
    node.restart().await?;
    let output = crimson(&node, "log-level", &[]).await?;
    assert_eq!(stdout(&output), "debug\n", "{}", stderr(&output));
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_may_ask() -> Result {
    let node = Node::boot().await?;
    let socket = admin_socket(&node);
    let metadata = fs::symlink_metadata(&socket)?;
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    // All the way to it, so that the socket itself is what refuses.
    fs::set_permissions(node.dir(), Permissions::from_mode(0o755))?;
    let inside = node.state().join("admin.sock").display().to_string();
    let knock = async || {
        let words = [NOBODY.as_slice(), &["perl", "-MSocket", "-e", KNOCK, &inside]].concat();
        node.machine().output("setpriv", &words).await
    };
    assert_eq!(knock().await?, "refused: Permission denied");
    fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    assert_eq!(knock().await?, "connected: ", "who is told nothing has been let in all the same");
    assert!(node.log().contains("another user than root"), "{}", node.log());
    fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    assert_eq!(status(&node).await?["server"]["phase"], "serving");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_where_they_are_asked_for_and_nothing_else_is() -> Result {
    let options =
        Options { config: "[metrics]\naddress = '127.0.0.1:9110'\n".to_owned(), ..Options::default() };
    let node = Node::start(options).await?;
    let (code, by_socket) = ask(&admin_socket(&node), "GET", "/metrics", "").await?;
    let by_tcp = node.fetch("http://127.0.0.1:9110/metrics").await?;
    for (code, text) in [(code, by_socket), (by_tcp.status, by_tcp.body)] {
        assert_eq!(code, 200, "{text}");
        assert!(text.contains("crimson_build") && text.ends_with("# EOF\n"), "{text}");
    }
    assert_eq!(node.fetch("http://127.0.0.1:9110/healthz").await?.status, 200);
    for page in ["status", "log-level", ""] {
        let reply = node.machine().in_network({
            let page = page.to_owned();
            move || raw("127.0.0.1:9110", &format!("GET /{page} HTTP/1.1\r\nhost: x\r\n\r\n"))
        });
        assert!(reply.await??.starts_with("HTTP/1.1 404"), "{page}");
    }
    let elsewhere = node.machine().in_network(|| std::net::TcpStream::connect("127.0.0.2:9110").is_err());
    assert!(elsewhere.await?, "another address is open");
    node.finish().await
}

/// The answer to a request over the network, whatever it is.
fn raw(address: &str, request: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience(30)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn crowds_and_junk_harm_nothing() -> Result {
    let node = Node::boot().await?;
    let socket = admin_socket(&node);
    let mut crowd = Vec::new();
    for number in 0..40_u8 {
        let mut stream = UnixStream::connect(&socket).await?;
        let junk: &[u8] = match number % 4 {
            0 => b"",
            1 => b"GET /status HT",
            2 => b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
            _ => b"PUT /log-level HTTP/1.1\r\ncontent-length: 1000000\r\n\r\nerr",
        };
        stream.write_all(junk).await?;
        crowd.push(stream);
    }
    // The server has other things to do.
    let id = node.cri().run_pod(&node.pod("meanwhile")).await?;
    assert_eq!(node.cri().all_pods().await?.len(), 1);
    // Who has patience gets his turn, since everybody's time is bounded.
    let turn = async {
        let stream = UnixStream::connect(&socket).await?;
        talk(stream, "GET", "/healthz", "").await
    };
    let (code, _) = tokio::time::timeout(patience(100), turn).await??;
    assert_eq!(code, 200);
    drop(crowd);
    let (_, level) = ask(&socket, "GET", "/log-level", "").await?;
    assert!(level.contains("\"level\":\"debug\""), "{level}");
    node.cri().stop_pod(&id).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_comes_and_goes_with_the_server() -> Result {
    let mut node = Node::boot().await?;
    let socket = admin_socket(&node);
    let first = status(&node).await?["server"]["pid"].clone();
    node.kill9().await?;
    assert!(socket.try_exists()?, "nobody was there to remove it");
    let output = crimson(&node, "status", &[]).await?;
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    assert!(stderr(&output).contains("no crimson daemon answers on"), "{}", stderr(&output));
    node.restart().await?;
    assert_ne!(status(&node).await?["server"]["pid"], first);
    node.stop().await?;
    assert!(!socket.try_exists()?, "it is left behind");
    assert_eq!(crimson(&node, "status", &[]).await?.status.code(), Some(2));
    node.finish().await
}

/// The server that follows one that was killed while a pod's runtime hung has to undo that, which hangs, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_recovers_can_be_asked() -> Result {
    let (mut node, faulty) = faulty_node().await?;
    let create = faulty.inject(Program::Runtime, "create", Moment::After, Fault::Hang)?;
    let (cri, pod) = (node.cri(), PodSpec { handler: HANDLER.to_owned(), ..node.pod("half") });
    let making = tokio::spawn(async move { cri.run_pod(&pod).await });
    faulty.wait_for_hung(Program::Runtime, "create", 1).await?;
    let delete = faulty.inject(Program::Runtime, "delete", Moment::Before, Fault::Hang)?;
    node.kill9().await?;
    drop(making.await);
    let socket = admin_socket(&node);
    let recovering = async {
        loop {
            match status_of(&socket).await {
                Ok(status) if status["server"]["phase"] == "recovering" => {
                    let tasks = status["tasks"].as_array().into_iter().flatten();
                    let mut stages = tasks.filter_map(|task| Some((&task["verb"], task["stages"].get(0)?)));
                    if let Some((_, stage)) = stages.find(|(verb, _)| **verb == "recover sandbox") {
                        return Ok::<_, anyhow::Error>(stage.clone());
                    }
                }
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (seen, restarted) = {
        let restart = node.restart();
        tokio::pin!(restart);
        tokio::select! {
            early = &mut restart => (None, early),
            seen = recovering => {
                create.lift();
                delete.lift();
                (Some(seen?), restart.await)
            }
        }
    };
    restarted?;
    seen.context("recovery has waited for nothing")?;
    let after = status(&node).await?;
    assert_eq!((&after["server"]["phase"], &after["recovery"]["undone"]), (&"serving".into(), &1.into()));
    node.finish().await
}

/// What a server is at that was asked to end and cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_can_be_asked() -> Result {
    let (mut node, faulty) = faulty_node().await?;
    let plugin = faulty.inject(Program::Bridge, "ADD", Moment::Before, Fault::Hang)?;
    let (cri, pod) = (node.cri(), node.pod("late"));
    let making = tokio::spawn(async move { cri.run_pod(&pod).await });
    faulty.wait_for_hung(Program::Bridge, "ADD", 1).await?;
    let socket = admin_socket(&node);
    let stopping = async {
        loop {
            let status = status_of(&socket).await?;
            if status["server"]["phase"] == "stopping" {
                return Ok::<_, anyhow::Error>(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (stopped, seen) = tokio::join!(node.stop(), async {
        let seen = stopping.await;
        plugin.lift();
        seen
    });
    let seen = seen?;
    assert!(task(&seen, "run sandbox", "/late").is_some(), "{seen}");
    assert!(stopped?.success());
    assert!(!socket.try_exists()?);
    drop(making.await);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_in_progress_is_shown() -> Result {
    let (node, registry) = Node::start_with_registry(Options::default()).await?;
    let proxy = e2e::RegistryProxy::start(node.machine(), registry.host()).await?;
    proxy.describe_to(&node.registry_config_dir())?;
    let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
    let held = proxy.put("/blobs/", e2e::Trouble::Hold { after: 1000 });
    let (cri, reference) = (node.cri(), proxy.reference_of(&pushed));
    let pull = tokio::spawn(async move { cri.pull(&reference).await });
    let shown = until(&node, "the pull", |status| {
        status["pulls"].as_array()?.iter().find(|it| it["stage"] == "fetching").cloned()
    })
    .await?;
    assert!(shown["reference"].to_string().contains("busybox") && shown["callers"] == 1, "{shown}");
    let text = stdout(&crimson(&node, "status", &[]).await?);
    assert!(text.contains("fetching"), "{text}");
    held.lift();
    pull.await??;
    until(&node, "the end", |status| status["pulls"].as_array()?.is_empty().then_some(())).await?;
    node.finish().await
}
