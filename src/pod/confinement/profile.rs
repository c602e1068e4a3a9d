//! The text of the default AppArmor profile, made from tables.
//!
//! A container may do what a process on the host may, but: write to the kernel's settings, other than those that belong to its
//! own namespaces; read what tells of the kernel's memory and of the machine's firmware; mount; signal or trace what is
//! confined otherwise. Mostly the same is hidden by masked and read-only paths; the profile holds where those are mounted over.

/// The name of the profile of containers that ask for the default one.
pub const NAME: &str = "crimson-default";

/// Beneath each of these directories nothing may be changed but what lies on the one path: processes' own files and
/// `sys` in proc; shared memory's settings in proc's sys; control groups in sysfs.
const CLOSED: &[Closed] = &[
    Closed { dir: "/proc/", but: "sys/", digits: true, access: "w" },
    Closed { dir: "/proc/sys/", but: "kernel/shm", digits: false, access: "w" },
    Closed { dir: "/sys/", but: "fs/cgroup/", digits: false, access: "wklx" },
];

/// What may not even be read.
const HIDDEN: &[&str] = &[
    "/proc/kcore",
    "/proc/sysrq-trigger",
    "/sys/firmware/**",
    "/sys/devices/virtual/powercap/**",
    "/sys/kernel/security/**",
];

/// Labels of the programs that signal containers: the host's own, and the OCI runtimes by the names that distributions give
/// their profiles.
const SIGNALLERS: &[&str] = &["unconfined", "runc", "crun", "crimson"];

/// Labels of what it confines. Without new privileges crun cannot leave its own profile behind, and stacks this one on it.
const OWN: &[&str] = &["crimson-default", "crimson-default//&**", "**//&crimson-default"];

/// A directory, and the beginning of the only paths in it that are left open.
struct Closed {
    dir: &'static str,
    but: &'static str,
    /// Whether names that begin with a digit are left open, too.
    digits: bool,
    access: &'static str,
}

impl Closed {
    /// Patterns of all paths that leave the open one, at each of its letters. The language of patterns has no "but".
    fn patterns(&self) -> impl Iterator<Item = String> {
        self.but.char_indices().filter_map(|(at, letter)| {
            let begin = self.but.get(..at)?;
            let digits = if self.digits && at == 0 { "0-9" } else { "" };
            Some(format!("{}{begin}[^{letter}{digits}]**", self.dir))
        })
    }
}

/// The profile. `own` is the label of this server, if it is confined; `abi` the version of the language, if it has to be
/// said.
pub(super) fn text(own: Option<&str>, abi: Option<&str>) -> String {
    let mut text = abi.map(|abi| format!("abi <{abi}>,\n")).unwrap_or_default();
    text.push_str(&format!("profile {NAME} flags=(attach_disconnected,mediate_deleted) {{\n"));
    for rule in ["file", "capability", "network", "unix", "umount"] {
        text.push_str(&format!("  {rule},\n"));
    }
    for label in SIGNALLERS.iter().copied().chain(own) {
        text.push_str(&format!("  signal (receive) peer=\"{label}\",\n"));
    }
    for own in OWN {
        text.push_str(&format!(
            "  signal (send, receive) peer=\"{own}\",\n  ptrace (trace, read) peer=\"{own}\",\n"
        ));
    }
    // Who may look into a container is decided by the profile of who looks.
    text.push_str("  ptrace (tracedby, readby),\n");
    for closed in CLOSED {
        for pattern in closed.patterns() {
            text.push_str(&format!("  deny {pattern} {},\n", closed.access));
        }
    }
    for path in HIDDEN {
        text.push_str(&format!("  deny {path} rwklx,\n"));
    }
    text.push_str("  deny mount,\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `pattern` of AppArmor's language matches `path`: two stars, and one class of letters.
    fn matches(pattern: &[u8], path: &[u8]) -> bool {
        if let Some(rest) = pattern.strip_prefix(b"**") {
            return (0..=path.len()).any(|at| matches(rest, &path[at..]));
        }
        if let Some(rest) = pattern.strip_prefix(b"[^") {
            let end = rest.iter().position(|byte| *byte == b']').unwrap();
            let (class, rest) = (&rest[..end], &rest[end + 1..]);
            let Some((letter, path)) = path.split_first() else { return false };
            let digits = class.ends_with(b"0-9") && letter.is_ascii_digit();
            return !digits && class[0] != *letter && matches(rest, path);
        }
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((wanted, pattern)), Some((letter, path))) => wanted == letter && matches(pattern, path),
            _ => false,
        }
    }

    /// The rights that the profile takes away from `path`.
    fn denied(path: &str) -> String {
        let text = text(None, None);
        let rules = text.lines().filter_map(|line| line.trim().strip_prefix("deny ")?.strip_suffix(','));
        let rules = rules.filter_map(|rule| rule.split_once(' '));
        rules
            .filter(|(pattern, _)| matches(pattern.as_bytes(), path.as_bytes()))
            .map(|(_, access)| access)
            .collect()
    }

    #[test]
    fn the_kernels_settings_cannot_be_changed() {
        for path in [
            "/proc/sysrq-trigger",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/vm/panic_on_oom",
            "/proc/acpi/x",
            "/proc/bus/pci/00/1",
            "/proc/irq/1/smp_affinity",
            "/sys/kernel/mm/ksm/run",
            "/sys/fs/selinux/enforce",
            "/sys/devices/x",
            "/sys/fs/cgroupx",
        ] {
            assert!(denied(path).contains('w'), "{path}");
        }
    }

    #[test]
    fn what_is_the_containers_own_can() {
        for path in [
            "/proc/1/oom_score_adj",
            "/proc/9999/attr/current",
            "/proc/sys/kernel/shmmax",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/a/b",
            "/etc/passwd",
            "/dev/null",
            "/system",
        ] {
            assert_eq!(denied(path), "", "{path}");
        }
    }

    #[test]
    fn what_tells_of_the_machine_cannot_be_read() {
        for path in ["/proc/kcore", "/sys/firmware/efi/x", "/sys/kernel/security/apparmor/profiles"] {
            assert!(denied(path).contains('r'), "{path}");
        }
        assert!(!denied("/sys/kernel/mm/ksm/run").contains('r'));
    }

    #[test]
    fn who_may_signal() {
        let text = text(Some("crimson-node"), Some("abi/3.0"));
        assert!(text.starts_with("abi <abi/3.0>,\nprofile crimson-default "));
        assert!(OWN.contains(&NAME));
        for own in OWN {
            assert!(text.contains(&format!("signal (send, receive) peer=\"{own}\",")), "{text}");
        }
        for label in ["unconfined", "crun", "runc", "crimson-node"] {
            assert!(text.contains(&format!("signal (receive) peer=\"{label}\",")), "{text}");
        }
    }
}
