//! Makes the configuration in force from the merged layers, and checks what no single value can show.
//!
//! Promises: each problem is reported at the place of the key it can be mended at. The result counts only when no layer
//! had a problem.

use std::path::Path;

use super::file::{
    CniTable, ConfigFile, HandlerTable, ImageTable, LimitsTable, LogTable, MetricsTable, RuntimeTable,
    SecurityTable, StreamingTable, TracingTable,
};
use super::problem::Problem;
use super::programs::FOUND_ON_PATH;
use super::read::Origins;
use super::values::{AbsolutePath, HandlerName};
use super::{
    Cni, Config, Handler, Image, Limits, Log, Metrics, Monitor, Runtime, Security, Streaming, StreamingTls,
    Tracing,
};

use crate::pod::HandlerRules;

/// Longest path of a unix socket: the kernel has 108 bytes, and the last one is zero.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn resolve(file: &ConfigFile, origins: &Origins, problems: &mut Vec<Problem>) -> Config {
    let mut check = Check { origins, problems };
    let config = Config {
        root: file.root().into_path(),
        state: file.state().into_path(),
        socket: file.socket().into_path(),
        log: log(&file.log),
        cni: cni(&file.cni),
        cgroup_driver: file.cgroup.driver(),
        runtime: runtime(&file.runtime, &mut check),
        image: image(&file.image),
        streaming: streaming(&file.streaming, &mut check),
        security: security(&file.security),
        metrics: metrics(&file.metrics, &mut check),
        tracing: tracing(&file.tracing, &mut check),
        monitor: Monitor { path: file.monitor.path().into_path() },
        limits: limits(&file.limits),
    };
    check.directories(&config.root, &config.state);
    check.socket(&config.socket);
    check.bin_dirs(&config.cni);
    config
}

fn log(table: &LogTable) -> Log {
    Log { level: table.level(), format: table.format() }
}

fn cni(table: &CniTable) -> Cni {
    Cni {
        conf_dir: table.conf_dir().into_path(),
        bin_dirs: table.bin_dirs().into_iter().map(AbsolutePath::into_path).collect(),
        timeout: table.timeout_secs().duration(),
    }
}

fn runtime(table: &RuntimeTable, check: &mut Check<'_>) -> Runtime {
    let mut runtime = Runtime {
        default: None,
        handlers: std::collections::BTreeMap::new(),
        default_ulimits: table.default_ulimits(),
    };
    for (name, handler) in &table.handlers.0 {
        match &handler.path {
            Some(path) => {
                let path = path.clone().into_path();
                runtime.handlers.insert(name.clone(), Handler { path, rules: handler_rules(handler) });
            }
            None => check.fail(&format!("runtime.handlers.{}", name.as_str()), "the key path is missing"),
        }
    }
    runtime.default = default_handler(&table.default(), table, check);
    runtime
}

fn handler_rules(table: &HandlerTable) -> HandlerRules {
    HandlerRules {
        cni_conf_dir: table.cni_conf_dir().into_path(),
        pod_annotations: table.pod_annotations(),
        container_annotations: table.container_annotations(),
        privileged_devices: !table.privileged_without_host_devices(),
        min_memory_bytes: table.min_memory_bytes().into(),
    }
}

fn default_handler(name: &str, table: &RuntimeTable, check: &mut Check<'_>) -> Option<HandlerName> {
    if name.is_empty() {
        return None;
    }
    let known = if table.handlers.0.is_empty() {
        FOUND_ON_PATH.contains(&name)
    } else {
        table.handlers.0.keys().any(|handler| handler.as_str() == name)
    };
    if !known {
        check.fail("runtime.default", &format!("there is no handler {name:?}"));
    }
    name.parse().ok()
}

fn image(table: &ImageTable) -> Image {
    Image {
        registry_config_dir: table.registry_config_dir().into_path(),
        pause_image: Some(table.pause_image()).filter(|name| !name.is_empty()),
        pinned: table.pinned(),
        max_parallel_downloads: table.max_parallel_downloads().size(),
        progress_timeout: table.progress_timeout_secs().duration(),
        auth_files: table.auth_files().into_iter().map(AbsolutePath::into_path).collect(),
        volumes: table.volumes(),
    }
}

fn streaming(table: &StreamingTable, check: &mut Check<'_>) -> Streaming {
    let client_ca = table.tls_client_ca().into_path();
    let tls = match (table.tls_cert().into_path(), table.tls_key().into_path()) {
        (Some(cert), Some(key)) => Some(StreamingTls { cert, key, client_ca }),
        (Some(_), None) => check.none("streaming.tls_key", "is needed beside tls_cert"),
        (None, Some(_)) => check.none("streaming.tls_cert", "is needed beside tls_key"),
        (None, None) if client_ca.is_some() => {
            check.none("streaming.tls_client_ca", "needs tls_cert and tls_key")
        }
        (None, None) => None,
    };
    Streaming {
        address: table.address().into(),
        idle_timeout: table.idle_timeout_secs().duration(),
        creation_timeout: table.creation_timeout_secs().duration(),
        tls,
    }
}

fn security(table: &SecurityTable) -> Security {
    Security {
        unset_seccomp_profile: table.unset_seccomp_profile().into_text(),
        cdi_spec_dirs: table.cdi_spec_dirs().into_iter().map(AbsolutePath::into_path).collect(),
        device_ownership: table.device_ownership_from_security_context(),
        selinux_categories: u32::try_from(table.selinux_category_range().get()).unwrap_or(u32::MAX),
    }
}

fn metrics(table: &MetricsTable, check: &mut Check<'_>) -> Metrics {
    let address = table.address().into_address();
    if address.is_some_and(|address| !address.ip().is_loopback()) && !table.allow_remote() {
        check.fail("metrics.address", "can be reached by other machines, which needs allow_remote = true");
    }
    Metrics { address }
}

fn tracing(table: &TracingTable, check: &mut Check<'_>) -> Option<Tracing> {
    let tls_ca = table.tls_ca().into_path();
    let Some(endpoint) = table.endpoint().into_url() else {
        return tls_ca.and_then(|_| check.none("tracing.tls_ca", "needs an endpoint"));
    };
    if tls_ca.is_some() && !endpoint.starts_with("https:") {
        check.fail("tracing.tls_ca", "needs an endpoint that begins with https://");
    }
    let rate = u32::try_from(table.sampling_rate_per_million().get()).unwrap_or_default();
    Some(Tracing { endpoint, sampling_rate_per_million: rate, tls_ca })
}

fn limits(table: &LimitsTable) -> Limits {
    Limits {
        exec_sync_output_bytes: table.exec_sync_output_bytes().size(),
        create_timeout: table.create_timeout_secs().duration(),
        shutdown_timeout: table.shutdown_timeout_secs().duration(),
        mount_source_timeout: table.mount_source_timeout_secs().duration(),
    }
}

/// Collects problems of resolved values.
struct Check<'a> {
    origins: &'a Origins,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn fail(&mut self, key: &str, message: &str) {
        let place = self.origins.of(key);
        self.problems.push(Problem::Value { place, key: key.to_owned(), message: message.to_owned() });
    }

    fn none<T>(&mut self, key: &str, message: &str) -> Option<T> {
        self.fail(key, message);
        None
    }

    /// Both directories are mounted over, swept and chmodded, so neither may be one that others use too.
    fn directories(&mut self, root: &Path, state: &Path) {
        for (key, directory) in [("root", root), ("state", state)] {
            if directory.components().count() < 3 {
                self.fail(key, "must be a directory of crimson's own, not one at the top of the file system");
            }
        }
        if root.starts_with(state) || state.starts_with(root) {
            self.fail("state", "must not be the same as root, inside it, or around it");
        }
    }

    fn socket(&mut self, socket: &Path) {
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            self.fail(
                "socket",
                &format!("is longer than the {SOCKET_PATH_MAX} bytes a socket's path may have"),
            );
        }
        if socket.file_name().is_none() {
            self.fail("socket", "is the root directory");
        }
    }

    fn bin_dirs(&mut self, cni: &Cni) {
        if cni.bin_dirs.is_empty() {
            self.fail("cni.bin_dirs", "must name at least one directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        resolve(&toml::from_str(text).unwrap(), &Origins::default(), &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(problems(""), [""; 0]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_at_its_key() {
        let cases = [
            ("state = '/run'", "default: state: must be a directory of crimson's own"),
            ("root = '/'", "default: root: must be a directory of crimson's own"),
            ("root = '/var/x'\nstate = '/var/x/run'", "default: state: must not be the same as root"),
            ("root = '/run/crimson/root'", "default: state: must not be the same as root"),
            ("[cni]\nbin_dirs = []", "default: cni.bin_dirs: must name at least one"),
            ("[runtime]\ndefault = 'kata'", "default: runtime.default: there is no handler \"kata\""),
            (
                "[runtime]\ndefault = 'crun'\nhandlers.runc.path = '/r'",
                "default: runtime.default: there is no handler",
            ),
            ("[streaming]\ntls_cert = '/c'", "default: streaming.tls_key: is needed"),
            ("[streaming]\ntls_key = '/k'", "default: streaming.tls_cert: is needed"),
            ("[streaming]\ntls_client_ca = '/a'", "default: streaming.tls_client_ca: needs"),
            ("[metrics]\naddress = '0.0.0.0:9110'", "default: metrics.address: can be reached by other"),
            ("[tracing]\ntls_ca = '/c'", "default: tracing.tls_ca: needs an endpoint"),
            ("[tracing]\nendpoint = 'c:1'\ntls_ca = '/c'", "default: tracing.tls_ca: needs an endpoint that"),
            ("[runtime.handlers.kata]", "default: runtime.handlers.kata: the key path is missing"),
        ];
        for (text, expected) in cases {
            let found = problems(text);
            assert!(found.iter().any(|problem| problem.starts_with(expected)), "{text:?} gives {found:?}");
        }
        let long = format!("socket = '/{}'", "x".repeat(SOCKET_PATH_MAX));
        assert!(problems(&long)[0].contains("longer than the 107 bytes"));
    }

    #[test]
    fn metrics_leave_the_machine_only_where_that_is_said() {
        assert_eq!(problems("[metrics]\naddress = '127.8.0.1:9110'"), [""; 0]);
        assert_eq!(problems("[metrics]\naddress = '[::1]:9110'"), [""; 0]);
        assert_eq!(problems("[metrics]\naddress = '[::]:9110'\nallow_remote = true"), [""; 0]);
        assert_eq!(problems("[metrics]\naddress = '10.0.0.1:9110'").len(), 1);
    }

    #[test]
    fn spans_go_where_the_endpoint_says() {
        let resolved = |text: &str| {
            resolve(&toml::from_str(text).unwrap(), &Origins::default(), &mut Vec::new()).tracing
        };
        assert_eq!(resolved("[tracing]\nsampling_rate_per_million = 7"), None);
        for (written, url) in [
            ("localhost:4317", "http://localhost:4317"),
            ("http://[::1]:4317", "http://[::1]:4317"),
            ("https://otel.example.net:443", "https://otel.example.net:443"),
        ] {
            let tracing = resolved(&format!("[tracing]\nendpoint = '{written}'")).unwrap();
            assert_eq!((tracing.endpoint.as_str(), tracing.sampling_rate_per_million), (url, 0));
        }
    }

    #[test]
    fn a_handler_without_rules_has_those_of_one_that_is_found_on_path() {
        assert_eq!(handler_rules(&HandlerTable::default()), HandlerRules::default());
        let table = toml::from_str(
            "path = '/k'\ncni_conf_dir = '/c'\npod_annotations = ['io.kata.*']\nprivileged_without_host_devices = true\n\
             min_memory_bytes = 0",
        );
        let rules = handler_rules(&table.unwrap());
        let expected = HandlerRules {
            cni_conf_dir: Some("/c".into()),
            pod_annotations: vec!["io.kata.*".to_owned()],
            container_annotations: Vec::new(),
            privileged_devices: false,
            min_memory_bytes: 0,
        };
        assert_eq!(rules, expected);
    }

    #[test]
    fn the_default_handler_may_be_one_that_is_found_on_path() {
        assert_eq!(problems("[runtime]\ndefault = 'runc'"), [""; 0]);
        assert_eq!(problems("[runtime]\ndefault = 'kata'\nhandlers.kata.path = '/k'"), [""; 0]);
    }
}
