//! A pod's life loses nothing: short forms of the trials that `make soak` runs in full size.

use std::time::Duration;

use e2e::Result;
use e2e::faulty::Moment;
use e2e::trial::hung::Verb;
use e2e::trial::network::Trouble;
use e2e::trial::{Report, commands, exits, hung, logs, network, recovery, streams, timeouts, verbs};

/// A seed of one's own for each run; `CRIMSON_E2E_SEED` repeats one.
fn seed() -> u64 {
    let asked_for = std::env::var("CRIMSON_E2E_SEED").ok().and_then(|text| text.parse().ok());
    asked_for.unwrap_or_else(|| u64::from(std::process::id()))
}

#[allow(clippy::print_stdout, reason = "shown for a test that fails, or when it is asked for")]
fn report(report: Result<Report>) -> Result {
    println!("{}", report?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_left_in_the_middle_gets_the_same_when_he_comes_back() -> Result {
    report(timeouts::run(timeouts::Plan { timeouts: 20, batch: 4, seed: seed() }).await)
}

/// The full form asks for 100 ms. Here the machine is busy with other tests at the same time, so that a process may wait
/// long for its turn between a container's end and the look at the clock, though not as long as a daemon may be away.
#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_told_right_while_the_daemon_is_killed() -> Result {
    let (spread, tolerance) = (e2e::patience(12), e2e::patience(2));
    report(exits::run(exits::Plan { containers: 20, kills: 5, spread, tolerance, seed: seed() }).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_and_no_writer_waits() -> Result {
    // A machine that is busy may hold up anyone, but not for as long.
    let (stopped, full) = (e2e::patience(4), e2e::patience(4));
    let longest_burst = stopped.mul_f64(0.6);
    report(
        logs::run(logs::Plan { containers: 5, lines_per_second: 1000, stopped, full, longest_burst }).await,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_ends_whatever_its_network_plugin_does() -> Result {
    // Far longer than StopPodSandbox may take.
    let plan = network::Plan { trouble: Duration::from_secs(1), plugin_limit: e2e::patience(60) };
    let troubles = [Trouble::Missing, Trouble::Failing, Trouble::Dying, Trouble::Hanging, Trouble::Crashing];
    let trials = troubles.map(|trouble| tokio::spawn(network::stop_with(trouble, plan)));
    for trial in trials {
        report(trial.await?)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_network_fails_leaves_nothing() -> Result {
    report(network::run_with_trouble(e2e::patience(5)).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_network_status_hangs_nobody_else() -> Result {
    report(network::hung_status().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_changes_nothing_for_many_pods() -> Result {
    report(recovery::run(recovery::Plan { pods: 10, kills: 2, version_limit: None, list_limit: None }).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_leave_nothing_behind() -> Result {
    report(commands::run(commands::Plan { commands: 60, parallel: 6, growth_kib: 16 << 10 }).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_leave_nothing_behind() -> Result {
    let (commands, connections, growth_kib) = (50, 50, 16 << 10);
    report(streams::run(streams::Plan { commands, connections, parallel: 6, growth_kib, seed: seed() }).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_runtime_hangs_its_own_verb_only() -> Result {
    let plan = hung::Plan { create_limit: e2e::patience(15), call_limit: e2e::patience(60) };
    let verbs = [
        (Verb::CreatePause, Moment::Before),
        (Verb::Create, Moment::Before),
        (Verb::Create, Moment::After),
        (Verb::Exec, Moment::Before),
    ];
    report(hung::run_all(&verbs, plan).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_verbs_and_kills_leave_the_world_as_it_should_be() -> Result {
    let (time, quiet_every) = (Duration::from_secs(15), Duration::from_secs(5));
    report(verbs::run(verbs::Plan { time, clients: 3, quiet_every, seed: seed() }).await)
}
