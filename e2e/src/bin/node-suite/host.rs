//! The node's programs: systemd and what else is asked by command line.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use e2e::{Result, patience};
use tokio::process::Command;

/// The unit under test.
pub(crate) const SERVICE: &str = "crimson.service";

/// Runs a program to its end and gives what it printed; a failure is an error with its words.
pub(crate) async fn run(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(patience(90), command.output());
    let output = output.await.with_context(|| format!("{program} {args:?} does not end"))?;
    let output = output.with_context(|| format!("running {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program} {args:?}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// `systemctl`.
pub(crate) async fn systemctl(args: &[&str]) -> Result<String> {
    run("systemctl", args).await
}

/// One property of a unit, as systemd tells it.
pub(crate) async fn property(unit: &str, name: &str) -> Result<String> {
    Ok(systemctl(&["show", "--property", name, "--value", unit]).await?.trim_end().to_owned())
}

/// The daemon's process.
pub(crate) async fn main_pid() -> Result<u32> {
    let text = property(SERVICE, "MainPID").await?;
    text.parse().ok().filter(|pid| *pid != 0).with_context(|| format!("the service has no process: {text:?}"))
}

/// Seconds since 1970, as journalctl takes them.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What the service has logged since a moment, at most that many lines of its end.
pub(crate) async fn journal_since(since: u64, lines: &str) -> String {
    // What was written a moment ago may not have got there yet.
    drop(run("journalctl", &["--sync"]).await);
    let since = format!("@{since}");
    let args =
        ["--unit", SERVICE, "--no-pager", "--output", "short-precise", "--since", &since, "--lines", lines];
    run("journalctl", &args).await.unwrap_or_else(|error| format!("{error:#}"))
}

/// The processor time that a process has used so far, in milliseconds.
pub(crate) fn processor_ms(pid: u32) -> Result<u64> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    let (_, fields) = text.rsplit_once(") ").context("a stat line")?;
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    // A tick of this interface is a hundredth of a second on every Linux.
    Ok(ticks * 10)
}

/// The text of a file without its final newline.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, seconds: u64, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result {
    let deadline = tokio::time::Instant::now() + patience(seconds);
    while !holds().await? {
        if tokio::time::Instant::now() > deadline {
            bail!("still not so after {} s: {what}", patience(seconds).as_secs());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}
