//! A cgroup for each exec, beneath its container's own, so that everything that an exec starts can be told from the container's
//! other processes: a child that has left its session and lost its parent is its pid namespace's, not ours, and no walk
//! through parents finds it.
//!
//! * **v2**: the child cgroup enables no controller, so the rule against processes beside child cgroups does not apply, and
//!   limits and counts stay those of the container. `cgroup.kill` ends it.
//! * **v1**: only the freezer's hierarchy (or that of pids) has the child; the others, limits among them, are the
//!   container's. What is frozen does not fork while it is being killed.
//!
//! When an exec ends by itself, what it leaves is the container's: it moves up and the cgroup goes.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use types::ExecId;

use crate::cgroup::all_members;

const SIGKILL: i32 = 9;
/// Looks at the members of a cgroup before it is given up for the moment: new ones may come as fast as we look.
const PASSES: usize = 8;

/// Where the cgroups of a container's execs are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The container's cgroup.
    pub(crate) dir: PathBuf,
    /// Which hierarchy that is; none where there is only one.
    pub(crate) controller: Option<&'static str>,
}

/// The cgroup of one exec. It is removed, if it is empty, when this is dropped.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    place: Place,
}

impl Group {
    /// Makes one; `None` where that is not possible, and the exec has to do without.
    pub(crate) fn make(place: &Place, exec: &ExecId) -> Option<Self> {
        let dir = place.dir.join(format!("crimson-exec-{}", exec.short()));
        fs::create_dir(&dir).ok()?;
        Some(Self { dir, place: place.clone() })
    }

    /// What the OCI runtime calls it, after `--cgroup`.
    pub(crate) fn argument(&self) -> OsString {
        let name = self.dir.file_name().unwrap_or_default();
        let mut argument = OsString::new();
        if let Some(controller) = self.place.controller {
            argument.push(controller);
            argument.push(":");
        }
        argument.push("/");
        argument.push(name);
        argument
    }

    /// Kills everything in it. Returns whether something may be left: call again later.
    pub(crate) fn kill(&self) -> bool {
        if all_members(&self.dir).is_empty() {
            return false;
        }
        if fs::write(self.dir.join("cgroup.kill"), "1").is_err() {
            self.kill_one_by_one();
        }
        true
    }

    fn kill_one_by_one(&self) {
        let freezer = self.dir.join("freezer.state");
        // Without a freezer the passes have to do.
        fs::write(&freezer, "FROZEN").ok();
        let mut killed = Vec::new();
        for _ in 0..PASSES {
            let fresh: Vec<i32> =
                all_members(&self.dir).into_iter().filter(|pid| !killed.contains(pid)).collect();
            if fresh.is_empty() {
                break;
            }
            // One that has ended meanwhile needs no signal.
            fresh.iter().for_each(|pid| drop(sys::process::kill(*pid, SIGKILL)));
            killed.extend(fresh);
        }
        fs::write(&freezer, "THAWED").ok();
    }

    /// Gives what still runs in it to the container and removes it. Returns whether it is gone.
    pub(crate) fn release(&self) -> bool {
        let home = self.place.dir.join("cgroup.procs");
        for _ in 0..PASSES {
            if self.remove() {
                return true;
            }
            // Where that is refused, a container that has limits below its own cgroup for one, it stays as it is.
            all_members(&self.dir).iter().for_each(|pid| drop(fs::write(&home, pid.to_string())));
        }
        self.remove()
    }

    fn remove(&self) -> bool {
        match fs::remove_dir(&self.dir) {
            Ok(()) => true,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// Whether it belongs beneath this directory.
    pub(crate) fn is_of(&self, place: Option<&Place>) -> bool {
        place.is_some_and(|place| place.dir == self.place.dir)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Whether a runtime's help for `exec` names the option, for one hierarchy of several where there are several: crun takes all
/// that it is given for a path then, and makes it in each of them.
pub(crate) fn is_offered(help: &[u8], place: &Place) -> bool {
    let names = |text: &str| help.windows(text.len()).any(|window| window == text.as_bytes());
    names(OPTION) && (place.controller.is_none() || names(ONE_HIERARCHY))
}

/// How runc's help says that the option takes a controller.
const ONE_HIERARCHY: &str = "<controller>:";

/// The option that names the cgroup.
pub(crate) const OPTION: &str = "--cgroup";

/// The place in a container's cgroups, given as controllers and directory, the directory holding nothing but the init.
pub(crate) fn place(dirs: &[(&str, &Path)]) -> Option<Place> {
    let of = |controller: &'static str| {
        let (_, dir) = dirs.iter().find(|(names, _)| names.split(',').any(|name| name == controller))?;
        Some(Place { dir: (*dir).to_owned(), controller: Some(controller) })
    };
    let only_unified = || {
        let has_controllers = |(names, _): &&(&str, &Path)| !names.is_empty() && !names.starts_with("name=");
        if dirs.iter().any(|dir| has_controllers(&dir)) {
            return None;
        }
        let (_, dir) = dirs.iter().find(|(names, _)| names.is_empty())?;
        Some(Place { dir: (*dir).to_owned(), controller: None })
    };
    of("freezer").or_else(|| of("pids")).or_else(only_unified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_one_that_limits_nothing() {
        let (unified, freezer, pids) = (Path::new("/u"), Path::new("/f"), Path::new("/p"));
        let memory = Path::new("/m");
        let told = |dirs: &[(&str, &Path)]| place(dirs).map(|place| (place.dir, place.controller));
        assert_eq!(told(&[("", unified)]), Some(("/u".into(), None)));
        assert_eq!(told(&[("", unified), ("name=systemd", memory)]), Some(("/u".into(), None)));
        assert_eq!(
            told(&[("", unified), ("pids", pids), ("freezer", freezer)]),
            Some(("/f".into(), Some("freezer")))
        );
        assert_eq!(told(&[("", unified), ("memory", memory)]), None);
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn the_runtime_is_told_the_way_from_the_containers_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let exec = ExecId::from_random([7; 32]);
        let place = Place { dir: dir.path().to_owned(), controller: Some("freezer") };
        let group = Group::make(&place, &exec).unwrap();
        let name = format!("crimson-exec-{}", exec.short());
        assert_eq!(group.argument(), OsString::from(format!("freezer:/{name}")));
        assert!(Group::make(&place, &exec).is_none(), "an id is used once");
        assert!(group.is_of(Some(&place)) && !group.is_of(None));
        assert!(!group.kill());
        assert!(group.release() && group.release());
        let unified = Place { controller: None, ..place };
        assert_eq!(Group::make(&unified, &exec).unwrap().argument(), OsString::from(format!("/{name}")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "dropped, removed");
    }

    #[test]
    fn the_option_is_found_where_it_does_what_is_needed() {
        let unified = Place { dir: "/u".into(), controller: None };
        let freezer = Place { dir: "/f".into(), controller: Some("freezer") };
        let runc = b"--cgroup value  run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>.";
        let crun = b"      --cgroup=PATH          sub-cgroup in the container";
        assert!(is_offered(runc, &unified) && is_offered(runc, &freezer));
        assert!(is_offered(crun, &unified) && !is_offered(crun, &freezer));
        assert!(!is_offered(b"   --cwd value  current working directory", &unified));
    }
}
