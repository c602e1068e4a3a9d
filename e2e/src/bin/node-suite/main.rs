//! `node-suite [--list] [TEXT…]`: tests of the installed service, run as root inside a node where systemd is the first process.
//!
//! Without arguments every test runs that suits the node (`NODE_KIND`: `ns` or `vm`) and its boot (`NODE_BOOT`: 1, or 2 after
//! the reboot that the payload asks for); with arguments those whose name contains one of them. Tests run one after the other,
//! since they share the service. Each has a time limit, is followed by a look for whatever it has left on the node, and prints
//! its duration; the last line counts, and the exit status is the verdict.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is the report")]

mod apparmor;
mod basics;
mod crowd;
mod disturb;
mod host;
mod leaks;
mod limits;
mod load;
mod package;
mod reboot;
mod refusals;
mod reload;
mod resources;
mod runner;
mod steady;
mod userns;
mod world;

use std::process::ExitCode;

use runner::{Nodes, Test, test};

/// All tests in the order in which they run: the package comes first and goes last.
const TESTS: &[Test] = &[
    test!("package::installs", 60, Nodes::Any, 1, package::installs),
    test!("basics::the_service_is_ready", 30, Nodes::Any, 1, basics::the_service_is_ready),
    test!("basics::a_pod_lies_in_its_slice", 60, Nodes::Any, 1, basics::a_pod_lies_in_its_slice),
    test!("basics::a_slice_of_kubelet_stays", 30, Nodes::Any, 1, basics::a_slice_of_kubelet_stays),
    test!("basics::the_socket_unit_starts_it", 60, Nodes::Any, 1, basics::the_socket_unit_starts_it),
    test!(
        "refusals::a_parent_of_the_other_driver",
        20,
        Nodes::Any,
        1,
        refusals::a_parent_of_the_other_driver
    ),
    test!("userns::crun", 60, Nodes::Any, 1, userns::with_crun),
    test!("userns::runc", 60, Nodes::Any, 1, userns::with_runc),
    test!(
        "refusals::another_driver_while_pods_exist",
        60,
        Nodes::Any,
        1,
        refusals::another_driver_while_pods_exist
    ),
    test!("apparmor::profiles", 120, Nodes::Vm, 1, apparmor::profiles),
    test!("apparmor::comes_back", 60, Nodes::Vm, 1, apparmor::comes_back),
    test!("resources::crun", 90, Nodes::Any, 1, resources::with_crun),
    test!("resources::runc", 90, Nodes::Any, 1, resources::with_runc),
    test!("reload::good_and_bad", 60, Nodes::Any, 1, reload::good_and_bad),
    test!("crowd::many_pods_at_once", 120, Nodes::Any, 1, crowd::many_pods_at_once),
    test!("disturb::restart", 90, Nodes::Any, 1, disturb::restart),
    test!("disturb::kill9", 90, Nodes::Any, 1, disturb::kill9),
    test!("disturb::systemd_reexec", 90, Nodes::Any, 1, disturb::systemd_reexec),
    test!("disturb::dbus", 120, Nodes::Any, 1, disturb::dbus),
    test!("disturb::upgrade", 120, Nodes::Any, 1, disturb::upgrade),
    test!("package::remove_purge_reinstall", 90, Nodes::Any, 1, package::remove_purge_reinstall),
    test!("reboot::before", 60, Nodes::Any, 1, reboot::before),
    test!("reboot::after", 90, Nodes::Any, 2, reboot::after),
];

#[tokio::main]
async fn main() -> ExitCode {
    match runner::run(TESTS, std::env::args().skip(1).collect()).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("node-suite: {error:#}");
            ExitCode::from(2)
        }
    }
}
