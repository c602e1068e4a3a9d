//! `crimson doctor`: says what a server of this configuration finds, and leaves nothing.

use std::process::Output;

use e2e::{Node, Result};
use serde_json::Value;

/// Asks beside the node's server, which has these things of its own.
async fn doctor(node: &Node, args: &[&str]) -> Result<Output> {
    let mut command = node.daemon_command("doctor")?;
    command.arg("--root").arg(node.root()).arg("--state").arg(node.state());
    command.arg("--cni-conf-dir").arg(&node.network().conf_dir);
    command.args(["--cni-bin-dir", "/usr/lib/cni", "--cni-bin-dir", "/opt/cni/bin"]);
    Ok(command.args(args).output().await?)
}

fn finding<'a>(report: &'a Value, name: &str) -> Vec<&'a Value> {
    let findings = report["findings"].as_array().expect("findings are a list");
    findings.iter().filter(|finding| finding["name"] == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_server_uses_is_found_and_nothing_is_left() -> Result {
    let node = Node::boot().await?;
    let output = doctor(&node, &["--json"]).await?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    for name in ["kernel", "overlayfs", "monitor", "network (CNI)", "pause"] {
        assert_eq!(finding(&report, name)[0]["state"], "ok", "{name}: {report:#}");
    }
    let server = finding(&report, "server")[0]["text"].as_str().expect("a text");
    assert!(server.starts_with("at work as process "), "{server}");
    let works = |finding: &&Value| {
        let is_runtime = finding["name"].as_str().is_some_and(|name| name.starts_with("runtime "));
        is_runtime && finding["text"].as_str().is_some_and(|text| text.contains(": the default"))
    };
    let findings = report["findings"].as_array().expect("findings are a list");
    assert_eq!(findings.iter().filter(works).count(), 1, "{report:#}");

    let output = doctor(&node, &[]).await?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.starts_with("kernel           ok      "), "{text}");
    assert!(text.contains("\nPods can run here"), "{text}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_missing_is_named_and_ends_with_1() -> Result {
    let node = Node::boot().await?;
    let output = doctor(&node, &["--runtime", "gone=/nonexistent/crun"]).await?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("runtime gone")).unwrap_or_default();
    assert!(line.contains("MISSING") && line.contains("/nonexistent/crun"), "{text}");
    assert!(text.contains("\nPods cannot run here: one thing is missing"), "{text}");

    let output = doctor(&node, &["--runtime", "gone"]).await?;
    assert_eq!(output.status.code(), Some(64));
    node.finish().await
}
