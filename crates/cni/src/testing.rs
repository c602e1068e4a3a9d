//! Pods and plugins for the tests of this crate.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use types::SandboxId;

use crate::config::CniConfig;
use crate::pod::{Dns, PodNetwork};

thread_local! {
    /// Sandbox ids are the host's, not the test's: two tests must not have the same, and each test has a thread.
    static RANDOM: [u8; 32] = sys::random::bytes();
}

/// A pod of this test; the same `seed` gives the same pod, and ids are ordered as their seeds.
pub(crate) fn pod(seed: u8) -> PodNetwork {
    let mut id = RANDOM.with(|random| *random);
    id[0] = seed;
    PodNetwork {
        sandbox: SandboxId::from_random(id),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        uid: "uid-1".to_owned(),
        netns: None,
        port_mappings: Vec::new(),
        bandwidth: None,
        dns: Dns::default(),
        cgroup_parent: String::new(),
        annotations: BTreeMap::new(),
        conf_dir: None,
    }
}

/// Directories of a driver under test, and plugins that are shell scripts.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["conf", "bin", "log"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub(crate) fn config(&self) -> CniConfig {
        CniConfig {
            conf_dir: self.path("conf"),
            bin_dirs: vec![self.path("bin")],
            cache_dir: self.path("cache"),
            operation_timeout: Duration::from_secs(60),
            interface: "eth0".to_owned(),
        }
    }

    /// Writes a list of `plugins`, each a JSON object, into the configuration directory.
    pub(crate) fn list(&self, version: &str, plugins: &[&str]) {
        let plugins = plugins.join(",");
        let text = format!(r#"{{"cniVersion":"{version}","name":"testnet","plugins":[{plugins}]}}"#);
        fs::write(self.path("conf/10-test.conflist"), text).unwrap();
    }

    /// A plugin whose body runs after it noted its verb in the log `calls`, its environment in `<name>.<verb>.env` and
    /// its configuration in `<name>.<verb>.conf`.
    pub(crate) fn plugin(&self, name: &str, body: &str) {
        let log = self.path("log");
        let log = log.display();
        let script = format!(
            "#!/bin/sh\ncd {log}\necho \"{name} $CNI_COMMAND\" >> calls\nenv > {name}.$CNI_COMMAND.env\n\
             cat > {name}.$CNI_COMMAND.conf\n{body}\n"
        );
        write_program(&self.path("bin").join(name), &script);
    }

    /// A plugin that does well: ADD gives the address `ip`.
    pub(crate) fn good_plugin(&self, name: &str, ip: &str) {
        self.plugin(name, &answer(ip));
    }

    /// Verbs that plugins ran, in order: `"bridge ADD"`.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log/calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn forget_calls(&self) {
        fs::write(self.path("log/calls"), "").unwrap();
    }

    pub(crate) fn env(&self, name: &str, verb: &str) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.path("log").join(format!("{name}.{verb}.env"))).unwrap();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    pub(crate) fn conf(&self, name: &str, verb: &str) -> serde_json::Value {
        let text = fs::read(self.path("log").join(format!("{name}.{verb}.conf"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub(crate) fn records(&self) -> usize {
        fs::read_dir(self.path("cache")).map_or(0, Iterator::count)
    }
}

/// The body of a plugin that answers ADD with `ip` on eth0.
pub(crate) fn answer(ip: &str) -> String {
    format!(
        r#"[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","mac":"0a:00:00:00:00:01","sandbox":"/ns"}}],"ips":[{{"interface":0,"address":"{ip}/24"}}]}}'
exit 0"#
    )
}

/// The body of a plugin that reports a CNI error for `verb` and does well otherwise.
pub(crate) fn fails(verb: &str, code: u32, ip: &str) -> String {
    format!(
        "if [ \"$CNI_COMMAND\" = {verb} ]; then echo '{{\"code\":{code},\"msg\":\"asked to fail\"}}'; exit 1; fi\n{}",
        answer(ip)
    )
}

/// Puts a program in place by renaming, as packages do: one that runs from `path` now is not disturbed. It is written by a process
/// of its own: what another test starts meanwhile would hold a file of ours open for writing, and it could not be run.
pub(crate) fn write_program(path: &Path, text: &str) {
    let written = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0.new\" && chmod 755 \"$0.new\" && mv -f \"$0.new\" \"$0\""])
        .args([path.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success());
}

/// Lets this time pass at once for all that waits in the test's runtime.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
