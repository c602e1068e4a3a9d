//! The arguments of a runtime's commands. Pure: what starts the process, waits for it and sets its deadline is elsewhere.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// How a runtime is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeCommand {
    /// The program.
    pub path: PathBuf,
    /// Where the runtime keeps its own state (`--root`).
    pub root: PathBuf,
    /// Whether it asks systemd to make the cgroups (`--systemd-cgroup`); `cgroupsPath` then has the form
    /// `slice:prefix:name`.
    pub systemd_cgroup: bool,
}

/// What `create` needs.
#[derive(Debug, Clone, Copy)]
pub struct Create<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The directory with `config.json`.
    pub bundle: &'a Path,
    /// Where the init's process id is written.
    pub pid_file: &'a Path,
    /// The socket that receives the terminal's master.
    pub console_socket: Option<&'a Path>,
    /// The runtime's log.
    pub log: &'a Path,
}

/// What `exec` needs. The process runs detached: the command ends as soon as it has begun.
#[derive(Debug, Clone, Copy)]
pub struct Exec<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The OCI `process` object.
    pub process: &'a Path,
    /// Where the process id is written.
    pub pid_file: &'a Path,
    /// The socket that receives the terminal's master.
    pub console_socket: Option<&'a Path>,
    /// The runtime's log.
    pub log: &'a Path,
}

/// Arguments being put together.
struct Args(Vec<OsString>);

impl Args {
    fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.0.push(word.as_ref().to_owned());
        self
    }

    fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.word(name).word(value)
    }

    fn maybe(self, name: &str, value: Option<&Path>) -> Self {
        match value {
            Some(value) => self.option(name, value),
            None => self,
        }
    }
}

impl RuntimeCommand {
    /// Makes a container and leaves its init waiting for start. The container inherits the command's stdio.
    #[must_use]
    pub fn create(&self, create: &Create<'_>) -> Vec<OsString> {
        self.logged(create.log)
            .word("create")
            .option("--bundle", create.bundle)
            .option("--pid-file", create.pid_file)
            .maybe("--console-socket", create.console_socket)
            .word(create.id)
            .0
    }

    /// Lets the init run its program.
    #[must_use]
    pub fn start(&self, id: &str, log: &Path) -> Vec<OsString> {
        self.logged(log).word("start").word(id).0
    }

    /// Runs one more process, which inherits the command's stdio.
    #[must_use]
    pub fn exec(&self, exec: &Exec<'_>) -> Vec<OsString> {
        self.logged(exec.log)
            .word("exec")
            .option("--process", exec.process)
            .option("--pid-file", exec.pid_file)
            .maybe("--console-socket", exec.console_socket)
            .word("--detach")
            .word(exec.id)
            .0
    }

    /// Changes the limits of a container to those in `resources`, a file with the OCI `linux.resources` object.
    #[must_use]
    pub fn update(&self, id: &str, resources: &Path, log: &Path) -> Vec<OsString> {
        self.logged(log).word("update").option("--resources", resources).word(id).0
    }

    /// Sends a signal to the init.
    #[must_use]
    pub fn kill(&self, id: &str, signal: i32, log: &Path) -> Vec<OsString> {
        self.logged(log).word("kill").word(id).word(signal.to_string()).0
    }

    /// Kills and forgets the container. One that is unknown is no error.
    #[must_use]
    pub fn delete(&self, id: &str, log: &Path) -> Vec<OsString> {
        self.logged(log).word("delete").word("--force").word(id).0
    }

    /// Prints the container's OCI state.
    #[must_use]
    pub fn state(&self, id: &str, log: &Path) -> Vec<OsString> {
        self.logged(log).word("state").word(id).0
    }

    /// Prints what the runtime can do (OCI features structure); old runtimes fail.
    #[must_use]
    pub fn features(&self) -> Vec<OsString> {
        vec!["features".into()]
    }

    /// Prints the runtime's version.
    #[must_use]
    pub fn version(&self) -> Vec<OsString> {
        vec!["--version".into()]
    }

    fn logged(&self, log: &Path) -> Args {
        let args = Args(Vec::with_capacity(16)).option("--root", &self.root);
        let args = args.option("--log", log).option("--log-format", "json");
        if self.systemd_cgroup { args.word("--systemd-cgroup") } else { args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(systemd_cgroup: bool) -> RuntimeCommand {
        RuntimeCommand { path: "/usr/bin/runc".into(), root: "/r".into(), systemd_cgroup }
    }

    fn check(args: &[OsString], expected: &str) {
        let words: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn each_command_has_the_arguments_runc_and_crun_share() {
        let (runtime, log) = (runtime(false), Path::new("/b/log"));
        let create = Create {
            id: "c",
            bundle: Path::new("/b"),
            pid_file: Path::new("/b/pid"),
            console_socket: None,
            log,
        };
        let global = "--root /r --log /b/log --log-format json";
        check(&runtime.create(&create), &format!("{global} create --bundle /b --pid-file /b/pid c"));
        let exec = Exec {
            id: "c",
            process: Path::new("/b/p.json"),
            pid_file: Path::new("/b/e.pid"),
            console_socket: Some(Path::new("/s")),
            log,
        };
        let expected = "exec --process /b/p.json --pid-file /b/e.pid --console-socket /s --detach c";
        check(&runtime.exec(&exec), &format!("{global} {expected}"));
        check(&runtime.start("c", log), &format!("{global} start c"));
        check(&runtime.kill("c", 15, log), &format!("{global} kill c 15"));
        check(&runtime.delete("c", log), &format!("{global} delete --force c"));
        check(&runtime.state("c", log), &format!("{global} state c"));
        let resources = Path::new("/b/r.json");
        check(&runtime.update("c", resources, log), &format!("{global} update --resources /b/r.json c"));
    }

    #[test]
    fn the_systemd_cgroup_driver_is_a_global_option() {
        let args = runtime(true).start("c", Path::new("/l"));
        check(&args, "--root /r --log /l --log-format json --systemd-cgroup start c");
    }
}
