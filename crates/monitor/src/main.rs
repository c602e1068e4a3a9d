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

use std::process::ExitCode;

use args::Command;

fn main() -> ExitCode {
    let outcome = match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Serve(serve)) => server::run(serve).map_err(|error| error.to_string()),
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
