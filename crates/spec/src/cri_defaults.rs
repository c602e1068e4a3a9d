//! What a container gets when nobody says otherwise.

use oci_spec::runtime::Capability;

/// The OCI runtime spec version of what we write; nothing newer is used, and crun 1.8 accepts only 1.0.x.
pub const OCI_VERSION: &str = "1.0.2";

/// Search path of a process whose image and config set none.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Terminal type of a process with a terminal.
pub const TERM: &str = "TERM=xterm";

/// The lowest score the kernel knows.
pub const OOM_SCORE_ADJ_MIN: i32 = -1000;

/// The highest score the kernel knows.
pub const OOM_SCORE_ADJ_MAX: i32 = 1000;

/// The pause process holds the pod's namespaces, so it dies last.
pub const PAUSE_OOM_SCORE_ADJ: i64 = -998;

/// User and group of the pause process: nobody's.
pub const PAUSE_ID: u32 = 65535;

/// A memory limit below this leaves an OCI runtime no room to start.
pub const MIN_MEMORY_BYTES: i64 = 12 * 1024 * 1024;

/// Size of a pod's `/dev/shm`.
pub const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// Capabilities of a container that asks for none.
pub const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Paths hidden from the pause process. Containers get what kubelet sends, which is nothing for an unmasked procMount.
pub const MASKED_PATHS: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/sys/firmware",
];

/// Paths the pause process may only read.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sysctls of every pod that has the namespace in question: any port may be bound and any group may ping without a
/// capability, since nothing but the pod itself is on that network stack.
#[must_use]
pub fn sysctls() -> Vec<(String, String)> {
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}
