//! Programs that stand before CNI plugins and the OCI runtime, and fail, die or hang when a test says so.
//!
//! A wrapper is a shell script. Before and after it calls the real program it looks for a file named after itself, the verb
//! and the moment; what the file says is done: `fail` ends with an error, `die` with SIGKILL, `hang` waits for a lock that
//! the test holds, without polling. A fault is in force as long as its [`Injected`] lives. Every call is on record.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::network::PLUGIN_DIRS;
use crate::{Node, Result, patience, program};

/// The name under which the wrapped OCI runtime is a handler.
pub const HANDLER: &str = "faulty";

/// A program with a wrapper before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The first plugin of the network.
    Bridge,
    /// The second one.
    Portmap,
    /// The OCI runtime.
    Runtime,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "faulty-bridge",
            Self::Portmap => "faulty-portmap",
            Self::Runtime => "faulty-runtime",
        }
    }
}

/// What a wrapper does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Ends with an error.
    Fail,
    /// Ends by SIGKILL.
    Die,
    /// Waits until the fault is lifted.
    Hang,
}

/// When a wrapper does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of the work has been done.
    Before,
    /// All of it has.
    After,
}

/// A fault in force. Dropping it lifts the fault and lets go on what hangs.
#[derive(Debug)]
pub struct Injected {
    path: PathBuf,
    lock: Option<File>,
}

impl Injected {
    /// New calls work again; those that hang go on hanging until the value is dropped.
    pub fn for_old_calls_only(&self) -> Result {
        fs::remove_file(&self.path).with_context(|| format!("removing {}", self.path.display()))
    }

    /// Lifts the fault.
    pub fn lift(self) {}
}

impl Drop for Injected {
    fn drop(&mut self) {
        // It is gone already when only old calls were to feel it.
        drop(fs::remove_file(&self.path));
        drop(self.lock.take());
    }
}

/// The directory of wrappers and faults of one node.
#[derive(Debug)]
pub struct Faulty {
    dir: TempDir,
}

impl Faulty {
    /// Writes the wrappers.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("cf-").tempdir().context("making a directory of faults")?;
        let faulty = Self { dir };
        fs::create_dir(faulty.plugin_dir())?;
        fs::create_dir(faulty.faults())?;
        for (wrapper, plugin) in [(Program::Bridge, "bridge"), (Program::Portmap, "portmap")] {
            let real = PLUGIN_DIRS.iter().map(|dir| Path::new(dir).join(plugin)).find(|path| path.is_file());
            let real = real.with_context(|| format!("the CNI plugin {plugin} is not installed"))?;
            faulty.wrap(wrapper, &real, PLUGIN_VERB)?;
        }
        faulty.wrap(Program::Runtime, &real_runtime()?, RUNTIME_VERB)?;
        Ok(faulty)
    }

    /// The flags that make a daemon use the wrappers; the network does so from [`Faulty::wrap_network`] on.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let runtime = format!("{HANDLER}={}", self.path_of(Program::Runtime).display());
        let plugins = self.plugin_dir().display().to_string();
        ["--runtime".to_owned(), runtime, "--cni-bin-dir".to_owned(), plugins].into()
    }

    /// Has the node's network use the wrapped plugins, and waits until the daemon has noticed.
    pub async fn wrap_network(&self, node: &Node) -> Result {
        let path = node.network().conf_dir.join("10-e2e.conflist");
        let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        for plugin in list["plugins"].as_array_mut().context("a list of plugins")? {
            let kind = plugin["type"].as_str().unwrap_or_default();
            plugin["type"] = format!("faulty-{kind}").into();
        }
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec_pretty(&list)?)?;
        fs::rename(temporary, &path)?;
        network_is(node, "faulty-bridge").await
    }

    /// Puts a fault into force.
    pub fn inject(&self, program: Program, verb: &str, moment: Moment, fault: Fault) -> Result<Injected> {
        let moment = if moment == Moment::Before { "before" } else { "after" };
        let path = self.faults().join(format!("{}.{verb}.{moment}", program.name()));
        let lock = if fault == Fault::Hang { Some(lock(&path.with_extension("lock"))?) } else { None };
        let word = match fault {
            Fault::Fail => "fail",
            Fault::Die => "die",
            Fault::Hang => "hang",
        };
        // Renamed into place, so that no wrapper reads half a word.
        let temporary = self.dir.path().join("fault.new");
        fs::write(&temporary, format!("{word}\n"))?;
        fs::rename(temporary, &path)?;
        Ok(Injected { path, lock })
    }

    /// Takes a plugin away until the value is dropped.
    pub fn hide(&self, program: Program) -> Result<Hidden> {
        let path = self.path_of(program);
        let away = self.dir.path().join(format!("{}.hidden", program.name()));
        fs::rename(&path, &away).with_context(|| format!("hiding {}", path.display()))?;
        Ok(Hidden { path, away })
    }

    /// How many calls of a verb there have been.
    #[must_use]
    pub fn calls(&self, program: Program, verb: &str) -> usize {
        self.count("calls", program, verb)
    }

    /// How many calls of a verb have begun to hang.
    #[must_use]
    pub fn hung(&self, program: Program, verb: &str) -> usize {
        self.count("hung", program, verb)
    }

    /// Waits until that many calls of a verb have begun to hang.
    pub async fn wait_for_hung(&self, program: Program, verb: &str, count: usize) -> Result {
        let deadline = Instant::now() + patience(30);
        while self.hung(program, verb) < count {
            let hung = self.hung(program, verb);
            ensure!(Instant::now() < deadline, "{hung} of {count} calls of {verb} hang");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn count(&self, file: &str, program: Program, verb: &str) -> usize {
        let line = format!("{} {verb}", program.name());
        let text = fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
        text.lines().filter(|it| *it == line).count()
    }

    fn wrap(&self, wrapper: Program, real: &Path, verb: &str) -> Result {
        let flock = program("flock").context("flock (util-linux) is not on PATH")?;
        let text = SCRIPT
            .replace("@DIR@", &self.dir.path().display().to_string())
            .replace("@NAME@", wrapper.name())
            .replace("@VERB@", verb.trim())
            .replace("@FLOCK@", &flock.display().to_string())
            .replace("@REAL@", &real.display().to_string());
        let path = self.path_of(wrapper);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).context("making a wrapper executable")
    }

    fn path_of(&self, program: Program) -> PathBuf {
        match program {
            Program::Runtime => self.dir.path().join(program.name()),
            Program::Bridge | Program::Portmap => self.plugin_dir().join(program.name()),
        }
    }

    fn plugin_dir(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    fn faults(&self) -> PathBuf {
        self.dir.path().join("faults")
    }
}

/// A program that is not there for the time being.
#[derive(Debug)]
pub struct Hidden {
    path: PathBuf,
    away: PathBuf,
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Its directory may be gone by now, with the test.
        drop(fs::rename(&self.away, &self.path));
    }
}

/// Waits until the daemon's network mentions a text.
pub(crate) async fn network_is(node: &Node, text: &str) -> Result {
    let deadline = Instant::now() + patience(30);
    loop {
        let status = node.cri().status(crate::cri::StatusRequest { verbose: true }).await?;
        if status.info.values().any(|info| info.contains(text)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the daemon's network does not mention {text}: {:?}", status.info);
        sleep(Duration::from_millis(20)).await;
    }
}

/// The OCI runtime of this run, or the first one that is installed. Not every one that is installed works everywhere, and
/// runc does where crun does.
pub fn real_runtime() -> Result<PathBuf> {
    let asked_for = std::env::var("CRIMSON_E2E_RUNTIME").ok().filter(|name| !name.is_empty());
    let names = asked_for.map_or_else(|| vec!["runc".to_owned(), "crun".to_owned()], |name| vec![name]);
    names.iter().find_map(|name| program(name)).with_context(|| format!("none of {names:?} is on PATH"))
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).context("locking")?;
    Ok(file)
}

const SCRIPT: &str = r#"#!/bin/sh
dir=@DIR@
name=@NAME@
@VERB@
echo "$name $verb" >>"$dir/calls"

fault() {
    [ -e "$dir/faults/$1" ] || return 0
    read -r what <"$dir/faults/$1" || return 0
    case $what in
    fail)
        echo '{"cniVersion":"1.0.0","code":100,"msg":"told to fail"}'
        echo 'told to fail' >&2
        exit 1
        ;;
    die) kill -KILL $$ ;;
    hang)
        echo "$name $verb" >>"$dir/hung"
        @FLOCK@ -s "$dir/faults/${1%.*}.lock" true </dev/null
        ;;
    esac
}

fault "$name.$verb.before"
[ -e "$dir/faults/$name.$verb.after" ] || exec @REAL@ "$@"
@REAL@ "$@"
code=$?
fault "$name.$verb.after"
exit $code
"#;

const PLUGIN_VERB: &str = "verb=$CNI_COMMAND";

const RUNTIME_VERB: &str = r#"
verb=other
for word; do
    case $word in
    create | start | delete | kill | exec | state | update) verb=$word && break ;;
    esac
done
"#;
