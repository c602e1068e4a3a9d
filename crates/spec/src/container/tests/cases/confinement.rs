//! What a container must not do: capabilities, filters, labels, paths, devices.

use cri_api::v1;
use cri_api::v1::security_profile::ProfileType;
use oci_spec::runtime::Capability;

use crate::container::tests::table::{Case, Setup};
use crate::container::tests::words;
use crate::selinux::SelinuxLabels;
use crate::{DeviceKind, ResolvedDevice};

fn profile(kind: ProfileType, name: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
}

fn privileged(it: &mut Setup) {
    it.security().privileged = true;
    it.pod_security().privileged = true;
}

/// A node that gives only two.
fn poor(it: &mut Setup) {
    it.facts.capabilities = [Capability::Chown, Capability::SysAdmin].into_iter().collect();
}

fn device(path: &str, access: &str) -> ResolvedDevice {
    ResolvedDevice {
        path: path.into(),
        kind: DeviceKind::Char,
        major: 10,
        minor: 229,
        file_mode: 0o660,
        uid: 0,
        gid: 0,
        access: access.into(),
    }
}

fn apparmor(it: &mut Setup) {
    it.facts.apparmor = true;
    it.facts.apparmor_default = Some("crimson-default".into());
}

/// As the daemon hands them in.
fn labels() -> SelinuxLabels {
    SelinuxLabels { process: "u:r:app_t:s0:c1,c2".into(), mount: "u:object_r:file_t:s0:c1,c2".into() }
}

pub(super) const CASES: &[Case] = &[
    ("one capability more", |it| it.capabilities().add_capabilities = words(&["net_admin"]), "
        capabilities bounding = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_ADMIN NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
        capabilities effective = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_ADMIN NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
        capabilities permitted = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_ADMIN NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
    "),
    ("one capability less", |it| it.capabilities().drop_capabilities = words(&["CAP_NET_RAW"]), "
        capabilities bounding = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
        capabilities effective = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
        capabilities permitted = AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
    "),
    ("none but one, as the restricted profile of Kubernetes wants it", |it| {
        it.capabilities().drop_capabilities = words(&["ALL"]);
        it.capabilities().add_capabilities = words(&["NET_BIND_SERVICE"]);
    }, "
        capabilities bounding = NET_BIND_SERVICE
        capabilities effective = NET_BIND_SERVICE
        capabilities permitted = NET_BIND_SERVICE
    "),
    ("all that a poor node gives, but one", |it| {
        poor(it);
        it.capabilities().add_capabilities = words(&["all"]);
        it.capabilities().drop_capabilities = words(&["CHOWN"]);
    }, "
        capabilities bounding = SYS_ADMIN
        capabilities effective = SYS_ADMIN
        capabilities permitted = SYS_ADMIN
    "),
    ("the default ones on a poor node", poor, "
        capabilities bounding = CHOWN
        capabilities effective = CHOWN
        capabilities permitted = CHOWN
    "),
    ("an ambient capability is held in every set", |it| {
        it.capabilities().drop_capabilities = words(&["ALL"]);
        it.capabilities().add_ambient_capabilities = words(&["NET_BIND_SERVICE"]);
    }, "
        capabilities ambient = NET_BIND_SERVICE
        capabilities bounding = NET_BIND_SERVICE
        capabilities effective = NET_BIND_SERVICE
        capabilities inheritable = NET_BIND_SERVICE
        capabilities permitted = NET_BIND_SERVICE
    "),
    ("no new privileges", |it| it.security().no_new_privs = true, "
        process.noNewPrivileges = true
    "),
    ("paths that are hidden or only read", |it| {
        it.security().masked_paths = words(&["/proc/kcore", "/sys/firmware"]);
        it.security().readonly_paths = words(&["/proc/sys"]);
    }, "
        linux.maskedPaths = [\"/proc/kcore\",\"/sys/firmware\"]
        linux.readonlyPaths = [\"/proc/sys\"]
    "),
    ("a privileged container on a poor node", |it| {
        privileged(it);
        poor(it);
        let security = it.security();
        security.masked_paths = words(&["/proc/kcore"]);
        security.readonly_paths = words(&["/proc/sys"]);
        security.seccomp = profile(ProfileType::RuntimeDefault, "");
        security.apparmor = profile(ProfileType::RuntimeDefault, "");
        it.capabilities().drop_capabilities = words(&["ALL"]);
        apparmor(it);
        it.place = |place| place.devices = vec![device("/dev/fuse", "rwm")];
    }, "
        capabilities bounding = CHOWN SYS_ADMIN
        capabilities effective = CHOWN SYS_ADMIN
        capabilities permitted = CHOWN SYS_ADMIN
        mounts /sys = sysfs sysfs nosuid,noexec,nodev,rw
        mounts /sys/fs/cgroup = cgroup cgroup nosuid,noexec,nodev,relatime,rw
        device /dev/fuse = c 10:229 660 0:0
        linux.resources.devices = [{\"access\":\"rwm\",\"allow\":true}]
        - linux.maskedPaths
        - linux.readonlyPaths
    "),
    ("a privileged container keeps no_new_privs, its user and ambient capabilities", |it| {
        privileged(it);
        poor(it);
        it.security().no_new_privs = true;
        it.security().run_as_username = "web".into();
        it.capabilities().add_ambient_capabilities = words(&["CHOWN"]);
    }, "
        process.noNewPrivileges = true
        process.user.uid = 33
        process.user.gid = 34
        process.user.additionalGids = [34,4,8]
        capabilities ambient = CHOWN
        capabilities bounding = CHOWN SYS_ADMIN
        capabilities effective = CHOWN SYS_ADMIN
        capabilities inheritable = CHOWN
        capabilities permitted = CHOWN SYS_ADMIN
        mounts /sys = sysfs sysfs nosuid,noexec,nodev,rw
        mounts /sys/fs/cgroup = cgroup cgroup nosuid,noexec,nodev,relatime,rw
        linux.resources.devices = [{\"access\":\"rwm\",\"allow\":true}]
        - linux.maskedPaths
        - linux.readonlyPaths
    "),
    ("a pod that may have privileged containers makes none", |it| it.pod_security().privileged = true, ""),
    ("a device", |it| it.place = |place| place.devices = vec![device("/dev/fuse", "rw")], "
        device /dev/fuse = c 10:229 660 0:0
        linux.resources.devices = [{\"access\":\"rwm\",\"allow\":false},{\"access\":\"rw\",\"allow\":true,\"major\":10,\"minor\":229,\"type\":\"c\"}]
    "),
    ("the default filter", |it| it.security().seccomp = profile(ProfileType::RuntimeDefault, ""), "
        seccomp = SCMP_ACT_ERRNO 38; allows read chmod; refuses mount settimeofday reboot kexec_load
    "),
    ("the default filter opens what capabilities need", |it| {
        it.security().seccomp = profile(ProfileType::RuntimeDefault, "");
        it.capabilities().drop_capabilities = words(&["ALL"]);
        it.capabilities().add_capabilities = words(&["SYS_ADMIN", "SYS_TIME", "SYS_BOOT"]);
    }, "
        capabilities bounding = SYS_ADMIN SYS_BOOT SYS_TIME
        capabilities effective = SYS_ADMIN SYS_BOOT SYS_TIME
        capabilities permitted = SYS_ADMIN SYS_BOOT SYS_TIME
        seccomp = SCMP_ACT_ERRNO 38; allows read chmod mount settimeofday reboot; refuses kexec_load
    "),
    ("no filter", |it| it.security().seccomp = profile(ProfileType::Unconfined, ""), ""),
    ("a filter of the node's own", |it| {
        it.security().seccomp = profile(ProfileType::Localhost, "/profiles/block.json");
        it.place = |place| {
            let filter = br#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1,"syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
            place.seccomp_profile = Some(filter.to_vec());
        };
    }, "
        seccomp = SCMP_ACT_ALLOW 1; allows ; refuses chmod
    "),
    ("AppArmor is on and nothing is said", apparmor, "
        process.apparmorProfile = crimson-default
    "),
    ("AppArmor is on and not wanted", |it| {
        apparmor(it);
        it.security().apparmor = profile(ProfileType::Unconfined, "");
    }, ""),
    ("a profile of the node's own", |it| {
        apparmor(it);
        it.security().apparmor = profile(ProfileType::Localhost, "tight");
    }, "
        process.apparmorProfile = tight
    "),
    ("SELinux is on", |it| {
        it.facts.selinux = true;
        it.place = |place| place.selinux = Some(labels());
    }, "
        process.selinuxLabel = u:r:app_t:s0:c1,c2
        linux.mountLabel = u:object_r:file_t:s0:c1,c2
    "),
    ("a root that cannot be written", |it| {
        it.security().readonly_rootfs = true;
        it.place = |place| place.hosts = Some("/run/crimson/pods/1/hosts".into());
    }, "
        root.readonly = true
        mounts = /proc /dev /sys /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf /sys/fs/cgroup
        mounts /etc/hostname = bind /run/crimson/pods/1/hostname rbind,rprivate,ro
        mounts /etc/hosts = bind /run/crimson/pods/1/hosts rbind,rprivate,ro
        mounts /etc/resolv.conf = bind /run/crimson/pods/1/resolv.conf rbind,rprivate,ro
    "),
];
