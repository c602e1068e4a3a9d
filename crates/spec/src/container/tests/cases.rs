//! The plain container and sandbox in full, and the configurations that are compared with them.

use super::table::Case;

mod confinement;
mod identity;
mod limits;
mod mounts;
mod namespaces;
mod sandboxes;

pub(super) const CONTAINERS: &[&[Case]] =
    &[identity::CASES, confinement::CASES, namespaces::CASES, mounts::CASES, limits::CASES];

pub(super) const SANDBOXES: &[&[Case]] = &[sandboxes::CASES];

/// `fixtures::container` in `fixtures::pod` on `fixtures::facts`: a node with cgroup v1, without LSM.
pub(super) const PLAIN: &str = "
    ociVersion = 1.0.2
    root.path = rootfs
    root.readonly = false
    process.args = [\"/entry\",\"serve\",\"--all\"]
    process.cwd = /work
    process.env = [\"PATH=/image/bin\",\"MODE=image\",\"HOSTNAME=web-0\"]
    process.noNewPrivileges = false
    process.oomScoreAdj = 0
    process.terminal = false
    process.user.additionalGids = [0]
    process.user.gid = 0
    process.user.uid = 0
    capabilities ambient =
    capabilities bounding = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
    capabilities effective = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
    capabilities inheritable =
    capabilities permitted = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
    namespace ipc = /proc/4242/ns/ipc
    namespace mount = new
    namespace network = /run/netns/cni-1
    namespace pid = new
    namespace uts = /proc/4242/ns/uts
    mounts = /proc /dev /sys /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
    mounts /dev = tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k
    mounts /dev/mqueue = mqueue mqueue nosuid,noexec,nodev
    mounts /dev/pts = devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5
    mounts /dev/shm = bind /run/crimson/pods/1/shm rbind,rprivate,nosuid,nodev,noexec
    mounts /etc/hostname = bind /run/crimson/pods/1/hostname rbind,rprivate,rw
    mounts /etc/resolv.conf = bind /run/crimson/pods/1/resolv.conf rbind,rprivate,rw
    mounts /proc = proc proc nosuid,noexec,nodev
    mounts /sys = sysfs sysfs nosuid,noexec,nodev,ro
    mounts /sys/fs/cgroup = cgroup cgroup nosuid,noexec,nodev,relatime,ro
    linux.cgroupsPath = /kubepods/podu-1/app
    linux.maskedPaths = []
    linux.readonlyPaths = []
    linux.resources.devices = [{\"access\":\"rwm\",\"allow\":false}]
    annotations.io.kubernetes.cri.container-name = app
    annotations.io.kubernetes.cri.container-type = container
    annotations.io.kubernetes.cri.image-name = docker.io/library/web:1
    annotations.io.kubernetes.cri.sandbox-id = 5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a
    annotations.io.kubernetes.cri.sandbox-name = web
    annotations.io.kubernetes.cri.sandbox-namespace = shop
    annotations.io.kubernetes.cri.sandbox-uid = u-1
";

/// `fixtures::pod` on the same node: a process that may do nothing at all.
pub(super) const PLAIN_SANDBOX: &str = "
    ociVersion = 1.0.2
    hostname = web-0
    root.path = /var/lib/crimson/pause
    root.readonly = true
    process.args = [\"/pause\"]
    process.cwd = /
    process.env = [\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"]
    process.noNewPrivileges = true
    process.oomScoreAdj = -998
    process.user.additionalGids = [65535]
    process.user.gid = 65535
    process.user.uid = 65535
    capabilities ambient =
    capabilities bounding =
    capabilities effective =
    capabilities inheritable =
    capabilities permitted =
    namespace ipc = new
    namespace mount = new
    namespace network = /run/netns/cni-1
    namespace pid = new
    namespace uts = new
    mounts = /proc /dev /dev/shm
    mounts /dev = tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k
    mounts /dev/shm = bind /run/crimson/pods/1/shm rbind,rprivate,nosuid,nodev,noexec
    mounts /proc = proc proc nosuid,noexec,nodev
    linux.cgroupsPath = /kubepods/podu-1/sandbox
    linux.maskedPaths = [\"/proc/acpi\",\"/proc/asound\",\"/proc/interrupts\",\"/proc/kcore\",\"/proc/keys\",\"/proc/scsi\",\"/proc/sched_debug\",\"/proc/timer_list\",\"/sys/firmware\"]
    linux.readonlyPaths = [\"/proc/bus\",\"/proc/fs\",\"/proc/irq\",\"/proc/sys\",\"/proc/sysrq-trigger\"]
    linux.resources.devices = [{\"access\":\"rwm\",\"allow\":false}]
    linux.sysctl.net.ipv4.ip_unprivileged_port_start = 0
    linux.sysctl.net.ipv4.ping_group_range = 0 2147483647
    annotations.io.kubernetes.cri.container-type = sandbox
    annotations.io.kubernetes.cri.sandbox-id = 5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a
    annotations.io.kubernetes.cri.sandbox-log-directory = /var/log/pods/shop_web_u-1
    annotations.io.kubernetes.cri.sandbox-name = web
    annotations.io.kubernetes.cri.sandbox-namespace = shop
    annotations.io.kubernetes.cri.sandbox-uid = u-1
";
