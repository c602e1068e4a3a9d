//! `crimson-monitor`: the parent of every process of one pod. One runs per pod, so it is small: one thread, one epoll, no
//! async runtime, one buffer shared by all streams.
//!
//! * `serve` ([`server`]) is the monitor: it adopts and reaps the pod's processes, writes their logs and exit records, and
//!   serves any number of daemon connections, none of which it needs to go on.
//! * `launch` ([`launch`]) is a helper that it starts for each container: mounts the root filesystem in a mount namespace of
//!   its own and becomes the OCI runtime.
//!
//! What it promises: an exit record is on disk before anyone hears of it; the log path never waits for a daemon or for room
//! on a disk; no request, however it fails, leaves a process that nobody watches.

mod args;
mod attach;
mod cgroup;
mod connections;
mod console;
mod container;
mod drops;
mod exec;
mod exec_group;
mod exit;
mod job;
mod launch;
mod lifecycle;
mod listener;
mod place;
mod poller;
mod report;
mod server;
mod stdio;
mod tree;

use std::io::Write as _;
use std::process::ExitCode;

use args::Command;

/// What the daemon was started with, by a shell for one, must not reach the pod's processes.
fn serve_pod(serve: args::Serve) -> Result<(), String> {
    sys::signals::reset().and_then(|()| server::run(serve)).map_err(|error| error.to_string())
}

/// For who wants to know whether server and monitor are of one version.
fn print_version() -> Result<(), String> {
    let line = concat!("crimson-monitor ", env!("CARGO_PKG_VERSION"), "\n");
    std::io::stdout().write_all(line.as_bytes()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--version") {
        return print_version().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let outcome = match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Serve(serve)) => serve_pod(serve),
        Ok(Command::Launch(launch)) => Err(launch::run(&launch)),
        Err(usage) => Err(usage),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            report::line(&message);
            ExitCode::FAILURE
        }
    }
}
