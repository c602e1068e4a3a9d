//! The configuration as written: every table and key of the TOML files, with its meaning and default.
//!
//! The doc comments here are the reference: `crimson config default` and `docs/config.md` are made from them. A name
//! that is not here is refused. `@restart` marks what a running daemon cannot change.

use super::table::{Named, table};
use super::values::{AbsolutePath, CgroupDriver, Format, HandlerName, Level, OptionalPath, Seconds, Whole};

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
    } with {
        handlers: Named<HandlerTable>,
    }
}

table! {
    /// A handler under the name that a RuntimeClass uses. Without any, crun and runc are looked for on PATH.
    pub struct HandlerTable {
        /// Program of the OCI runtime. Required.
        path: AbsolutePath = AbsolutePath::literal("/usr/bin/crun"),
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
        /// Layers fetched at the same time for one image, 1 to 64.
        max_parallel_downloads: Whole<1, 64> = const { Whole::literal(3) },
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
    }
}

impl RuntimeTable {
    /// Names a handler and its program, as a flag does.
    pub fn set_handler(&mut self, name: HandlerName, path: AbsolutePath) {
        self.handlers.0.insert(name, HandlerTable { path: Some(path) });
    }
}
