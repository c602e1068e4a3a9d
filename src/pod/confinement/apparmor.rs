//! AppArmor: which profiles are loaded, and the loading of the default one.
//!
//! The kernel takes compiled profiles only, so loading runs `apparmor_parser`. Anyone may unload profiles
//! (`aa-remove-unknown` takes away all that no file in `/etc/apparmor.d` has), so it is looked up each time it is about to
//! be used. A load that failed is not tried again for a while, since it may take seconds.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use sys::pidfd::PidFd;
use sys::spawn::{Program, SpawnError};

use super::{ConfinementError, profile};

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where policy is, the versions of its language included.
const POLICY: &str = "/etc/apparmor.d";
/// The version of the language in which the default profile is written.
const ABI: &str = "abi/3.0";
/// Where the parser may be.
const PARSERS: &[&str] = &["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser"];
/// How long it may take: an emulated processor needs seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a failure counts.
const RETRY: Duration = Duration::from_secs(30);
/// The most that is kept of its complaints.
const COMPLAINT: u64 = 2048;
const SIGKILL: i32 = 9;

/// Why the default profile is not loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("apparmor_parser is not installed")]
    NoParser,
    #[error("apparmor_parser cannot be started")]
    Start(#[from] SpawnError),
    #[error("watching apparmor_parser")]
    Watch(#[from] io::Error),
    #[error("apparmor_parser did not end in time")]
    Late,
    #[error("apparmor_parser refused it: {0}")]
    Refused(String),
}

/// A kernel with AppArmor on.
#[derive(Debug)]
pub(super) struct AppArmor {
    profiles: PathBuf,
    parser: Option<PathBuf>,
    text: String,
    /// The last failure; held while loading, so that one load serves all who wait.
    failed: Mutex<Option<(Instant, String)>>,
}

impl AppArmor {
    /// None where AppArmor is off.
    pub(super) fn find() -> Option<Self> {
        let is_on = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'));
        let there = |path: &Path| path.try_exists().unwrap_or(false);
        is_on.then(|| Self {
            profiles: PathBuf::from(PROFILES),
            parser: PARSERS.iter().map(PathBuf::from).find(|path| there(path)),
            text: profile::text(
                own_label().as_deref(),
                Some(ABI).filter(|abi| there(&Path::new(POLICY).join(abi))),
            ),
            failed: Mutex::default(),
        })
    }

    /// Whether a profile of this name is loaded.
    pub(super) fn has_profile(&self, name: &str) -> Result<bool, ConfinementError> {
        let loaded = std::fs::read_to_string(&self.profiles).map_err(ConfinementError::Profiles)?;
        Ok(names(&loaded).any(|known| known == name))
    }

    /// The default profile, which is loaded if it is not there.
    pub(super) fn default_profile(&self) -> Result<String, ConfinementError> {
        if self.has_profile(profile::NAME).unwrap_or(false) {
            return Ok(profile::NAME.to_owned());
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, reason)) = &*failed
            && when.elapsed() < RETRY
        {
            return Err(ConfinementError::NoDefault(reason.clone()));
        }
        // Whoever waited for the lock finds what its holder has loaded.
        if self.has_profile(profile::NAME).unwrap_or(false) {
            return Ok(profile::NAME.to_owned());
        }
        let outcome = self.load();
        *failed = outcome.as_ref().err().map(|error| (Instant::now(), types::error::chain(error)));
        match &*failed {
            Some((_, reason)) => Err(ConfinementError::NoDefault(reason.clone())),
            None => Ok(profile::NAME.to_owned()),
        }
    }

    /// Loads the default profile over whatever has its name.
    pub(super) fn load_anew(&self) -> Result<String, ConfinementError> {
        let outcome = {
            let _held = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            self.load()
        };
        match outcome {
            Ok(()) => Ok(profile::NAME.to_owned()),
            // An earlier server's may be there, and is better than none.
            Err(error) => self.default_profile().inspect(|_| {
                let error = types::error::chain(&error);
                tracing::warn!(error, "the default AppArmor profile of an earlier server stays in use");
            }),
        }
    }

    /// Has the parser compile the profile and give it to the kernel, past its cache, replacing one of the same name.
    fn load(&self) -> Result<(), LoadError> {
        let parser = self.parser.as_deref().ok_or(LoadError::NoParser)?;
        let mut text = memory_file()?;
        text.write_all(self.text.as_bytes())?;
        text.rewind()?;
        let mut complaints = memory_file()?;
        let program = Program::new(parser, Path::new("/"))
            .args(["--skip-cache", "--replace"])
            .inherit_env(["PATH"])
            .stdin(text.into())
            .stdout(complaints.try_clone()?.into())
            .stderr(complaints.try_clone()?.into())
            .own_process_group();
        let mut child = program.start()?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let ended = PidFd::open(pid).and_then(|child| child.wait_ended(Some(LIMIT)));
        if !matches!(ended, Ok(true)) {
            sys::process::kill_group(pid, SIGKILL)?;
        }
        let status = child.wait()?;
        if !ended? {
            return Err(LoadError::Late);
        }
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        complaints.rewind()?;
        complaints.take(COMPLAINT).read_to_string(&mut said).ok();
        Err(LoadError::Refused(said.split_whitespace().collect::<Vec<_>>().join(" ")))
    }
}

/// The names in the kernel's list, each of whose lines is `NAME (MODE)`.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name))
}

/// The label of this process, unless it is unconfined or could not be written into a profile.
fn own_label() -> Option<String> {
    let read = |path| std::fs::read_to_string(path).ok();
    let label = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"))?;
    let label = label.trim();
    let name = label.rsplit_once(" (").map_or(label, |(name, _)| name);
    let fits = !name.contains(['"', '\\', '\n', '\0']) && !name.is_empty() && name != "unconfined";
    fits.then(|| name.to_owned())
}

fn memory_file() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("apparmor", MemfdFlags::CLOEXEC)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel whose list is a file, and whose parser is this script, which finds the file beside it.
    fn host(script: &str) -> (tempfile::TempDir, AppArmor) {
        let dir = tempfile::tempdir().unwrap();
        let profiles = dir.path().join("profiles");
        std::fs::write(&profiles, "docker-default (enforce)\n/usr/bin/man (complain)\n").unwrap();
        let parser = dir.path().join("parser");
        let script = format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display());
        // By a process of its own: what another test starts meanwhile would hold a file of ours open for writing, and it could not
        // be run.
        let written = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
            .args([parser.as_os_str(), script.as_ref()])
            .status();
        assert!(written.unwrap().success());
        let text = profile::text(None, None);
        (dir, AppArmor { profiles, parser: Some(parser), text, failed: Mutex::default() })
    }

    const LOADS: &str =
        "echo run >>runs; cat >text; echo \"$@\" >args; echo 'crimson-default (enforce)' >>profiles";

    fn runs(dir: &tempfile::TempDir) -> usize {
        std::fs::read_to_string(dir.path().join("runs")).map_or(0, |runs| runs.lines().count())
    }

    #[test]
    fn names_are_taken_whole() {
        let (_dir, apparmor) = host("");
        for name in ["docker-default", "/usr/bin/man"] {
            assert!(apparmor.has_profile(name).unwrap(), "{name}");
        }
        for name in ["docker", "docker-default (enforce)", "default", ""] {
            assert!(!apparmor.has_profile(name).unwrap(), "{name:?}");
        }
    }

    #[test]
    fn the_default_is_loaded_once_and_again_when_it_has_gone() {
        let (dir, apparmor) = host(LOADS);
        assert_eq!(apparmor.default_profile().unwrap(), profile::NAME);
        assert_eq!(apparmor.default_profile().unwrap(), profile::NAME);
        assert_eq!(runs(&dir), 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("text")).unwrap(), apparmor.text);
        assert_eq!(std::fs::read_to_string(dir.path().join("args")).unwrap(), "--skip-cache --replace\n");
        std::fs::write(&apparmor.profiles, "").unwrap();
        assert_eq!(apparmor.default_profile().unwrap(), profile::NAME);
        assert_eq!(runs(&dir), 2);
    }

    #[test]
    fn a_start_replaces_what_is_there() {
        let (dir, apparmor) = host(LOADS);
        std::fs::write(&apparmor.profiles, "crimson-default (enforce)\n").unwrap();
        assert_eq!(apparmor.load_anew().unwrap(), profile::NAME);
        assert_eq!(runs(&dir), 1);
    }

    #[test]
    fn a_failure_says_why_and_is_not_repeated_at_once() {
        let (dir, apparmor) = host("echo run >>runs; echo 'syntax error,' >&2; echo 'line 3' >&2; exit 1");
        for _ in 0..2 {
            let error = apparmor.default_profile().unwrap_err().to_string();
            assert!(error.ends_with("apparmor_parser refused it: syntax error, line 3"), "{error}");
        }
        assert_eq!(runs(&dir), 1);
    }

    #[test]
    fn without_a_parser_an_earlier_servers_profile_serves() {
        let (_dir, mut apparmor) = host("");
        apparmor.parser = None;
        let error = apparmor.load_anew().unwrap_err().to_string();
        assert!(error.contains("not installed"), "{error}");
        std::fs::write(&apparmor.profiles, "crimson-default (enforce)\n").unwrap();
        assert_eq!(apparmor.load_anew().unwrap(), profile::NAME);
    }
}
