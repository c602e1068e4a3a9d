//! Starting programs, with nothing inherited by accident.
//!
//! Whoever starts a program says in which directory and with which environment; without saying so it gets an empty
//! environment and `/dev/null` for its standard streams. Everything else this process has open is closed on exec. The
//! variables by which systemd talks to one process only can never be passed on.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Variables that belong to the process systemd started and mislead any other.
const NEVER_PASSED: [&str; 9] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
    "FDSTORE",
];

/// A program about to be started.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    command: Command,
}

/// A program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program's path is not absolute, so what runs would depend on the environment.
    #[error("program {0:?} is not named by an absolute path")]
    Relative(PathBuf),
    /// The kernel refused. A missing program and a missing working directory look the same.
    #[error("start {} in {}", program.display(), directory.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The working directory it was to have.
        directory: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl types::Kind for SpawnError {
    fn kind(&self) -> types::ErrorKind {
        match self {
            Self::Relative(_) => types::ErrorKind::InvalidArgument,
            Self::Start { source, .. } => types::ErrorKind::of_io(source),
        }
    }
}

impl Program {
    /// The program at the absolute path `program`, to be run in `directory`.
    #[must_use]
    pub fn new(program: &Path, directory: &Path) -> Self {
        let mut command = Command::new(program);
        command.env_clear().current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { path: program.to_owned(), command }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets the name the program sees itself called by.
    #[must_use]
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.arg0(name);
        self
    }

    /// Sets a variable of its environment. What systemd says to this process only is left out.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        if !is_never_passed(name.as_ref()) {
            self.command.env(name, value);
        }
        self
    }

    /// Passes on the variables with these names that this process has.
    #[must_use]
    pub fn inherit_env<N: AsRef<OsStr>>(self, names: impl IntoIterator<Item = N>) -> Self {
        let present = |name: N| std::env::var_os(&name).map(|value| (name.as_ref().to_owned(), value));
        let present: Vec<(OsString, OsString)> = names.into_iter().filter_map(present).collect();
        present.into_iter().fold(self, |program, (name, value)| program.env(name, value))
    }

    /// Sets standard input.
    #[must_use]
    pub fn stdin(mut self, fd: OwnedFd) -> Self {
        self.command.stdin(Stdio::from(fd));
        self
    }

    /// Sets standard output.
    #[must_use]
    pub fn stdout(mut self, fd: OwnedFd) -> Self {
        self.command.stdout(Stdio::from(fd));
        self
    }

    /// Sets standard error.
    #[must_use]
    pub fn stderr(mut self, fd: OwnedFd) -> Self {
        self.command.stderr(Stdio::from(fd));
        self
    }

    /// Puts the program at the head of a process group of its own, so that a terminal's signals to ours do not reach it.
    #[must_use]
    pub fn own_process_group(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Starts it. Our copies of its standard streams are closed, whether it started or not.
    ///
    /// # Errors
    /// [`SpawnError`] naming the program and its directory.
    pub fn start(mut self) -> Result<Child, SpawnError> {
        if !self.path.is_absolute() {
            return Err(SpawnError::Relative(self.path));
        }
        self.command.spawn().map_err(|source| SpawnError::Start {
            program: self.path,
            directory: self.command.get_current_dir().map(Path::to_owned).unwrap_or_default(),
            source,
        })
    }

    /// The description as a [`Command`], for an async runtime's own way to start and wait for it.
    ///
    /// # Errors
    /// [`SpawnError::Relative`].
    pub fn into_command(self) -> Result<Command, SpawnError> {
        if self.path.is_absolute() { Ok(self.command) } else { Err(SpawnError::Relative(self.path)) }
    }
}

fn is_never_passed(name: &OsStr) -> bool {
    NEVER_PASSED.iter().any(|never| name == *never)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn output_of(program: Program) -> String {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut child = program.stdout(writer).start().unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        text
    }

    fn shell(script: &str) -> Program {
        Program::new(Path::new("/bin/sh"), Path::new("/usr")).args(["-c", script])
    }

    #[test]
    fn directory_and_environment_are_what_was_said_and_nothing_more() {
        assert_eq!(output_of(shell("pwd")), "/usr\n");
        let env = Program::new(Path::new("/usr/bin/env"), Path::new("/"));
        assert_eq!(output_of(env), "");
        let env = Program::new(Path::new("/usr/bin/env"), Path::new("/"))
            .env("A", "b c")
            .env("NOTIFY_SOCKET", "/run/x")
            .inherit_env(["PATH", "LISTEN_FDS", "NO_SUCH_VARIABLE_HERE"]);
        let text = output_of(env);
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["A", "PATH"]);
    }

    #[test]
    fn only_the_standard_streams_are_open_in_it() {
        // What this process has inherited itself, as every program of ours begins.
        crate::process::close_inherited_on_exec().unwrap();
        let _held = File::open("/dev/zero").unwrap();
        let seen = output_of(shell("readlink /proc/self/fd/0; ls /proc/self/fd"));
        assert_eq!(
            seen.lines().collect::<Vec<_>>(),
            ["/dev/null", "0", "1", "2", "3"],
            "3 is the one ls lists with"
        );
    }

    #[test]
    fn a_process_group_of_its_own() {
        let text = output_of(shell("cut -d' ' -f5 /proc/$$/stat; echo $$").own_process_group());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], lines[1], "the leader's pid is the group's number");
    }

    #[test]
    fn what_cannot_start_says_so_with_its_name() {
        let missing = Program::new(Path::new("/no/such/program"), Path::new("/")).start().unwrap_err();
        assert!(missing.to_string().contains("/no/such/program"), "{missing}");
        let relative = Program::new(Path::new("sh"), Path::new("/")).start().unwrap_err();
        assert!(matches!(relative, SpawnError::Relative(_)));
    }
}
