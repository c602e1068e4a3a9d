//! What keeps pods apart: filters, labels, user namespaces.

use super::host::Host;
use super::trial::Tried;
use super::{Finding, State};
use crate::handlers::{RRO_SINCE, kernel_version};
use crate::pod::DEFAULT_PROFILE;

/// User namespaces that a node with a pod in each needs at least.
const LEAST_NAMESPACES: u64 = 1024;

pub(super) fn judge(host: &Host, tried: &Tried) -> Vec<Finding> {
    vec![
        seccomp(host),
        apparmor(host),
        selinux(host),
        user_namespaces(host, tried),
        recursive_read_only(host),
    ]
}

fn seccomp(host: &Host) -> Finding {
    let finding = |state, text| Finding::new("seccomp", state, text);
    if host.seccomp {
        return finding(State::Ok, "in the kernel");
    }
    finding(State::Warn, "not in the kernel: pods that ask for a profile are refused")
        .fix("boot a kernel with CONFIG_SECCOMP_FILTER")
}

fn apparmor(host: &Host) -> Finding {
    let finding = |state, text: String| Finding::new("AppArmor", state, text);
    if !host.apparmor {
        return finding(State::Note, "off".to_owned());
    }
    let is_loaded = |name: &str| host.profiles.iter().flatten().any(|profile| profile == name);
    if is_loaded(DEFAULT_PROFILE) {
        return finding(State::Ok, format!("on, and the profile {DEFAULT_PROFILE} is loaded"));
    }
    if host.programs.contains(&"apparmor_parser") {
        return finding(
            State::Ok,
            format!("on; the profile {DEFAULT_PROFILE} is loaded when a pod needs it"),
        );
    }
    finding(
        State::Warn,
        "on, and nothing can load the default profile: pods that ask for it are refused".to_owned(),
    )
    .fix(host.install("apparmor", "apparmor-parser"))
}

fn selinux(host: &Host) -> Finding {
    let text = match host.selinux {
        None => return Finding::new("SELinux", State::Note, "off"),
        Some(true) => "on, enforcing",
        Some(false) => "on, permissive",
    };
    Finding::new("SELinux", State::Ok, text)
}

fn user_namespaces(host: &Host, tried: &Tried) -> Finding {
    let finding = |state, text: String| Finding::new("user namespaces", state, text);
    let most = match host.user_namespaces {
        None => return finding(State::Note, "not in the kernel".to_owned()),
        Some(0) => {
            return finding(State::Warn, "switched off".to_owned())
                .fix("sysctl -w user.max_user_namespaces=65536");
        }
        Some(most) => most,
    };
    if most < LEAST_NAMESPACES {
        return finding(State::Warn, format!("{most} at most"))
            .fix("sysctl -w user.max_user_namespaces=65536");
    }
    match &tried.idmap {
        None => finding(State::Ok, format!("{most} at most; mapped mounts not tried without root")),
        Some(Err(error)) => finding(State::Note, format!("no mapped root file systems: {error}"))
            .fix("Linux 5.19 or later, and root on ext4, xfs or btrfs"),
        Some(Ok(())) => finding(State::Ok, format!("{most} at most, and root file systems can be mapped")),
    }
}

fn recursive_read_only(host: &Host) -> Finding {
    let (major, minor) = RRO_SINCE;
    let finding = |state, text: String| Finding::new("recursive ro", state, text);
    if kernel_version(&host.kernel) >= RRO_SINCE {
        return finding(State::Ok, "mounts can be made read-only with all beneath".to_owned());
    }
    finding(State::Note, "mounts cannot be made read-only with all beneath".to_owned())
        .fix(format!("boot a kernel of {major}.{minor} or later"))
}
