//! The programs that the server starts: OCI runtimes, network plugins, the monitor.

use cgroup::DriverKind;

use super::host::Host;
use super::trial::{Tried, TriedRuntime};
use super::{Finding, State};
use crate::config::Config;

pub(super) fn judge(config: &Config, host: &Host, tried: &Tried) -> Vec<Finding> {
    let mut findings = runtimes(host, tried);
    findings.extend([monitor(tried), pause(config), network(config, host, tried), server(host, tried)]);
    findings
}

fn runtimes(host: &Host, tried: &Tried) -> Vec<Finding> {
    if tried.runtimes.is_empty() {
        let finding = Finding::new("OCI runtime", State::Missing, "neither crun nor runc is on PATH");
        return vec![finding.fix(host.install("crun", "crun"))];
    }
    let any_works = tried.runtimes.iter().any(|runtime| runtime.broken.is_none());
    let default = tried.default_runtime.as_deref();
    let first = tried.runtimes.iter().find(|runtime| runtime.broken.is_none()).map(|it| it.name.as_str());
    let is_default = |name: &str| default.or(first) == Some(name);
    let all = tried.runtimes.iter();
    all.flat_map(|runtime| of_runtime(host, runtime, is_default(&runtime.name), any_works)).collect()
}

fn of_runtime(host: &Host, runtime: &TriedRuntime, is_default: bool, any_works: bool) -> Vec<Finding> {
    let name = format!("runtime {}", runtime.name);
    let what =
        if runtime.version.is_empty() { runtime.path.display().to_string() } else { runtime.version.clone() };
    if let Some(reason) = &runtime.broken {
        let state = if is_default || !any_works { State::Missing } else { State::Note };
        let finding = Finding::new(&name, state, format!("{what} does not work here: {reason}"));
        return vec![match state {
            State::Missing => finding.fix(host.install("runc", "runc")),
            _ => finding,
        }];
    }
    let mut findings = vec![Finding::new(&name, State::Ok, format!("{what}{}", offers(runtime, is_default)))];
    findings.extend(advisories(&name, runtime));
    findings
}

fn offers(runtime: &TriedRuntime, is_default: bool) -> String {
    let features = &runtime.features;
    let built = |name: &'static str, said: Option<bool>| (said == Some(true)).then_some(name);
    let mut words: Vec<&str> = Vec::new();
    words.extend(is_default.then_some("the default"));
    words.extend((!runtime.tried).then_some("not tried without root"));
    words.extend(features.recursive_read_only.then_some("recursive ro"));
    words.extend(features.idmapped_mounts.then_some("mapped mounts"));
    words.extend(built("seccomp", features.seccomp));
    words.extend(built("AppArmor", features.apparmor));
    words.extend(built("SELinux", features.selinux));
    words.extend((!features.told).then_some("too old to tell its features"));
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}

fn advisories(name: &str, runtime: &TriedRuntime) -> Option<Finding> {
    let known = runtime::Advisory::of(&runtime.version);
    let least = known.iter().filter_map(|advisory| advisory.fixed_for(&runtime.version)).max()?;
    let ids: Vec<&str> = known.iter().map(|advisory| advisory.id).collect();
    let text = format!("known vulnerabilities: {}", ids.join(" "));
    let finding = Finding::new(name, State::Warn, text);
    Some(
        finding.fix(format!("{least} or later, unless your distributor's tracker says that yours is mended")),
    )
}

fn monitor(tried: &Tried) -> Finding {
    let finding = |state, text: String| Finding::new("monitor", state, text);
    let own = env!("CARGO_PKG_VERSION");
    match &tried.monitor {
        Err(error) => {
            finding(State::Missing, error.clone()).fix("install it beside crimson, or set monitor.path")
        }
        Ok((path, version)) => match version.strip_prefix("crimson-monitor ") {
            Some(version) if version == own => finding(State::Ok, format!("{}, {version}", path.display())),
            Some(version) => finding(State::Warn, format!("{} is {version}, this is {own}", path.display()))
                .fix("install crimson and crimson-monitor of one version"),
            None => finding(State::Warn, format!("{} does not tell its version", path.display()))
                .fix("install crimson and crimson-monitor of one version"),
        },
    }
}

fn pause(config: &Config) -> Finding {
    match &config.image.pause_image {
        None => Finding::new("pause", State::Ok, "built in"),
        Some(image) => Finding::new("pause", State::Ok, format!("image {image}, pulled with the first pod")),
    }
}

fn network(config: &Config, host: &Host, tried: &Tried) -> Finding {
    let finding = |state, text: String| Finding::new("network (CNI)", state, text);
    let plugins = || host.install("containernetworking-plugins", "containernetworking-plugins");
    let survey = &tried.network;
    let Some(network) = &survey.network else {
        let text =
            format!("{}; the node is not ready until there is one", survey.why_none(&config.cni.conf_dir));
        return finding(State::Warn, text).fix("install your cluster's network add-on, or write a .conflist");
    };
    let file = network.file.display();
    if !network.missing.is_empty() {
        let dirs: Vec<String> = config.cni.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        let text = format!("{file} needs {}, not in {}", network.missing.join(", "), dirs.join(", "));
        return finding(State::Warn, text).fix(plugins());
    }
    let text = format!("{:?} by {file} with {}", network.name, network.plugins.join(", "));
    let filters = network.plugins.iter().any(|plugin| plugin == "portmap");
    if filters && !host.programs.iter().any(|program| matches!(*program, "iptables" | "nft")) {
        return finding(State::Warn, text + ", and no packet filter for portmap")
            .fix(host.install("iptables", "iptables"));
    }
    finding(State::Ok, text)
}

fn server(host: &Host, tried: &Tried) -> Finding {
    if let Some(pid) = tried.server {
        return Finding::new("server", State::Ok, format!("at work as process {pid}"));
    }
    let has_units = host.driver == Some(DriverKind::Systemd);
    let start = if has_units { "systemctl start crimson" } else { "crimson serve" };
    Finding::new("server", State::Note, "not at work").fix(start)
}
