use cgroup::{DriverKind, Hierarchy};

use super::trial::{Storage, TriedRuntime};
use super::*;
use crate::config::CgroupDriver;

fn config() -> Config {
    crate::config::load(&crate::config::Source {
        file: Some("/dev/null".into()),
        ..crate::config::Source::default()
    })
    .unwrap()
    .config
}

/// A host as every distribution of today gives it.
fn host() -> Host {
    Host {
        kernel: "6.12.41".to_owned(),
        cgroups: Some(Hierarchy::V2),
        controllers: ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned).into(),
        driver: Some(DriverKind::Systemd),
        swap_counted: true,
        pressure: true,
        filesystems: vec!["overlay".to_owned()],
        seccomp: true,
        apparmor: true,
        profiles: Some(vec!["crimson-default".to_owned()]),
        selinux: None,
        user_namespaces: Some(100_000),
        capabilities: u64::MAX,
        ip_forward: Some(true),
        bridge_filter: Some(true),
        limits: Vec::new(),
        programs: vec!["nft"],
        distribution: vec!["debian".to_owned()],
        swap_bytes: 0,
    }
}

fn tried() -> Tried {
    let disk = |kind: &str| Storage {
        kind: kind.to_owned(),
        bytes: 100 << 30,
        free_bytes: 60 << 30,
        inodes: 1000,
        free_inodes: 900,
        ..Storage::default()
    };
    Tried {
        runtimes: vec![runtime("crun", "crun version 1.28")],
        default_runtime: None,
        overlay: Some(Ok(())),
        idmap: Some(Ok(())),
        root: disk("ext4"),
        state: disk("tmpfs"),
        monitor: Ok(("/m".into(), concat!("crimson-monitor ", env!("CARGO_PKG_VERSION")).to_owned())),
        network: cni::Survey { network: Some(network(&["bridge"], &[])), ..cni::Survey::default() },
        kept_driver: None,
        server: Some(7),
    }
}

fn runtime(name: &str, version: &str) -> TriedRuntime {
    let features = runtime::Features { told: true, ..runtime::Features::default() };
    TriedRuntime {
        name: name.to_owned(),
        version: version.to_owned(),
        features,
        tried: true,
        ..TriedRuntime::default()
    }
}

fn network(plugins: &[&str], missing: &[&str]) -> cni::SurveyedNetwork {
    let owned = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    cni::SurveyedNetwork {
        name: "n".to_owned(),
        file: "/f.conflist".into(),
        plugins: owned(plugins),
        missing: owned(missing),
    }
}

/// The state of each thing that is not as it should be.
fn odd(config: &Config, host: &Host, tried: &Tried) -> Vec<(String, State)> {
    let report = Report::of(config, host, tried);
    let odd = report.findings.into_iter().filter(|finding| finding.state != State::Ok);
    odd.map(|finding| (finding.name, finding.state)).collect()
}

/// What one change to the host of today makes odd, besides what is odd there anyway.
fn check(change: impl FnOnce(&mut Config, &mut Host, &mut Tried), expected: &[(&str, State)]) {
    let (mut config, mut host, mut tried) = (config(), host(), tried());
    change(&mut config, &mut host, &mut tried);
    let mut found = odd(&config, &host, &tried);
    found.retain(|(name, _)| name != "SELinux");
    let expected: Vec<_> = expected.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_host_of_today_is_fit() {
    let report = Report::of(&config(), &host(), &tried());
    assert_eq!(odd(&config(), &host(), &tried()), [("SELinux".to_owned(), State::Note)]);
    assert!(report.is_fit());
    assert!(report.text().ends_with("\nPods can run here.\n"), "{}", report.text());
}

#[test]
fn what_no_pod_can_do_without_is_missing() {
    use State::Missing;
    check(
        |_, host, _| host.kernel = "5.4.0-1".to_owned(),
        &[("kernel", Missing), ("recursive ro", State::Note)],
    );
    check(|_, host, _| host.capabilities = 0, &[("privileges", Missing)]);
    check(|_, host, _| host.cgroups = None, &[("cgroups", Missing)]);
    check(|_, host, _| host.controllers.retain(|name| name != "memory"), &[("cgroups", Missing)]);
    check(|_, _, tried| tried.overlay = Some(Err("no".to_owned())), &[("overlayfs", Missing)]);
    check(|_, _, tried| tried.root.read_only = true, &[("root directory", Missing)]);
    check(|_, _, tried| tried.root.no_exec = true, &[("root directory", Missing)]);
    check(|_, _, tried| tried.runtimes.clear(), &[("OCI runtime", Missing)]);
    check(|_, _, tried| tried.monitor = Err("gone".to_owned()), &[("monitor", Missing)]);
    let needs_systemd = |config: &mut Config, host: &mut Host, _: &mut Tried| {
        config.cgroup_driver = CgroupDriver::Systemd;
        host.driver = Some(DriverKind::Cgroupfs);
    };
    check(needs_systemd, &[("cgroup driver", Missing)]);
}

#[test]
fn what_fails_for_some_pods_is_a_warning() {
    use State::Warn;
    let hybrid = |_: &mut Config, host: &mut Host, _: &mut Tried| {
        host.cgroups = Some(Hierarchy::V1);
        host.controllers.extend(["devices", "freezer"].map(str::to_owned));
    };
    check(hybrid, &[("cgroups", Warn)]);
    check(|_, host, _| host.capabilities = !(1 << 24), &[("privileges", Warn)]);
    check(|_, host, _| (host.swap_bytes, host.swap_counted) = (1 << 30, false), &[("swap", Warn)]);
    check(|_, _, tried| tried.root.free_bytes = 1 << 30, &[("root directory", Warn)]);
    check(|_, _, tried| tried.root.free_inodes = 10, &[("root directory", Warn)]);
    check(|_, _, tried| tried.root.modified = 3600, &[("clock", Warn)]);
    check(|_, host, _| host.ip_forward = Some(false), &[("IP forwarding", Warn)]);
    check(|_, host, _| host.limits = vec![("kernel.pid_max", 32_768)], &[("kernel limits", Warn)]);
    check(|_, host, _| host.seccomp = false, &[("seccomp", Warn)]);
    check(|_, host, _| host.profiles = Some(Vec::new()), &[("AppArmor", Warn)]);
    check(|_, host, _| host.user_namespaces = Some(0), &[("user namespaces", Warn)]);
    check(|_, _, tried| tried.network = cni::Survey::default(), &[("network (CNI)", Warn)]);
    check(|_, _, tried| tried.network.network = Some(network(&["a"], &["a"])), &[("network (CNI)", Warn)]);
    check(
        |_, _, tried| tried.monitor = Ok(("/m".into(), "crimson-monitor 0.0.1".to_owned())),
        &[("monitor", Warn)],
    );
    check(
        |_, _, tried| tried.runtimes[0].version = "crun version 1.21".to_owned(),
        &[("runtime crun", Warn)],
    );
}

#[test]
fn a_profile_that_can_be_loaded_later_is_no_trouble() {
    let change = |_: &mut Config, host: &mut Host, _: &mut Tried| {
        host.profiles = Some(Vec::new());
        host.programs.push("apparmor_parser");
    };
    check(change, &[]);
}

#[test]
fn a_second_runtime_may_be_broken_and_the_default_one_may_not() {
    let broken = |version: &str| TriedRuntime { broken: Some("no".to_owned()), ..runtime("runc", version) };
    check(|_, _, tried| tried.runtimes.push(broken("")), &[("runtime runc", State::Note)]);
    check(|_, _, tried| tried.runtimes = vec![broken("")], &[("runtime runc", State::Missing)]);
    let chosen = |_: &mut Config, _: &mut Host, tried: &mut Tried| {
        tried.runtimes.push(broken(""));
        tried.default_runtime = Some("runc".to_owned());
    };
    check(chosen, &[("runtime runc", State::Missing)]);
}

#[test]
fn vulnerabilities_are_named_with_the_way_out() {
    let mut tried = tried();
    tried.runtimes = vec![runtime("runc", "runc version 1.1.15+ds1")];
    let report = Report::of(&config(), &host(), &tried);
    let finding = report.findings.iter().find(|finding| finding.text.contains("CVE-")).unwrap();
    assert!(finding.text.contains("CVE-2025-31133"), "{finding:?}");
    assert!(finding.fix.as_deref().unwrap().starts_with("1.3.6 or later, unless"), "{finding:?}");
}

#[test]
fn people_get_columns_and_programs_get_json() {
    let mut host = host();
    host.ip_forward = None;
    host.cgroups = None;
    let report = Report::of(&config(), &host, &tried());
    let text = report.text();
    assert!(text.starts_with("kernel           ok      6.12.41\n"), "{text}");
    let fix = "IP forwarding    warn    off, so pods reach nothing beyond the node and kubeadm refuses\n\
               \x20                        → sysctl -w net.ipv4.ip_forward=1\n";
    assert!(text.contains(fix), "{text}");
    assert!(text.ends_with("\nPods cannot run here: one thing is missing; 1 warning.\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    let first = serde_json::json!({ "name": "kernel", "state": "ok", "text": "6.12.41" });
    assert_eq!(json["findings"][0], first);
    assert!(json["findings"].as_array().unwrap().iter().any(|finding| finding["state"] == "missing"));
}

#[test]
fn this_host_can_be_judged() {
    let host = Host::read(std::path::Path::new("/"));
    assert_eq!(host.kernel, rustix::system::uname().release().to_string_lossy());
    assert!(host.cgroups.is_some() && !host.controllers.is_empty());
}
