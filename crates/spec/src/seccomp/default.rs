//! The built-in default profile, made from the tables for an architecture and a set of capabilities.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::table;
use crate::facts::Architecture;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile of a process whose bounding set is `held`.
///
/// Known dangerous calls answer EPERM, unknown calls ENOSYS. `clone3` hides its flags behind a pointer where no filter
/// can read them, so it is unknown (ENOSYS, and C libraries fall back on `clone`) unless namespaces are allowed anyway.
#[must_use]
pub fn default_profile(architecture: Architecture, held: &Capabilities) -> LinuxSeccomp {
    let (allowed, denied) = lists(held);
    let mut rules =
        vec![rule(allowed, Action::ScmpActAllow, vec![]), rule(denied, Action::ScmpActErrno, vec![])];
    rules.extend(table::PERSONALITIES.iter().map(|value| allow("personality", Operator::ScmpCmpEq, *value)));
    rules.extend(sockets());
    rules.extend(clones(held.contains(&Capability::SysAdmin)));
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(architectures(architecture)))
        .set_syscalls(Some(rules));
    profile
}

/// The names to allow and those to refuse with EPERM, whatever their arguments.
fn lists(held: &Capabilities) -> (Vec<&'static str>, Vec<&'static str>) {
    let names = |list: &'static str| list.split_ascii_whitespace();
    let granted = table::GATED.iter().filter(|(capability, _)| held.contains(capability));
    let allowed: BTreeSet<_> =
        names(table::ALLOWED).chain(granted.flat_map(|(_, list)| names(list))).collect();
    let gated = table::GATED.iter().flat_map(|(_, list)| names(list)).filter(|name| *name != "clone3");
    let denied: BTreeSet<_> =
        names(table::NEVER).chain(gated).filter(|name| !allowed.contains(name)).collect();
    (allowed.into_iter().collect(), denied.into_iter().collect())
}

/// Every socket family but two. One rule cannot compare one argument twice, so the families are three ranges.
fn sockets() -> Vec<LinuxSyscall> {
    let between = table::AF_ALG + 1;
    vec![
        allow("socket", Operator::ScmpCmpLt, table::AF_ALG),
        allow("socket", Operator::ScmpCmpEq, between),
        allow("socket", Operator::ScmpCmpGt, table::AF_VSOCK),
        deny("socket", arg(Operator::ScmpCmpEq, table::AF_ALG, None)),
        deny("socket", arg(Operator::ScmpCmpEq, table::AF_VSOCK, None)),
    ]
}

/// Threads and processes for all, namespaces only for who may make them.
fn clones(may_make_namespaces: bool) -> Vec<LinuxSyscall> {
    if may_make_namespaces {
        return vec![rule(vec!["clone"], Action::ScmpActAllow, vec![])];
    }
    let mask = table::NAMESPACE_FLAGS.iter().fold(0, |mask, flag| mask | flag);
    let none_of = arg(Operator::ScmpCmpMaskedEq, mask, Some(0));
    let mut rules = vec![rule(vec!["clone"], Action::ScmpActAllow, vec![none_of])];
    let each = |flag: &u64| deny("clone", arg(Operator::ScmpCmpMaskedEq, *flag, Some(*flag)));
    rules.extend(table::NAMESPACE_FLAGS.iter().map(each));
    rules
}

fn architectures(native: Architecture) -> Vec<Arch> {
    match native {
        Architecture::X86_64 => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        Architecture::Aarch64 => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        Architecture::Other => vec![],
    }
}

fn allow(name: &'static str, op: Operator, value: u64) -> LinuxSyscall {
    rule(vec![name], Action::ScmpActAllow, vec![arg(op, value, None)])
}

fn deny(name: &'static str, arg: LinuxSeccompArg) -> LinuxSyscall {
    rule(vec![name], Action::ScmpActErrno, vec![arg])
}

fn rule(names: Vec<&'static str>, action: Action, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect())
        .set_action(action)
        .set_errno_ret((action == Action::ScmpActErrno).then_some(EPERM))
        .set_args(Some(args).filter(|args| !args.is_empty()));
    rule
}

/// A comparison of the first argument.
fn arg(op: Operator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let mut arg = LinuxSeccompArgBuilder::default().index(0usize).value(value).op(op);
    if let Some(value_two) = value_two {
        arg = arg.value_two(value_two);
    }
    // Every field has a default, so building cannot fail; the type has no setters.
    arg.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{capabilities, cri_defaults};

    fn unconditional(profile: &LinuxSeccomp, action: Action) -> Vec<String> {
        let rules = profile.syscalls().as_ref().unwrap();
        rules
            .iter()
            .filter(|rule| rule.action() == action && rule.args().is_none())
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn no_name_is_both_allowed_and_denied() {
        for held in [Capabilities::new(), cri_defaults::CAPABILITIES.into(), capabilities::all()] {
            let profile = default_profile(Architecture::X86_64, &held);
            let allowed = unconditional(&profile, Action::ScmpActAllow);
            let denied = unconditional(&profile, Action::ScmpActErrno);
            let mut all = [allowed.clone(), denied.clone()].concat();
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "a name stands twice");
            for conditional in ["socket", "personality"] {
                assert!(!all.contains(&conditional.to_owned()), "{conditional} has conditions");
            }
        }
    }

    #[test]
    fn what_programs_need_is_allowed() {
        let profile = default_profile(Architecture::X86_64, &Capabilities::new());
        let allowed = unconditional(&profile, Action::ScmpActAllow);
        for name in [
            "read",
            "openat",
            "execve",
            "futex",
            "epoll_wait",
            "statx",
            "rseq",
            "close_range",
            "landlock_restrict_self",
        ] {
            assert!(allowed.contains(&name.to_owned()), "{name}");
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        let table = [
            (Capability::SysAdmin, vec!["mount", "unshare", "setns", "bpf", "clone", "clone3"]),
            (Capability::Bpf, vec!["bpf"]),
            (Capability::SysChroot, vec!["chroot"]),
            (Capability::SysTime, vec!["clock_settime"]),
            (Capability::SysModule, vec!["init_module"]),
            (Capability::DacReadSearch, vec!["open_by_handle_at"]),
        ];
        let without =
            unconditional(&default_profile(Architecture::X86_64, &Capabilities::new()), Action::ScmpActAllow);
        for (capability, names) in table {
            let held = Capabilities::from([capability]);
            let with = unconditional(&default_profile(Architecture::X86_64, &held), Action::ScmpActAllow);
            for name in names {
                assert!(with.contains(&name.to_owned()), "{capability}: {name}");
                assert!(!without.contains(&name.to_owned()), "{name} without {capability}");
            }
        }
    }

    #[test]
    fn dangerous_calls_stay_closed() {
        let held = capabilities::all();
        let denied = unconditional(&default_profile(Architecture::Aarch64, &held), Action::ScmpActErrno);
        for name in ["keyctl", "add_key", "kexec_load", "io_uring_setup", "userfaultfd", "pivot_root"] {
            assert!(denied.contains(&name.to_owned()), "{name}");
        }
        let denied =
            unconditional(&default_profile(Architecture::X86_64, &Capabilities::new()), Action::ScmpActErrno);
        assert!(!denied.contains(&"clone3".to_owned()), "clone3 must answer ENOSYS, the default");
        assert!(denied.contains(&"unshare".to_owned()));
    }
}
