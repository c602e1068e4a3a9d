//! What a container has mounted, where, in which order, and how.

use cri_api::v1;

use crate::container::tests::table::Case;

const SLAVE: i32 = v1::MountPropagation::PropagationHostToContainer as i32;
const SHARED: i32 = v1::MountPropagation::PropagationBidirectional as i32;

pub(super) const CASES: &[Case] = &[
    ("a directory of the node", |it| it.mount("/data", |_| {}), "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /srv rbind,rprivate,rw
    "),
    ("a path that is not clean", |it| it.mount("/x/../data//a/.", |_| {}), "
        mounts = /proc /dev /sys /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /data/a /sys/fs/cgroup
        mounts /data/a = bind /srv rbind,rprivate,rw
    "),
    ("read-only", |it| it.mount("/data", |mount| mount.readonly = true), "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /srv rbind,rprivate,ro
    "),
    ("read-only with all beneath", |it| it.mount("/data", |mount| {
        mount.readonly = true;
        mount.recursive_read_only = true;
    }), "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /srv rbind,rprivate,rro
    "),
    ("mounts that come from the node later", |it| it.mount("/data", |mount| mount.propagation = SLAVE), "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /srv rbind,rslave,rw
        linux.rootfsPropagation = rslave
    "),
    ("mounts that travel both ways, beside one that does not", |it| {
        it.mount("/data", |mount| mount.propagation = SHARED);
        it.mount("/late", |mount| mount.propagation = SLAVE);
        it.mount("/own", |mount| mount.readonly = true);
    }, "
        mounts = /proc /dev /sys /data /late /own /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /srv rbind,rshared,rw
        mounts /late = bind /srv rbind,rslave,rw
        mounts /own = bind /srv rbind,rprivate,ro
        linux.rootfsPropagation = rshared
    "),
    ("parents before what lies below them, else in the order of the request", |it| {
        for path in ["/z/y/x", "/z", "/b", "/a", "/z/y"] {
            it.mount(path, |_| {});
        }
    }, "
        mounts = /proc /dev /sys /z /b /a /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /z/y /sys/fs/cgroup /z/y/x
        mounts /z = bind /srv rbind,rprivate,rw
        mounts /b = bind /srv rbind,rprivate,rw
        mounts /a = bind /srv rbind,rprivate,rw
        mounts /z/y = bind /srv rbind,rprivate,rw
        mounts /z/y/x = bind /srv rbind,rprivate,rw
    "),
    ("the later of two at one place", |it| {
        it.mount("/data", |mount| mount.host_path = "/first".into());
        it.mount("/data/", |mount| mount.host_path = "/second".into());
    }, "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /second rbind,rprivate,rw
    "),
    ("an image", |it| {
        it.mount("/data", |mount| {
            mount.host_path.clear();
            mount.image = Some(v1::ImageSpec { image: "other:1".into(), ..Default::default() });
            mount.readonly = true;
            mount.propagation = SLAVE;
        });
        it.place = |place| place.mounts[0].source = "/bundle/images/0".into();
    }, "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /data = bind /bundle/images/0 bind,rprivate,ro
    "),
    ("kubelet's own hosts file instead of the pod's", |it| {
        it.mount("/etc/hosts", |mount| mount.host_path = "/var/lib/kubelet/etc-hosts".into());
        it.place = |place| place.hosts = Some("/run/crimson/pods/1/hosts".into());
    }, "
        mounts = /proc /dev /sys /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /etc/hosts /sys/fs/cgroup
        mounts /etc/hosts = bind /var/lib/kubelet/etc-hosts rbind,rprivate,rw
    "),
    ("memory of kubelet's instead of the pod's", |it| it.mount("/dev/shm", |_| {}), "
        mounts = /proc /dev /sys /dev/pts /dev/mqueue /etc/hostname /etc/resolv.conf /dev/shm /sys/fs/cgroup
        mounts /dev/shm = bind /srv rbind,rprivate,rw
    "),
    ("the node's /sys with all that the node has there", |it| it.mount("/sys", |mount| {
        mount.host_path = "/sys".into();
        mount.readonly = true;
    }), "
        mounts = /proc /dev /sys /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf
        mounts /sys = bind /sys rbind,rprivate,ro
        - mounts /sys/fs/cgroup
    "),
    ("the node's /dev, but the pod's shared memory", |it| it.mount("/dev", |mount| {
        mount.host_path = "/dev".into();
    }), "
        mounts = /proc /sys /dev /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /dev = bind /dev rbind,rprivate,rw
        - mounts /dev/mqueue
        - mounts /dev/pts
    "),
    ("files in a directory of the node that takes the place of /etc", |it| it.mount("/etc", |_| {}), "
        mounts = /proc /dev /sys /etc /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /etc = bind /srv rbind,rprivate,rw
    "),
    ("volumes of the image, which take nothing's place", |it| {
        it.mount("/data", |_| {});
        it.place = |place| {
            place.volumes = vec![
                ("/cache".into(), "/c/volumes/0".into()),
                ("/data".into(), "/c/volumes/1".into()),
                ("/proc".into(), "/c/volumes/2".into()),
            ];
        };
    }, "
        mounts = /cache /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /sys/fs/cgroup
        mounts /cache = bind /c/volumes/0 rbind,rprivate,rw
        mounts /data = bind /srv rbind,rprivate,rw
    "),
    ("a termination log and a relabelled volume", |it| {
        it.mount("/dev/termination-log", |mount| mount.host_path = "/var/lib/kubelet/log".into());
        it.mount("/data", |mount| mount.selinux_relabel = true);
    }, "
        mounts = /proc /dev /sys /data /dev/pts /dev/mqueue /dev/shm /etc/hostname /etc/resolv.conf /dev/termination-log /sys/fs/cgroup
        mounts /data = bind /srv rbind,rprivate,rw
        mounts /dev/termination-log = bind /var/lib/kubelet/log rbind,rprivate,rw
    "),
];
