use std::sync::Arc;
use std::time::{Duration, Instant};

use types::{ErrorKind, Kind};

use super::fake::{FakeSystemd, Mood};
use super::*;
use crate::error::BusFault;
use crate::property::{Limits, properties};
use crate::{Hierarchy, PropertyValue};

const UNIT: &str = "crimson-0123.scope";
const PLENTY: Duration = Duration::from_secs(60);
/// For what is not answered.
const LITTLE: Duration = Duration::from_secs(4);
/// A tenth of it is plenty, for who is in a hurry.
const HURRIED: Duration = Duration::from_secs(600);

fn bus(systemd: &FakeSystemd, limit: Duration) -> SystemdBus {
    SystemdBus::at(systemd.endpoint(), limit)
}

fn with_unit(mood: Mood) -> FakeSystemd {
    let systemd = FakeSystemd::new();
    systemd.state().units.insert(UNIT.to_owned());
    systemd.state().mood = mood;
    systemd
}

#[tokio::test]
async fn a_stop_waits_for_its_own_job() {
    for mood in [Mood::Well, Mood::EndsFirst] {
        let systemd = with_unit(mood);
        systemd.state().failed.insert(UNIT.to_owned());
        bus(&systemd, PLENTY).stop(UNIT).await.unwrap();
        let state = systemd.state();
        assert_eq!(state.calls, [format!("stop {UNIT} replace"), format!("reset {UNIT}")]);
        assert!(state.units.is_empty() && state.failed.is_empty());
    }
}

#[tokio::test]
async fn what_is_not_there_is_stopped_already() {
    let systemd = FakeSystemd::new();
    let bus = bus(&systemd, PLENTY);
    bus.stop(UNIT).await.unwrap();
    bus.stop(UNIT).await.unwrap();
    assert_eq!(systemd.state().connections, 1, "the connection is kept");
}

#[tokio::test]
async fn a_job_that_ends_badly_is_told() {
    let systemd = with_unit(Mood::EndsAs("timeout"));
    let error = bus(&systemd, PLENTY).stop(UNIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("timeout") && error.to_string().contains(UNIT), "{error}");
}

#[tokio::test]
async fn silence_is_waited_out_within_the_bound() {
    for mood in [Mood::Stuck, Mood::Mute] {
        let systemd = with_unit(mood);
        let mut bus = bus(&systemd, PLENTY);
        bus.stop("other.scope").await.unwrap();
        bus.limit = LITTLE;
        let begun = Instant::now();
        let error = bus.stop(UNIT).await.unwrap_err();
        assert!(begun.elapsed() >= LITTLE);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(matches!(error, CgroupError::NoAnswer { .. }), "{error}");
        assert!(error.to_string().contains("systemd"), "{error}");
        systemd.state().mood = Mood::Well;
        bus.limit = HURRIED;
        bus.stop(UNIT).await.unwrap();
        assert_eq!(systemd.state().connections, 2, "a silent connection is not used again");
    }
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_keeps_the_connection() {
    let systemd = with_unit(Mood::Refuses);
    let bus = bus(&systemd, PLENTY);
    let error = bus.stop(UNIT).await.unwrap_err();
    assert!(matches!(error, CgroupError::Bus { fault: BusFault::Refused, .. }), "{error:?}");
    assert!(types::error::chain(&error).contains("it is masked"), "{}", types::error::chain(&error));
    bus.stop("other.scope").await.unwrap();
    assert_eq!(systemd.state().connections, 1);
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    for endpoint in
        [Endpoint::Bus("unix:path=/nonexistent/bus".to_owned()), Endpoint::Peer("/nonexistent".into())]
    {
        let error = SystemdBus::at(endpoint, LITTLE).stop(UNIT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = types::error::chain(&error);
        assert!(text.contains("systemd cannot be reached") && text.contains("D-Bus"), "{text}");
    }
}

/// Many pods that are removed while nothing answers wait once, not each.
#[tokio::test]
async fn only_the_first_waits_out_a_silence() {
    let systemd = with_unit(Mood::Mute);
    let mut bus = bus(&systemd, LITTLE);
    for expected in [LITTLE, LITTLE / 10, LITTLE / 10] {
        let begun = Instant::now();
        let error = bus.stop(UNIT).await.unwrap_err();
        assert!(matches!(error, CgroupError::NoAnswer { limit, .. } if limit == expected), "{error}");
        assert!(begun.elapsed() >= expected);
    }
    systemd.state().mood = Mood::Well;
    bus.limit = HURRIED;
    bus.stop("other.scope").await.unwrap();
    assert_eq!(bus.patience(), HURRIED, "an answer ends the hurry");
}

/// The job is waited for when systemd goes; it comes back later, and the operation begins again by itself.
#[tokio::test]
async fn a_restart_of_systemd_is_survived_in_the_middle() {
    let mut systemd = with_unit(Mood::Stuck);
    let bus = Arc::new(bus(&systemd, PLENTY));
    let worker = Arc::clone(&bus);
    let stopping = tokio::spawn(async move { worker.stop(UNIT).await });
    // The connection is counted, and kept to be cut, by a task of its own.
    while systemd.state().calls.is_empty() || systemd.state().connections == 0 {
        tokio::task::yield_now().await;
    }
    systemd.stop().await;
    systemd.state().mood = Mood::Well;
    systemd.start();
    stopping.await.unwrap().unwrap();
    let state = systemd.state();
    assert!(state.units.is_empty());
    assert_eq!((state.connections, state.calls.len()), (2, 3), "{:?}", state.calls);
}

/// A connection that was cut while nobody used it is replaced without anybody noticing.
#[tokio::test]
async fn a_restart_of_systemd_is_survived_at_rest() {
    let mut systemd = with_unit(Mood::Well);
    let bus = bus(&systemd, PLENTY);
    bus.stop("other.scope").await.unwrap();
    systemd.stop().await;
    systemd.start();
    bus.stop(UNIT).await.unwrap();
    assert!(systemd.state().units.is_empty());
}

#[tokio::test]
async fn many_stops_share_one_connection() {
    let systemd = FakeSystemd::new();
    let units: Vec<String> = (0..200).map(|n| format!("crimson-{n}.scope")).collect();
    systemd.state().units.extend(units.iter().cloned());
    let bus = Arc::new(bus(&systemd, PLENTY));
    let stops = units.into_iter().map(|unit| {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.stop(&unit).await })
    });
    for stop in stops.collect::<Vec<_>>() {
        stop.await.unwrap().unwrap();
    }
    assert_eq!(systemd.state().connections, 1);
    assert!(systemd.state().units.is_empty());
}

#[tokio::test]
async fn only_ended_units_of_the_pattern_are_forgotten() {
    let systemd = with_unit(Mood::Well);
    systemd.state().failed.insert("crimson-9.scope".to_owned());
    systemd.state().inactive.insert("crimson-8.scope".to_owned());
    systemd.state().starting.insert("crimson-7.scope".to_owned());
    assert_eq!(bus(&systemd, PLENTY).forget_ended("crimson-*.scope").await.unwrap(), 2);
    let state = systemd.state();
    let listed = r#"list ["failed", "inactive"] ["crimson-*.scope"]"#;
    assert_eq!(state.calls, [listed, "reset crimson-9.scope", "stop crimson-8.scope replace"]);
    assert!(state.units.contains(UNIT));
}

#[tokio::test]
async fn properties_arrive_with_systemds_types() {
    let systemd = with_unit(Mood::Well);
    let limits = Limits { memory: Some(1 << 20), cpus: Some("0".to_owned()), ..Limits::default() };
    let wanted = properties(Hierarchy::V2, &limits).unwrap();
    assert_eq!(wanted[1].value, PropertyValue::Bytes(vec![1]));
    let bus = bus(&systemd, PLENTY);
    bus.set_properties(UNIT, &wanted).await.unwrap();
    assert_eq!(
        systemd.state().calls,
        [format!("set {UNIT} true MemoryMax t"), format!("set {UNIT} true AllowedCPUs ay")]
    );
    let error = bus.set_properties("gone.scope", &wanted).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_limits_of_a_scope_are_read() {
    let systemd = with_unit(Mood::Well);
    systemd.state().memory_max = 64 << 20;
    systemd.state().allowed_cpus = vec![0b101];
    let bus = bus(&systemd, PLENTY);
    let expected = [
        Property { name: "AllowedCPUs", value: PropertyValue::Bytes(vec![0b101]) },
        Property { name: "MemoryMax", value: PropertyValue::Number(64 << 20) },
    ];
    assert_eq!(bus.limits(UNIT).await.unwrap(), expected);
    systemd.state().allowed_cpus.clear();
    let none = Property { name: "AllowedCPUs", value: PropertyValue::Bytes(Vec::new()) };
    assert!(bus.limits(UNIT).await.unwrap().contains(&none));
    let error = bus.limits("other.scope").await.unwrap_err();
    assert!(matches!(error, CgroupError::Bus { fault: BusFault::NoUnit, .. }), "{error:?}");
}
