//! The configuration as written: every table and key of the TOML files, with its meaning and default.
//!
//! The doc comments here are the reference: `crimson config default` and `docs/config.md` are made from them. A name
//! that is not here is refused. `@restart` marks what a running daemon cannot change.

use super::table::{Named, table};
use super::ulimit::Ulimit;
use super::values::{
    AbsolutePath, CgroupDriver, CollectorAddress, Format, HandlerName, ImageVolumes, Level, ListenAddress,
    OptionalPath, OptionalSocket, SeccompProfile, Seconds, Whole,
};

table! {
    /// Where crimson keeps things, and where it listens.
    pub struct ConfigFile {
        /// Directory of what must outlive a reboot: images, writable layers, records of pods. Only root may enter it.
        @restart root: AbsolutePath = AbsolutePath::literal("/var/lib/crimson"),
        /// Directory of what a reboot may take away: bundles, sockets of monitors, mounts. Belongs on a tmpfs, and is
        /// crimson's alone.
        @restart state: AbsolutePath = AbsolutePath::literal("/run/crimson"),
        /// Socket on which kubelet and crictl reach the server. Not used when systemd hands over a socket.
        @restart socket: AbsolutePath = AbsolutePath::literal("/run/crimson/crimson.sock"),
    } with {
        log: LogTable,
        cni: CniTable,
        cgroup: CgroupTable,
        runtime: RuntimeTable,
        image: ImageTable,
        security: SecurityTable,
        streaming: StreamingTable,
        metrics: MetricsTable,
        tracing: TracingTable,
        monitor: MonitorTable,
        limits: LimitsTable,
    }
}

table! {
    /// What is written to standard error.
    pub struct LogTable {
        /// How much: "error", "warn", "info", "debug" or "trace". Libraries are held to warnings until "trace".
        level: Level = Level::Info,
        /// In which form: "text" for people, "json" for programs.
        format: Format = Format::Text,
    }
}

table! {
    /// The network of pods.
    pub struct CniTable {
        /// Directory of network configurations. The first valid one in lexical order is used.
        conf_dir: AbsolutePath = AbsolutePath::literal("/etc/cni/net.d"),
        /// Directories of network plugins, searched in this order.
        bin_dirs: Vec<AbsolutePath> =
            vec![AbsolutePath::literal("/opt/cni/bin"), AbsolutePath::literal("/usr/lib/cni")],
        /// Seconds one plugin may take before it is killed.
        timeout_secs: Seconds = const { Seconds::literal(60) },
    }
}

table! {
    /// The cgroups of pods.
    pub struct CgroupTable {
        /// Who creates them: "systemd", "cgroupfs" (crimson itself), or "auto" for systemd where it is the init
        /// system. kubelet asks for it and follows.
        @restart driver: CgroupDriver = CgroupDriver::Auto,
    }
}

table! {
    /// The OCI runtimes that start containers.
    pub struct RuntimeTable {
        /// Handler of pods that name none. Empty for the first one that works on this host.
        default: String = String::new(),
        /// Resource limits that the processes of containers begin with, each as "NAME=SOFT:HARD" or "NAME=BOTH", such as
        /// "nofile=1024:524288". Those that are not named are crimson's own. What the host does not allow is brought down to what
        /// it does.
        default_ulimits: Vec<Ulimit> = Vec::new(),
    } with {
        handlers: Named<HandlerTable>,
    }
}

table! {
    /// A handler under the name that a RuntimeClass uses. Without any, crun and runc are looked for on PATH.
    pub struct HandlerTable {
        /// Program of the OCI runtime. Required.
        path: AbsolutePath = AbsolutePath::literal("/usr/bin/crun"),
        /// Directory of network configurations for pods of this handler, instead of cni.conf_dir. It is read at each pod's start.
        cni_conf_dir: OptionalPath = OptionalPath::default(),
        /// Names of pod annotations that the OCI runtime gets to see, of the pod and of each container. "*" stands for any run of
        /// characters. Whoever may create pods chooses their annotations.
        pod_annotations: Vec<String> = Vec::new(),
        /// Names of container annotations that the OCI runtime gets to see although it acts by them: those that begin with
        /// "run.oci.", "org.systemd.property.", "org.criu." or "io.kubernetes.cri.". All others it sees anyway.
        container_annotations: Vec<String> = Vec::new(),
        /// Whether privileged containers get no devices of the host but those they ask for.
        privileged_without_host_devices: bool = false,
        /// Bytes below which no memory limit is taken, since the OCI runtime would not start with it. 0 for any limit.
        min_memory_bytes: Whole<0, { i64::MAX }> = const { Whole::literal(spec::cri_defaults::MIN_MEMORY_BYTES) },
    }
}

table! {
    /// Images and registries.
    pub struct ImageTable {
        /// Directory with one directory for each registry host, which holds its hosts.toml and certificates.
        registry_config_dir: AbsolutePath = AbsolutePath::literal("/etc/crimson/certs.d"),
        /// Image to run as the first process of a pod. Empty for the pause program built into crimson.
        pause_image: String = String::new(),
        /// Images that kubelet's garbage collection must leave alone. "*" stands for any run of characters.
        pinned: Vec<String> = Vec::new(),
        /// Layers downloaded at the same time, over all images, 1 to 64.
        max_parallel_downloads: Whole<1, 64> = const { Whole::literal(3) },
        /// Seconds in which nothing may come of a registry before the download is cut and goes on where it was. Time in
        /// which the disk is busy does not count.
        progress_timeout_secs: Seconds = const { Seconds::literal(60) },
        /// Files in the format of Docker's config.json, with credentials for pulls that bring none. The first one with an
        /// entry for the registry counts; those that do not exist are passed over. Credential helpers are not run.
        auth_files: Vec<AbsolutePath> = vec![
            AbsolutePath::literal("/var/lib/kubelet/config.json"),
            AbsolutePath::literal("/root/.docker/config.json"),
        ],
        /// What becomes of the volumes that an image declares: "bind" gives the container a directory for each, with a copy
        /// of what the image has there, that is removed with it; "mkdir" makes those that the image lacks as directories of the
        /// writable layer; "ignore" does nothing.
        volumes: ImageVolumes = ImageVolumes::Bind,
    }
}

table! {
    /// Sessions of exec, attach and port-forward. kubelet leads its users' connections to the server that serves them.
    pub struct StreamingTable {
        /// Where to listen, as host and port; port 0 for any that is free. Whoever can connect and has the URL of a session may use
        /// it, so it is best left to this machine.
        @restart address: ListenAddress = ListenAddress::literal("127.0.0.1:0"),
        /// Seconds after which a session ends in which nothing was sent either way.
        @restart idle_timeout_secs: Seconds = const { Seconds::literal(4 * 60 * 60) },
        /// Seconds a client may take, once it is connected, to open the streams that it has asked for.
        @restart creation_timeout_secs: Seconds = const { Seconds::literal(30) },
        /// PEM file with the server's certificate and those that lead to its root. Empty for no TLS. A reload reads the three files
        /// again.
        @restart tls_cert: OptionalPath = OptionalPath::default(),
        /// PEM file with the certificate's private key.
        @restart tls_key: OptionalPath = OptionalPath::default(),
        /// PEM file with the roots of the certificates that clients have to show. Empty to ask for none.
        @restart tls_client_ca: OptionalPath = OptionalPath::default(),
    }
}

table! {
    /// What confines containers, and which devices they get.
    pub struct SecurityTable {
        /// seccomp profile of pods and containers that name none: "runtime/default", "localhost/" with the absolute path of a
        /// file, or empty for none, which is what CRI means by it.
        unset_seccomp_profile: SeccompProfile = SeccompProfile::default(),
        /// Directories of CDI device descriptions. A later one's word counts more. They are read for each container that asks
        /// for such devices.
        cdi_spec_dirs: Vec<AbsolutePath> =
            vec![AbsolutePath::literal("/etc/cdi"), AbsolutePath::literal("/var/run/cdi")],
        /// Whether devices belong to the user and group that the container's request names, unless that is root. Otherwise they
        /// belong to whom they belong to on the host, and a container without root may be unable to open them.
        device_ownership_from_security_context: bool = false,
        /// SELinux categories from which each pod gets a pair of its own, 2 to 1024. Other programs that choose pairs may be given
        /// the rest.
        selinux_category_range: Whole<2, 1024> = const { Whole::literal(1024) },
    }
}

table! {
    /// The server's own metrics, as Prometheus reads them. They are always to be had of the socket admin.sock in the state
    /// directory, by root.
    pub struct MetricsTable {
        /// Where else to serve them over HTTP, as IP address and port, such as "127.0.0.1:9110". Whoever can connect may read
        /// them. Empty for nowhere.
        @restart address: OptionalSocket = OptionalSocket::default(),
        /// Whether the address may be one that other machines reach. There is no TLS and no authentication.
        @restart allow_remote: bool = false,
    }
}

table! {
    /// Spans of CRI calls and of the steps they take, sent as OTLP over gRPC to an OpenTelemetry collector. A call that brings a W3C
    /// trace context, as kubelet's do where its tracing is on, becomes a part of that trace.
    pub struct TracingTable {
        /// The collector: "HOST:PORT" or "http://HOST:PORT" without TLS, "https://HOST:PORT" with it. Empty for no tracing, which
        /// then costs nothing. Further attributes of the node are taken from the environment variable OTEL_RESOURCE_ATTRIBUTES.
        @restart endpoint: CollectorAddress = CollectorAddress::default(),
        /// Of a million calls without a trace context, how many begin a trace, 0 to 1000000. Of those that have one, all are traced
        /// whose caller traces, and no others.
        @restart sampling_rate_per_million: Whole<0, 1_000_000> = const { Whole::literal(0) },
        /// PEM file with the roots of the collector's certificate. Empty for those of the system.
        @restart tls_ca: OptionalPath = OptionalPath::default(),
    }
}

table! {
    /// The process that looks after a pod's containers.
    pub struct MonitorTable {
        /// Program of the monitor. Empty to look beside the crimson program, then in libexec.
        @restart path: OptionalPath = OptionalPath::default(),
    }
}

table! {
    /// What no call may exceed.
    pub struct LimitsTable {
        /// Bytes of each output stream that ExecSync returns, 1 KiB to 64 MiB. More is dropped while the command goes
        /// on. kubelet takes messages of at most 16 MiB.
        exec_sync_output_bytes: Whole<1024, 67_108_864> = const { Whole::literal(16 * 1024 * 1024) },
        /// Seconds an OCI runtime may take to create a container before it is killed.
        create_timeout_secs: Seconds = const { Seconds::literal(240) },
        /// Seconds that calls in progress get to finish when the server is told to stop.
        shutdown_timeout_secs: Seconds = const { Seconds::literal(20) },
        /// Seconds the source of a mount may take to answer when a container is made. One on a network file system whose
        /// server is gone never does.
        mount_source_timeout_secs: Seconds = const { Seconds::literal(30) },
    }
}

impl RuntimeTable {
    /// Names a handler and its program, as a flag does.
    pub fn set_handler(&mut self, name: HandlerName, path: AbsolutePath) {
        self.handlers.0.insert(name, HandlerTable { path: Some(path), ..HandlerTable::default() });
    }
}
